"""Each way to aggregate is the weighted sum where its setting is neutral; weight 0 is no weight at all."""

import math

import pytest
import torch

from paretune.algorithms.aggregators import chebyshev_grpo, lagrangian_grpo, replace_aggregator
from paretune.algorithms.grpo import gdpo, grpo
from paretune.algorithms.ppo import rto
from paretune.core.errors import WiringError
from paretune.credit.aggregation import (
    Gate,
    Lexicographic,
    PerCategoryWeightedSum,
    PreferenceWeightedSum,
    ScheduledWeightedSum,
    WeightedSum,
)
from paretune.credit.base import chain, flatten_steps
from paretune.credit.constraints import Constraint, Lagrangian
from paretune.credit.scalarization import Chebyshev, HypervolumeGuidedWeighting, MinObjective
from paretune.credit.score_transforms import HandleMissingScores, OrientScores, Threshold
from paretune.rl.validate import check_spec
from toy import WEIGHTS, advance, graded, stop_after, toy_world, trained
from toy import Cut as PowerCut

SMALL = {"num_generations": 4, "max_new_tokens": 4}
HIGH = Constraint("high", 0.9)


def test_lagrangian_grpo_with_fixed_multiplier_equals_grpo_bit_for_bit(tmp_path):
    ours = lagrangian_grpo({"even": 1.0}, constraints=(HIGH,), multiplier_lr=0.0, **SMALL)
    parent = grpo(WEIGHTS, **SMALL)
    assert (
        trained(tmp_path / "a", toy_world(), ours, steps=2)[0]
        == (trained(tmp_path / "b", toy_world(), parent, steps=2)[0])
    )


def test_chebyshev_grpo_of_one_objective_has_the_advantages_of_grpo():
    batch = graded([[0.2], [0.7], [0.4], [0.9]], objectives=("even",))
    one = {"even": 1.0}
    for of in ("response", "policy_mean"):
        ours, parent = chebyshev_grpo(one, criterion=of), grpo(one)
        a, b = (advance(chain(r.reward_steps, r.credit), batch)[0].advantages for r in (ours, parent))
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


def test_multipliers_resume_bit_for_bit(tmp_path):
    recipe = lagrangian_grpo({"even": 1.0}, constraints=(HIGH, Constraint("even", 0.3, "rate", 0.5)), **SMALL)
    whole = trained(tmp_path / "whole", recipe=recipe, steps=4, every=2)
    with pytest.raises(PowerCut):
        trained(tmp_path / "cut", recipe=recipe, steps=4, every=2, on_step=stop_after(3))
    assert trained(tmp_path / "cut", recipe=recipe, steps=4, every=2) == whole


W = {"k0": 0.3, "k1": 0.5, "k2": 0.2}
NEUTRAL = {
    "schedule": ScheduledWeightedSum(((0, W),)),
    "kinds": PerCategoryWeightedSum({}, W),
    "preference": PreferenceWeightedSum(),
    "multipliers": Lagrangian(
        W, (Constraint("k0", 0.0),), dual_learning_rate=0.0, initial_multiplier=1e-300, min_multiplier=0.0
    ),
}


@pytest.mark.parametrize("name", NEUTRAL)
def test_neutral_setting_equals_weighted_sum_bit_for_bit(name):
    batch = graded(torch.rand(12, 3).tolist(), group=[0, 1, 2] * 4)
    batch = batch.replace(category=torch.zeros(12).long(), categories=("",))
    batch = batch.replace(preference_weights=torch.tensor([0.3, 0.5, 0.2]).expand(12, 3))
    ours, _ = advance(NEUTRAL[name], batch)
    want, _ = advance(WeightedSum(W), batch)
    assert torch.equal(ours.rewards, want.rewards)


