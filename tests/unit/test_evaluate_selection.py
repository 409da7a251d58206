"""The best of several evaluated steps by several objectives, and the step at which a training should stop."""

import json

import numpy as np
import pytest

from paretune.core.goals import Goal
from paretune.evaluate.selection import (
    SelectionSpec,
    StepEvaluation,
    choose_step,
    find_stop,
    find_turn,
    scaled_changes,
    selection_results,
    selection_warnings,
    summarize_evaluation,
)
from paretune.evaluate.statistics import simultaneous_intervals

PROMPTS = 40
SPEC = SelectionSpec(weights={"safe": 1.0, "kind": 1.0}, bootstrap_samples=300)
NOISE = np.random.default_rng(0).normal(size=(PROMPTS, 2))
NOISE -= NOISE.mean(0)


def evaluation(step, safe, kind, *, noise=0.3, reward=None, margins=None, missing=0.0):
    """An evaluation with these mean changes, in standard deviations."""
    changes = np.array([safe, kind]) + noise * NOISE
    intervals = simultaneous_intervals(changes, bootstrap_samples=300)
    objectives = {}
    for k, name in enumerate(SPEC.weights):
        low, high = float(intervals.low[k]), float(intervals.high[k])
        objectives[name] = {
            "oriented": {"change": float(intervals.mean[k]), "low": low, "high": high},
            "missing": {"low": low - missing},
            "margin": (margins or {}).get(name),
            "judge": "a judge",
        }
    rewards = None if reward is None else np.full((PROMPTS, 2), reward)
    return StepEvaluation(
        step=step,
        results={"objectives": objectives, "kl": {"k3": 0.1 * step}},
        changes=changes,
        reward_changes=rewards,
        clusters=np.arange(PROMPTS),
    )


def chosen(rule, *evaluations):
    return choose_step(SPEC, rule, evaluations).step


def test_the_largest_lower_bound_wins_not_the_largest_mean():
    steady, lucky = evaluation(10, 0.5, 0.5, noise=0.3), evaluation(20, 0.6, 0.6, noise=3.0)
    assert chosen("lower_bound", steady, lucky) == 10
    assert chosen("last", steady, lucky) == 20


def test_a_step_that_loses_in_an_objective_cannot_be_chosen():
    even, greedy = evaluation(10, 0.3, 0.3), evaluation(20, -0.5, 3.0)
    assert chosen("lower_bound", even, greedy) == 10
    summary = summarize_evaluation(SPEC, greedy)
    assert not summary.eligible
    assert summary.excluded.startswith("safe is worse (-0.50 [")
    assert "1 of 2 steps lost in an objective" in choose_step(SPEC, "lower_bound", [even, greedy]).reason


@pytest.mark.parametrize(
    ("margin", "missing", "eligible"), [(0.5, 0.0, True), (0.05, 0.0, False), (0.5, 1.0, False)]
)
def test_a_margin_has_to_be_shown_and_missing_judgments_count_against_it(margin, missing, eligible):
    each = evaluation(10, 0.0, 1.0, margins={"safe": margin}, missing=missing)
    assert summarize_evaluation(SPEC, each).eligible is eligible


def test_without_an_eligible_step_the_choice_says_so():
    bad, worse = evaluation(10, -0.5, 1.0), evaluation(20, -1.0, 1.0)
    choice = choose_step(SPEC, "lower_bound", [bad, worse])
    assert choice.step == 10
    assert "NO evaluated step keeps every objective: safe is worse" in choice.reason
    results = selection_results(SPEC, "lower_bound", [bad, worse], max_steps=20)
    assert selection_warnings(results)[0].startswith(
        "No evaluated step keeps every objective; of step 10: safe"
    )


def test_dominated_steps_are_dropped_and_the_most_even_one_is_kept():
    dominated, even, greedy = evaluation(10, 0.2, 0.2), evaluation(20, 0.6, 0.6), evaluation(30, 0.1, 2.0)
    choice = choose_step(SPEC, "dominance", [dominated, even, greedy])
    assert choice.step == 20
    assert "once the dominated steps 10 are left out" in choice.reason
    assert chosen("lower_bound", dominated, even, greedy) == 30


@pytest.mark.parametrize("rule", ["lower_bound", "dominance"])
def test_of_equal_steps_the_earliest_is_kept(rule):
    assert chosen(rule, *(evaluation(step, 0.4, 0.4) for step in (10, 20, 30))) == 10


