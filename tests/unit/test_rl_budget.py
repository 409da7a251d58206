"""Budgets: which usage counts, after which step a run ends, and the learning rate schedule."""

import pytest

from paretune.rl.state import Budget
from paretune.run.io import read_jsonl
from paretune.training.optimizer import OptimizerConfig
from toy import Cut, stop_after, toy_recipe, toy_world, trained


def run_to_budget(folder, resource, limit, **more):
    trained(folder, steps=200, budget=Budget(resource=resource, limit=limit), **more)
    lines = read_jsonl(folder / "timing.jsonl")
    return lines, [line[resource] for line in lines]


def test_ends_after_the_step_nearest_to_the_limit(tmp_path):
    _, calls = run_to_budget(tmp_path / "exact", "reward_calls", 4 * 48)
    assert calls == [48] * 4
    assert len(run_to_budget(tmp_path / "below", "reward_calls", 4 * 48 + 20)[1]) == 4
    assert len(run_to_budget(tmp_path / "above", "reward_calls", 4 * 48 + 30)[1]) == 5
    assert len(run_to_budget(tmp_path / "least", "reward_calls", 1)[1]) == 1, "at least one step is made"


@pytest.mark.parametrize("resource", ["rollout_tokens", "trained_tokens"])
def test_token_budgets_end_the_run_and_used_fraction_is_logged(tmp_path, resource):
    lines, usage = run_to_budget(tmp_path, resource, 2000)
    assert abs(sum(usage) - 2000) <= max(usage) / 2 + 10
    fractions = [line["budget/used"] for line in read_jsonl(tmp_path / "metrics.jsonl")]
    assert fractions[-1] == pytest.approx(sum(usage) / 2000)
    assert fractions == sorted(fractions)
    assert all(line["peak_memory"] > 1e6 for line in lines)


def test_resumed_run_uses_the_same_budget_as_uninterrupted(tmp_path):
    how = {"steps": 200, "budget": Budget(resource="rollout_tokens", limit=1200)}
    whole = trained(tmp_path / "whole", **how)
    with pytest.raises(Cut):
        trained(tmp_path / "cut", on_step=stop_after(3), **how)
    assert trained(tmp_path / "cut", **how) == whole


def test_learning_rate_follows_the_used_fraction(tmp_path):
    how = OptimizerConfig(learning_rate=1.0, warmup_ratio=0.1, lr_scheduler_type="cosine")
    assert how.learning_rate_at_fraction(0.0, 0.05) == pytest.approx(0.5)
    assert how.learning_rate_at_fraction(0.05, 0.2) == 1.0
    assert how.learning_rate_at_fraction(0.1, 0.2) == 1.0
    assert how.learning_rate_at_fraction(0.55, 0.6) == pytest.approx(0.5)
    assert 0 < how.learning_rate_at_fraction(0.95, 1.0) < 0.01
    assert OptimizerConfig(learning_rate=2.0, warmup_ratio=0.0).learning_rate_at_fraction(0.0, 0.1) == 2.0


@pytest.mark.parametrize("resource", ["rollout_tokens", "trained_tokens", "reward_calls"])
def test_large_max_steps_does_not_stretch_warmup_under_a_budget(tmp_path, resource):
    world = toy_world()
    limit = {"rollout_tokens": 2000, "trained_tokens": 4000, "reward_calls": 480}[resource]
    trained(
        tmp_path,
        world,
        toy_recipe(),
        steps=100_000,
        budget=Budget(resource=resource, limit=limit),
    )
    rates = [line["learning_rate"] for line in read_jsonl(tmp_path / "metrics.jsonl")]
    assert rates[0] > 0
    assert rates[1:] == [world.optim_config.learning_rate] * (len(rates) - 1), (
        "0.03 of this budget is less than a step"
    )
