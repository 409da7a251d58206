"""Log-probabilities against the models' own logits for all families, paddings, chunks and precisions."""

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


def plain_logprob(model, row, t, temperature=1.0):
    """log p(row[t] | row[:t]) from the model's own logits of the unpadded prefix."""
    with torch.no_grad():
        logits = model(input_ids=row[None, :t]).logits[0, -1].double() / temperature
    return float(logits.log_softmax(-1)[row[t]])


@pytest.mark.parametrize("kind", KINDS)
def test_logprobs_match_the_models_own_logits_token_by_token(kind):
    model = tiny_model(kind, VOCAB, initial=0.3)
    input_ids, attention_mask, response_mask = rows()
    ours = compute_logprobs(model, input_ids, attention_mask, response_mask, temperature=0.7)
    for b in range(len(input_ids)):
        for t in range(input_ids.shape[1]):
            expected = plain_logprob(model, input_ids[b], t, 0.7) if response_mask[b, t] else 0.0
            assert float(ours[b, t].detach()) == pytest.approx(expected, abs=1e-5)


def test_the_first_token_of_a_row_has_logprob_zero():
    model = tiny_model("llama", VOCAB, initial=0.3)
    input_ids, attention_mask, _ = rows()
    ours = compute_logprobs(model, input_ids, attention_mask, attention_mask)
    assert (ours[:, 0] == 0).all()
    assert (ours[:, 1:][attention_mask[:, 1:]] < 0).all()
    assert (ours[~attention_mask] == 0).all()


@pytest.mark.parametrize("chunk_size", [1, 3, 7, 100])
def test_chunk_size_changes_neither_values_nor_gradients(chunk_size):
    input_ids, attention_mask, response_mask = rows()

    def values_and_gradients(chunk_size):
        model = tiny_model("qwen2", VOCAB, initial=0.3).double()
        logprobs = compute_logprobs(model, input_ids, attention_mask, response_mask, chunk_size=chunk_size)
        logprobs.sum().backward()
        return logprobs.detach(), [p.grad for p in model.parameters()]

    logprobs, gradients = values_and_gradients(chunk_size)
    expected_logprobs, expected_gradients = values_and_gradients(10_000)
    assert torch.allclose(logprobs, expected_logprobs, rtol=1e-12, atol=1e-12)
    for ours, expected in zip(gradients, expected_gradients, strict=True):
        assert torch.allclose(ours, expected, rtol=1e-9, atol=1e-12)


