"""How a recipe chooses what its objectives become: the right parts, and a line for what means nothing."""

from pathlib import Path

import pytest

from paretune.algorithms import ALGORITHMS
from paretune.config import load_config, resolved_yaml
from paretune.config.build import build_spec
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
from paretune.credit.score_transforms import DistanceToTarget, HandleMissingScores, Threshold
from paretune.rl.validate import check_spec

BASE = {
    "data": "{world: {}}",
    "policy": "{path: world, sft: {}}",
    "reward": "{objectives: {safety: {}, actionability: {}}}",
    "objectives": "{safety: {}, actionability: {when: safety >= 0.5}}",
    "algorithm": "{name: grpo}",
}
GATE = Gate("actionability", "safety", 0.5)
W = {"safety": 1.0, "actionability": 1.0}


def experiment(folder: Path, **sections: str):
    path = folder / "r.yaml"
    path.write_text("".join(f"{key}: {value}\n" for key, value in (BASE | sections).items()))
    return load_config(path)


def test_without_a_word_the_recipe_is_that_of_the_algorithm(tmp_path: Path) -> None:
    e = experiment(tmp_path)
    assert build_spec(e) == ALGORITHMS["grpo"](e.weights, gates=e.gates)
    assert build_spec(experiment(tmp_path, aggregate="{name: weighted}")) == build_spec(e)


@pytest.mark.parametrize(
    ("aggregate", "step"),
    [
        ("{name: worst}", MinObjective(("safety", "actionability"))),
        ("{name: worst, sharpness: 5.0}", MinObjective(("safety", "actionability"), 5.0)),
        ("{name: chebyshev, of: mean, rho: 0.1}", Chebyshev(W, "mean", rho=0.1)),
        ("{name: chebyshev, ideal: {safety: 1.0, actionability: 1.0}}", Chebyshev(W, ideal_point=W)),
        ("{name: lexicographic, grain: 0.1}", Lexicographic(tuple((name, None) for name in W), 0.1)),
        ("{name: preference}", PreferenceWeightedSum()),
    ],
)
def test_another_way_takes_the_place_of_the_sum(tmp_path: Path, aggregate: str, step: object) -> None:
    e = experiment(tmp_path, aggregate=aggregate)
    assert build_spec(e).reward_steps.steps == (GATE, step)
    check_spec(build_spec(e), tuple(e.objectives))
    again = tmp_path / "again.yaml"
    again.write_text(resolved_yaml(e))
    assert load_config(again).model_dump() == e.model_dump()


APART = {"modpo", "safe_rlhf", "lagrangian_grpo", "chebyshev_grpo"}
"""They have a way of their own and no weighted sum to replace."""


@pytest.mark.parametrize("name", sorted(APART))
def test_those_without_a_sum_refuse_another_way(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match=r"no WeightedSum|takes no gate|no constraint"):
        experiment(tmp_path, aggregate="{name: chebyshev}", algorithm=f"{{name: {name}}}")


FRAMED = {"ppo_c", "ppo_m"}
"""They ask the policy for its confidence, which this recipe has nothing for."""


@pytest.mark.parametrize("name", sorted(ALGORITHMS.keys() - APART - FRAMED))
def test_it_does_so_in_every_algorithm(tmp_path: Path, name: str) -> None:
    e = experiment(tmp_path, aggregate="{name: chebyshev}", algorithm=f"{{name: {name}}}")
    recipe = build_spec(e)
    steps = (*recipe.reward_steps.steps, *recipe.credit.steps)
    assert Chebyshev(W) in steps
    assert not any(isinstance(step, WeightedSum) for step in steps)
    check_spec(recipe, tuple(e.objectives))


