"""Targets of adapters, looked for in the architecture alone."""

import pytest
import torch

from paretune.models.adapt import Lora, add_lora
from paretune.models.targets import adaptable, skeleton, strangers
from paretune.models.tiny import KINDS, tiny_config

LINEAR = {
    "gpt2": {"c_attn", "c_proj", "c_fc"},
    "llama": {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"},
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("task", ["CAUSAL_LM", "SEQ_CLS"])
def test_a_skeleton_has_no_weights_and_takes_an_adapter(kind, task):
    before = torch.random.get_rng_state()
    model = skeleton(tiny_config(kind, 37), task)
    assert {p.device.type for p in model.parameters()} == {"meta"}
    names = adaptable(model)
    assert set(names) >= LINEAR.get(kind, set())
    assert not {"lm_head", "score"} & set(names)
    add_lora(model, Lora(r=2, targets=tuple(names)), 0, task)
    assert torch.equal(before, torch.random.get_rng_state())


def test_every_target_must_be_the_name_of_a_module():
    model = skeleton(tiny_config("llama", 37), "CAUSAL_LM")
    assert strangers(model, Lora()) == []
    assert strangers(model, Lora(targets=("q_proj", "self_attn.k_proj"))) == []
    assert strangers(model, Lora(targets=("q_proj", "proj", "w_q"))) == ["proj", "w_q"]
    assert strangers(model, Lora(targets=r".*\.(q|k)_proj")) == []
    assert strangers(model, Lora(targets="q_proj")) == ["q_proj"]  # one text is a pattern for whole names
    assert strangers(model, Lora(targets="(")) == ["("]
