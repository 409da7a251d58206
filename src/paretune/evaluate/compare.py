"""Two arms of scores and texts become the numbers of eval.json."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paretune.evaluate.statistics import (
    UNEQUAL,
    Intervals,
    fisher,
    rate_change,
    simultaneous_intervals,
    verdict,
    wilson,
)

Scores = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Question:
    """How two arms are compared."""

    objectives: tuple[str, ...]
    judges: Mapping[str, str] = field(default_factory=dict)
    """Who scores an objective, in words; an objective without a judge is not measured."""
    independent: Mapping[str, bool] = field(default_factory=dict)
    """Whether that judge shares neither weights nor data with the training reward."""
    margins: Mapping[str, float] = field(default_factory=dict)
    """How much worse an objective may get and still be called "not worse"."""
    level: float = 0.95
    draws: int = 10_000
    seed: int = 0


def compare(
    question: Question,
    before: Scores,
    after: Scores,
    clusters: NDArray[np.int64],
    rewards: tuple[Scores, Scores] | None = None,
) -> dict[str, dict[str, Any]]:
    """Objective by objective: what changed, how surely, and in which words.

    Args:
        question: Names, judges, margins, and the settings of the bootstrap.
        before: [P, n, K] judged scores, NaN where the judge could not say.
        after: The same prompts and seeds.
        clusters: [P] prompts with equal numbers are copies of each other.
        rewards: The training reward on the same two arms.
    """
    middle = (by_prompt(before), by_prompt(after))
    intervals = _intervals(question, *middle, clusters)
    trained = None
    if rewards is not None:
        one, two = by_prompt(rewards[0]), by_prompt(rewards[1])
        trained = (one, two, _intervals(question, one, two, clusters))
    found = {}
    for k, name in enumerate(question.objectives):
        lost = (int(np.isnan(before[:, :, k]).sum()), int(np.isnan(after[:, :, k]).sum()))
        found[name] = _objective(
            question, name, k, middle, intervals, lost, before.shape[0] * before.shape[1]
        )
        found[name]["spread"] = _spread(middle[0][:, k])
        reward = None if trained is None else _change(*trained, k) | {"spread": _spread(trained[0][:, k])}
        found[name]["reward"] = reward
    return found


def by_kind(
    question: Question,
    kinds: Sequence[str],
    before: Scores,
    after: Scores,
    clusters: NDArray[np.int64],
) -> dict[str, dict[str, Any]]:
    """The same changes within each kind of prompt; intervals simultaneous within a kind, no verdicts."""
    one, two = by_prompt(before), by_prompt(after)
    found = {}
    for kind in dict.fromkeys(kinds):
        rows = np.array([other == kind for other in kinds])
        intervals = _intervals(question, one[rows], two[rows], clusters[rows])
        objectives = {
            name: _change(one[rows], two[rows], intervals, k) for k, name in enumerate(question.objectives)
        }
        found[kind or "other"] = {"prompts": int(rows.sum()), "objectives": objectives}
    return found


def rates(before: NDArray[np.float64], after: NDArray[np.float64], level: float) -> dict[str, Any]:
    """A rate in both arms, each with Wilson's interval, and the interval of its change.

    Args:
        before: [P] per prompt, the share of its samples that are cases.
        after: The same prompts, after.
        level: Of each interval.
    """
    n = len(before)
    if n == 0:
        return {"n": 0, "before": math.nan, "after": math.nan, "low": math.nan, "high": math.nan}
    low, high = rate_change(before, after, level)
    return {
        "n": n,
        "before": float(before.mean()),
        "after": float(after.mean()),
        "low": low,
        "high": high,
        "before_interval": list(wilson(float(before.sum()), n, level)),
        "after_interval": list(wilson(float(after.sum()), n, level)),
    }


def by_prompt(scores: Scores) -> Scores:
    """Mean over each prompt's scored samples, [P, n, K] to [P, K]; NaN where none is scored."""
    known = ~np.isnan(scores)
    with np.errstate(invalid="ignore"):
        return np.where(known, scores, 0.0).sum(1) / known.sum(1)


def _intervals(question: Question, before: Scores, after: Scores, clusters: NDArray[np.int64]) -> Intervals:
    return simultaneous_intervals(
        after - before, clusters=clusters, draws=question.draws, level=question.level, seed=question.seed
    )


def _change(before: Scores, after: Scores, intervals: Intervals, k: int) -> dict[str, Any]:
    both = ~np.isnan(before[:, k]) & ~np.isnan(after[:, k])
    return {
        "n": int(intervals.n[k]),
        "before": float(before[both, k].mean()) if both.any() else math.nan,
        "after": float(after[both, k].mean()) if both.any() else math.nan,
        "change": float(intervals.mean[k]),
        "low": float(intervals.low[k]),
        "high": float(intervals.high[k]),
    }


def _spread(scores: NDArray[np.float64]) -> float:
    """Standard deviation over prompts, [P] to one number; NaN where nothing is scored."""
    known = scores[~np.isnan(scores)]
    return float(known.std()) if len(known) else math.nan


def _objective(
    question: Question,
    name: str,
    k: int,
    middle: tuple[Scores, Scores],
    intervals: Intervals,
    lost: tuple[int, int],
    total: int,
) -> dict[str, Any]:
    found = _change(*middle, intervals, k)
    difference = middle[1][:, k] - middle[0][:, k]
    scored = difference[~np.isnan(difference)]
    independent = question.independent.get(name, False)
    missing = sum(lost) / (2 * total) if total else 1.0
    unequal = fisher(lost[0], total - lost[0], lost[1], total - lost[1]) < UNEQUAL
    margin = question.margins.get(name)
    word = verdict(
        found["low"],
        found["high"],
        independent=independent,
        missing=missing,
        unequal=unequal,
        margin=margin,
    )
    return found | {
        "verdict": word,
        "judge": question.judges.get(name, "none"),
        "independent": independent,
        "detectable": float(intervals.detectable[k]),
        "margin": margin,
        "missing": {"before": lost[0], "after": lost[1], "share": missing, "unequal": unequal},
        "wins": float((scored > 0).mean()) if len(scored) else math.nan,
        "ties": float((scored == 0).mean()) if len(scored) else math.nan,
        "losses": float((scored < 0).mean()) if len(scored) else math.nan,
    }
