"""Learning rates that a recipe leaves out follow from the size of the model and from LoRA."""

import json
from pathlib import Path

import pytest
from smallfiles import describe_model

from paretune.config import bundled_recipes, load_config, resolved_yaml
from paretune.experiment.learning_rates import default_learning_rate
from paretune.experiment.preflight import model_config_issues
from paretune.experiment.resolved import resolve


@pytest.mark.parametrize(
    ("kind", "size", "full", "lora"),
    [
        ("alignment", 7_000_000, 1e-4, 1e-3),
        ("alignment", 494_000_000, 1e-5, 1e-4),
        ("alignment", 1_500_000_000, 3e-6, 3e-5),
        ("alignment", 7_000_000_000, 1e-6, 1e-5),
        ("supervised", 7_000_000, 3e-4, 3e-3),
        ("supervised", 494_000_000, 5e-5, 5e-4),
        ("supervised", 3_000_000_000, 2e-5, 2e-4),
        ("supervised", 70_000_000_000, 1e-5, 1e-4),
    ],
)
def test_larger_models_have_lower_rates_and_lora_ten_times_as_high_ones(kind, size, full, lora):
    assert default_learning_rate(kind, size, lora=False) == full
    assert default_learning_rate(kind, size, lora=True) == lora


def demo(*overrides):
    return resolve(load_config(bundled_recipes()["demo"], overrides))


def test_a_rate_in_the_recipe_is_kept():
    run = demo("policy.lora={}")
    assert run.learning_rate_notes == ()
    assert (run.config.training.learning_rate, run.config.policy.sft.learning_rate) == (3e-4, 5e-3)


def test_rates_that_are_left_out_are_resolved_once_with_the_reason():
    run = demo("policy.lora={}", "training.learning_rate=null", "reward.training.learning_rate=null")
    assert run.config.training.learning_rate == 1e-3
    assert run.config.reward.training.learning_rate == 3e-4
    assert run.learning_rate_notes == (
        "training.learning_rate: 0.001, the default for LoRA on 350K parameters",
        "reward.training.learning_rate: 0.0003, the default for all weights of 350K parameters",
    )
    assert "  learning_rate: 0.001  # default: for LoRA on 350K parameters" in resolved_yaml(run.config)
    assert run.issue(("training", "learning_rate"), "x").startswith(str(bundled_recipes()["demo"]))
    assert resolve(run.config).config == run.config


def test_a_judge_and_an_algorithm_without_gradients_have_supervised_rates(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    describe_model()
    Path("x.jsonl").write_text(json.dumps({"prompt": "p", "response": "r", "s": 1}) + "\n")
    judge = "judge={init_from: model, lora: {}, objectives: {safety: {}}, ratings: {r: {file: x.jsonl, labels: {safety: s}}}}"  # noqa: E501
    run = demo("data.root=.", judge)
    assert run.config.judge.training.learning_rate == 3e-3
    evolution = resolve(load_config(bundled_recipes()["evolution"], ["training.learning_rate=null"]))
    assert evolution.config.training.learning_rate == 3e-3


def test_a_model_without_known_size_needs_a_rate(monkeypatch):
    monkeypatch.setattr("paretune.experiment.learning_rates._num_parameters", lambda *_: None)
    (line,) = model_config_issues(demo("training.learning_rate=null"))
    assert "training.learning_rate: is missing, and the size of the model is unknown" in line
