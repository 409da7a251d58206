"""A model that does not support gradient checkpointing is reported before any weights are loaded."""

import json
from pathlib import Path

import pytest
from smallfiles import describe_model
from transformers import CTRLConfig

from paretune.config import load_config
from paretune.core.errors import ConfigError
from paretune.experiment import data as stage
from paretune.experiment.preflight import gradient_checkpointing_issues
from paretune.experiment.resolved import ResolvedRun, resolve

RECIPE = {
    "name": "r",
    "data": {"world": {}},
    "policy": {"path": "llama"},
    "reward": {"objectives": {"safety": {}}},
    "objectives": {"safety": {}},
    "algorithm": {"name": "ppo", "max_new_tokens": 8},
    "training": {"gradient_checkpointing": "recompute"},
}


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    describe_model("llama")
    describe_model("ctrl")
    CTRLConfig(
        vocab_size=101, n_positions=96, n_embd=8, dff=8, n_layer=1, n_head=2, id2label={0: "safety"}
    ).save_pretrained("ctrl")


def resolved(*overrides: str) -> ResolvedRun:
    Path("r.yaml").write_text(json.dumps(RECIPE))
    return resolve(load_config("r.yaml", overrides))


def test_an_unsupported_policy_is_reported_with_the_other_mistakes():
    run = resolved("policy.path=ctrl", "policy.lora={target_modules: [w_q]}")
    with pytest.raises(ConfigError) as caught:
        stage.load_data(run)
    lines = str(caught.value).split("\n")
    assert lines[-1].startswith(
        "r.yaml:1: training.gradient_checkpointing: recompute finds no layers in a ctrl model; fix: "
    )
    assert any("policy.lora.target_modules" in line for line in lines)


def test_a_pretrained_reward_that_the_critic_is_initialized_from_is_checked_too():
    pretrained = 'reward={path: "ctrl"}'
    (line,) = gradient_checkpointing_issues(resolved(pretrained))
    assert "training.gradient_checkpointing: recompute finds no layers in a ctrl model" in line
    assert (
        list(gradient_checkpointing_issues(resolved(pretrained, "algorithm.critic_init_from=policy"))) == []
    )
    assert (
        list(gradient_checkpointing_issues(resolved(pretrained, "training.gradient_checkpointing=none")))
        == []
    )
    assert (
        list(gradient_checkpointing_issues(resolved(pretrained, "algorithm={name: grpo, max_new_tokens: 8}")))
        == []
    )


def test_supported_models_and_other_settings_are_not_reported():
    assert list(gradient_checkpointing_issues(resolved())) == []
    assert list(gradient_checkpointing_issues(resolved("policy={path: world, sft: {}}"))) == []
    assert (
        list(
            gradient_checkpointing_issues(
                resolved("policy.path=ctrl", "training.gradient_checkpointing=none")
            )
        )
        == []
    )
