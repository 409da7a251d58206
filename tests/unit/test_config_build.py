"""The aggregator of a recipe: its settings build the right parts, and contradictions are reported."""

from pathlib import Path

import pytest
from config_cases import GATED, OVER_AGGREGATE, Case, case_lines

from paretune.algorithms import ALGORITHMS
from paretune.config import Config, load_config, resolved_yaml
from paretune.core.errors import ConfigError
from paretune.credit.aggregation import (
    Gate,
    Lexicographic,
    PerCategoryWeightedSum,
    PreferenceWeightedSum,
    ScheduledWeightedSum,
    WeightedSum,
)
from paretune.credit.constraints import Constraint, Lagrangian
from paretune.credit.scalarization import Chebyshev, MinObjective
from paretune.credit.score_transforms import HandleMissingScores, OrientScores, Threshold
from paretune.experiment.resolved import resolve
from paretune.rl.validate import check_spec

GATE = Gate("actionability", "safety", 0.5)
W = {"safety": 1.0, "actionability": 1.0}


def load(folder: Path, **sections: str) -> Config:
    path = folder / "r.yaml"
    path.write_text("".join(f"{key}: {value}\n" for key, value in (GATED | sections).items()))
    return load_config(path)


def test_default_settings_leave_the_algorithm_unchanged(tmp_path: Path) -> None:
    e = load(tmp_path)
    assert resolve(e).algorithm == ALGORITHMS["grpo"](e.weights, gates=e.gates)
    assert resolve(load(tmp_path, aggregate="{name: weighted_sum}")).algorithm == resolve(e).algorithm


@pytest.mark.parametrize(
    ("aggregate", "step"),
    [
        ("{name: min_objective}", MinObjective(("safety", "actionability"))),
        ("{name: min_objective, sharpness: 5.0}", MinObjective(("safety", "actionability"), 5.0)),
        ("{name: chebyshev, criterion: policy_mean, rho: 0.1}", Chebyshev(W, "policy_mean", rho=0.1)),
        ("{name: chebyshev, ideal_point: {safety: 1.0, actionability: 1.0}}", Chebyshev(W, ideal_point=W)),
        ("{name: lexicographic, bin_width: 0.1}", Lexicographic(tuple((name, None) for name in W), 0.1)),
        ("{name: preference_weighted_sum}", PreferenceWeightedSum()),
    ],
)
def test_an_aggregator_replaces_the_weighted_sum(tmp_path: Path, aggregate: str, step: object) -> None:
    e = load(tmp_path, aggregate=aggregate)
    assert resolve(e).algorithm.reward_steps.steps == (GATE, step)
    check_spec(resolve(e).algorithm, tuple(e.objectives))
    again = tmp_path / "again.yaml"
    again.write_text(resolved_yaml(e))
    assert load_config(again).model_dump() == e.model_dump()


WITHOUT_WEIGHTED_SUM = {"modpo", "safe_rlhf", "lagrangian_grpo", "chebyshev_grpo"}
"""Algorithms with an aggregator of their own instead of a weighted sum."""


@pytest.mark.parametrize("name", sorted(WITHOUT_WEIGHTED_SUM))
def test_algorithms_without_a_weighted_sum_reject_an_aggregator(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match=r"no WeightedSum|takes no gate|no constraint"):
        load(tmp_path, aggregate="{name: chebyshev}", algorithm=f"{{name: {name}}}")


WITH_CONFIDENCE = {"ppo_c", "ppo_m"}
"""Algorithms that need stated confidence, for which this recipe has no data."""


@pytest.mark.parametrize("name", sorted(ALGORITHMS.keys() - WITHOUT_WEIGHTED_SUM - WITH_CONFIDENCE))
def test_an_aggregator_replaces_the_weighted_sum_of_every_algorithm(tmp_path: Path, name: str) -> None:
    e = load(tmp_path, aggregate="{name: chebyshev}", algorithm=f"{{name: {name}}}")
    recipe = resolve(e).algorithm
    steps = (*recipe.reward_steps.steps, *recipe.credit.steps)
    assert Chebyshev(W) in steps
    assert not any(isinstance(step, WeightedSum) for step in steps)
    check_spec(recipe, tuple(e.objectives))


