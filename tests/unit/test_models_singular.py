"""Singular values of adapters: nothing moves at zero, each offset moves its own, and none is refused."""

import pytest
import torch

from paretune.core.errors import WiringError
from paretune.models.forward.logprobs import compute_logprobs
from paretune.models.lora import LoraSpec, add_lora
from paretune.models.lora_svd import LoraSvd, svd_factors, trainable_count
from support.tiny_models import tiny_model
from tinyrows import VOCAB, rows

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")


def trained(r=4, alpha=8):
    """An adapter as an optimiser leaves it."""
    model = add_lora(
        tiny_model("llama", VOCAB, initial=0.3), LoraSpec(r=r, alpha=alpha, target_modules=ATTENTION), seed=0
    )
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(1)), alpha=0.1)
    return model


def logp(model):
    return compute_logprobs(model, *rows()).detach()


def test_an_offset_of_each_factor_by_hand():
    b, a = (
        svd_factors(torch.diag(torch.tensor([3.0, 1.0]))),
        svd_factors(torch.diag(torch.tensor([2.0, 1.0]))),
    )
    none, one = torch.zeros(1), torch.ones(1)
    for left, right, want in ((none, none, 6.0), (one, none, 8.0), (none, one, 9.0), (one, one, 12.0)):
        product = b.reconstruct(left) @ a.reconstruct(right)
        torch.testing.assert_close(product, torch.diag(torch.tensor([want, 1.0])))


@pytest.mark.parametrize(
    ("layers", "rank", "share", "size"),
    [
        (28, 8, 1.0, 1792),
        (28, 2, 1.0, 448),
        (28, 32, 0.1, 672),
        (32, 8, 1.0, 2048),
        (64, 8, 1.0, 4096),
        (80, 4, 1.0, 2560),
    ],
)
def test_numbers_to_search(layers, rank, share, size):
    assert layers * 4 * 2 * trainable_count(rank, share) == size


def test_the_size_of_a_model_is_that_of_the_formula():
    assert LoraSvd.from_model(trained(r=4)).num_params == 2 * 4 * 2 * 4
    assert LoraSvd.from_model(trained(r=4), fraction=0.5).num_params == 2 * 4 * 2 * 2


def test_shares_are_not_lost_to_rounding():
    assert trainable_count(100, 0.29) == 29
    assert trainable_count(10, 0.3) == 3
    assert trainable_count(8, 0.24) == 1


def test_a_share_of_less_than_one_value_is_refused():
    with pytest.raises(WiringError, match=r"the share 0\.1 of rank 8 .*; fix: a share of at least 0\.125"):
        trainable_count(8, 0.1)
    with pytest.raises(WiringError, match=r"at least 0\.125"):
        LoraSvd.from_model(trained(r=8), fraction=0.1)
    for share in (0.0, 1.5):
        with pytest.raises(WiringError, match=r"it must be in \(0, 1\]"):
            trainable_count(8, share)


def test_no_offset_is_the_adapter_as_it_was():
    model = trained()
    before, weights = logp(model), {k: v.clone() for k, v in model.named_parameters()}
    knobs = LoraSvd.from_model(model)
    knobs.apply_offsets(model, torch.zeros(knobs.num_params))
    for name, weight in model.named_parameters():
        assert float((weight - weights[name]).detach().abs().max()) <= 1e-6, name
    assert torch.allclose(logp(model), before, atol=1e-5)


def test_what_is_written_is_read_and_can_be_taken_back():
    model = trained()
    before, knobs = logp(model), LoraSvd.from_model(model, fraction=0.5)
    base = {k: v.clone() for k, v in model.named_parameters() if "lora_" not in k}
    z = 0.5 * torch.randn(knobs.num_params, generator=torch.Generator().manual_seed(2))
    knobs.apply_offsets(model, z)
    torch.testing.assert_close(knobs.read_offsets(model), z, atol=1e-5, rtol=0)
    assert float((logp(model) - before).abs().max()) > 1e-3
    assert all(torch.equal(v, base[k]) for k, v in model.named_parameters() if k in base)
    knobs.apply_offsets(model, torch.zeros(knobs.num_params))
    assert torch.allclose(logp(model), before, atol=1e-5)


def test_signs_that_flip_are_counted_and_kept():
    model = trained()
    knobs = LoraSvd.from_model(model)
    assert knobs.num_negative(torch.zeros(knobs.num_params)) == 0
    assert knobs.num_negative(torch.full((knobs.num_params,), -1e3)) == knobs.num_params
    with pytest.raises(WiringError, match="3 offsets came for 64 singular values"):
        knobs.apply_offsets(model, torch.zeros(3))


def test_it_is_stored_and_read_back_to_the_bit():
    model = trained()
    knobs = LoraSvd.from_model(model, fraction=0.5)
    again = LoraSvd.from_tensors(knobs.to_tensors(), tuple(knobs.factors))
    z, other = torch.randn(knobs.num_params), trained()
    knobs.apply_offsets(model, z)
    again.apply_offsets(other, z)
    mine = dict(model.named_parameters())
    assert all(torch.equal(v, mine[k]) for k, v in other.named_parameters())


def test_models_without_a_trained_adapter_are_refused():
    fresh = add_lora(tiny_model("llama", VOCAB), LoraSpec(r=4), seed=0)
    with pytest.raises(WiringError, match="was never trained: it has no singular vectors"):
        LoraSvd.from_model(fresh)
    with pytest.raises(WiringError, match="has no LoRA adapter"):
        LoraSvd.from_model(tiny_model("llama", VOCAB))