USED = {"k0": 1.0, "k1": 1.0}
WAYS = {
    "sum": WeightedSum,
    "schedule": lambda w: ScheduledWeightedSum(((0, w), (9, w))),
    "kinds": lambda w: PerCategoryWeightedSum({}, w),
    "worst": lambda w: MinObjective(tuple(name for name, weight in w.items() if weight)),
    "soft worst": lambda w: MinObjective(tuple(name for name, weight in w.items() if weight), 3.0),
    "chebyshev": lambda w: Chebyshev(w, rho=0.1),
    "chebyshev of the mean": lambda w: Chebyshev(w, distance_of="policy_mean", rho=0.1),
    "order": lambda w: Lexicographic(tuple((name, 0.5) for name, weight in w.items() if weight)),
    "multipliers": lambda w: Lagrangian(w, (Constraint("k0", 0.6), Constraint("k1", 0.5, "rate", 0.5))),
    "renormalize": lambda w: chain(HandleMissingScores("renormalize", w), WeightedSum(w)),
    "group mean": lambda w: chain(HandleMissingScores("group_mean", w), WeightedSum(w)),
    "drop": lambda w: chain(HandleMissingScores("drop", w), WeightedSum(w)),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("extra", [1, 2, 3, 6])
def test_objective_of_weight_0_changes_no_reward_bit_for_bit(way, extra):
    """Whatever its scores are, missing ones included, and wherever its columns stand."""
    scores = torch.rand(16, 2, generator=torch.Generator().manual_seed(extra))
    idle = torch.full((16, extra), math.nan)
    idle[::2] = 1e6
    more = torch.cat([scores[:, :1], idle, scores[:, 1:]], 1)
    names = ("k0", *(f"idle{i}" for i in range(extra)), "k1")
    group = [i % 4 for i in range(16)]
    kind = {"category": torch.zeros(16).long(), "categories": ("",)}
    alone = graded(scores, group=group).replace(**kind)
    beside = graded(more, group=group, objectives=names).replace(**kind)
    zeros = {name: 0.0 for name in names if name.startswith("idle")}
    want, seen = advance(WAYS[way](USED), alone)
    ours, seen_too = advance(WAYS[way](USED | zeros), beside)
    assert torch.equal(ours.rewards, want.rewards)
    assert {k: v for k, v in seen_too.items() if "idle" not in k and k != "missing_scores/filled"} == {
        k: v for k, v in seen.items() if k != "missing_scores/filled"
    }


def test_objective_of_weight_0_changes_no_policy_weight(tmp_path):
    alone = trained(tmp_path / "a", toy_world(), grpo({"even": 1.0}, **SMALL), steps=2)
    beside = trained(tmp_path / "b", toy_world(), grpo({"even": 1.0, "high": 0.0}, **SMALL), steps=2)
    assert alone[0] == beside[0]


EVERY = [
    *(make(WEIGHTS | {"k0": 0.5, "k1": 0.5}) for make in WAYS.values()),
    PreferenceWeightedSum(),
    Lagrangian(USED, (Constraint("k0", 0.2, "quantile", 0.1),)),
]


@pytest.mark.parametrize("step", EVERY, ids=lambda step: type(step).__name__)
def test_every_aggregator_passes_the_dry_run(step):
    before = (OrientScores(targets={"even": 0.5}), Threshold("k0", 0.9))
    recipe = replace_aggregator(grpo(WEIGHTS, gates=(), **SMALL), step, score_steps=before)
    assert check_spec(recipe, ("even", "high", "k0", "k1")).frozen_roles == ("reference",)


def test_missing_scores_are_handled_after_gates_and_before_aggregation():
    drop, gate = HandleMissingScores("drop", WEIGHTS), Gate("even", "high", 0.5)
    early = replace_aggregator(
        grpo(WEIGHTS).replace(reward_steps=chain(gate, WeightedSum(WEIGHTS))), missing_step=drop
    )
    assert early.reward_steps.steps == (gate, drop, WeightedSum(WEIGHTS))
    late = replace_aggregator(gdpo(WEIGHTS), MinObjective(("even", "high")), missing_step=drop)
    assert late.reward_steps.steps == (drop,)
    assert MinObjective(("even", "high")) in late.credit.steps
    check_spec(late, ("even", "high"))


def test_hypervolume_weighting_is_refused_before_normalization():
    recipe = grpo(WEIGHTS, **SMALL)
    normalise, spread = recipe.credit.steps
    guided = HypervolumeGuidedWeighting(("even", "high"))
    check_spec(recipe.replace(credit=chain(normalise, guided, spread)), ("even", "high"))
    with pytest.raises(WiringError, match="HypervolumeGuidedWeighting has no effect before GroupNormalize"):
        check_spec(recipe.replace(credit=chain(guided, normalise, spread)), ("even", "high"))


def test_spec_without_weighted_sum_cannot_replace_its_aggregator():
    recipe = lagrangian_grpo({"even": 1.0}, constraints=(HIGH,))
    with pytest.raises(WiringError, match="MinObjective has no WeightedSum to replace among Lagrangian"):
        replace_aggregator(recipe, MinObjective(("even",)))


def test_phases_get_the_same_aggregator():
    recipe = replace_aggregator(rto(WEIGHTS), MinObjective(("even", "high")))
    (phase,) = recipe.phases
    for worth in (recipe.reward_steps, phase.spec.reward_steps):
        assert MinObjective(("even", "high")) in flatten_steps(worth)
        assert not any(isinstance(step, WeightedSum) for step in flatten_steps(worth))
