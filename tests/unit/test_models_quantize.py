"""Frozen layers in int8: close to float32, independent per row; adapters and head are not quantized."""

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
def test_an_int8_layer_is_close_to_the_float_layer(bias):
    layer, x = linear(bias), torch.randn(5, 7, 64, generator=torch.Generator().manual_seed(1))
    expected, actual = layer(x).detach(), Int8Linear(layer)(x)
    assert actual.shape == expected.shape
    assert float((actual - expected).norm() / expected.norm()) < 0.02


def test_integers_up_to_127_are_exact():
    """Rows with a largest magnitude of 127 have scale 1."""
    layer = nn.Linear(2, 1, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[127.0, -3.0]]))
    x = torch.tensor([[127.0, 5.0], [0.0, 0.0]])
    torch.testing.assert_close(Int8Linear(layer)(x), layer(x).detach())


def test_a_row_does_not_depend_on_other_rows():
    layer, x = Int8Linear(linear(True)), torch.randn(6, 64, generator=torch.Generator().manual_seed(2))
    x[3] *= 100
    assert torch.equal(layer(x)[:3], layer(x[:3]))


def test_only_frozen_layers_of_the_copy_are_quantized():
    model = touched().models.policy
    before = {k: v.detach().clone() for k, v in model.named_parameters()}
    twin = int8_copy(model)
    assert all(torch.equal(v, before[k]) for k, v in model.named_parameters())
    assert not any(isinstance(m, Int8Linear) for m in model.modules())
    quantized = [name for name, m in twin.named_modules() if isinstance(m, Int8Linear)]
    assert len(quantized) == 7
    assert not any("lora_" in name or "lm_head" in name for name in quantized)
    adapter = {k: v for k, v in twin.named_parameters() if "lora_" in k}
    assert adapter
    assert all(torch.equal(v, before[k]) and v.dtype == torch.float32 for k, v in adapter.items())


def test_logprobs_of_the_int8_copy_are_close():
    model = add_lora(tiny_model("qwen2", VOCAB, initial=0.2), LoraSpec(r=2), seed=0)
    full, quantized = (
        compute_logprobs(model, *rows()).detach(),
        compute_logprobs(int8_copy(model), *rows()).detach(),
    )
    assert 0 < float((full - quantized).abs().max()) < 0.2
    disabled = compute_logprobs(AdapterDisabledModel(int8_copy(model)), *rows()).detach()
    torch.testing.assert_close(disabled, quantized)
