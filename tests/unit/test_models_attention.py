"""Attention of our own against the plain formula, and the rules under which a model is asked with it."""

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


def by_hand(query, key, value, scale, softcap=None, seen=None):
    """Softmax(scale q k) v in double precision, a head at a time."""
    group = query.shape[2] // key.shape[2]
    out = torch.zeros_like(query, dtype=torch.float64)
    for h in range(query.shape[2]):
        q, k, v = query[:, :, h].double(), key[:, :, h // group].double(), value[:, :, h // group].double()
        logits = q @ k.transpose(1, 2) * scale
        logits = logits if softcap is None else softcap * torch.tanh(logits / softcap)
        logits = logits if seen is None else logits.masked_fill(~seen, -torch.inf)
        out[:, :, h] = logits.softmax(-1) @ v
    return out


def drawn(queries, keys, heads=4, shared=2):
    rng = torch.Generator().manual_seed(queries)
    return (
        torch.randn(3, queries, heads, 8, generator=rng),
        *(torch.randn(3, keys, shared, 8, generator=rng) for _ in range(2)),
    )


@pytest.mark.parametrize("softcap", [None, 0.7])
@pytest.mark.parametrize(
    ("queries", "keys", "window"), [(5, 5, None), (5, 5, 2), (2, 7, None), (2, 7, 3), (1, 6, 4), (5, 5, 9)]
)
def test_causal_queries_stand_at_the_last_keys(queries, keys, window, softcap):
    q, k, v = drawn(queries, keys)
    gap = torch.arange(keys - queries, keys)[:, None] - torch.arange(keys)
    seen = (gap >= 0) & (gap < (window or keys))
    ours = dot_product_attention(q, k, v, scale=0.3, softcap=softcap, window=window, is_causal=True)
    assert torch.allclose(ours.double(), by_hand(q, k, v, 0.3, softcap, seen[None]), atol=1e-6)


@pytest.mark.parametrize("softcap", [None, 0.7])
def test_a_mask_is_one_for_all_rows_or_one_a_row(softcap):
    q, k, v = drawn(4, 6)
    seen = torch.rand(3, 4, 6, generator=torch.Generator().manual_seed(0)) > 0.4
    seen[..., 0] = True
    for mask in (seen, seen[:1]):
        ours = dot_product_attention(q, k, v, scale=0.3, softcap=softcap, attn_mask=mask)
        assert torch.allclose(ours.double(), by_hand(q, k, v, 0.3, softcap, mask), atol=1e-6)


def test_the_model_keeps_its_own_attention_outside_and_after_an_error():
    model = tiny_model("llama", VOCAB)
    own = model.config._attn_implementation
    within = []

    def fail(query, key, value, rule):
        within.append(model.config._attn_implementation)
        raise RuntimeError("inside")

    with pytest.raises(RuntimeError, match="inside"), use_custom_attention(model, fail):
        model(torch.tensor([[2, 3]]))
    assert within != [own]
    assert model.config._attn_implementation == own


def test_an_unknown_family_is_read_padded(monkeypatch):
    model = tiny_model("llama", VOCAB, initial=0.3)
    tokens, attend_, _ = rows()
    known = flat_hidden_states(model, tokens, attend_)
    monkeypatch.setattr("paretune.models.forward.attention.FAMILIES", frozenset({"gpt2"}))
    assert not supports_packing(model)
    with (
        pytest.raises(WiringError, match="family llama"),
        use_custom_attention(model, lambda q, k, v, rule: q),
    ):
        pass
    plain = flat_hidden_states(model, tokens, attend_)
    assert len(plain.flat) == tokens.numel()
    assert torch.allclose(plain.flat[plain.index[attend_]], known.flat[known.index[attend_]], atol=1e-5)


@pytest.mark.parametrize("odd", ["reorder_and_upcast_attn", "add_cross_attention"])
def test_a_variant_of_a_family_that_attends_otherwise_is_read_padded(odd):
    assert not supports_custom_attention(random_model(tiny_config("gpt2", VOCAB, **{odd: True})))
    assert not supports_custom_attention(torch.nn.Linear(2, 2))


def test_dropout_is_refused_where_a_prompt_is_computed_once():
    model = random_model(tiny_config("gpt2", VOCAB, attn_pdrop=0.5)).train()
    tokens, attend_, _ = rows()
    with pytest.raises(WiringError, match="dropout"):
        flat_hidden_states(model, tokens, attend_)


@torch.no_grad()
def test_half_precision_is_packed_without_loss():
    model = tiny_model("llama", VOCAB, initial=0.3)
    tokens, attend_, _ = rows()
    exact = hidden_states(model, tokens, attend_)[attend_]
    half = tiny_model("llama", VOCAB, initial=0.3).bfloat16()
    packed = flat_hidden_states(half, tokens, attend_)
    assert packed.flat.dtype == torch.bfloat16
    padded = hidden_states(half, tokens, attend_)[attend_]
    error = float((padded.float() - exact).norm())
    assert float((packed.flat[packed.index[attend_]].float() - exact).norm()) <= 1.1 * error


def test_padding_reads_the_last_real_token_before_it():
    tokens, attend_ = torch.tensor([[4, 5, 0, 6]]), torch.tensor([[True, True, False, True]])
    packed = pack_rows(tokens, attend_)
    assert packed.input_ids.tolist() == [[4, 5, 6]]
    assert packed.index.tolist() == [[0, 1, 1, 2]]
