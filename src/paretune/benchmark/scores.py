"""Judge scores of all runs of a benchmark, the bootstrap of their means, and measures of overoptimization."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from paretune.benchmark.spec import BenchmarkSpec, RunSpec
from paretune.core.errors import DataError
from paretune.evaluate.paired import mean_per_prompt
from paretune.evaluate.statistics import bootstrap_means, mean_over_seeds


@dataclass(frozen=True, kw_only=True)
class BenchmarkScores:
    """Judge scores of all runs and the bootstrap of their means.

    A column is a (method, weighting, objective). Shapes: S seeds, C columns, D bootstrap samples.
    """

    objectives: tuple[str, ...]
    index: Mapping[tuple[str, str, str], int]
    """(method, weighting, objective) -> column."""
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
    num_prompts: tuple[int, ...]
    """Prompts per seed."""
    same_prompts: bool
    """Whether all seeds are evaluated on the same prompts."""


def load_scores(spec: BenchmarkSpec, run_specs: Sequence[RunSpec]) -> BenchmarkScores:
    """Read the judge scores of every run and bootstrap their means.

    Raises:
        DataError: Two runs of a seed were evaluated on different prompts or objectives.
    """
    config, seeds = spec.config, spec.config.seeds
    scores_by_seed, prompts_by_seed = [], []
    objectives: tuple[str, ...] = ()
    for seed in seeds:
        runs = [(run, *read_arm(run), read_arm(run, "before")[1]) for run in run_specs if run.seed == seed]
        first_run, first_prompts, first_columns, _ = runs[0]
        objectives = tuple(first_columns)
        for run, prompts, columns, _ in runs:
            if prompts != first_prompts or tuple(columns) != objectives:
                raise DataError(
                    f"{run.config.run.output_dir}: evaluated on other prompts or objectives than "
                    f"{first_run.config.run.output_dir}; fix: change `name` in the benchmark's file"
                )
        after = [columns[o] for _, _, columns, _ in runs for o in objectives]
        before = [columns[o] for _, _, _, columns in runs for o in objectives]
        # One matrix for both arms: the bootstrap then resamples the pairs.
        scores_by_seed.append(np.stack([*after, *before], 1))
        prompts_by_seed.append(first_prompts)
    order = [(r.method, r.weighting, o) for r in run_specs if r.seed == seeds[0] for o in objectives]
    same_prompts = len(seeds) > 1 and all(prompts == prompts_by_seed[0] for prompts in prompts_by_seed)
    means = mean_over_seeds(scores_by_seed)
    samples = bootstrap_means(
        scores_by_seed,
        shared_prompts=same_prompts,
        bootstrap_samples=config.bootstrap_samples,
        seed=0,
    )
    num_columns = len(order)
    return BenchmarkScores(
        objectives=objectives,
        index={key: column for column, key in enumerate(order)},
        seed_means=np.stack([mean_over_seeds([scores[:, :num_columns]]) for scores in scores_by_seed]),
        mean=means[:num_columns],
        bootstrap_samples=samples[:, :num_columns],
        initial_mean=means[num_columns:],
        initial_bootstrap_samples=samples[:, num_columns:],
        num_prompts=tuple(len(scores) for scores in scores_by_seed),
        same_prompts=same_prompts,
    )


def read_arm(run_spec: RunSpec, arm: str = "after") -> tuple[list[str], dict[str, NDArray[np.float64]]]:
    """The judge scores of one arm of an evaluation.

    Args:
        run_spec: The run.
        arm: "before" or "after".

    Returns:
        Keys of the prompts, and objective -> [P] mean over the scored responses per prompt.
    """
    table = pq.read_table(Path(run_spec.config.run.output_dir) / "eval" / "final" / "generations.parquet")
    names = [name for name in table.column_names if name.startswith(f"{arm}/")]
    num_generations = int(max(table["sample_index"].to_pylist())) + 1
    columns = {}
    for name in names:
        scores = np.array(table[name].to_pylist(), dtype=np.float64).reshape(-1, num_generations, 1)
        columns[name.removeprefix(f"{arm}/")] = mean_per_prompt(scores)[:, 0]
    # Prompts from files may have no ids: the text tells them apart.
    pairs = zip(table["prompt_id"].to_pylist(), table["prompt"].to_pylist(), strict=True)
    return [f"{prompt_id} {text}" for prompt_id, text in pairs][::num_generations], columns


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
    """Weighted sums before and after; null if a mean is missing."""
    sums: JsonDict = {}
    for arm in ("before", "after"):
        complete = bool(means) and all(mean[arm] is not None for mean in means.values())
        sums[arm] = sum(weights[name] * mean[arm] for name, mean in means.items()) if complete else None
    return sums


def _mean_if_complete(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if len(known) == len(values) else None
