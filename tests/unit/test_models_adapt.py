"""LoRA: nothing at the start, trainable alone, off for the reference, and drawn from its own seed."""

import pytest
import torch

from paretune.core.errors import WiringError
from paretune.models.forward.lm_head import lm_head_of
from paretune.models.forward.logprobs import check_lm_head, compute_logprobs
from paretune.models.load import parameter_hash
from paretune.models.lora import AdapterDisabledModel, LoraSpec, add_lora
from paretune.models.model_passes import Models, RefLogprobs, response_logprobs
from support.tiny_models import KINDS, tiny_model
from tinyrows import VOCAB, batch_of, rows


def disturb(model):
    """Moves the adapter as an optimiser would."""
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(1)), alpha=0.1)


@pytest.mark.parametrize("kind", KINDS)
def test_adapter_off_is_the_base_and_adapter_on_is_not(kind):
    base = tiny_model(kind, VOCAB, initial=0.3)
    tokens, attend, where = rows()
    before = compute_logprobs(base, tokens, attend, where).detach()
    adapted = add_lora(base, LoraSpec(r=4, alpha=8), seed=0)
    assert torch.equal(compute_logprobs(adapted, tokens, attend, where).detach(), before)
    disturb(adapted)
    off = AdapterDisabledModel(adapted)
    check_lm_head(adapted)
    assert torch.equal(compute_logprobs(off, tokens, attend, where).detach(), before)
    assert float((compute_logprobs(adapted, tokens, attend, where) - before).abs().max().detach()) > 1e-2


def test_only_the_adapter_learns_and_asking_the_reference_does_not_change_that():
    adapted = add_lora(tiny_model("llama", VOCAB), LoraSpec(r=4), seed=0)
    off = AdapterDisabledModel(adapted)
    batch = batch_of(*rows())
    RefLogprobs()(batch, Models(policy=adapted, frozen={"reference": off}), 1.0, 8)
    learn = {name for name, p in adapted.named_parameters() if p.requires_grad}
    assert learn
    assert all("lora_" in name for name in learn)
    assert list(off.parameters()) == []
    compute_logprobs(adapted, batch.input_ids, batch.attention_mask, batch.response_mask).sum().backward()
    assert all((p.grad is not None) == p.requires_grad for p in adapted.parameters())


def test_a_reference_asked_between_forward_and_backward_leaves_the_gradient_alone():
    batch = batch_of(*rows())

    def gradient(disturbed):
        adapted = add_lora(tiny_model("llama", VOCAB, initial=0.3), LoraSpec(r=4), seed=0)
        logp = compute_logprobs(adapted, batch.input_ids, batch.attention_mask, batch.response_mask)
        if disturbed:
            response_logprobs(AdapterDisabledModel(adapted), batch)
        logp.sum().backward()
        return [p.grad for p in adapted.parameters() if p.requires_grad]

    for a, b in zip(gradient(False), gradient(True), strict=True):
        assert torch.equal(a, b)


def test_the_seed_draws_the_adapter_and_nothing_else():
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    one, same, other = (
        parameter_hash(add_lora(tiny_model("llama", VOCAB), LoraSpec(r=4), seed=seed)) for seed in (1, 1, 2)
    )
    assert one == same != other
    assert torch.equal(before, torch.random.get_rng_state())


def test_named_targets_and_wrong_ones():
    adapted = add_lora(tiny_model("llama", VOCAB), LoraSpec(r=2, target_modules=("q_proj", "v_proj")), seed=0)
    learn = [name for name, p in adapted.named_parameters() if p.requires_grad]
    assert len(learn) == 2 * 2 * 2
    with pytest.raises(WiringError, match=r"policy\.lora\.targets: .*w_q.* fits no layer of a llama model"):
        add_lora(tiny_model("llama", VOCAB), LoraSpec(target_modules=("w_q",)), seed=0)
    with pytest.raises(WiringError, match="output head"):
        add_lora(
            tiny_model("llama", VOCAB, tie_word_embeddings=False),
            LoraSpec(target_modules=("lm_head",)),
            seed=0,
        )


def test_the_adapter_of_a_bfloat16_base_is_float32():
    adapted = add_lora(tiny_model("llama", VOCAB).to(torch.bfloat16), LoraSpec(r=4), seed=0)
    assert {p.dtype for p in adapted.parameters() if p.requires_grad} == {torch.float32}
    tokens, attend, where = rows()
    compute_logprobs(adapted, tokens, attend, where).sum().backward()
    assert lm_head_of(adapted).weight.dtype == torch.float32
