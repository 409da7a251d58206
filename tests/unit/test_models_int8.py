"""Frozen layers in eight bits: near the whole ones, row by row, adapters and head apart."""

import pytest
import torch
from torch import nn

from evolving import touched
from paretune.models.forward.logprobs import compute_logprobs
from paretune.models.lora import AdapterDisabledModel, LoraSpec, add_lora
from paretune.models.quantize import Int8Linear, int8_copy
from support.tiny_models import tiny_model
from tinyrows import VOCAB, rows


def linear(bias):
    layer = nn.Linear(64, 48, bias=bias)
    with torch.no_grad():
        for weight in layer.parameters():
            weight.copy_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(0)))
    return layer


@pytest.mark.parametrize("bias", [False, True])
def test_a_layer_is_near_the_whole_one(bias):
    layer, x = linear(bias), torch.randn(5, 7, 64, generator=torch.Generator().manual_seed(1))
    want, got = layer(x).detach(), Int8Linear(layer)(x)
    assert got.shape == want.shape
    assert float((got - want).norm() / want.norm()) < 0.02


def test_numbers_that_fit_are_exact():
    """127 steps each: whole numbers up to 127 are what they were."""
    layer = nn.Linear(2, 1, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[127.0, -3.0]]))
    x = torch.tensor([[127.0, 5.0], [0.0, 0.0]])
    torch.testing.assert_close(Int8Linear(layer)(x), layer(x).detach())


def test_a_row_does_not_depend_on_those_beside_it():
    layer, x = Int8Linear(linear(True)), torch.randn(6, 64, generator=torch.Generator().manual_seed(2))
    x[3] *= 100
    assert torch.equal(layer(x)[:3], layer(x[:3]))


def test_only_frozen_layers_change_and_the_model_itself_does_not():
    model = touched().models.policy
    before = {k: v.detach().clone() for k, v in model.named_parameters()}
    twin = int8_copy(model)
    assert all(torch.equal(v, before[k]) for k, v in model.named_parameters())
    assert not any(isinstance(m, Int8Linear) for m in model.modules())
    small = [name for name, m in twin.named_modules() if isinstance(m, Int8Linear)]
    assert len(small) == 7
    assert not any("lora_" in name or "lm_head" in name for name in small)
    kept = {k: v for k, v in twin.named_parameters() if "lora_" in k}
    assert kept
    assert all(torch.equal(v, before[k]) and v.dtype == torch.float32 for k, v in kept.items())


def test_a_model_says_nearly_the_same():
    model = add_lora(tiny_model("qwen2", VOCAB, initial=0.2), LoraSpec(r=2), seed=0)
    whole, small = (
        compute_logprobs(model, *rows()).detach(),
        compute_logprobs(int8_copy(model), *rows()).detach(),
    )
    assert 0 < float((whole - small).abs().max()) < 0.2
    off = compute_logprobs(AdapterDisabledModel(int8_copy(model)), *rows()).detach()
    torch.testing.assert_close(off, small)
