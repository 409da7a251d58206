"""Custom attention against the plain formula, and the models for which it is used."""

import pytest
import torch

from paretune.core.errors import WiringError
from paretune.models.forward.attention import (
    dot_product_attention,
    supports_custom_attention,
    use_custom_attention,
)
from paretune.models.forward.logprobs import flat_hidden_states, hidden_states, supports_packing
from paretune.models.forward.packing import pack_rows
from support.tiny_models import random_model, tiny_config, tiny_model
from tinyrows import VOCAB, rows


def plain_attention(query, key, value, scale, softcap=None, visible=None):
    """Softmax(scale q k) v in double precision, head by head."""
    group = query.shape[2] // key.shape[2]
    out = torch.zeros_like(query, dtype=torch.float64)
    for h in range(query.shape[2]):
        q, k, v = query[:, :, h].double(), key[:, :, h // group].double(), value[:, :, h // group].double()
        logits = q @ k.transpose(1, 2) * scale
        logits = logits if softcap is None else softcap * torch.tanh(logits / softcap)
        logits = logits if visible is None else logits.masked_fill(~visible, -torch.inf)
        out[:, :, h] = logits.softmax(-1) @ v
    return out


def random_qkv(queries, keys, heads=4, key_heads=2):
    rng = torch.Generator().manual_seed(queries)
    return (
        torch.randn(3, queries, heads, 8, generator=rng),
        *(torch.randn(3, keys, key_heads, 8, generator=rng) for _ in range(2)),
    )


@pytest.mark.parametrize("softcap", [None, 0.7])
@pytest.mark.parametrize(
    ("queries", "keys", "window"), [(5, 5, None), (5, 5, 2), (2, 7, None), (2, 7, 3), (1, 6, 4), (5, 5, 9)]
)
def test_causal_queries_are_aligned_to_the_last_keys(queries, keys, window, softcap):
    q, k, v = random_qkv(queries, keys)
    distance = torch.arange(keys - queries, keys)[:, None] - torch.arange(keys)
    visible = (distance >= 0) & (distance < (window or keys))
    ours = dot_product_attention(q, k, v, scale=0.3, softcap=softcap, window=window, is_causal=True)
    assert torch.allclose(ours.double(), plain_attention(q, k, v, 0.3, softcap, visible[None]), atol=1e-6)


@pytest.mark.parametrize("softcap", [None, 0.7])
def test_a_mask_can_be_shared_or_per_row(softcap):
    q, k, v = random_qkv(4, 6)
    visible = torch.rand(3, 4, 6, generator=torch.Generator().manual_seed(0)) > 0.4
    visible[..., 0] = True
    for mask in (visible, visible[:1]):
        ours = dot_product_attention(q, k, v, scale=0.3, softcap=softcap, attn_mask=mask)
        assert torch.allclose(ours.double(), plain_attention(q, k, v, 0.3, softcap, mask), atol=1e-6)


def test_the_models_own_attention_is_restored_after_an_error():
    model = tiny_model("llama", VOCAB)
    original = model.config._attn_implementation
    within = []

    def fail(query, key, value, params):
        within.append(model.config._attn_implementation)
        raise RuntimeError("inside")

    with pytest.raises(RuntimeError, match="inside"), use_custom_attention(model, fail):
        model(torch.tensor([[2, 3]]))
    assert within != [original]
    assert model.config._attn_implementation == original


def test_unsupported_families_use_padded_rows(monkeypatch):
    model = tiny_model("llama", VOCAB, initial=0.3)
    input_ids, attention_mask, _ = rows()
    packed = flat_hidden_states(model, input_ids, attention_mask)
    monkeypatch.setattr("paretune.models.forward.attention.SUPPORTED_MODEL_TYPES", frozenset({"gpt2"}))
    assert not supports_packing(model)
    with (
        pytest.raises(WiringError, match="family llama"),
        use_custom_attention(model, lambda q, k, v, params: q),
    ):
        pass
    padded = flat_hidden_states(model, input_ids, attention_mask)
    assert len(padded.flat) == input_ids.numel()
    assert torch.allclose(
        padded.flat[padded.index[attention_mask]], packed.flat[packed.index[attention_mask]], atol=1e-5
    )


@pytest.mark.parametrize("option", ["reorder_and_upcast_attn", "add_cross_attention"])
def test_attention_variants_of_supported_families_are_unsupported(option):
    assert not supports_custom_attention(random_model(tiny_config("gpt2", VOCAB, **{option: True})))
    assert not supports_custom_attention(torch.nn.Linear(2, 2))


def test_dropout_is_an_error_with_packed_rows():
    model = random_model(tiny_config("gpt2", VOCAB, attn_pdrop=0.5)).train()
    input_ids, attention_mask, _ = rows()
    with pytest.raises(WiringError, match="dropout"):
        flat_hidden_states(model, input_ids, attention_mask)


@torch.no_grad()
def test_packing_in_half_precision_is_as_exact_as_padding():
    model = tiny_model("llama", VOCAB, initial=0.3)
    input_ids, attention_mask, _ = rows()
    exact = hidden_states(model, input_ids, attention_mask)[attention_mask]
    half = tiny_model("llama", VOCAB, initial=0.3).bfloat16()
    packed = flat_hidden_states(half, input_ids, attention_mask)
    assert packed.flat.dtype == torch.bfloat16
    padded = hidden_states(half, input_ids, attention_mask)[attention_mask]
    error = float((padded.float() - exact).norm())
    assert float((packed.flat[packed.index[attention_mask]].float() - exact).norm()) <= 1.1 * error


def test_index_of_padding_is_that_of_the_last_real_token_before():
    input_ids, attention_mask = torch.tensor([[4, 5, 0, 6]]), torch.tensor([[True, True, False, True]])
    packed = pack_rows(input_ids, attention_mask)
    assert packed.input_ids.tolist() == [[4, 5, 6]]
    assert packed.index.tolist() == [[0, 1, 1, 2]]
