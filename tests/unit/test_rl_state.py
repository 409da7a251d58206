"""Learning rates of a step: after a critic warm-up the policy has a warm-up of its own."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from battery import recipe_of, world_of
from paretune.rl.state import Budget
from paretune.run.io import read_jsonl
from paretune.training.optimizer import Optimizer, OptimizerConfig
from toy import Cut, stop_after, trained

OPTIM = OptimizerConfig(learning_rate=1.0, warmup_ratio=0.5, lr_scheduler_type="cosine")
ROWS_PER_STEP = 24
"""Responses per step: 4 to each of 6 prompts."""


def run(folder, *, warmup=2, optim=OPTIM, steps=10, **more):
    """PPO-max on the toy task, at learning rates so small that the weights hardly move."""
    recipe = recipe_of("ppo_max", critic_warmup_steps=warmup, critic_lr_multiplier=0.5)
    world = replace(
        world_of(recipe, folder / "made"),
        optim_config=replace(optim, learning_rate=optim.learning_rate * 1e-3),
    )
    return trained(folder, world, recipe, steps=steps, **more)


def rates(folder, key="learning_rate"):
    return [1e3 * line[key] for line in read_jsonl(folder / "metrics.jsonl")]


def test_policy_warms_up_after_the_critic_warmup(tmp_path):
    run(tmp_path)
    assert rates(tmp_path) == pytest.approx(
        [0, 0, *(OPTIM.learning_rate_at_step(step, 8) for step in range(8))]
    )
    assert rates(tmp_path)[2:6] == pytest.approx([0.25, 0.5, 0.75, 1.0])
    assert rates(tmp_path, "learning_rate/critic") == pytest.approx(
        [0.5 * OPTIM.learning_rate_at_step(step, 10) for step in range(10)]
    )


def test_without_critic_warmup_both_warm_up_together(tmp_path):
    run(tmp_path, warmup=0, steps=4)
    assert rates(tmp_path) == pytest.approx([OPTIM.learning_rate_at_step(step, 4) for step in range(4)])
    assert rates(tmp_path, "learning_rate/critic") == pytest.approx(
        [0.5 * OPTIM.learning_rate_at_step(step, 4) for step in range(4)]
    )


def test_under_a_budget_the_policy_follows_the_usage_since_its_start(tmp_path):
    run(tmp_path, steps=1000, budget=Budget(resource="reward_calls", limit=10 * ROWS_PER_STEP))
    fractions = [step / 8 for step in range(9)]
    expected = [OPTIM.learning_rate_at_fraction(*ends) for ends in pairwise(fractions)]
    assert rates(tmp_path) == pytest.approx([0, 0, *expected])
    assert expected[0] == pytest.approx(0.25)


@pytest.mark.parametrize("budget", [None, Budget(resource="rollout_tokens", limit=900)])
@pytest.mark.parametrize("after", [1, 3])
def test_resumed_run_has_the_learning_rates_of_the_uninterrupted(tmp_path, budget, after):
    whole = run(tmp_path / "whole", budget=budget, every=1)
    with pytest.raises(Cut):
        run(tmp_path / "cut", budget=budget, every=1, on_step=stop_after(after + 1))
    assert run(tmp_path / "cut", budget=budget, every=1) == whole


def test_optimizer_uses_a_learning_rate_per_network():
    policy, critic = (torch.nn.Parameter(torch.ones(1)) for _ in range(2))
    optimizer = Optimizer(OptimizerConfig(weight_decay=0.0), [policy], [critic], critic_lr_multiplier=2.0)
    policy.grad, critic.grad = torch.ones(1), torch.ones(1)
    optimizer.step(0.1, optimizer.grad_norm(), 0.01)
    assert policy.item() == pytest.approx(0.9)
    assert critic.item() == pytest.approx(0.98)
