"""The rates of a step: a policy whose critic learns alone first warms up when it begins to learn itself."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from battery import recipe_of, world_of
from paretune.core.errors import ConfigError
from paretune.rl import state
from paretune.rl.state import Budget
from paretune.run.io import read_jsonl
from paretune.training.checkpoint import load_latest_checkpoint
from paretune.training.optimizer import Optimizer, OptimizerConfig
from toy import Cut, stop_after, trained

HOW = OptimizerConfig(learning_rate=1.0, warmup_ratio=0.5, lr_scheduler_type="cosine")
STEP = 24
"""Responses of a step: 4 to each of 6 prompts."""


def run(folder, *, alone=2, how=HOW, steps=10, **more):
    """PPO-max on the toy task, at rates that are easily read and weights that hardly move."""
    recipe = recipe_of("ppo_max", critic_alone=alone, critic_rate=0.5)
    world = replace(
        world_of(recipe, folder / "made"), optim_config=replace(how, learning_rate=how.learning_rate * 1e-3)
    )
    return trained(folder, world, recipe, steps=steps, **more)


def rates(folder, key="lr"):
    return [1e3 * line[key] for line in read_jsonl(folder / "metrics.jsonl")]


def test_the_policy_warms_up_when_it_begins_to_learn_and_the_critic_at_once(tmp_path):
    run(tmp_path)
    assert rates(tmp_path) == pytest.approx(
        [0, 0, *(HOW.learning_rate_at_step(step, 8) for step in range(8))]
    )
    assert rates(tmp_path)[2:6] == pytest.approx([0.25, 0.5, 0.75, 1.0])
    assert rates(tmp_path, "learning_rate/critic") == pytest.approx(
        [0.5 * HOW.learning_rate_at_step(step, 10) for step in range(10)]
    )


def test_where_the_critic_never_learns_alone_both_go_together(tmp_path):
    run(tmp_path, alone=0, steps=4)
    assert rates(tmp_path) == pytest.approx([HOW.learning_rate_at_step(step, 4) for step in range(4)])
    assert rates(tmp_path, "learning_rate/critic") == pytest.approx(
        [0.5 * HOW.learning_rate_at_step(step, 4) for step in range(4)]
    )


def test_under_a_budget_it_follows_the_share_that_is_spent_since(tmp_path):
    run(tmp_path, steps=1000, budget=Budget(resource="reward_calls", limit=10 * STEP))
    shares = [step / 8 for step in range(9)]
    wanted = [HOW.learning_rate_at_fraction(*ends) for ends in pairwise(shares)]
    assert rates(tmp_path) == pytest.approx([0, 0, *wanted])
    assert wanted[0] == pytest.approx(0.25)


@pytest.mark.parametrize("budget", [None, Budget(resource="rollout_tokens", limit=900)])
@pytest.mark.parametrize("after", [1, 3])
def test_a_run_that_was_stopped_has_the_rates_of_the_unbroken_one(tmp_path, budget, after):
    whole = run(tmp_path / "whole", budget=budget, every=1)
    with pytest.raises(Cut):
        run(tmp_path / "cut", budget=budget, every=1, on_step=stop_after(after + 1))
    assert run(tmp_path / "cut", budget=budget, every=1) == whole


def test_a_checkpoint_from_before_the_policy_had_a_warm_up_of_its_own_is_refused(tmp_path, monkeypatch):
    def without(folder, tell):
        found = load_latest_checkpoint(folder, tell)
        return found and replace(
            found, trees={key: found.trees[key] for key in found.trees if key != "begun"}
        )

    for alone in (0, 2):
        with pytest.raises(Cut):
            run(tmp_path / str(alone), alone=alone, steps=6, on_step=stop_after(5))
    monkeypatch.setattr(state, "load_latest", without)
    run(tmp_path / "0", alone=0, steps=6)
    with pytest.raises(ConfigError, match=r"warm-up.*; fix: choose another run\.folder"):
        run(tmp_path / "2", steps=6)


def test_an_optimiser_moves_each_network_at_its_own_rate():
    policy, critic = (torch.nn.Parameter(torch.ones(1)) for _ in range(2))
    optimizer = Optimizer(OptimizerConfig(weight_decay=0.0), [policy], [critic], critic_lr_multiplier=2.0)
    policy.grad, critic.grad = torch.ones(1), torch.ones(1)
    optimizer.step(0.1, optimizer.grad_norm(), 0.01)
    assert policy.item() == pytest.approx(0.9)
    assert critic.item() == pytest.approx(0.98)
