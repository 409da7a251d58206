"""Our log-probabilities against the models' own logits, whatever the family, padding, chunk or precision."""

import math

import pytest
import torch
from transformers import AutoModelForCausalLM, CohereConfig, Gemma2Config, GraniteConfig

from paretune.core.errors import WiringError
from paretune.models.forward.lm_head import LmHead, lm_head_of
from paretune.models.forward.logprobs import (
    check_lm_head,
    compute_logprobs,
    compute_outputs,
    flat_hidden_states,
)
from support.tiny_models import KINDS, random_model, tiny_model
from tinyrows import SMALL as TWO_LAYERS
from tinyrows import VOCAB, batch_of, rows


def by_hand(model, row, t, temperature=1.0):
    """log p(row[t] | row[:t]) from the model's own logits on the unpadded beginning of the row."""
    with torch.no_grad():
        logits = model(input_ids=row[None, :t]).logits[0, -1].double() / temperature
    return float(logits.log_softmax(-1)[row[t]])


@pytest.mark.parametrize("kind", KINDS)
def test_equals_the_models_own_logits_token_by_token(kind):
    model = tiny_model(kind, VOCAB, initial=0.3)
    tokens, attend, where = rows()
    ours = compute_logprobs(model, tokens, attend, where, temperature=0.7)
    for b in range(len(tokens)):
        for t in range(tokens.shape[1]):
            expected = by_hand(model, tokens[b], t, 0.7) if where[b, t] else 0.0
            assert float(ours[b, t].detach()) == pytest.approx(expected, abs=1e-5)


def test_the_first_token_of_a_row_has_no_log_probability():
    model = tiny_model("llama", VOCAB, initial=0.3)
    tokens, attend, _ = rows()
    ours = compute_logprobs(model, tokens, attend, attend)
    assert (ours[:, 0] == 0).all()
    assert (ours[:, 1:][attend[:, 1:]] < 0).all()
    assert (ours[~attend] == 0).all()


@pytest.mark.parametrize("chunk", [1, 3, 7, 100])
def test_the_chunk_changes_neither_values_nor_gradients(chunk):
    tokens, attend, where = rows()

    def value_and_gradient(chunk):
        model = tiny_model("qwen2", VOCAB, initial=0.3).double()
        logp = compute_logprobs(model, tokens, attend, where, chunk_size=chunk)
        logp.sum().backward()
        return logp.detach(), [p.grad for p in model.parameters()]

    logp, gradient = value_and_gradient(chunk)
    logp_whole, gradient_whole = value_and_gradient(10_000)
    assert torch.allclose(logp, logp_whole, rtol=1e-12, atol=1e-12)
    for ours, whole in zip(gradient, gradient_whole, strict=True):
        assert torch.allclose(ours, whole, rtol=1e-9, atol=1e-12)


