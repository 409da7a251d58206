"""Changes of a benchmark from the baseline and from the initial policies, with verdicts, and ranks.

Each question has its own family of intervals, which hold at once. "Did this method change from its initial
policy?" is the question of a run's own page: the family is the objectives of one method, and with a single
seed the numbers are those of its eval.json. "Which methods differ from the baseline?" and "which from each
other?" are asked of all methods together: the family is all their differences on all objectives of a
weighting.
"""

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from paretune.benchmark.scores import BenchmarkScores, ScoreTable
from paretune.benchmark.spec import BenchmarkSpec
from paretune.core.goals import Goal
from paretune.evaluate.judge_quality import JudgeQuality
from paretune.evaluate.paired import CHANGE_KEYS, mirrored
from paretune.evaluate.statistics import fisher_exact, max_t_intervals, simultaneous_intervals
from paretune.evaluate.verdicts import (
    BETTER,
    UNEQUAL_MISSING_P_VALUE,
    ChangeEvidence,
    Verdict,
    judge_change,
)

Change = dict[str, Any]
JsonDict = dict[str, Any]
Evaluations = Mapping[tuple[str, str, int], JsonDict]
"""(method, weighting, seed) -> content of eval.json."""
FloatArray = NDArray[np.float64]

NOT_RANKED = Verdict("not ranked")
"""For a method whose runs used a different budget."""
RANK_NOTE = (
    "rank, where a difference is shown: 1 + the number of methods whose paired difference to this one is "
    "above 0, simultaneously over all pairs of methods and all objectives of a weighting; no method ranks "
    "below one with a worse mean. Methods without a shown difference share a rank, and where no two differ "
    "none has one. A method can be better than the baseline and share its rank: fewer differences are asked "
    "about there."
)


