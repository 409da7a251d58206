"""Paired comparison of two arms: scores and rates before and after become the entries of eval.json."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paretune.core.goals import HIGHER, Goal
from paretune.evaluate.judge_quality import JudgeQuality
from paretune.evaluate.statistics import (
    Intervals,
    fisher_exact,
    rate_change_interval,
    simultaneous_intervals,
    wilson,
)
from paretune.evaluate.verdicts import UNEQUAL_MISSING_P_VALUE, ChangeEvidence, judge_change

Scores = NDArray[np.float64]
CHANGE_KEYS = (
    "goal",
    "target",
    "change",
    "low",
    "high",
    "oriented",
    "verdict",
    "cautions",
    "min_detectable_effect",
    "judge",
    "judge_quality",
    "independent",
)
"""Keys of an objective in eval.json that say how it changed; other results repeat them."""


@dataclass(frozen=True, kw_only=True)
class ComparisonSpec:
    """Settings of a comparison of two arms."""

    objectives: tuple[str, ...]
    goals: Mapping[str, Goal] = field(default_factory=dict)
    """Objective -> its goal; "higher" if it is left out."""
    judge_names: Mapping[str, str] = field(default_factory=dict)
    """Objective -> display name of its judge; an objective without a judge is not measured."""
    qualities: Mapping[str, JudgeQuality] = field(default_factory=dict)
    """Objective -> measured quality of its judge, where there is one."""
    independent: Mapping[str, bool] = field(default_factory=dict)
    """Objective -> whether its judge shares neither weights nor data with the training reward."""
    shared: Mapping[str, str] = field(default_factory=dict)
    """Objective whose judge is not independent -> what it shares with a training reward, if that is known."""
    margins: Mapping[str, float] = field(default_factory=dict)
    """Objective -> non-inferiority margin: the largest loss that still counts as "not worse"."""
    confidence_level: float = 0.95
    bootstrap_samples: int = 10_000
    seed: int = 0

    def goal(self, objective: str) -> Goal:
        """The goal of an objective."""
        return self.goals.get(objective, HIGHER)

    def orient(self, scores: Scores) -> Scores:
        """[..., K] oriented scores, where higher is better."""
        columns = [self.goal(name).orient(scores[..., k]) for k, name in enumerate(self.objectives)]
        return np.stack(columns, -1) if columns else scores


def compare_objectives(
    spec: ComparisonSpec,
    before: Scores,
    after: Scores,
    clusters: NDArray[np.int64],
    training_rewards: tuple[Scores, Scores] | None = None,
) -> dict[str, dict[str, Any]]:
    """Change, simultaneous interval and verdict per objective.

    Args:
        spec: Objectives, judges, goals, margins and bootstrap settings.
        before: [P, n, K] judged scores; NaN = not scored.
        after: [P, n, K] of the same prompts and seeds.
        clusters: [P] prompts with equal numbers are duplicates of each other.
        training_rewards: The training rewards of the same two arms.
    """
    arms = _PairedArms.of(spec, (before, after), clusters)
    rewards = None if training_rewards is None else _PairedArms.of(spec, training_rewards, clusters)
    summaries = {}
    for k, name in enumerate(spec.objectives):
        summary = _objective_summary(spec, name, arms, k)
        summary["reward"] = None if rewards is None else rewards.change(k) | {"std": rewards.std(k)}
        summaries[name] = summary
    return summaries


@dataclass(frozen=True)
class _PairedArms:
    """Scores of two arms, oriented so that higher ones are better, and the intervals of their changes."""

    goals: tuple[Goal, ...]
    samples: tuple[Scores, Scores]
    """[P, n, K] oriented scores before and after."""
    means: tuple[Scores, Scores]
    """[P, K] their means per prompt."""
    intervals: Intervals
    """Of the changes of `means`."""
    raw: "_PairedArms | None"
    """The scores as they are, where an objective has a target; else they follow from the oriented ones."""

    @classmethod
    def of(
        cls, spec: ComparisonSpec, scores: tuple[Scores, Scores], clusters: NDArray[np.int64]
    ) -> "_PairedArms":
        goals = tuple(map(spec.goal, spec.objectives))
        samples = spec.orient(scores[0]), spec.orient(scores[1])
        means = mean_per_prompt(samples[0]), mean_per_prompt(samples[1])
        raw = None
        if any(goal.kind == "target" for goal in goals):
            raw = cls.of(replace(spec, goals={}), scores, clusters)
        return cls(goals, samples, means, _bootstrap_intervals(spec, *means, clusters), raw)

    def change(self, k: int) -> dict[str, Any]:
        """The change of one objective as it was scored, and under `oriented` that of the oriented score."""
        summary = _change_summary(*self.means, self.intervals, k)
        oriented = {key: value for key, value in summary.items() if key != "num_scored"}
        kind = self.goals[k].kind
        if kind == "target" and self.raw is not None:
            summary = _change_summary(*self.raw.means, self.raw.intervals, k)
        elif kind == "lower":
            summary |= mirrored(oriented)
        return summary | {"oriented": oriented}

    def std(self, k: int) -> float:
        """Standard deviation of the oriented score before; NaN without a scored prompt."""
        known = self.means[0][:, k][~np.isnan(self.means[0][:, k])]
        return float(known.std()) if len(known) else math.nan

    def differences(self, k: int) -> NDArray[np.float64]:
        """Changes of the oriented score of the prompts that were scored in both arms."""
        difference = self.means[1][:, k] - self.means[0][:, k]
        return difference[~np.isnan(difference)]


def mirrored(change: Mapping[str, float]) -> dict[str, float]:
    """The change of minus the score: the numbers negated, and the bounds swapped."""
    negated = {key: 0.0 - value for key, value in change.items()}  # 0 and not -0
    return negated | {"low": negated["high"], "high": negated["low"]}


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
    """Mean over each prompt's scored samples, [P, n, ...] to [P, ...]; NaN where none is scored."""
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