def test_the_gradient_is_that_of_the_plain_computation():
    tokens, attend, where = rows()
    ours, plain = (tiny_model("llama", VOCAB, initial=0.3).double() for _ in range(2))
    compute_logprobs(ours, tokens, attend, where, chunk_size=2).sum().backward()
    logits = plain(input_ids=tokens, attention_mask=attend.long()).logits
    logp = logits[:, :-1].log_softmax(-1).gather(-1, tokens[:, 1:, None]).squeeze(-1)
    (logp * where[:, 1:]).sum().backward()
    for a, b in zip(ours.parameters(), plain.parameters(), strict=True):
        assert torch.allclose(a.grad, b.grad, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("kept", [0, 10**6])
def test_the_logits_of_all_tokens_never_exist(monkeypatch, kept):
    sizes, logits = [], LmHead.logits
    monkeypatch.setattr(LmHead, "logits", lambda self, x: sizes.append(len(x)) or logits(self, x))
    monkeypatch.setattr("paretune.models.forward.lm_head.KEPT", kept)
    tokens, attend, where = rows()
    compute_logprobs(tiny_model("llama", VOCAB), tokens, attend, where, chunk_size=4).sum().backward()
    assert max(sizes) == 4
    passes = 1 if kept else 2  # once forward; once again on the way back, where nothing was kept
    assert sum(sizes) == passes * int(where.sum())


def test_nothing_asked_gives_zeros_that_can_be_differentiated():
    model = tiny_model("llama", VOCAB)
    tokens, attend, where = rows()
    out = compute_logprobs(model, tokens, attend, torch.zeros_like(where))
    out.sum().backward()
    assert (out == 0).all()


def test_entropy_of_a_uniform_head_and_divergence_from_itself():
    model = tiny_model("llama", VOCAB, initial=0.3)
    batch = batch_of(*rows())
    out = compute_outputs(
        model, batch, frozenset({"entropy", "kl_reference_policy"}), references={"reference": model}
    )
    assert out.entropy is not None
    assert out.ref_policy_kl is not None
    assert (out.entropy[batch.response_mask] > 0).all()
    assert (out.entropy[~batch.response_mask] == 0).all()
    assert float(out.ref_policy_kl.abs().max().detach()) < 1e-6
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()
    flat = compute_outputs(model, batch, frozenset({"entropy"}))
    assert flat.entropy is not None
    assert torch.allclose(flat.entropy[batch.response_mask], torch.tensor(math.log(VOCAB)), atol=1e-6)
    assert torch.allclose(flat.logprobs[batch.response_mask], torch.tensor(-math.log(VOCAB)), atol=1e-6)


def test_exact_divergence_equals_the_sum_over_the_vocabulary():
    policy, reference = (tiny_model("llama", VOCAB, initial=0.3, seed=s) for s in (0, 1))
    tokens, attend, where = rows()
    out = compute_outputs(
        policy,
        batch_of(tokens, attend, where),
        frozenset({"kl_reference_policy"}),
        temperature=0.8,
        references={"reference": reference},
        chunk_size=3,
    )
    assert out.ref_policy_kl is not None
    with torch.no_grad():
        p, q = (
            (m(input_ids=tokens, attention_mask=attend.long()).logits / 0.8).log_softmax(-1)
            for m in (policy, reference)
        )
    expected = (q.exp() * (q - p)).sum(-1)[:, :-1]
    assert torch.allclose(out.ref_policy_kl[:, 1:][where[:, 1:]], expected[where[:, 1:]], atol=1e-5)


def test_what_nobody_can_give_is_a_wiring_error():
    model, batch = tiny_model("llama", VOCAB), batch_of(*rows())
    with pytest.raises(WiringError, match="wants nonsense"):
        compute_outputs(model, batch, frozenset({"nonsense"}))
    with pytest.raises(WiringError, match="no reference model"):
        compute_outputs(model, batch, frozenset({"kl_reference_policy"}))


def test_bfloat16_weights_have_a_float32_head():
    model = tiny_model("llama", VOCAB, initial=0.3).to(torch.bfloat16)
    tokens, attend, where = rows()
    out = compute_logprobs(model, tokens, attend, where)
    assert out.dtype == torch.float32
    assert lm_head_of(model).weight.dtype == torch.float32
    found = flat_hidden_states(model, tokens, attend)
    assert found.flat.dtype == torch.bfloat16
    hidden = found.flat[found.index]
    logits = hidden.double() @ model.get_output_embeddings().weight.double().T
    expected = logits[:, :-1].log_softmax(-1).gather(-1, tokens[:, 1:, None]).squeeze(-1)
    assert torch.allclose(out[:, 1:][where[:, 1:]].double(), expected[where[:, 1:]], atol=1e-5)


SMALL = TWO_LAYERS | {"num_key_value_heads": 2, "head_dim": 8}


@pytest.mark.parametrize(
    "config",
    [
        Gemma2Config(**SMALL, final_logit_softcapping=5.0, sliding_window=4),
        GraniteConfig(**SMALL, logits_scaling=4.0),
        CohereConfig(**SMALL, logit_scale=0.25),
    ],
    ids=["gemma2", "granite", "cohere"],
)
def test_families_that_change_their_logits_are_followed(config):
    model = random_model(config)
    check_lm_head(model)
    tokens, attend, where = rows()
    ours = compute_logprobs(model, tokens, attend, where)
    for b in range(len(tokens)):
        for t in where[b].nonzero().flatten().tolist():
            assert float(ours[b, t].detach()) == pytest.approx(by_hand(model, tokens[b], t), abs=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_probe_accepts_what_we_know(kind, dtype):
    check_lm_head(tiny_model(kind, VOCAB, initial=0.3).to(dtype))


def test_the_probe_refuses_a_head_nobody_knows():
    model = tiny_model("llama", VOCAB, initial=0.3)
    model.lm_head.register_forward_hook(lambda module, args, out: out * 1.5)
    with pytest.raises(WiringError, match="family llama change their logits"):
        check_lm_head(model)


def test_an_untied_head_is_the_one_that_is_used():
    model = tiny_model("llama", VOCAB, initial=0.3, tie_word_embeddings=False)
    assert isinstance(model, AutoModelForCausalLM.from_config(model.config).__class__)
    check_lm_head(model)
    assert lm_head_of(model).weight is model.lm_head.weight
