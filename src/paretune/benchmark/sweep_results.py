"""The content of sweep.json: the points of a sweep with intervals and verdicts, and their front."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paretune import __version__
from paretune.benchmark.costs import CostRow, benchmark_costs
from paretune.benchmark.results import benchmark_results, load_comparison, load_evaluation
from paretune.benchmark.scores import BenchmarkScores
from paretune.benchmark.spec import BenchmarkSpec, RunSpec
from paretune.benchmark.sweep_design import Shares
from paretune.benchmark.sweep_fronts import (
    FrontEvidence,
    dominance_mask,
    front_evidence,
    knee_entry,
    volume_entry,
)
from paretune.core.errors import DataError
from paretune.report.sweep_page import SCHEMA

JsonDict = dict[str, Any]

_SCORE_KEYS = ("mean", "low", "high", "oriented_mean", "seed_means", "change_from_initial")
_COPIED_KEYS = (
    "recipe",
    "objectives",
    "num_prompts",
    "confidence_level",
    "bootstrap_samples",
    "initial",
    "shared_stages",
)
"""Keys of benchmark.json that sweep.json has too."""
_NO_TUNING = "No tuning"
"""First words of a caveat on methods that a sweep, which has one, does not need."""


def sweep_results(
    spec: BenchmarkSpec,
    over: Sequence[str],
    shares: Mapping[str, Shares],
    *,
    design: str,
    failed: Sequence[JsonDict] = (),
    shared_dirs: Mapping[Path, int] | None = None,
) -> JsonDict:
    """The content of sweep.json.

    Means, intervals, verdicts and cautions are those of a comparison with one method; see
    `benchmark_results`.

    Args:
        spec: The comparison: one method, and the weightings whose runs are all complete.
        over: The swept objectives.
        shares: Weighting -> shares of the swept objectives.
        design: grid or adaptive.
        failed: Runs that failed: point, seed and reason. Their weightings are not in `spec`.
        shared_dirs: Folder of shared stages -> their seed.

    Raises:
        DataError: A run has no evaluation, the judge does not score a swept objective, or two runs of a seed
            were evaluated on different prompts.
    """
    config, runs = spec.config, spec.run_specs()
    costs, comparison = benchmark_costs(spec, runs, shared_dirs or {}), load_comparison(spec, runs)
    results = benchmark_results(spec, runs, costs, {}, comparison)
    (method,) = config.methods
    entry, names = results["methods"][method], list(config.weightings)
    units = score_units([comparison.evaluations[method, names[0], seed] for seed in config.seeds], over)
    means, samples = _distances(comparison.scores, method, names, over, units)
    front = front_evidence(means, samples, config.confidence_level)
    points = [
        _point(spec, name, dict(zip(over, shares[name], strict=True)), entry, runs, costs) | on_front
        for name, on_front in zip(names, _front_entries(front, means, names), strict=True)
    ]
    caveats = [line for line in results["caveats"] if not line.startswith(_NO_TUNING)]
    return {
        "schema": SCHEMA,
        "version": __version__,
        "name": config.name,
        "method": method,
        "over": list(over),
        "design": design,
        "seeds": list(config.seeds),
        "budget": results["budget"] | {"used": entry["budget_used"]},
        **{key: results[key] for key in _COPIED_KEYS},
        "units": units,
        "points": points,
        "failed": list(failed),
        "dominance": {
            a: dict(zip(names, row, strict=True))
            for a, row in zip(names, front.dominance.tolist(), strict=True)
        },
        "hypervolume": volume_entry(front, len(over)),
        "knee": knee_entry(front, names),
        "caveats": [*results["unranked"], *caveats, selection_caution(len(names))],
    }


def _front_entries(front: FrontEvidence, means: NDArray[np.float64], names: Sequence[str]) -> list[JsonDict]:
    """What each point's entry says on the front."""
    dominated = dominance_mask(means)
    return [
        {
            "on_pareto_front": bool(front.on_front[i]),
            "front_probability": float(front.front_probability[i]),
            "knee_probability": float(front.knee_probability[i]),
            "dominated_by": [name for name, flag in zip(names, dominated[:, i], strict=True) if flag],
        }
        for i in range(len(names))
    ]