def _objective_summary(spec: ComparisonSpec, name: str, arms: _PairedArms, k: int) -> dict[str, Any]:
    summary, missing = arms.change(k), _missing_judgments(arms, k)
    oriented, quality, scored = summary["oriented"], spec.qualities.get(name), arms.differences(k)
    independent, margin = spec.independent.get(name, False), spec.margins.get(name)
    evidence = ChangeEvidence(
        objective=name,
        low=oriented["low"],
        high=oriented["high"],
        independent=independent or name not in spec.judge_names,
        shared=spec.shared.get(name, ""),
        quality=quality,
        num_prompts=int(arms.intervals.num_clusters[k]),
        missing_fraction=missing["fraction"],
        unequal_missing=missing["unequal"],
        worst_low=missing["low"],
        margin=margin,
    )
    return (
        spec.goal(name).entry()
        | summary
        | judge_change(evidence).entry()
        | {
            "judge": spec.judge_names.get(name, "none"),
            "judge_quality": None if quality is None else quality.entry(),
            "independent": independent,
            **({"shared": spec.shared[name]} if name in spec.shared else {}),
            "min_detectable_effect": float(arms.intervals.min_detectable_effect[k]),
            "margin": margin,
            "missing": missing,
            "win_rate": float((scored > 0).mean()) if len(scored) else math.nan,
            "tie_rate": float((scored == 0).mean()) if len(scored) else math.nan,
            "loss_rate": float((scored < 0).mean()) if len(scored) else math.nan,
            "std": arms.std(k),
        }
    )


def _missing_judgments(arms: _PairedArms, k: int) -> dict[str, Any]:
    """How many judgments are missing in each arm, and how far they could move the interval.

    The bounds are those of the oriented change if every missing score were the worst, or the best, that this
    judge gave to any response: a policy must not gain by responses that cannot be judged.
    """
    before, after = (samples[:, :, k] for samples in arms.samples)
    num_samples = before.size
    numbers = [int(np.isnan(scores).sum()) for scores in (before, after)]
    # A policy whose responses cannot be judged must not gain by that: test whether one arm misses more.
    p_value = fisher_exact(numbers[0], num_samples - numbers[0], numbers[1], num_samples - numbers[1])
    low, high = float(arms.intervals.low[k]), float(arms.intervals.high[k])
    known = np.concatenate([before[~np.isnan(before)], after[~np.isnan(after)]])
    if sum(numbers) and len(known):
        mean, worst, best = float(arms.intervals.mean[k]), known.min(), known.max()
        changes = [
            float((np.where(np.isnan(after), new, after) - np.where(np.isnan(before), old, before)).mean())
            for old, new in ((best, worst), (worst, best))
        ]
        low, high = low + min(changes[0] - mean, 0.0), high + max(changes[1] - mean, 0.0)
    return {
        "before": numbers[0],
        "after": numbers[1],
        "fraction": sum(numbers) / (2 * num_samples) if num_samples else 1.0,
        "unequal": p_value < UNEQUAL_MISSING_P_VALUE,
        "low": low,
        "high": high,
    }
