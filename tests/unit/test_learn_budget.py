"""A run that ends where its budget does: what counts, how near it comes, and how it warms up."""

import pytest

from paretune.rl.state import Budget
from paretune.run.io import read_jsonl
from paretune.training.optimizer import OptimizerConfig
from toy import Cut, stop_after, toy_recipe, toy_world, trained


def ended(folder, currency, amount, **more):
    trained(folder, steps=200, budget=Budget(resource=currency, limit=amount), **more)
    lines = read_jsonl(folder / "timing.jsonl")
    return lines, [line[currency] for line in lines]


def test_it_ends_after_the_step_that_comes_nearest(tmp_path):
    _, calls = ended(tmp_path / "exact", "reward_calls", 4 * 48)
    assert calls == [48] * 4
    assert len(ended(tmp_path / "below", "reward_calls", 4 * 48 + 20)[1]) == 4
    assert len(ended(tmp_path / "above", "reward_calls", 4 * 48 + 30)[1]) == 5
    assert len(ended(tmp_path / "least", "reward_calls", 1)[1]) == 1, "one step is always made"


@pytest.mark.parametrize("currency", ["rollout_tokens", "trained_tokens"])
def test_tokens_end_it_too_and_a_line_says_how_far_it_is(tmp_path, currency):
    lines, spent = ended(tmp_path, currency, 2000)
    assert abs(sum(spent) - 2000) <= max(spent) / 2 + 10
    shares = [line["budget/used"] for line in read_jsonl(tmp_path / "metrics.jsonl")]
    assert shares[-1] == pytest.approx(sum(spent) / 2000)
    assert shares == sorted(shares)
    assert all(line["memory"] > 1e6 for line in lines)


def test_a_run_that_was_stopped_spends_what_the_unbroken_one_does(tmp_path):
    how = {"steps": 200, "budget": Budget(resource="rollout_tokens", limit=1200)}
    whole = trained(tmp_path / "whole", **how)
    with pytest.raises(Cut):
        trained(tmp_path / "cut", on_step=stop_after(3), **how)
    assert trained(tmp_path / "cut", **how) == whole


def test_the_rate_follows_the_share_that_is_spent(tmp_path):
    how = OptimizerConfig(learning_rate=1.0, warmup_ratio=0.1, lr_scheduler_type="cosine")
    assert how.learning_rate_at_fraction(0.0, 0.05) == pytest.approx(0.5)
    assert how.learning_rate_at_fraction(0.05, 0.2) == 1.0
    assert how.learning_rate_at_fraction(0.1, 0.2) == 1.0
    assert how.learning_rate_at_fraction(0.55, 0.6) == pytest.approx(0.5)
    assert 0 < how.learning_rate_at_fraction(0.95, 1.0) < 0.01
    assert OptimizerConfig(learning_rate=2.0, warmup_ratio=0.0).learning_rate_at_fraction(0.0, 0.1) == 2.0


@pytest.mark.parametrize("currency", ["rollout_tokens", "trained_tokens", "reward_calls"])
def test_a_bound_of_many_steps_does_not_stretch_the_warm_up(tmp_path, currency):
    world = toy_world()
    amount = {"rollout_tokens": 2000, "trained_tokens": 4000, "reward_calls": 480}[currency]
    trained(
        tmp_path,
        world,
        toy_recipe(),
        steps=100_000,
        budget=Budget(resource=currency, limit=amount),
    )
    rates = [line["lr"] for line in read_jsonl(tmp_path / "metrics.jsonl")]
    assert rates[0] > 0
    assert rates[1:] == [world.optim_config.learning_rate] * (len(rates) - 1), (
        "0.03 of this budget is less than a step"
    )
