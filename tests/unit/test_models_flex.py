"""Attention by `flex_attention` against that of rectangles: outputs, gradients, blocks of the mask."""

import numpy as np
import pytest
import torch

import paretune.models.forward.packing as packing
from paretune.models.forward.attention import AttentionParams
from paretune.models.forward.flex import BLOCK_SIZE, KeyRanges, block_mask_of, is_flex_device
from paretune.models.forward.packing import pack_rows, round_up_packed
from support.tiny_models import tiny_model
from tinyrows import VOCAB, rows

LAYOUTS = {
    "rows alone": [(0, 5), (0, 1), (0, 9)],
    "one prompt": [(6, 3), (6, 0), (6, 7)],
    "two prompts and rows alone": [(6, 3), (6, 4), (11, 2), (11, 9), (0, 8), (0, 1)],
}


@pytest.fixture
def flex_on_cpu(monkeypatch: pytest.MonkeyPatch):
    """The uncompiled function; torch refuses its gradients on a CPU, though the formula has them."""
    import torch.nn.attention.flex_attention as flex

    monkeypatch.setattr(flex, "_validate_device", lambda query, key, value: None)
    monkeypatch.setattr(flex, "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG", True)


def packed_rows(layout, num_filler=0):
    """Rows of (prompt, response) lengths; rows with equal prompt lengths share a prompt."""
    rng = torch.Generator().manual_seed(1)
    prompts = {n: torch.randint(2, VOCAB, (n,), generator=rng) for n in {n for n, _ in layout}}
    texts = [torch.cat([prompts[n], torch.randint(2, VOCAB, (m,), generator=rng)]) for n, m in layout]
    width = max(map(len, texts))
    ids, mask = torch.zeros(len(texts), width, dtype=torch.long), torch.zeros(len(texts), width).bool()
    for i, text in enumerate(texts):
        ids[i, : len(text)], mask[i, : len(text)] = text, True
    return pack_rows(ids, mask, round_up_length=lambda n: n + num_filler)


@pytest.mark.parametrize(
    ("layout", "window", "softcap", "key_heads", "num_filler"),
    [
        ("rows alone", None, None, 4, 0),
        ("rows alone", 4, 2.0, 2, 5),
        ("one prompt", None, 0.7, 4, 5),
        ("one prompt", 1, None, 2, 0),
        ("two prompts and rows alone", None, None, 2, 5),
        ("two prompts and rows alone", 4, None, 4, 0),
        ("two prompts and rows alone", 7, 0.7, 1, 0),
    ],
)
def test_same_outputs_and_gradients(layout, window, softcap, key_heads, num_filler, flex_on_cpu):
    packed = packed_rows(LAYOUTS[layout], num_filler)
    n, rng = packed.input_ids.shape[1], torch.Generator().manual_seed(2)
    inputs = [
        torch.randn(1, n, heads, 8, generator=rng, requires_grad=True) for heads in (4, key_heads, key_heads)
    ]
    weight = torch.randn(1, n, 4, 8, generator=rng)
    params = AttentionParams(0, 0.3, softcap, window)
    results = []
    for attention in (packed.layout, packed.layout.flex):
        out = attention(*inputs, params)
        results.append([out, *torch.autograd.grad((out * weight).sum(), inputs)])
    for rectangles, flex in zip(*results, strict=True):
        assert torch.allclose(flex, rectangles, atol=1e-5)


def test_layers_share_masks_and_wide_windows_are_none(flex_on_cpu):
    packed = packed_rows(LAYOUTS["one prompt"])
    x = torch.randn(1, packed.input_ids.shape[1], 2, 8)
    for window in (None, 4, 4, 13, 100):  # the longest row has 13 tokens
        packed.layout.flex(x, x, x, AttentionParams(0, 1.0, None, window))
    assert set(packed.layout.flex.mask_cache) == {None, 4}