class Cell(NamedTuple):
    """A method under one objective."""

    method: str
    objective: str


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The scores and evaluations that all changes of a benchmark are computed from."""

    spec: BenchmarkSpec
    scores: BenchmarkScores
    evaluations: Evaluations
    judge_info: Mapping[str, JsonDict]
    """Objective -> its judge, as in benchmark.json."""

    def vs_initial(self, weighting: str) -> dict[Cell, Change]:
        """Changes of all methods, the baseline included, from the initial policies of their own runs.

        Unranked methods have verdicts here: no budgets are compared.
        """
        seeds, methods, objectives = self.spec.config.seeds, self.spec.config.methods, self.scores.objectives
        if len(seeds) == 1:
            entries = {m: self.evaluations[m, weighting, seeds[0]]["objectives"] for m in methods}
            return {
                Cell(m, o): {key: entries[m][o][key] for key in CHANGE_KEYS}
                for m in methods
                for o in objectives
            }
        changes: dict[Cell, Change] = {}
        for method in methods:
            columns = [self.scores.index[method, weighting, o] for o in objectives]
            intervals = [
                _from_initial(t, columns, self._level) for t in (self.scores.oriented, self.scores.raw)
            ]
            for k, objective in enumerate(objectives):
                rows = [self.evaluations[method, weighting, seed]["objectives"][objective] for seed in seeds]
                shift = float(np.mean([_missing_shift(row) for row in rows]))
                missing = _Missing(
                    max(row["missing"]["fraction"] for row in rows),
                    any(row["missing"]["unequal"] for row in rows),
                    shift,
                )
                changes[Cell(method, objective)] = self._change(
                    objective, intervals, k, missing, margin=rows[0]["margin"]
                )
        return changes

    def vs_baseline(self, weighting: str, unranked: AbstractSet[str]) -> dict[Cell, Change]:
        """Paired differences of all other methods to the baseline.

        Args:
            weighting: The weighting to compare under.
            unranked: Methods whose runs used another budget. They get no verdict, since a larger budget may
                explain any difference; an unranked baseline leaves every method without one.
        """
        baseline = self.spec.config.baseline_method
        methods = [method for method in self.spec.config.methods if method != baseline]
        changes = self.differences(weighting, [(method, baseline) for method in methods])
        unjudged = {method for method in methods if {method, baseline} & unranked}
        return {
            Cell(method, objective): change | NOT_RANKED.entry() if method in unjudged else change
            for (method, _, objective), change in changes.items()
        }

    def differences(
        self, weighting: str, pairs: Sequence[tuple[str, str]]
    ) -> dict[tuple[str, str, str], Change]:
        """(method, other, objective) -> paired difference of the method to the other; one family."""
        keys = [(method, other, o) for method, other in pairs for o in self.scores.objectives]
        if not keys:
            return {}
        index = self.scores.index
        columns = [index[method, weighting, o] for method, _, o in keys]
        others = [index[other, weighting, o] for _, other, o in keys]
        intervals = [
            self._difference_intervals(table, columns, others)
            for table in (self.scores.oriented, self.scores.raw)
        ]
        return {
            key: self._change(
                key[2], intervals, i, self._missing_of_pair(weighting, *key, columns[i], others[i])
            )
            for i, key in enumerate(keys)
        }

    def ranks(self, weighting: str, methods: Sequence[str]) -> dict[Cell, int | None]:
        """Ranks by shown differences alone; see `RANK_NOTE`."""
        changes = self.differences(weighting, list(itertools.permutations(methods, 2)))
        ranks: dict[Cell, int | None] = {}
        for objective in self.scores.objectives:
            better = {
                (method, other)
                for (method, other, name), change in changes.items()
                if name == objective and change["verdict"] == BETTER
            }
            index = self.scores.index
            means = {m: float(self.scores.oriented.mean[index[m, weighting, objective]]) for m in methods}
            ranked = ranks_from_pairs(means, better)
            ranks |= {Cell(method, objective): ranked[method] for method in methods}
        return ranks

    @property
    def _level(self) -> float:
        return self.spec.config.confidence_level

    def _difference_intervals(
        self, table: ScoreTable, columns: Sequence[int], others: Sequence[int]
    ) -> "_Intervals":
        if len(table.prompt_means) > 1:
            samples = table.bootstrap_samples[:, columns] - table.bootstrap_samples[:, others]
            return _bootstrap_intervals(table.mean[columns] - table.mean[others], samples, self._level)
        # One seed: the same intervals as on the page of a run, over prompts.
        prompt_means = table.prompt_means[0]
        intervals = simultaneous_intervals(
            prompt_means[:, columns] - prompt_means[:, others],
            clusters=self.scores.clusters[0],
            bootstrap_samples=self.spec.config.bootstrap_samples,
            confidence_level=self._level,
        )
        return _Intervals(intervals.mean, intervals.low, intervals.high, intervals.min_detectable_effect)

    def _missing_of_pair(
        self, weighting: str, method: str, other: str, objective: str, column: int, other_column: int
    ) -> "_Missing":
        missing, totals = [], []
        for name in (method, other):
            runs = [self.evaluations[name, weighting, seed] for seed in self.spec.config.seeds]
            missing.append(sum(run["objectives"][objective]["missing"]["after"] for run in runs))
            totals.append(sum(run["num_prompts"] * run["num_generations"] for run in runs))
        p_value = fisher_exact(missing[0], totals[0] - missing[0], missing[1], totals[1] - missing[1])
        worst, best = self.scores.missing_shifts
        return _Missing(
            sum(missing) / max(sum(totals), 1),
            p_value < UNEQUAL_MISSING_P_VALUE,
            min(float(worst[column] - best[other_column]), 0.0),
        )

    def _change(
        self,
        objective: str,
        intervals: "Sequence[_Intervals]",
        k: int,
        missing: "_Missing",
        margin: float | None = None,
    ) -> Change:
        info, goal = self.judge_info[objective], self.scores.goals[objective]
        oriented, as_scored = (each.entry(k) for each in intervals)
        # From one family of intervals: those of a score where lower is better are the mirrored ones.
        shown = {"higher": oriented, "lower": mirrored(oriented)}.get(goal.kind, as_scored)
        quality, clusters = info["judge_quality"], self.scores.clusters
        evidence = ChangeEvidence(
            objective=objective,
            low=oriented["low"],
            high=oriented["high"],
            independent=info["independent"],
            shared=info["shared"],
            quality=None if quality is None else JudgeQuality(**quality),
            num_prompts=None if len(clusters) > 1 else len(set(clusters[0].tolist())),
            missing_fraction=missing.fraction,
            unequal_missing=missing.unequal,
            worst_low=oriented["low"] + missing.shift,
            margin=margin,
        )
        return {
            **goal.entry(),
            **shown,
            "oriented": oriented,
            **judge_change(evidence).entry(),
            "min_detectable_effect": float(intervals[0].min_detectable_effect[k]),
            **{key: info[key] for key in ("judge", "judge_quality", "independent")},
        }


class _Missing(NamedTuple):
    """Missing judgments of a change."""

    fraction: float
    unequal: bool
    shift: float
    """How far the lower bound falls if all of them had gone against the change; at most 0."""


class _Intervals(NamedTuple):
    mean: FloatArray
    low: FloatArray
    high: FloatArray
    min_detectable_effect: FloatArray

    def entry(self, k: int) -> dict[str, float]:
        """The change of one column."""
        return {"change": float(self.mean[k]), "low": float(self.low[k]), "high": float(self.high[k])}


def _bootstrap_intervals(estimate: FloatArray, samples: FloatArray, level: float) -> _Intervals:
    """Simultaneous intervals of the columns of [D, C] bootstrap samples."""
    low, high = max_t_intervals(estimate, samples, level)
    detectable = (high - low) / 2 + NormalDist().inv_cdf(0.8) * samples.std(0)
    return _Intervals(estimate, low, high, detectable)


def _from_initial(table: ScoreTable, columns: Sequence[int], level: float) -> _Intervals:
    samples = table.bootstrap_samples[:, columns] - table.initial_bootstrap_samples[:, columns]
    return _bootstrap_intervals(table.mean[columns] - table.initial_mean[columns], samples, level)


def _missing_shift(row: Mapping[str, Any]) -> float:
    """How far the missing judgments of one run could move its lower bound."""
    worst, low = row["missing"].get("low"), row["oriented"]["low"]
    return 0.0 if worst is None or low is None or math.isnan(low) else min(worst - low, 0.0)


def ranks_from_pairs(
    means: Mapping[str, float], better: AbstractSet[tuple[str, str]]
) -> dict[str, int | None]:
    """Rank 1 + the number of better ones, but none below one with a lower mean; None where none is better.

    Args:
        means: What is ranked -> its mean, where higher is better.
        better: (better, other) pairs with a shown difference.
    """
    ranks, last = dict[str, int | None](), len(means)
    for name in sorted(means, key=lambda each: means[each]):
        last = min(last, 1 + sum(other == name for _, other in better))
        ranks[name] = last if better else None
    return ranks


def judge_information(
    objectives: Sequence[str], evaluations: Iterable[Mapping[str, Any]]
) -> dict[str, JsonDict]:
    """Objective -> its goal and judge, over all runs: the worst quality, and the most missing scores."""
    rank, info = ("unreliable", "cannot tell", "ranks"), {}
    all_rows = [evaluation["objectives"] for evaluation in evaluations]
    for name in objectives:
        rows = [row[name] for row in all_rows]
        known = [row["judge_quality"] for row in rows if row["judge_quality"] is not None]
        info[name] = {
            **Goal.of(rows[0]).entry(),
            "judge": rows[0]["judge"],
            "judge_quality": min(known, key=lambda each: rank.index(each["status"]), default=None),
            "independent": all(row["independent"] for row in rows),
            "shared": next((row["shared"] for row in rows if row.get("shared")), ""),
            "missing_fraction": max(row["missing"]["fraction"] for row in rows),
            "cautions": list(dict.fromkeys(caution for row in rows for caution in row["cautions"])),
        }
    return info
