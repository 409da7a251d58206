"""Paired comparison of two arms: scores and rates before and after become the entries of eval.json."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paretune.evaluate.statistics import (
    UNEQUAL_MISSING_P_VALUE,
    Intervals,
    fisher_exact,
    rate_change_interval,
    simultaneous_intervals,
    verdict,
    wilson,
)

Scores = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class ComparisonSpec:
    """Settings of a comparison of two arms."""

    objectives: tuple[str, ...]
    judge_names: Mapping[str, str] = field(default_factory=dict)
    """Objective -> display name of its judge; an objective without a judge is not measured."""
    independent: Mapping[str, bool] = field(default_factory=dict)
    shared: Mapping[str, str] = field(default_factory=dict)
    """Objective whose judge is not independent -> what it shares with a training reward, if that is known."""
    """Objective -> whether its judge shares neither weights nor data with the training reward."""
    margins: Mapping[str, float] = field(default_factory=dict)
    """Objective -> non-inferiority margin: the largest loss that still counts as "not worse"."""
    confidence_level: float = 0.95
    bootstrap_samples: int = 10_000
    seed: int = 0


def compare_objectives(
    spec: ComparisonSpec,
    before: Scores,
    after: Scores,
    clusters: NDArray[np.int64],
    training_rewards: tuple[Scores, Scores] | None = None,
) -> dict[str, dict[str, Any]]:
    """Change, simultaneous interval and verdict per objective.

    Args:
        spec: Objectives, judges, margins and bootstrap settings.
        before: [P, n, K] judged scores; NaN = not scored.
        after: [P, n, K] of the same prompts and seeds.
        clusters: [P] prompts with equal numbers are duplicates of each other.
        training_rewards: The training rewards of the same two arms.
    """
    prompt_means = (mean_per_prompt(before), mean_per_prompt(after))
    intervals = _bootstrap_intervals(spec, *prompt_means, clusters)
    reward_comparison = None
    if training_rewards is not None:
        reward_means = (mean_per_prompt(training_rewards[0]), mean_per_prompt(training_rewards[1]))
        reward_comparison = (*reward_means, _bootstrap_intervals(spec, *reward_means, clusters))
    summaries = {}
    for k, name in enumerate(spec.objectives):
        num_missing = (int(np.isnan(before[:, :, k]).sum()), int(np.isnan(after[:, :, k]).sum()))
        summary = _objective_summary(
            spec, name, k, prompt_means, intervals, num_missing, before.shape[0] * before.shape[1]
        )
        summary["std"] = _std_over_prompts(prompt_means[0][:, k])
        summary["reward"] = (
            None
            if reward_comparison is None
            else _change_summary(*reward_comparison, k)
            | {"std": _std_over_prompts(reward_comparison[0][:, k])}
        )
        summaries[name] = summary
    return summaries


def compare_by_category(
    spec: ComparisonSpec,
    categories: Sequence[str],
    before: Scores,
    after: Scores,
    clusters: NDArray[np.int64],
) -> dict[str, dict[str, Any]]:
    """The changes per prompt category; intervals are simultaneous within a category, without verdicts."""
    means_before, means_after = mean_per_prompt(before), mean_per_prompt(after)
    results = {}
    for category in dict.fromkeys(categories):
        rows = np.array([other == category for other in categories])
        intervals = _bootstrap_intervals(spec, means_before[rows], means_after[rows], clusters[rows])
        objectives = {
            name: _change_summary(means_before[rows], means_after[rows], intervals, k)
            for k, name in enumerate(spec.objectives)
        }
        results[category or "other"] = {"num_prompts": int(rows.sum()), "objectives": objectives}
    return results


def compare_rates(
    before: NDArray[np.float64], after: NDArray[np.float64], confidence_level: float
) -> dict[str, Any]:
    """A rate in both arms with Wilson intervals, and the interval of its change.

    Args:
        before: [P] fraction of each prompt's samples that are positive.
        after: [P] the same for the other arm.
        confidence_level: Confidence level of each interval.
    """
    n = len(before)
    if n == 0:
        return {"num_prompts": 0, "before": math.nan, "after": math.nan, "low": math.nan, "high": math.nan}
    low, high = rate_change_interval(before, after, confidence_level)
    return {
        "num_prompts": n,
        "before": float(before.mean()),
        "after": float(after.mean()),
        "low": low,
        "high": high,
        "before_interval": list(wilson(float(before.sum()), n, confidence_level)),
        "after_interval": list(wilson(float(after.sum()), n, confidence_level)),
    }


def mean_per_prompt(scores: Scores) -> Scores:
    """Mean over each prompt's scored samples, [P, n, K] to [P, K]; NaN where none is scored."""
    known = ~np.isnan(scores)
    with np.errstate(invalid="ignore"):
        return np.where(known, scores, 0.0).sum(1) / known.sum(1)


