"""Target modules of adapters, matched against the architecture without weights."""

import pytest
import torch

from paretune.models.lora import LoraSpec, add_lora, lora_target_names, meta_model, unmatched_targets
from support.tiny_models import KINDS, tiny_config

LINEAR = {
    "gpt2": {"c_attn", "c_proj", "c_fc"},
    "llama": {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"},
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("task", ["CAUSAL_LM", "SEQ_CLS"])
def test_a_meta_model_has_no_weights_and_takes_an_adapter(kind, task):
    before = torch.random.get_rng_state()
    model = meta_model(tiny_config(kind, 37), task)
    assert {p.device.type for p in model.parameters()} == {"meta"}
    names = lora_target_names(model)
    assert set(names) >= LINEAR.get(kind, set())
    assert not {"lm_head", "score"} & set(names)
    add_lora(model, LoraSpec(r=2, target_modules=tuple(names)), 0, task)
    assert torch.equal(before, torch.random.get_rng_state())


def test_targets_without_a_matching_module_are_listed():
    model = meta_model(tiny_config("llama", 37), "CAUSAL_LM")
    assert unmatched_targets(model, LoraSpec()) == []
    assert unmatched_targets(model, LoraSpec(target_modules=("q_proj", "self_attn.k_proj"))) == []
    assert unmatched_targets(model, LoraSpec(target_modules=("q_proj", "proj", "w_q"))) == ["proj", "w_q"]
    assert unmatched_targets(model, LoraSpec(target_modules=r".*\.(q|k)_proj")) == []
    assert unmatched_targets(model, LoraSpec(target_modules="q_proj")) == [
        "q_proj"
    ]  # a string is a pattern for full names
    assert unmatched_targets(model, LoraSpec(target_modules="(")) == ["("]