def test_gradients_match_automatic_differentiation():
    input_ids, attention_mask, response_mask = rows()
    ours, plain = (tiny_model("llama", VOCAB, initial=0.3).double() for _ in range(2))
    compute_logprobs(ours, input_ids, attention_mask, response_mask, chunk_size=2).sum().backward()
    logits = plain(input_ids=input_ids, attention_mask=attention_mask.long()).logits
    logprobs = logits[:, :-1].log_softmax(-1).gather(-1, input_ids[:, 1:, None]).squeeze(-1)
    (logprobs * response_mask[:, 1:]).sum().backward()
    for a, b in zip(ours.parameters(), plain.parameters(), strict=True):
        assert torch.allclose(a.grad, b.grad, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("max_saved_probs", [0, 10**6])
def test_logits_exist_for_one_chunk_at_a_time(monkeypatch, max_saved_probs):
    sizes, logits = [], LmHead.logits
    monkeypatch.setattr(LmHead, "logits", lambda self, x: sizes.append(len(x)) or logits(self, x))
    monkeypatch.setattr("paretune.models.forward.lm_head.MAX_SAVED_PROBS", max_saved_probs)
    input_ids, attention_mask, response_mask = rows()
    compute_logprobs(
        tiny_model("llama", VOCAB), input_ids, attention_mask, response_mask, chunk_size=4
    ).sum().backward()
    assert max(sizes) == 4
    passes = 1 if max_saved_probs else 2  # recomputed in the backward pass if nothing was saved
    assert sum(sizes) == passes * int(response_mask.sum())


def test_an_empty_target_mask_gives_differentiable_zeros():
    model = tiny_model("llama", VOCAB)
    input_ids, attention_mask, response_mask = rows()
    out = compute_logprobs(model, input_ids, attention_mask, torch.zeros_like(response_mask))
    out.sum().backward()
    assert (out == 0).all()


def test_entropy_of_a_uniform_model_and_kl_to_itself():
    model = tiny_model("llama", VOCAB, initial=0.3)
    batch = batch_of(*rows())
    out = compute_outputs(
        model, batch, frozenset({"entropy", "ref_policy_kl"}), references={"reference": model}
    )
    assert out.entropy is not None
    assert out.ref_policy_kl is not None
    assert (out.entropy[batch.response_mask] > 0).all()
    assert (out.entropy[~batch.response_mask] == 0).all()
    assert float(out.ref_policy_kl.abs().max().detach()) < 1e-6
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()
    uniform = compute_outputs(model, batch, frozenset({"entropy"}))
    assert uniform.entropy is not None
    assert torch.allclose(uniform.entropy[batch.response_mask], torch.tensor(math.log(VOCAB)), atol=1e-6)
    assert torch.allclose(uniform.logprobs[batch.response_mask], torch.tensor(-math.log(VOCAB)), atol=1e-6)


def test_ref_policy_kl_is_the_sum_over_the_vocabulary():
    policy, reference = (tiny_model("llama", VOCAB, initial=0.3, seed=s) for s in (0, 1))
    input_ids, attention_mask, response_mask = rows()
    out = compute_outputs(
        policy,
        batch_of(input_ids, attention_mask, response_mask),
        frozenset({"ref_policy_kl"}),
        temperature=0.8,
        references={"reference": reference},
        chunk_size=3,
    )
    assert out.ref_policy_kl is not None
    with torch.no_grad():
        p, q = (
            (m(input_ids=input_ids, attention_mask=attention_mask.long()).logits / 0.8).log_softmax(-1)
            for m in (policy, reference)
        )
    expected = (q.exp() * (q - p)).sum(-1)[:, :-1]
    assert torch.allclose(
        out.ref_policy_kl[:, 1:][response_mask[:, 1:]], expected[response_mask[:, 1:]], atol=1e-5
    )


def test_unknown_or_unavailable_outputs_are_wiring_errors():
    model, batch = tiny_model("llama", VOCAB), batch_of(*rows())
    with pytest.raises(WiringError, match="unknown model outputs: nonsense"):
        compute_outputs(model, batch, frozenset({"nonsense"}))
    with pytest.raises(WiringError, match="no reference model"):
        compute_outputs(model, batch, frozenset({"ref_policy_kl"}))


def test_bfloat16_weights_have_a_float32_head():
    model = tiny_model("llama", VOCAB, initial=0.3).to(torch.bfloat16)
    input_ids, attention_mask, response_mask = rows()
    out = compute_logprobs(model, input_ids, attention_mask, response_mask)
    assert out.dtype == torch.float32
    assert lm_head_of(model).weight.dtype == torch.float32
    states = flat_hidden_states(model, input_ids, attention_mask)
    assert states.flat.dtype == torch.bfloat16
    hidden = states.flat[states.index]
    logits = hidden.double() @ model.get_output_embeddings().weight.double().T
    expected = logits[:, :-1].log_softmax(-1).gather(-1, input_ids[:, 1:, None]).squeeze(-1)
    assert torch.allclose(
        out[:, 1:][response_mask[:, 1:]].double(), expected[response_mask[:, 1:]], atol=1e-5
    )


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
def test_families_that_transform_logits_are_supported(config):
    model = random_model(config)
    check_lm_head(model)
    input_ids, attention_mask, response_mask = rows()
    ours = compute_logprobs(model, input_ids, attention_mask, response_mask)
    for b in range(len(input_ids)):
        for t in response_mask[b].nonzero().flatten().tolist():
            assert float(ours[b, t].detach()) == pytest.approx(
                plain_logprob(model, input_ids[b], t), abs=1e-5
            )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_check_lm_head_accepts_supported_families(kind, dtype):
    check_lm_head(tiny_model(kind, VOCAB, initial=0.3).to(dtype))


def test_check_lm_head_rejects_unknown_transformations():
    model = tiny_model("llama", VOCAB, initial=0.3)
    model.lm_head.register_forward_hook(lambda module, args, out: out * 1.5)
    with pytest.raises(WiringError, match="family llama transform their logits"):
        check_lm_head(model)


def test_an_untied_head_is_used():
    model = tiny_model("llama", VOCAB, initial=0.3, tie_word_embeddings=False)
    assert isinstance(model, AutoModelForCausalLM.from_config(model.config).__class__)
    check_lm_head(model)
    assert lm_head_of(model).weight is model.lm_head.weight
