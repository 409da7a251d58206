"""Averages of weights: by hand, exact where members are equal, and of adapters by their products."""

import copy
import math

import pytest
import torch

from paretune.core.errors import WiringError
from paretune.models.forward.logprobs import compute_logprobs
from paretune.models.load import parameter_hash
from paretune.models.lora import LoraSpec, add_lora
from paretune.models.merge import (
    logprob_drop,
    merge_models,
    merge_state_dicts,
    weighted_average,
)
from support.tiny_models import tiny_model
from tinyrows import VOCAB, batch_of, rows


@pytest.mark.parametrize(("share", "expected"), [(0.5, [2.0, 1.0]), (0.25, [2.5, 0.0]), (1.0, [1.0, 3.0])])
def test_average_of_two_models_by_hand(share, expected):
    pair = [{"w": torch.tensor([1.0, 3.0])}, {"w": torch.tensor([3.0, -1.0])}]
    assert merge_state_dicts(pair, (share, 1 - share))["w"].tolist() == expected


def test_averaging_weights_averages_logits_and_not_probabilities():
    """The policy starts at a member and not at the average, so its KL is not 0 at the first step."""
    average = weighted_average(
        [torch.tensor([2.0, 0.0]).double(), torch.tensor([-0.5, 0.0]).double()], (0.5, 0.5)
    )

    def kl(p, q):
        return sum(a * math.log(a / b) for a, b in ((p, q), (1 - p, 1 - q)))

    def sigmoid(x):
        return 1 / (1 + math.exp(-x))

    merged, first, policy = float(average.softmax(0)[0]), sigmoid(2.0), sigmoid(1.5)
    assert (merged, first, policy) == pytest.approx((0.679179, 0.880797, 0.817574), abs=1e-6)
    assert kl(policy, first) == pytest.approx(0.0167275, abs=1e-6)
    assert kl(policy, merged) == pytest.approx(0.0486386, abs=1e-6)
    assert kl(first, merged) == pytest.approx(0.1109393, abs=1e-6)


@pytest.mark.parametrize("weights", [(0.3, 0.7), (1 / 3, 2 / 3), (0.1, 0.9)])
def test_averaging_a_model_with_itself_is_exact(weights):
    model = tiny_model("llama", VOCAB, initial=0.3)
    merged = merge_models((model, model), weights)
    assert parameter_hash(merged) == parameter_hash(model)
    assert merged is not model


def test_weights_of_zero_and_one_give_a_member_exactly():
    pair = tiny_model("gpt2", VOCAB, seed=1), tiny_model("gpt2", VOCAB, seed=2)
    before = [parameter_hash(model) for model in pair]
    assert [parameter_hash(merge_models(pair, w)) for w in ((1.0, 0.0), (0.0, 1.0))] == before
    half = merge_models(pair, (0.5, 0.5))
    assert parameter_hash(half) not in before
    assert [parameter_hash(model) for model in pair] == before
    mean = (pair[0].transformer.wte.weight + pair[1].transformer.wte.weight) / 2
    torch.testing.assert_close(half.transformer.wte.weight, mean)
    assert half.lm_head.weight is half.transformer.wte.weight


def model_with_adapter(seed):
    model = add_lora(tiny_model("llama", VOCAB, initial=0.3), LoraSpec(r=2, alpha=8), seed=seed)
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(seed)), alpha=0.2)
    return model


def test_models_with_adapters_are_averaged_by_the_products_of_the_factors():
    pair = model_with_adapter(1), model_with_adapter(2)
    logprobs = [compute_logprobs(model, *rows()).detach() for model in pair]
    half = merge_models(pair, (0.5, 0.5))
    assert not any("lora_" in name for name, _ in half.named_parameters())
    merged = [model.merge_and_unload() for model in pair]
    mean = sum(m.model.layers[0].mlp.up_proj.weight for m in merged) / 2
    torch.testing.assert_close(half.model.layers[0].mlp.up_proj.weight, mean)
    assert torch.allclose(
        compute_logprobs(merge_models(pair, (1.0, 0.0)), *rows()).detach(), logprobs[0], atol=1e-4
    )


def test_bfloat16_weights_are_averaged_in_float64():
    x = torch.tensor([1.0, 256.0]).bfloat16()
    out = weighted_average([x, x + 2], (0.25, 0.75))
    assert out.dtype == torch.bfloat16
    assert out.tolist() == [2.5, 258.0]


def test_members_that_cannot_be_merged():
    one = {"w": torch.zeros(2)}
    with pytest.raises(WiringError, match=r"sum to 1\.5; fix: make the sum 1"):
        merge_state_dicts((one, one), (1.0, 0.5))
    with pytest.raises(WiringError, match="2 models with 1 weights"):
        merge_state_dicts((one, one), (1.0,))
    with pytest.raises(WiringError, match=r'model 2 has another architecture .*"v"'):
        merge_state_dicts((one, {"v": torch.zeros(2)}), (0.5, 0.5))
    with pytest.raises(WiringError, match=r'"w" has shape \(3,\) in model 2 and \(2,\) in the first'):
        merge_state_dicts((one, {"w": torch.zeros(3)}), (0.5, 0.5))
    with pytest.raises(WiringError, match='integer tensor "n" differs'):
        merge_state_dicts(({"n": torch.tensor(1)}, {"n": torch.tensor(2)}), (0.5, 0.5))
    factors = {"layer.lora_A.weight": torch.ones(2, 7), "layer.lora_B.weight": torch.ones(9, 2)}
    with pytest.raises(WiringError, match="LoRA adapters, whose factors cannot be averaged"):
        merge_state_dicts((factors, factors), (0.5, 0.5))


def test_logprob_drop_detects_members_of_different_origin():
    model = tiny_model("llama", VOCAB, initial=0.5)
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for layer in twin.model.layers:  # the same function with its hidden units in reverse order
            for weight in (layer.mlp.gate_proj.weight, layer.mlp.up_proj.weight):
                weight.copy_(weight.flip(0))
            layer.mlp.down_proj.weight.copy_(layer.mlp.down_proj.weight.flip(1))
    batch = batch_of(*rows([6, 9, 4]))
    with torch.no_grad():  # its own most likely tokens, which an average of unrelated models finds unlikely
        best = model(batch.input_ids).logits[:, :-1].argmax(-1)
        batch = batch.replace(
            input_ids=torch.cat([batch.input_ids[:, :1], best], 1), response_mask=batch.attention_mask.clone()
        )
    assert logprob_drop(twin, model, batch) == pytest.approx(0, abs=1e-4)
    assert logprob_drop(merge_models((model, model), (0.5, 0.5)), model, batch) == 0
    assert logprob_drop(merge_models((model, twin), (0.5, 0.5)), model, batch) > 0.1
