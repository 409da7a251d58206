"""Target modules of adapters, matched against the architecture without weights."""

import pytest
import torch

from paretune.models.lora import (
    LoraSpec,
    adapter_summary,
    add_lora,
    lora_target_names,
    meta_model,
    unmatched_targets,
)
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


def test_the_summary_counts_what_peft_trains_and_what_no_adapter_reaches():
    summary = adapter_summary(
        tiny_config("llama", 37), LoraSpec(r=2, target_modules=("q_proj",)), "CAUSAL_LM"
    )
    assert (summary.num_layers, summary.layer_names) == (2, ("q_proj",))
    assert summary.num_trainable == 2 * 2 * (32 + 32)
    model = meta_model(tiny_config("llama", 37), "CAUSAL_LM")
    assert summary.num_frozen == sum(p.numel() for p in model.parameters())
    assert summary.frozen_parts["the embeddings"] == 37 * 32, "the head is tied"
    assert summary.describe().startswith("trains 256 parameters, on 2 layers (q_proj); the ")
    untied = tiny_config("llama", 37, tie_word_embeddings=False)
    assert adapter_summary(untied, LoraSpec(), "CAUSAL_LM").frozen_parts["the output head"] == 37 * 32
    head = adapter_summary(tiny_config("llama", 37), LoraSpec(r=2, target_modules=("q_proj",)), "SEQ_CLS")
    assert head.num_trainable == 256 + 2 * 32, "a new head is trained as a whole"


def test_fused_experts_are_named_as_peft_treats_them():
    from transformers import Qwen3MoeConfig

    config = Qwen3MoeConfig(
        vocab_size=37, hidden_size=32, num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=2,
        head_dim=8, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16, intermediate_size=32,
    )  # fmt: skip
    every = adapter_summary(config, LoraSpec(r=2), "CAUSAL_LM")
    attention = adapter_summary(config, LoraSpec(r=2, target_modules=("q_proj", "v_proj")), "CAUSAL_LM")
    experts = 4 * 3 * 32 * 16
    adapted = any(name.startswith("experts.") for name in every.layer_names)
    assert every.frozen_parts.get("the experts", 0) == (0 if adapted else experts)
    assert attention.frozen_parts["the experts"] == experts
