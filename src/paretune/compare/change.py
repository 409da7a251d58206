"""Paired changes of all methods and objectives of a weighting, with intervals that hold for all at once."""

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paretune.compare.cells import BenchmarkScores
from paretune.config.contest import BenchmarkSpec
from paretune.evaluate.hierarchy import max_t_intervals
from paretune.evaluate.statistics import verdict

Change = dict[str, Any]
MethodObjective = tuple[str, str]
"""(method, objective)"""
FloatArray = NDArray[np.float64]


def changes_vs_baseline(
    spec: BenchmarkSpec,
    scores: BenchmarkScores,
    judge_info: Mapping[str, Any],
    unranked: Mapping[str, str],
    weighting: str,
) -> dict[MethodObjective, Change]:
    """Paired differences of all other methods to the baseline.

    Args:
        spec: As declared.
        scores: Judged scores of all runs.
        judge_info: Objective -> who judges it, as in compare.json.
        unranked: Method -> why it is not ranked; no word is said of its differences, since who spent more
            may well be better. Where it is the baseline, none is said of any.
        weighting: Of the runs.
    """
    first = spec.config.baseline_method
    keys = [(m, o) for m in spec.config.methods if m != first for o in scores.objectives]
    ours = [scores.index[m, weighting, o] for m, o in keys]
    theirs = [scores.index[first, weighting, o] for _, o in keys]
    silent = {m for m in spec.config.methods if {m, first} & unranked.keys()}
    change, draws = (
        scores.mean[ours] - scores.mean[theirs],
        scores.bootstrap_samples[:, ours] - scores.bootstrap_samples[:, theirs],
    )
    return _with_verdicts(spec, judge_info, keys, change, draws, silent)


def changes_vs_initial(
    spec: BenchmarkSpec, scores: BenchmarkScores, judge_info: Mapping[str, Any], weighting: str
) -> dict[MethodObjective, Change]:
    """Paired changes of all methods, the baseline too, from the policies that their own runs began with.

    Arguments as of `to_baseline`. Methods that are not ranked have their words here: no budgets are compared.
    """
    keys = [(m, o) for m in spec.config.methods for o in scores.objectives]
    own = [scores.index[m, weighting, o] for m, o in keys]
    change, draws = (
        scores.mean[own] - scores.initial_mean[own],
        scores.bootstrap_samples[:, own] - scores.initial_bootstrap_samples[:, own],
    )
    return _with_verdicts(spec, judge_info, keys, change, draws)


def _with_verdicts(
    spec: BenchmarkSpec,
    judge_info: Mapping[str, Any],
    keys: Sequence[MethodObjective],
    change: FloatArray,
    bootstrap_samples: FloatArray,
    unranked_methods: AbstractSet[str] = frozenset(),
) -> dict[MethodObjective, Change]:
    """Change, interval and verdict of each; the intervals hold for all of them at once."""
    if not keys:
        return {}
    low, high = max_t_intervals(change, bootstrap_samples, spec.config.confidence_level)
    found: dict[MethodObjective, Change] = {}
    for place, (method, o) in enumerate(keys):
        bounds = float(low[place]), float(high[place])
        word = verdict(
            *bounds, independent=judge_info[o]["independent"], missing_fraction=judge_info[o]["missing"]
        )
        word = "not ranked" if method in unranked_methods else word
        found[method, o] = {
            "change": float(change[place]), "low": bounds[0], "high": bounds[1], "verdict": word,
        }  # fmt: skip
    return found