def test_constraints_come_from_the_objectives(tmp_path: Path) -> None:
    objectives = (
        "{safety: {at_least: 0.9, constraint: rate, constraint_param: 0.5}, actionability: {at_least: 0.4}}"
    )
    e = load(
        tmp_path,
        objectives=objectives,
        aggregate="{name: lagrangian, multiplier_lr: 0.1, multiplier_max: 5.0}",
    )
    constraints = (Constraint("safety", 0.9, "rate", 0.5), Constraint("actionability", 0.4))
    assert resolve(e).algorithm.reward_steps.steps == (
        Lagrangian(W, constraints, dual_learning_rate=0.1, max_multiplier=5.0),
    )
    check_spec(resolve(e).algorithm, tuple(e.objectives))
    levels = "{safety: {at_least: 0.9}, actionability: {}}"
    e = load(tmp_path, objectives=levels, aggregate="{name: lexicographic}")
    assert resolve(e).algorithm.reward_steps.steps == (
        Lexicographic((("safety", 0.9), ("actionability", None))),
    )


def test_weights_in_time_and_by_category(tmp_path: Path) -> None:
    objectives = (
        "{safety: {weight_schedule: [[0, 2.0], [10, 1.0]]}, actionability: {weight_schedule: [[5, 1.0]]}}"
    )
    e = load(tmp_path, objectives=objectives)
    (step,) = resolve(e).algorithm.reward_steps.steps
    assert isinstance(step, ScheduledWeightedSum)
    assert step.schedule[1] == (5, {"safety": 1.5, "actionability": 1.0})
    assert e.initial_weights == {"safety": 2.0, "actionability": 1.0}, "what a critic starts from"
    check_spec(resolve(e).algorithm, tuple(e.objectives))
    e = load(tmp_path, objectives="{safety: {by_category: {harmful: 3.0}}, actionability: {weight: 0.5}}")
    steps = resolve(e).algorithm.reward_steps.steps
    assert steps == (PerCategoryWeightedSum({"harmful": {"safety": 3.0, "actionability": 0.5}}, e.weights),)
    check_spec(resolve(e).algorithm, tuple(e.objectives))


def test_order_of_caps_targets_gates_and_missing_scores(tmp_path: Path) -> None:
    objectives = "{safety: {cap: 0.9}, actionability: {target: 0.5, gate: safety >= 0.5}}"
    e = load(tmp_path, objectives=objectives, aggregate="{missing: renormalize}")
    before = (OrientScores(targets={"actionability": 0.5}), Threshold("safety", 0.9), GATE)
    assert resolve(e).algorithm.reward_steps.steps == (
        *before,
        HandleMissingScores("renormalize", W),
        WeightedSum(W),
    )
    check_spec(resolve(e).algorithm, tuple(e.objectives))


@pytest.mark.parametrize("mistake", OVER_AGGREGATE, ids=lambda case: f"{case.key}-{case.value[:30]}")
def test_each_contradiction_is_reported_once_at_its_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mistake: Case
) -> None:
    monkeypatch.chdir(tmp_path)
    (line,) = case_lines(GATED, mistake)
    assert line.startswith("r.yaml:")
    assert f": {mistake.key}: " in line
    assert all(word in line for word in mistake.words), line


@pytest.mark.parametrize(
    "objectives",
    [
        "{safety: {at_least: 0.7, weight: 0}, actionability: {}}",
        "{safety: {at_least: 0.7}, actionability: {at_least: 0.5, weight: 0}}",
    ],
)
def test_a_constraint_with_a_reward_or_another_constraint_is_valid(tmp_path: Path, objectives: str) -> None:
    e = load(tmp_path, algorithm="{name: safe_rlhf}", objectives=objectives)
    check_spec(resolve(e).algorithm, tuple(e.objectives))