def test_constraints_come_from_the_objectives(tmp_path: Path) -> None:
    objectives = "{safety: {at_least: 0.9, constraint: rate, at: 0.5}, actionability: {at_least: 0.4}}"
    e = experiment(tmp_path, objectives=objectives, aggregate="{name: lagrangian, rate: 0.1, most: 5.0}")
    constraints = (Constraint("safety", 0.9, "rate", 0.5), Constraint("actionability", 0.4))
    assert build_spec(e).reward_steps.steps == (
        Lagrangian(W, constraints, dual_learning_rate=0.1, max_multiplier=5.0),
    )
    check_spec(build_spec(e), tuple(e.objectives))
    levels = "{safety: {at_least: 0.9}, actionability: {}}"
    e = experiment(tmp_path, objectives=levels, aggregate="{name: lexicographic}")
    assert build_spec(e).reward_steps.steps == (Lexicographic((("safety", 0.9), ("actionability", None))),)


def test_weights_in_time_and_by_kind(tmp_path: Path) -> None:
    objectives = "{safety: {schedule: [[0, 2.0], [10, 1.0]]}, actionability: {schedule: [[5, 1.0]]}}"
    e = experiment(tmp_path, objectives=objectives)
    (step,) = build_spec(e).reward_steps.steps
    assert isinstance(step, ScheduledWeightedSum)
    assert step.schedule[1] == (5, {"safety": 1.5, "actionability": 1.0})
    assert e.initial_weights == {"safety": 2.0, "actionability": 1.0}, "what a critic starts from"
    check_spec(build_spec(e), tuple(e.objectives))
    e = experiment(tmp_path, objectives="{safety: {by_kind: {harmful: 3.0}}, actionability: {weight: 0.5}}")
    steps = build_spec(e).reward_steps.steps
    assert steps == (PerCategoryWeightedSum({"harmful": {"safety": 3.0, "actionability": 0.5}}, e.weights),)
    check_spec(build_spec(e), tuple(e.objectives))


def test_caps_targets_gates_and_missing_scores_in_their_order(tmp_path: Path) -> None:
    objectives = "{safety: {cap: 0.9}, actionability: {target: 0.5, when: safety >= 0.5}}"
    e = experiment(tmp_path, objectives=objectives, aggregate="{missing: renormalise}")
    before = (Threshold("safety", 0.9), DistanceToTarget("actionability", 0.5), GATE)
    assert build_spec(e).reward_steps.steps == (
        *before,
        HandleMissingScores("renormalise", W),
        WeightedSum(W),
    )
    check_spec(build_spec(e), tuple(e.objectives))


