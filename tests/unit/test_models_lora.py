"""LoRA: zero at initialization, the only trainable part, disabled for the reference, drawn from its seed."""

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
    """Change the adapter as an optimizer would."""
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(1)), alpha=0.1)


@pytest.mark.parametrize("kind", KINDS)
def test_the_base_model_is_exact_with_a_new_or_a_disabled_adapter(kind):
    base = tiny_model(kind, VOCAB, initial=0.3)
    input_ids, attention_mask, response_mask = rows()
    before = compute_logprobs(base, input_ids, attention_mask, response_mask).detach()
    adapted = add_lora(base, LoraSpec(r=4, alpha=8), seed=0)
    assert torch.equal(compute_logprobs(adapted, input_ids, attention_mask, response_mask).detach(), before)
    disturb(adapted)
    off = AdapterDisabledModel(adapted)
    check_lm_head(adapted)
    assert torch.equal(compute_logprobs(off, input_ids, attention_mask, response_mask).detach(), before)
    change = compute_logprobs(adapted, input_ids, attention_mask, response_mask).detach() - before
    assert float(change.abs().max()) > 1e-2


def test_only_the_adapter_is_trainable_also_after_a_reference_pass():
    adapted = add_lora(tiny_model("llama", VOCAB), LoraSpec(r=4), seed=0)
    off = AdapterDisabledModel(adapted)
    batch = batch_of(*rows())
    RefLogprobs()(batch, Models(policy=adapted, frozen={"reference": off}), 1.0, 8)
    trainable = {name for name, p in adapted.named_parameters() if p.requires_grad}
    assert trainable
    assert all("lora_" in name for name in trainable)
    assert list(off.parameters()) == []
    compute_logprobs(adapted, batch.input_ids, batch.attention_mask, batch.response_mask).sum().backward()
    assert all((p.grad is not None) == p.requires_grad for p in adapted.parameters())


def test_a_reference_pass_between_forward_and_backward_does_not_change_the_gradient():
    batch = batch_of(*rows())

    def gradient(with_reference_pass):
        adapted = add_lora(tiny_model("llama", VOCAB, initial=0.3), LoraSpec(r=4), seed=0)
        logprobs = compute_logprobs(adapted, batch.input_ids, batch.attention_mask, batch.response_mask)
        if with_reference_pass:
            response_logprobs(AdapterDisabledModel(adapted), batch)
        logprobs.sum().backward()
        return [p.grad for p in adapted.parameters() if p.requires_grad]

    for a, b in zip(gradient(False), gradient(True), strict=True):
        assert torch.equal(a, b)


def test_the_seed_determines_the_adapter_and_leaves_the_global_generator_alone():
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    one, same, other = (
        parameter_hash(add_lora(tiny_model("llama", VOCAB), LoraSpec(r=4), seed=seed)) for seed in (1, 1, 2)
    )
    assert one == same != other
    assert torch.equal(before, torch.random.get_rng_state())


def test_target_modules_must_match_linear_layers_other_than_the_head():
    adapted = add_lora(tiny_model("llama", VOCAB), LoraSpec(r=2, target_modules=("q_proj", "v_proj")), seed=0)
    trainable = [name for name, p in adapted.named_parameters() if p.requires_grad]
    assert len(trainable) == 2 * 2 * 2
    with pytest.raises(
        WiringError, match=r"policy\.lora\.target_modules: .*w_q.* matches no layer of a llama model"
    ):
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
    input_ids, attention_mask, response_mask = rows()
    compute_logprobs(adapted, input_ids, attention_mask, response_mask).sum().backward()
    assert lm_head_of(adapted).weight.dtype == torch.float32