def _bootstrap_intervals(
    spec: ComparisonSpec, before: Scores, after: Scores, clusters: NDArray[np.int64]
) -> Intervals:
    return simultaneous_intervals(
        after - before,
        clusters=clusters,
        bootstrap_samples=spec.bootstrap_samples,
        confidence_level=spec.confidence_level,
        seed=spec.seed,
    )


def _change_summary(before: Scores, after: Scores, intervals: Intervals, column: int) -> dict[str, Any]:
    # The change is a mean of paired differences: `after - before` holds only over prompts scored in both
    # arms.
    both = ~np.isnan(before[:, column]) & ~np.isnan(after[:, column])
    return {
        "num_scored": int(intervals.num_scored[column]),
        "before": float(before[both, column].mean()) if both.any() else math.nan,
        "after": float(after[both, column].mean()) if both.any() else math.nan,
        "change": float(intervals.mean[column]),
        "low": float(intervals.low[column]),
        "high": float(intervals.high[column]),
    }


def _std_over_prompts(scores: NDArray[np.float64]) -> float:
    """Standard deviation over the scored prompts; NaN without any."""
    known = scores[~np.isnan(scores)]
    return float(known.std()) if len(known) else math.nan


def _objective_summary(
    spec: ComparisonSpec,
    name: str,
    column: int,
    prompt_means: tuple[Scores, Scores],
    intervals: Intervals,
    num_missing: tuple[int, int],
    num_samples: int,
) -> dict[str, Any]:
    summary = _change_summary(*prompt_means, intervals, column)
    difference = prompt_means[1][:, column] - prompt_means[0][:, column]
    scored = difference[~np.isnan(difference)]
    independent = spec.independent.get(name, False)
    missing_fraction = sum(num_missing) / (2 * num_samples) if num_samples else 1.0
    # A policy whose responses cannot be judged must not gain by that: test whether one arm misses more.
    p_value = fisher_exact(
        num_missing[0], num_samples - num_missing[0], num_missing[1], num_samples - num_missing[1]
    )
    unequal = p_value < UNEQUAL_MISSING_P_VALUE
    margin = spec.margins.get(name)
    return summary | {
        "verdict": verdict(
            summary["low"],
            summary["high"],
            independent=independent,
            missing_fraction=missing_fraction,
            unequal_missing=unequal,
            margin=margin,
        ),
        "judge": spec.judge_names.get(name, "none"),
        "independent": independent,
        **({"shared": spec.shared[name]} if name in spec.shared else {}),
        "min_detectable_effect": float(intervals.min_detectable_effect[column]),
        "margin": margin,
        "missing": {
            "before": num_missing[0],
            "after": num_missing[1],
            "fraction": missing_fraction,
            "unequal": unequal,
        },
        "win_rate": float((scored > 0).mean()) if len(scored) else math.nan,
        "tie_rate": float((scored == 0).mean()) if len(scored) else math.nan,
        "loss_rate": float((scored < 0).mean()) if len(scored) else math.nan,
    }