@pytest.mark.parametrize(
    ("section", "value", "expected"),
    [
        ("aggregate", "{name: wrost}", 'aggregate.name: "wrost" is no aggregate; did you mean "worst"?'),
        ("aggregate", "{name: worst, sharpnes: 1}", "aggregate.sharpnes: unknown key; did you mean"),
        ("aggregate", "{sharpness: 1}", "aggregate.sharpness: unknown key; fix: weighted takes no arguments"),
        ("aggregate", "{name: worst, sharpness: x}", "aggregate.sharpness: "),
        ("aggregate", "{name: worst, sharpness: 0.0}", "aggregate.sharpness: 0.0 must be above 0"),
        ("aggregate", "{name: chebyshev, rho: -1}", "aggregate.rho: -1 must be at least 0"),
        (
            "aggregate",
            "{name: chebyshev, freeze_after: -1}",
            "aggregate.freeze_ideal_after: -1 must be at least 0",
        ),
        ("aggregate", "{name: lexicographic, grain: -1}", "aggregate.bin_width: -1 must be at least 0"),
        ("aggregate", "{name: lagrangian, window: 0}", "aggregate.window_size: 0 must be at least 1"),
        ("aggregate", "{missing: zero}", 'aggregate.missing: "zero" is none of drop'),
        ("aggregate", "{name: worst, missing: renormalise}", "aggregate.missing: renormalise stretches"),
        ("aggregate", "{name: lagrangian}", "aggregate.name: lagrangian keeps constraints, and no objective"),
        (
            "objectives",
            "{safety: {at_least: 0.9}}",
            "objectives.safety.at_least: has no effect with aggregate.name weighted; "
            "fix: write aggregate: {name: lagrangian}",
        ),
        (
            "objectives",
            "{safety: {at: 0.9}}",
            "objectives.safety.constraint_param: has no effect without at_least",
        ),
        ("objectives", "{safety: {cap: 1.0, target: 0.5}}", "safety.target: is given beside cap"),
        (
            "objectives",
            "{safety: {weight: 2, schedule: [[0, 1.0]]}}",
            "safety.weight: has no effect beside schedule",
        ),
        (
            "objectives",
            "{safety: {by_kind: {harmful: 2.0}}, actionability: {schedule: [[0, 1.0]]}}",
            "safety.by_kind: cannot be combined with a schedule",
        ),
        ("objectives", "{safety: {schedule: [[3, 1.0], [1, 2.0]]}}", "has the steps [3, 1], which must rise"),
        ("objectives", "{safety: {schedule: [[0, x]]}}", "objectives.safety.weight_schedule.0.1: "),
        (
            "objectives",
            "{safety: {by_kind: {harmfull: 2.0}}}",
            'safety.by_kind.harmfull: no prompt is of the kind "harmfull"; did you mean "harmful"?',
        ),
    ],
)
def test_a_line_for_each_contradiction(tmp_path: Path, section: str, value: str, expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        experiment(tmp_path, **{section: value})
    (line,) = str(caught.value).split("\n")
    assert expected in line


def test_of_a_misspelt_algorithm_nobody_says_that_it_keeps_no_constraints(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        experiment(tmp_path, algorithm="{name: lagrangian_grop}", objectives="{safety: {at_least: 0.9}}")
    (line,) = str(caught.value).split("\n")
    assert 'algorithm.name: "lagrangian_grop" is no algorithm; did you mean "lagrangian_grpo"?' in line


@pytest.mark.parametrize(
    ("aggregate", "objectives", "expected"),
    [
        ("{name: worst}", "{safety: {weight: 2}, actionability: {}}", "the weights are not equal"),
        ("{name: chebyshev}", "{safety: {at_least: 0.9}}", "at_least: has no effect with aggregate"),
        ("{name: worst}", "{safety: {schedule: [[0, 1.0]]}}", "schedule: has no effect with aggregate.name"),
        (
            "{name: lexicographic}",
            "{safety: {at_least: 0.9, constraint: rate, at: 0.5}}",
            "constraint: has no effect with aggregate.name lexicographic",
        ),
        ("{name: lagrangian}", "{safety: {at_least: 0.9, constraint: rate}}", "at_least: the constraint on"),
        (
            "{name: chebyshev, ideal: {safety: 1.0}}",
            "{safety: {}, actionability: {}}",
            "no value for actionab",
        ),
    ],
)
def test_ways_and_objectives_that_contradict_each_other(
    tmp_path: Path, aggregate: str, objectives: str, expected: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        experiment(tmp_path, aggregate=aggregate, objectives=objectives)
    (line,) = str(caught.value).split("\n")
    assert expected in line


@pytest.mark.parametrize(
    "objectives",
    [
        "{safety: {at_least: 0.7}}",
        "{safety: {at_least: 0.7, weight: 0.5}}",
        "{safety: {at_least: 0.7}, actionability: {weight: 0}}",
    ],
)
def test_a_constraint_on_all_that_is_rewarded_has_nothing_to_be_held_against(
    tmp_path: Path, objectives: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        experiment(tmp_path, algorithm="{name: safe_rlhf}", objectives=objectives)
    (line,) = str(caught.value).split("\n")
    assert 'algorithm: "safe_rlhf" weighs a constraint against a reward, and "safety" is both' in line
    assert "; fix: give another objective a weight, or take ppo" in line


@pytest.mark.parametrize(
    "objectives",
    [
        "{safety: {at_least: 0.7, weight: 0}, actionability: {}}",
        "{safety: {at_least: 0.7}, actionability: {at_least: 0.5, weight: 0}}",
    ],
)
def test_a_constraint_beside_a_reward_or_another_constraint_is_held(tmp_path: Path, objectives: str) -> None:
    e = experiment(tmp_path, algorithm="{name: safe_rlhf}", objectives=objectives)
    check_spec(build_spec(e), tuple(e.objectives))