def test_a_step_without_scores_is_never_chosen():
    unscored = StepEvaluation(
        step=20,
        results={"objectives": evaluation(20, 0, 0).results["objectives"], "kl": None},
        changes=np.full((PROMPTS, 2), np.nan),
        reward_changes=None,
        clusters=np.arange(PROMPTS),
    )
    assert chosen("lower_bound", evaluation(10, 0.1, 0.1), unscored) == 10
    assert "no step was measured" in choose_step(SPEC, "lower_bound", [unscored]).reason


@pytest.mark.parametrize(
    ("goal", "change"), [(Goal(), 2.0), (Goal("lower"), -2.0), (Goal("target", 4.0), -4.0 / 3)]
)
def test_changes_are_oriented_and_in_standard_deviations(goal, change):
    # Means of the prompts before: 1, 3, 5 and their distances to 4: 3, 1, 1.
    before = np.array([[1.0, 1.0], [3.0, np.nan], [4.0, 6.0]])
    after = before + 2 * np.sqrt(8 / 3)
    spec = SelectionSpec(weights={"a": 1.0}, goals={"a": goal})
    changes = scaled_changes(spec, {"a": before}, {"a": after})
    assert changes.shape == (3, 1)
    if goal.kind == "target":
        distances = np.array([3.0, 1.0, 1.0])  # of the first two; the third's responses are 0 and 2 away
        expected = (distances - np.abs(np.nanmean(after, 1) - 4.0)) / distances.std()
        assert np.allclose(changes[:2, 0], expected[:2])
    else:
        assert np.allclose(changes[:, 0], change)


def test_a_constant_objective_is_not_divided_by_zero():
    spec = SelectionSpec(weights={"a": 1.0})
    assert (
        scaled_changes(spec, {"a": np.zeros((3, 1))}, {"a": np.full((3, 1), 0.5)})[:, 0].tolist() == [0.5] * 3
    )


def test_a_judge_that_falls_while_the_reward_rises_is_a_turn():
    best, later = evaluation(10, 1.0, 1.0, reward=1.0), evaluation(20, 0.2, 0.2, reward=2.0)
    turn = find_turn(SPEC, [best, later])
    assert (turn.best_step, turn.step) == (10, 20)
    assert turn.fall == pytest.approx(-0.8)
    assert turn.rise == pytest.approx(1.0)
    assert turn.describe().startswith("from step 10 to step 20 the judge fell by -0.80 [")


@pytest.mark.parametrize(
    "later",
    [
        evaluation(20, 0.2, 0.2, reward=0.5),  # the reward fell too: not exploited
        evaluation(20, 0.99, 0.99, noise=3.0, reward=2.0),  # chance
        evaluation(20, 1.5, 1.5, reward=2.0),  # still better
        evaluation(20, 0.2, 0.2),  # no training reward
    ],
)
def test_no_turn(later):
    assert find_turn(SPEC, [evaluation(10, 1.0, 1.0, reward=1.0), later]) is None


def test_a_training_that_only_harms_turns_at_the_initial_policy():
    assert find_turn(SPEC, [evaluation(10, -1.0, -1.0, reward=1.0)]).best_step == 0


def test_patience_counts_evaluations_in_a_row():
    run = [
        evaluation(10, 1.0, 1.0, reward=1.0),
        evaluation(20, 0.2, 0.2, reward=2.0),
        evaluation(30, 1.1, 1.1, reward=2.0),
        evaluation(40, 0.2, 0.2, reward=3.0),
        evaluation(50, 0.1, 0.1, reward=4.0),
    ]
    stops = {n: [i for i in range(1, 6) if find_stop(SPEC, run[:i], n)] for n in (1, 2, 3)}
    assert stops == {1: [2, 4, 5], 2: [5], 3: []}


def test_results_name_choice_turn_and_saved_steps():
    run = [
        evaluation(10, 1.0, 1.0, reward=1.0),
        evaluation(20, 0.2, 0.2, reward=2.0),
        evaluation(30, 0.1, 0.1, reward=3.0),
    ]
    results = selection_results(SPEC, "lower_bound", run, max_steps=60, patience=2)
    assert (results["selected_step"], results["best_step"], results["turning_step"]) == (10, 10, 10)
    assert results["early_stopping"]["saved_fraction"] == 0.5
    assert [each["eligible"] for each in results["evaluations"]] == [True, True, True]
    assert json.loads(json.dumps(results)) == results
    assert selection_warnings(results)[0].endswith("(40 held-out prompts); step 10 is kept.")
    last = selection_results(SPEC, "last", run, max_steps=30)
    assert (last["selected_step"], last["best_step"], last["early_stopping"]) == (30, 10, None)
