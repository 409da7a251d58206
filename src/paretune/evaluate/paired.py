"""Two arms of scores and texts become the numbers of eval.json."""

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
    """How two arms are compared."""

    objectives: tuple[str, ...]
    judge_names: Mapping[str, str] = field(default_factory=dict)
    """Who scores an objective, in words; an objective without a judge is not measured."""
    independent: Mapping[str, bool] = field(default_factory=dict)
    """Whether that judge shares neither weights nor data with the training reward."""
    margins: Mapping[str, float] = field(default_factory=dict)
    """How much worse an objective may get and still be called "not worse"."""
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
    """Objective by objective: what changed, how surely, and in which words.

    Args:
        spec: Names, judges, margins, and the settings of the bootstrap.
        before: [P, n, K] judged scores, NaN where the judge could not say.
        after: The same prompts and seeds.
        clusters: [P] prompts with equal numbers are copies of each other.
        training_rewards: The training reward on the same two arms.
    """
    middle = (mean_per_prompt(before), mean_per_prompt(after))
    intervals = _bootstrap_intervals(spec, *middle, clusters)
    trained = None
    if training_rewards is not None:
        one, two = mean_per_prompt(training_rewards[0]), mean_per_prompt(training_rewards[1])
        trained = (one, two, _bootstrap_intervals(spec, one, two, clusters))
    found = {}
    for k, name in enumerate(spec.objectives):
        lost = (int(np.isnan(before[:, :, k]).sum()), int(np.isnan(after[:, :, k]).sum()))
        found[name] = _objective_summary(
            spec, name, k, middle, intervals, lost, before.shape[0] * before.shape[1]
        )
        found[name]["spread"] = _std_over_prompts(middle[0][:, k])
        reward = (
            None
            if trained is None
            else _change_summary(*trained, k) | {"spread": _std_over_prompts(trained[0][:, k])}
        )
        found[name]["reward"] = reward
    return found


def compare_by_category(
    spec: ComparisonSpec,
    categories: Sequence[str],
    before: Scores,
    after: Scores,
    clusters: NDArray[np.int64],
) -> dict[str, dict[str, Any]]:
    """The same changes within each kind of prompt; intervals simultaneous within a kind, no verdicts."""
    one, two = mean_per_prompt(before), mean_per_prompt(after)
    found = {}
    for kind in dict.fromkeys(categories):
        rows = np.array([other == kind for other in categories])
        intervals = _bootstrap_intervals(spec, one[rows], two[rows], clusters[rows])
        objectives = {
            name: _change_summary(one[rows], two[rows], intervals, k)
            for k, name in enumerate(spec.objectives)
        }
        found[kind or "other"] = {"prompts": int(rows.sum()), "objectives": objectives}
    return found


def compare_rates(
    before: NDArray[np.float64], after: NDArray[np.float64], confidence_level: float
) -> dict[str, Any]:
    """A rate in both arms, each with Wilson's interval, and the interval of its change.

    Args:
        before: [P] per prompt, the share of its samples that are cases.
        after: The same prompts, after.
        confidence_level: Of each interval.
    """
    n = len(before)
    if n == 0:
        return {"n": 0, "before": math.nan, "after": math.nan, "low": math.nan, "high": math.nan}
    low, high = rate_change_interval(before, after, confidence_level)
    return {
        "n": n,
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
    both = ~np.isnan(before[:, column]) & ~np.isnan(after[:, column])
    return {
        "n": int(intervals.num_scored[column]),
        "before": float(before[both, column].mean()) if both.any() else math.nan,
        "after": float(after[both, column].mean()) if both.any() else math.nan,
        "change": float(intervals.mean[column]),
        "low": float(intervals.low[column]),
        "high": float(intervals.high[column]),
    }


def _std_over_prompts(scores: NDArray[np.float64]) -> float:
    """Standard deviation over prompts, [P] to one number; NaN where nothing is scored."""
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
    found = _change_summary(*prompt_means, intervals, column)
    difference = prompt_means[1][:, column] - prompt_means[0][:, column]
    scored = difference[~np.isnan(difference)]
    independent = spec.independent.get(name, False)
    missing = sum(num_missing) / (2 * num_samples) if num_samples else 1.0
    unequal = (
        fisher_exact(
            num_missing[0], num_samples - num_missing[0], num_missing[1], num_samples - num_missing[1]
        )
        < UNEQUAL_MISSING_P_VALUE
    )
    margin = spec.margins.get(name)
    word = verdict(
        found["low"],
        found["high"],
        independent=independent,
        missing_fraction=missing,
        unequal_missing=unequal,
        margin=margin,
    )
    return found | {
        "verdict": word,
        "judge": spec.judge_names.get(name, "none"),
        "independent": independent,
        "detectable": float(intervals.min_detectable_effect[column]),
        "margin": margin,
        "missing": {"before": num_missing[0], "after": num_missing[1], "share": missing, "unequal": unequal},
        "wins": float((scored > 0).mean()) if len(scored) else math.nan,
        "ties": float((scored == 0).mean()) if len(scored) else math.nan,
        "losses": float((scored < 0).mean()) if len(scored) else math.nan,
    }
