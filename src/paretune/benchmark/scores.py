"""Judge scores of all runs of a benchmark, the bootstrap of their means, and measures of overoptimization."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paretune.benchmark.spec import BenchmarkSpec, RunSpec
from paretune.core.errors import DataError
from paretune.core.goals import HIGHER, Goal
from paretune.evaluate.paired import mean_per_prompt
from paretune.evaluate.statistics import bootstrap_means, mean_over_seeds
from paretune.evaluate.stored_scores import clusters_of, read_generations


@dataclass(frozen=True, kw_only=True)
class ScoreTable:
    """Means of all runs and their bootstrap, by column. Shapes: S seeds, C columns, D bootstrap samples."""

    seed_means: NDArray[np.float64]
    """[S, C]"""
    mean: NDArray[np.float64]
    """[C]"""
    bootstrap_samples: NDArray[np.float64]
    """[D, C]"""
    initial_mean: NDArray[np.float64]
    """[C]: mean of the initial policies of the same runs, on the same prompts."""
    initial_bootstrap_samples: NDArray[np.float64]
    """[D, C], resampled together with `bootstrap_samples`, so that differences are paired."""
    prompt_means: tuple[NDArray[np.float64], ...]
    """[P, C] of each seed, after training."""


@dataclass(frozen=True, kw_only=True)
class BenchmarkScores:
    """Judge scores of all runs; a column is a (method, weighting, objective)."""

    objectives: tuple[str, ...]
    goals: Mapping[str, Goal]
    """Objective -> its goal."""
    index: Mapping[tuple[str, str, str], int]
    """(method, weighting, objective) -> column."""
    oriented: ScoreTable
    """Oriented scores, where higher is better: what is compared and ranked."""
    raw: ScoreTable
    """Scores as they are: what is shown."""
    missing_shifts: NDArray[np.float64]
    """[2, C]: how far the oriented mean would move if every missing score were the worst, or the best, that
    its objective got."""
    clusters: tuple[NDArray[np.int64], ...]
    """[P] of each seed: prompts with equal numbers are duplicates of each other."""
    num_prompts: tuple[int, ...]
    """Prompts per seed."""
    same_prompts: bool
    """Whether all seeds are evaluated on the same prompts."""


def load_scores(
    spec: BenchmarkSpec, run_specs: Sequence[RunSpec], goals: Mapping[str, Goal]
) -> BenchmarkScores:
    """Read the judge scores of every run and bootstrap their means.

    Raises:
        DataError: Two runs of a seed were evaluated on different prompts or objectives.
    """
    by_seed = [_load_seed([run for run in run_specs if run.seed == seed]) for seed in spec.config.seeds]
    objectives, prompts = tuple(by_seed[0][0].columns), [runs[0].prompts for runs in by_seed]
    order = [(arm.run.method, arm.run.weighting, o) for arm in by_seed[0] for o in objectives]
    same_prompts = len(by_seed) > 1 and all(keys == prompts[0] for keys in prompts)
    column_goals = [goals.get(o, HIGHER) for _, _, o in order]
    oriented = [_means_of_both_arms(runs, column_goals) for runs in by_seed]
    # Means of a score are no function of those of its distance to a target: both are resampled.
    targets = [k for k, goal in enumerate(column_goals) if goal.kind == "target"]
    with_targets = oriented
    if targets:
        as_scored = [_means_of_both_arms(runs, [HIGHER] * len(order)) for runs in by_seed]
        columns = [*targets, *(k + len(order) for k in targets)]
        with_targets = [
            np.concatenate([table, raw[:, columns]], 1)
            for table, raw in zip(oriented, as_scored, strict=True)
        ]
    table = _score_table(spec, with_targets, len(order), same_prompts)
    return BenchmarkScores(
        objectives=objectives,
        goals={o: goals.get(o, HIGHER) for o in objectives},
        index={key: column for column, key in enumerate(order)},
        oriented=_columns(table, range(len(order))),
        raw=_raw_table(table, column_goals, targets),
        missing_shifts=np.stack([_missing_shifts(runs, column_goals) for runs in by_seed]).mean(0),
        clusters=tuple(clusters_of(keys) for keys in prompts),
        num_prompts=tuple(len(scores) for scores in oriented),
        same_prompts=same_prompts,
    )


def _score_table(
    spec: BenchmarkSpec, scores: Sequence[NDArray[np.float64]], num_columns: int, same_prompts: bool
) -> ScoreTable:
    """The table of [P, 2 C + 2 T] scores: after, before, and the same of T columns more."""
    means = mean_over_seeds(scores)
    # One matrix for both arms: the bootstrap then resamples the pairs.
    samples = bootstrap_means(
        scores, shared_prompts=same_prompts, bootstrap_samples=spec.config.bootstrap_samples, seed=0
    )
    num_targets = scores[0].shape[1] // 2 - num_columns
    start = 2 * num_columns
    after = [*range(num_columns), *range(start, start + num_targets)]
    before = [*range(num_columns, start), *range(start + num_targets, start + 2 * num_targets)]
    return ScoreTable(
        seed_means=np.stack([mean_over_seeds([table[:, after]]) for table in scores]),
        mean=means[after],
        bootstrap_samples=samples[:, after],
        initial_mean=means[before],
        initial_bootstrap_samples=samples[:, before],
        prompt_means=tuple(table[:, after] for table in scores),
    )


def _raw_table(table: ScoreTable, goals: Sequence[Goal], targets: Sequence[int]) -> ScoreTable:
    """The scores as they are: minus the oriented ones where lower is better, further columns for targets."""
    extra = {column: len(goals) + i for i, column in enumerate(targets)}
    signs = np.array([-1.0 if goal.kind == "lower" else 1.0 for goal in goals])
    return _columns(table, [extra.get(column, column) for column in range(len(goals))], signs)


def _columns(
    table: ScoreTable, columns: Sequence[int], signs: NDArray[np.float64] | float = 1.0
) -> ScoreTable:
    index = list(columns)
    return ScoreTable(
        seed_means=table.seed_means[:, index] * signs,
        mean=table.mean[index] * signs,
        bootstrap_samples=table.bootstrap_samples[:, index] * signs,
        initial_mean=table.initial_mean[index] * signs,
        initial_bootstrap_samples=table.initial_bootstrap_samples[:, index] * signs,
        prompt_means=tuple(scores[:, index] * signs for scores in table.prompt_means),
    )


@dataclass(frozen=True, kw_only=True)
class RunScores:
    """The judge scores of one run."""

    run: RunSpec
    prompts: list[str]
    """Id and text of each prompt."""
    columns: Mapping[str, NDArray[np.float64]]
    """Objective -> [2, P, n] scores before and after."""


def _load_seed(run_specs: Sequence[RunSpec]) -> list[RunScores]:
    """The scores of the runs of one seed, all on the same prompts."""
    runs = [read_scores(run) for run in run_specs]
    for run in runs:
        if run.prompts != runs[0].prompts or tuple(run.columns) != tuple(runs[0].columns):
            raise DataError(
                f"{run.run.config.run.output_dir}: evaluated on other prompts or objectives than "
                f"{runs[0].run.config.run.output_dir}; fix: change `name` in the benchmark's file"
            )
    return runs


def read_scores(run_spec: RunSpec) -> RunScores:
    """The judge scores of both arms of an evaluation."""
    folder = Path(run_spec.config.run.output_dir)
    prompts, columns = read_generations(folder)
    return RunScores(run=run_spec, prompts=prompts, columns=columns)


def _means_of_both_arms(runs: Sequence[RunScores], goals: Sequence[Goal]) -> NDArray[np.float64]:
    """[P, 2 C] means per prompt: all columns after training, then before."""
    columns = [scores for run in runs for scores in run.columns.values()]
    arms = [
        mean_per_prompt(goal.orient(scores[arm]))
        for arm in (1, 0)
        for scores, goal in zip(columns, goals, strict=True)
    ]
    return np.stack(arms, 1)


def _missing_shifts(runs: Sequence[RunScores], goals: Sequence[Goal]) -> NDArray[np.float64]:
    """[2, C]; see `BenchmarkScores.missing_shifts`. 0 where nothing is missing."""
    objectives = [o for run in runs for o in run.columns]
    columns = [scores for run in runs for scores in run.columns.values()]
    shifts = np.zeros((2, len(columns)))
    for k, (objective, scores, goal) in enumerate(zip(objectives, columns, goals, strict=True)):
        after = goal.orient(scores[1])
        if not np.isnan(after).any():
            continue
        everything = np.concatenate([goal.orient(run.columns[objective]).ravel() for run in runs])
        known = everything[~np.isnan(everything)]
        mean = np.nanmean(mean_per_prompt(after)) if len(known) else np.nan
        for row, end in enumerate((np.min, np.max)):
            shifts[row, k] = np.where(np.isnan(after), end(known), after).mean() - mean if len(known) else 0
    return shifts


JsonDict = dict[str, Any]
OVEROPTIMIZATION_METRICS = ("training_reward", "kl", "similarity", "judge_score")


def overoptimization(
    spec: BenchmarkSpec, run_specs: Sequence[RunSpec], evaluations: Mapping[Any, JsonDict]
) -> JsonDict:
    """Measures of optimization pressure, and the judge score that should follow them.

    `training_reward` and `judge_score` are sums over the objectives, for all methods with the final training
    weights of the baseline; weights per category and gates are left out. For objectives in different units
    they order the runs of one weighting and mean nothing else. `kl` is in nats per response. An unmeasured
    value is null.

    Source: Gao et al. 2023 (arXiv:2210.10760), figure 1: gold score against KL; Mukobi et al. 2023, SuperHF
    (arXiv:2310.16763): similarity of responses as a sign of overoptimization.

    Returns:
        Method -> weighting -> metric (`OVEROPTIMIZATION_METRICS`) -> `before` (initial policy, mean of
        the seeds) and `after` (one value per seed).
    """
    results: JsonDict = {method: {} for method in spec.config.methods}
    weights = {
        run.weighting: run.config.final_weights
        for run in run_specs
        if run.method == spec.config.baseline_method
    }
    for method in spec.config.methods:
        for weighting in spec.config.weightings:
            runs = [run for run in run_specs if (run.method, run.weighting) == (method, weighting)]
            per_seed = [
                _run_metrics(weights[weighting], evaluations[run.method, run.weighting, run.seed])
                for run in runs
            ]
            results[method][weighting] = {
                metric: {
                    "before": _mean_if_complete([values[metric]["before"] for values in per_seed]),
                    "after": [values[metric]["after"] for values in per_seed],
                }
                for metric in OVEROPTIMIZATION_METRICS
            }
    return results


def _run_metrics(weights: Mapping[str, float], evaluation: JsonDict) -> dict[str, JsonDict]:
    objectives = evaluation["objectives"]
    judged = {name: objectives[name] for name in weights if name in objectives and weights[name]}
    rewarded = {name: objective["reward"] for name, objective in judged.items() if objective.get("reward")}
    return {
        "judge_score": _weighted_sums(weights, judged),
        # Comparable with the judge score only if it sums the same objectives.
        "training_reward": _weighted_sums(weights, rewarded if rewarded.keys() == judged.keys() else {}),
        "kl": kl_before_after(evaluation),
        "similarity": evaluation["similarity"],
    }


def kl_before_after(evaluation: JsonDict) -> JsonDict:
    """KL divergence to the initial policy in nats per response: 0 before; null if it was not measured."""
    kl = evaluation["kl"]
    return {"before": None, "after": None} if kl is None else {"before": 0.0, "after": kl["k3"]}


def _weighted_sums(weights: Mapping[str, float], means: Mapping[str, JsonDict]) -> JsonDict:
    """Weighted sums of oriented scores before and after; null if a mean is missing."""
    sums: JsonDict = {}
    for arm in ("before", "after"):
        complete = bool(means) and all(mean[arm] is not None for mean in means.values())
        oriented = {name: mean["oriented"][arm] for name, mean in means.items()} if complete else {}
        sums[arm] = sum(weights[name] * mean for name, mean in oriented.items()) if complete else None
    return sums


def _mean_if_complete(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if len(known) == len(values) else None