@pytest.mark.parametrize("window", [None, 1, 90, 128, 300])
@pytest.mark.parametrize(
    "segments",
    [
        [(500, 0, 0)],
        [(256, 0, 0), (130, 0, 256), (126, 0, 256), (128, 0, 256), (7, 0, 0)],
        [(70, 0, 0), (300, 0, 0), (40, 0, 70), (1, 70, 300), (200, 70, 300), (290, 70, 300)],
    ],
    ids=["one row", "whole blocks", "ragged"],
)
def test_blocks_cover_exactly_the_visible_pairs(segments, window):
    """Kernels read the blocks; the function that a CPU runs reads the mask alone."""
    ranges = KeyRanges.of_segments(np.array(segments), window)
    n = len(ranges.segment)
    visible = np.zeros((n, n), bool)
    start = 0
    for length, prefix_start, prefix_length in segments:
        for i in range(length):
            keys = [*range(prefix_start, prefix_start + prefix_length), *range(start, start + i + 1)]
            visible[start + i, keys if window is None else keys[-window:]] = True
        start += length
    mask, zero = block_mask_of(ranges, torch.device("cpu")), torch.zeros(())
    query, key = torch.meshgrid(torch.arange(n), torch.arange(n), indexing="ij")
    assert (mask.mask_mod(zero, zero, query, key).numpy() == visible).all()
    num_blocks = -(-n // BLOCK_SIZE)
    padded = np.zeros((num_blocks * BLOCK_SIZE,) * 2, bool)
    padded[:n, :n] = visible
    counts = padded.reshape(num_blocks, BLOCK_SIZE, num_blocks, BLOCK_SIZE).sum((1, 3))
    partial, full = (
        {(q, int(k)) for q in range(num_blocks) for k in indices[0, 0, q, : sizes[0, 0, q]]}
        for sizes, indices in (
            (mask.kv_num_blocks, mask.kv_indices),
            (mask.full_kv_num_blocks, mask.full_kv_indices),
        )
    )
    assert full == {tuple(x) for x in np.argwhere(counts == BLOCK_SIZE**2).tolist()}
    assert partial == {tuple(x) for x in np.argwhere((counts > 0) & (counts < BLOCK_SIZE**2)).tolist()}


def test_cuda_alone_uses_it(monkeypatch: pytest.MonkeyPatch):
    assert not is_flex_device("cpu")
    calls = []
    packed = packed_rows(LAYOUTS["one prompt"])
    monkeypatch.setattr(type(packed.layout.flex), "__call__", lambda *args: calls.append(args) or args[1])
    narrow, wide = (torch.randn(1, packed.input_ids.shape[1], 2, width) for width in (8, 16))
    params = AttentionParams(0, 1.0)
    packed.layout(wide, wide, wide, params)
    assert not calls
    monkeypatch.setattr(packing, "is_flex_device", lambda device_type: True)
    packed.layout(narrow, narrow, narrow, params)
    assert not calls, "its kernels have no heads that narrow"
    packed.layout(wide, wide, wide, params)
    assert len(calls) == 1
    assert round_up_packed(300, narrow) == 384


def test_a_model_gives_the_same_hidden_states(monkeypatch: pytest.MonkeyPatch, flex_on_cpu):
    from paretune.models.forward.logprobs import flat_hidden_states

    model = tiny_model("qwen2", VOCAB, initial=0.3)
    input_ids, attention_mask, _ = rows()
    with torch.no_grad():
        plain = flat_hidden_states(model, input_ids, attention_mask)
        monkeypatch.setattr(packing, "is_flex_device", lambda device_type: True)
        monkeypatch.setattr(packing, "MIN_HEAD_DIM", 1)
        flex = flat_hidden_states(model, input_ids, attention_mask)
    assert len(flex.flat) % BLOCK_SIZE == 0
    real = [states.flat[states.index[attention_mask]] for states in (plain, flex)]
    assert torch.allclose(*real, atol=1e-5)
