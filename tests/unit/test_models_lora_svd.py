"""Singular values of LoRA adapters: offsets of zero change nothing, each offset changes its own value."""

import pytest
import torch

from paretune.core.errors import WiringError
from paretune.models.forward.logprobs import compute_logprobs
from paretune.models.lora import LoraSpec, add_lora
from paretune.models.lora_svd import LoraSvd, svd_factors, trainable_count
from support.tiny_models import tiny_model
from tinyrows import VOCAB, rows

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")


def trained_adapter(r=4, alpha=8):
    """A model whose adapter has been changed as by an optimizer."""
    model = add_lora(
        tiny_model("llama", VOCAB, initial=0.3), LoraSpec(r=r, alpha=alpha, target_modules=ATTENTION), seed=0
    )
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(1)), alpha=0.1)
    return model


def logprobs_of(model):
    return compute_logprobs(model, *rows()).detach()


def test_offsets_of_both_factors_by_hand():
    b, a = (
        svd_factors(torch.diag(torch.tensor([3.0, 1.0]))),
        svd_factors(torch.diag(torch.tensor([2.0, 1.0]))),
    )
    none, one = torch.zeros(1), torch.ones(1)
    for left, right, expected in ((none, none, 6.0), (one, none, 8.0), (none, one, 9.0), (one, one, 12.0)):
        product = b.reconstruct(left) @ a.reconstruct(right)
        torch.testing.assert_close(product, torch.diag(torch.tensor([expected, 1.0])))


@pytest.mark.parametrize(
    ("layers", "rank", "fraction", "size"),
    [
        (28, 8, 1.0, 1792),
        (28, 2, 1.0, 448),
        (28, 32, 0.1, 672),
        (32, 8, 1.0, 2048),
        (64, 8, 1.0, 4096),
        (80, 4, 1.0, 2560),
    ],
)
def test_number_of_parameters_of_published_models(layers, rank, fraction, size):
    assert layers * 4 * 2 * trainable_count(rank, fraction) == size


def test_num_params_follows_the_formula():
    assert LoraSvd.from_model(trained_adapter(r=4)).num_params == 2 * 4 * 2 * 4
    assert LoraSvd.from_model(trained_adapter(r=4), fraction=0.5).num_params == 2 * 4 * 2 * 2


def test_fractions_are_not_lost_to_rounding():
    assert trainable_count(100, 0.29) == 29
    assert trainable_count(10, 0.3) == 3
    assert trainable_count(8, 0.24) == 1


def test_fractions_of_less_than_one_value_are_errors():
    with pytest.raises(
        WiringError, match=r"the fraction 0\.1 of rank 8 .*; fix: a fraction of at least 0\.125"
    ):
        trainable_count(8, 0.1)
    with pytest.raises(WiringError, match=r"at least 0\.125"):
        LoraSvd.from_model(trained_adapter(r=8), fraction=0.1)
    for fraction in (0.0, 1.5):
        with pytest.raises(WiringError, match=r"it must be in \(0, 1\]"):
            trainable_count(8, fraction)


def test_offsets_of_zero_leave_the_adapter_unchanged():
    model = trained_adapter()
    before, weights = logprobs_of(model), {k: v.clone() for k, v in model.named_parameters()}
    lora_svd = LoraSvd.from_model(model)
    lora_svd.apply_offsets(model, torch.zeros(lora_svd.num_params))
    for name, weight in model.named_parameters():
        assert float((weight - weights[name]).detach().abs().max()) <= 1e-6, name
    assert torch.allclose(logprobs_of(model), before, atol=1e-5)


def test_applied_offsets_are_read_back_and_can_be_undone():
    model = trained_adapter()
    before, lora_svd = logprobs_of(model), LoraSvd.from_model(model, fraction=0.5)
    base = {k: v.clone() for k, v in model.named_parameters() if "lora_" not in k}
    z = 0.5 * torch.randn(lora_svd.num_params, generator=torch.Generator().manual_seed(2))
    lora_svd.apply_offsets(model, z)
    torch.testing.assert_close(lora_svd.read_offsets(model), z, atol=1e-5, rtol=0)
    assert float((logprobs_of(model) - before).abs().max()) > 1e-3
    assert all(torch.equal(v, base[k]) for k, v in model.named_parameters() if k in base)
    lora_svd.apply_offsets(model, torch.zeros(lora_svd.num_params))
    assert torch.allclose(logprobs_of(model), before, atol=1e-5)


def test_negative_singular_values_are_counted():
    model = trained_adapter()
    lora_svd = LoraSvd.from_model(model)
    assert lora_svd.num_negative(torch.zeros(lora_svd.num_params)) == 0
    assert lora_svd.num_negative(torch.full((lora_svd.num_params,), -1e3)) == lora_svd.num_params
    with pytest.raises(WiringError, match="got 3 offsets for 64 trainable singular values"):
        lora_svd.apply_offsets(model, torch.zeros(3))


def test_saved_factors_are_restored_exactly():
    model = trained_adapter()
    lora_svd = LoraSvd.from_model(model, fraction=0.5)
    restored = LoraSvd.from_tensors(lora_svd.to_tensors(), tuple(lora_svd.factors))
    z, other = torch.randn(lora_svd.num_params), trained_adapter()
    lora_svd.apply_offsets(model, z)
    restored.apply_offsets(other, z)
    weights = dict(model.named_parameters())
    assert all(torch.equal(v, weights[k]) for k, v in other.named_parameters())


def test_models_without_a_trained_adapter_are_errors():
    untrained = add_lora(tiny_model("llama", VOCAB), LoraSpec(r=4), seed=0)
    with pytest.raises(WiringError, match="is untrained: B = 0 has no singular vectors"):
        LoraSvd.from_model(untrained)
    with pytest.raises(WiringError, match="has no LoRA adapter"):
        LoraSvd.from_model(tiny_model("llama", VOCAB))