def _point(
    spec: BenchmarkSpec,
    name: str,
    weights: Mapping[str, float],
    entry: Mapping[str, Any],
    runs: Sequence[RunSpec],
    costs: Sequence[CostRow],
) -> JsonDict:
    """A point of the sweep: its weights, run folders, scores and costs.

    Args:
        spec: The comparison.
        name: The weighting.
        weights: Shares of the swept objectives.
        entry: The method's entry of benchmark.json.
        runs: All runs.
        costs: Their costs.
    """
    scores = entry["scores"][name]
    return {
        "name": name,
        "shares": dict(weights),
        "weights": dict(spec.config.weightings[name]),
        "dirs": [_run_dir(spec, run) for run in runs if run.weighting == name],
        "scores": {o: {key: score[key] for key in _SCORE_KEYS} for o, score in scores.items()},
        "kl": entry["side_metrics"][name]["kl"]["after"],
        "seconds": _seconds(costs, name),
    }


def selection_caution(num_points: int) -> str:
    """The sentence on choosing among points by their scores on the same prompts."""
    return (
        f"{num_points} points on the same prompts: the best of them looks better than it is; evaluate the "
        "one that you choose on other prompts."
    )


def score_units(evaluations: Sequence[Mapping[str, Any]], over: Sequence[str]) -> dict[str, float]:
    """Swept objective -> standard deviation of the initial policy's scores; 1 where they do not vary.

    Args:
        evaluations: Content of eval.json of the runs of one weighting, which differ in their seeds; the
            result is the mean over them.
        over: The swept objectives.
    """
    entries, units = [each["objectives"] for each in evaluations], {}
    for name in over:
        known = [float(each[name]["std"]) for each in entries if name in each and each[name]["std"]]
        units[name] = sum(known) / len(known) if known else 1.0
    return units


def oriented_outcomes(
    runs: Sequence[RunSpec], weightings: Sequence[str], over: Sequence[str]
) -> NDArray[np.float64]:
    """[N, K] oriented means of weightings in units of `score_units`; NaN where a run is not complete."""
    evaluations: dict[str, list[JsonDict]] = {}
    for run in runs:
        evaluations.setdefault(run.weighting, []).append(load_evaluation(run))
    units = score_units(evaluations[runs[0].weighting], over)
    table = np.full((len(weightings), len(over)), np.nan)
    for row, weighting in zip(table, weightings, strict=True):
        if weighting in evaluations:
            entries = [each["objectives"] for each in evaluations[weighting]]
            row[:] = [
                np.mean([each[name]["oriented"]["after"] for each in entries]) / units[name] for name in over
            ]
    return table


def _require_scores(scores: BenchmarkScores, method: str, names: Sequence[str], over: Sequence[str]) -> None:
    for objective in over:
        columns = [scores.index[method, name, objective] for name in names if objective in scores.objectives]
        if not columns or not np.isfinite(scores.oriented.mean[columns]).all():
            raise DataError(
                f"{objective}: no judge scores it, so its front is not known; "
                "fix: add a judge for it to the recipe, or leave it out of --over"
            )


def _distances(
    scores: BenchmarkScores,
    method: str,
    names: Sequence[str],
    over: Sequence[str],
    units: Mapping[str, float],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """[N, K] distances from the initial policy in units of each objective; [D, N, K] bootstrap samples.

    Raises:
        DataError: The judge does not score a swept objective.
    """
    _require_scores(scores, method, names, over)
    columns = np.array([[scores.index[method, name, o] for o in over] for name in names])
    scale, table = np.array([units[o] for o in over]), scores.oriented
    means = (table.mean[columns] - table.initial_mean[columns]) / scale
    samples = (table.bootstrap_samples[:, columns] - table.initial_bootstrap_samples[:, columns]) / scale
    return means, samples


def _run_dir(spec: BenchmarkSpec, run: RunSpec) -> str:
    """Path of a run inside the folder of the sweep, which may be moved."""
    return Path(run.config.run.output_dir).relative_to(spec.output_dir).as_posix()


def _seconds(costs: Sequence[CostRow], weighting: str) -> float:
    """Seconds in training steps of the runs of a weighting."""
    return sum(
        float(row["seconds"]) for row in costs if row["kind"] == "run" and row["weighting"] == weighting
    )
