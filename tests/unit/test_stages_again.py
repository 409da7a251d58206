"""A model without layers that can be worked out again is told of before anything heavy is done."""

import json
from pathlib import Path

import pytest
from smallfiles import describe_model
from transformers import CTRLConfig

from paretune.config import load_config
from paretune.core.errors import ConfigError
from paretune.experiment import data as stage
from paretune.experiment.preflight import gradient_checkpointing_issues

RECIPE = {
    "name": "r",
    "data": {"world": {}},
    "policy": {"path": "llama"},
    "reward": {"objectives": {"safety": {}}},
    "objectives": {"safety": {}},
    "algorithm": {"name": "ppo", "max_new": 8},
    "learn": {"activations": "recompute"},
}


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    describe_model("llama")
    describe_model("ctrl")
    CTRLConfig(
        vocab_size=101, n_positions=96, n_embd=8, dff=8, n_layer=1, n_head=2, id2label={0: "safety"}
    ).save_pretrained("ctrl")


def experiment(*overrides):
    Path("r.yaml").write_text(json.dumps(RECIPE))
    return load_config("r.yaml", overrides)


def test_a_policy_without_such_layers_is_told_of_with_the_other_mistakes():
    e = experiment("policy.path=ctrl", "policy.lora={targets: [w_q]}")
    with pytest.raises(ConfigError) as caught:
        stage.load_data(e)
    lines = str(caught.value).split("\n")
    assert lines[-1] == (
        "r.yaml:1: training.gradient_checkpointing: recompute finds no layers in a ctrl model; fix: write keep or offload"
    )
    assert "policy.lora.target_modules" in lines[0]


def test_so_is_a_ready_made_reward_that_the_critic_starts_from():
    ready = 'reward={path: "ctrl"}'
    (line,) = gradient_checkpointing_issues(experiment(ready))
    assert "training.gradient_checkpointing: recompute finds no layers in a ctrl model" in line
    assert list(gradient_checkpointing_issues(experiment(ready, "algorithm.critic_init_from=policy"))) == []
    assert (
        list(gradient_checkpointing_issues(experiment(ready, "training.gradient_checkpointing=keep"))) == []
    )
    assert list(gradient_checkpointing_issues(experiment(ready, "algorithm={name: grpo, max_new: 8}"))) == []


def test_who_has_such_layers_or_keeps_its_activations_is_not_complained_of():
    assert list(gradient_checkpointing_issues(experiment())) == []
    assert list(gradient_checkpointing_issues(experiment("policy={path: world, sft: {}}"))) == []
    assert (
        list(
            gradient_checkpointing_issues(
                experiment("policy.path=ctrl", "training.gradient_checkpointing=keep")
            )
        )
        == []
    )
