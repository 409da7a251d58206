"""The content of benchmark.json: means, paired changes, hypervolumes, ranks and caveats.

Comparisons of scores, ranks and dominance use oriented scores, where higher is better.
"""

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paretune import __version__
from paretune.benchmark.changes import (
    RANK_NOTE,
    Cell,
    Comparison,
    judge_information,
    ranks_from_pairs,
)
from paretune.benchmark.costs import BUDGET_TOLERANCE, COST_COLUMNS, CostRow, budget_violations
from paretune.benchmark.scores import BenchmarkScores, kl_before_after, load_scores, overoptimization
from paretune.benchmark.spec import BenchmarkSpec, RunSpec
from paretune.core.errors import DataError
from paretune.core.goals import Goal
from paretune.core.pareto import hypervolume, nondominated
from paretune.evaluate.evaluate import SCHEMA as EVALUATION_SCHEMA
from paretune.evaluate.statistics import max_t_intervals, percentile_intervals
from paretune.evaluate.verdicts import ONE_SEED
from paretune.evaluate.warnings import few_prompts_warning, unreliable_judge_warnings
from paretune.run.io import read_json

FloatArray = NDArray[np.float64]

SCHEMA = "paretune/benchmark/3"
TEXT_METRICS = ("length", "distinct_2", "unique_fraction", "similarity", "truncation_rate")
CONFIDENCE_METRICS = ("ece", "auroc")
SIDE_METRICS = ("kl", *TEXT_METRICS, *CONFIDENCE_METRICS)
"""Side metrics of every benchmark; `refusal_rate/CATEGORY` is added per category with a better direction."""

JsonDict = dict[str, Any]


def benchmark_results(
    spec: BenchmarkSpec,
    run_specs: Sequence[RunSpec],
    costs: Sequence[CostRow],
    tuning_results: Mapping[str, Any],
    comparison: Comparison | None = None,
) -> JsonDict:
    """The content of benchmark.json; the comparison is loaded if it is not given.

    Raises:
        DataError: A run has no evaluation, or two runs of a seed were evaluated on different prompts.
    """
    comparison = comparison or load_comparison(spec, run_specs)
    config, evaluations = spec.config, comparison.evaluations
    run_rows = [row for row in costs if row["kind"] == "run"]
    used = {
        m: [row[config.budget.resource] for row in run_rows if row["method"] == m] for m in config.methods
    }
    unranked = budget_violations(used, config.budget.limit, config.budget.resource)
    refusal_categories = next(iter(evaluations.values()))["refusal_categories"]
    results: JsonDict = {
        "schema": SCHEMA,
        "version": __version__,
        "name": config.name,
        "recipe": config.recipe,
        "budget": config.budget.model_dump() | {"tolerance": BUDGET_TOLERANCE},
        "reference_point": config.reference_point,
        "baseline": config.baseline_method,
        "seeds": list(config.seeds),
        "weightings": {name: dict(weights) for name, weights in config.weightings.items()},
        "objectives": dict(comparison.judge_info),
        "rank_note": RANK_NOTE,
        "num_prompts": list(comparison.scores.num_prompts),
        "same_prompts": comparison.scores.same_prompts,
        "confidence_level": config.confidence_level,
        "bootstrap_samples": config.bootstrap_samples,
        "scatter_pairs": [list(pair) for pair in config.scatter_pairs],
        "refusal_categories": refusal_categories,
        "tuning": _tuning_summary(spec, tuning_results),
        "methods": {
            method: {
                "budget_used": {"min": min(used[method]), "max": max(used[method])},
                "unranked_reason": unranked.get(method),
                "costs": _mean_costs([row for row in run_rows if row["method"] == method]),
                "tuning_costs": _tuning_costs(costs, method),
                "side_metrics": _side_metrics(spec, evaluations, method, refusal_categories),
            }
            for method in config.methods
        },
        "shared_stages": [row for row in costs if row["kind"] == "shared"],
        "initial": _initial_means(spec, comparison.scores),
        "unranked": list(unranked.values()),
    }
    score_table = _score_table(comparison, unranked)
    pressure = overoptimization(spec, run_specs, evaluations)
    for method in config.methods:
        results["methods"][method] |= {"scores": score_table[method], "overoptimization": pressure[method]}
    _add_hypervolumes(spec, comparison.scores, results, unranked)
    results["caveats"] = _caveats(spec, results)
    return results


def load_comparison(spec: BenchmarkSpec, run_specs: Sequence[RunSpec]) -> Comparison:
    """The evaluations of all runs, and the bootstrap of their judge scores.

    Raises:
        DataError: As `benchmark_results`.
    """
    evaluations = {(r.method, r.weighting, r.seed): load_evaluation(r) for r in run_specs}
    objectives = next(iter(evaluations.values()))["objectives"]
    scores = load_scores(spec, run_specs, {name: Goal.of(entry) for name, entry in objectives.items()})
    return Comparison(
        spec=spec,
        scores=scores,
        evaluations=evaluations,
        judge_info=judge_information(scores.objectives, evaluations.values()),
    )


def load_evaluation(run_spec: RunSpec) -> JsonDict:
    """The eval.json of a finished run.

    Raises:
        DataError: There is none, or it has another schema.
    """
    folder = Path(run_spec.config.run.output_dir) / "eval" / "final"
    evaluation = read_json(folder / "eval.json")
    if evaluation is None:
        raise DataError(f"{folder}: no eval.json; fix: run the same command again")
    if (schema := evaluation.get("schema")) != EVALUATION_SCHEMA:
        fix = f"rename {folder.parent}, and run the same command again"
        raise DataError(f"{folder / 'eval.json'}: schema: {schema}, expected {EVALUATION_SCHEMA}; fix: {fix}")
    return evaluation


def _score_table(comparison: Comparison, unranked: Mapping[str, str]) -> JsonDict:
    """Method -> weighting -> objective -> mean, interval, seed means, changes and rank."""
    config, scores = comparison.spec.config, comparison.scores
    low, high = percentile_intervals(scores.raw.bootstrap_samples, config.confidence_level)
    table: JsonDict = {method: {} for method in config.methods}
    ranked = [method for method in config.methods if method not in unranked]
    for weighting in config.weightings:
        vs_baseline = comparison.vs_baseline(weighting, unranked.keys())
        vs_initial, ranks = comparison.vs_initial(weighting), comparison.ranks(weighting, ranked)
        for method in config.methods:
            cells = {objective: Cell(method, objective) for objective in scores.objectives}
            table[method][weighting] = {
                objective: {
                    "mean": scores.raw.mean[column],
                    "low": low[column],
                    "high": high[column],
                    "oriented_mean": scores.oriented.mean[column],
                    "seed_means": scores.raw.seed_means[:, column].tolist(),
                    "change_from_baseline": vs_baseline.get(cell),
                    "change_from_initial": vs_initial[cell],
                    "rank": ranks.get(cell),
                }
                for objective, cell in cells.items()
                for column in [scores.index[method, weighting, objective]]
            }
    return table


def _add_hypervolumes(
    spec: BenchmarkSpec, scores: BenchmarkScores, results: JsonDict, unranked: Mapping[str, str]
) -> None:
    """Add each method's hypervolume, its interval, its difference to the baseline, and its rank."""
    config = spec.config
    names = list(config.reference_point)
    reference = ((name, config.reference_point[name]) for name in names)
    reference_point = np.array(
        [scores.goals[name].orient(value) if name in scores.goals else value for name, value in reference],
        np.float64,
    )
    values, samples = {}, {}
    for method in config.methods:
        results["methods"][method]["hypervolume"] = None
        columns = [[scores.index[method, w, o] for o in names] for w in config.weightings]
        if names and np.isfinite(scores.oriented.mean[columns]).all():
            values[method] = hypervolume(scores.oriented.mean[columns], reference_point)
            samples[method] = np.array(
                [hypervolume(row[columns], reference_point) for row in scores.oriented.bootstrap_samples]
            )
    baseline = config.baseline_method
    for method, value in values.items():
        low, high = percentile_intervals(samples[method][:, None], config.confidence_level)
        entry: JsonDict = {
            "value": value,
            **_interval_bounds(low, high),
            "change_from_baseline": None,
            "rank": None,
        }
        if baseline in values and method != baseline:
            differences = samples[method] - samples[baseline]
            low, high = percentile_intervals(differences[:, None], config.confidence_level)
            change = {"change": value - values[baseline], **_interval_bounds(low, high)}
            entry["change_from_baseline"] = change
        results["methods"][method]["hypervolume"] = entry
    ranked = [method for method in values if method not in unranked]
    for method, rank in _volume_ranks(config.confidence_level, values, samples, ranked).items():
        results["methods"][method]["hypervolume"]["rank"] = rank
    _add_pareto_front(spec, scores, results)


def _volume_ranks(
    level: float, values: Mapping[str, float], samples: Mapping[str, FloatArray], methods: Sequence[str]
) -> dict[str, int | None]:
    """Ranks by the differences whose interval, simultaneous over all pairs, excludes 0."""
    pairs = list(itertools.combinations(methods, 2))
    better = set()
    if pairs:
        differences = np.stack([samples[a] - samples[b] for a, b in pairs], 1)
        estimates = np.array([values[a] - values[b] for a, b in pairs])
        low, high = max_t_intervals(estimates, differences, level)
        for (a, b), lower, upper in zip(pairs, low, high, strict=True):
            if lower > 0 or upper < 0:
                better.add((a, b) if lower > 0 else (b, a))
    return ranks_from_pairs({method: values[method] for method in methods}, better)


def _interval_bounds(low: FloatArray, high: FloatArray) -> JsonDict:
    return {"low": float(low[0]), "high": float(high[0])}


def _add_pareto_front(spec: BenchmarkSpec, scores: BenchmarkScores, results: JsonDict) -> None:
    """Mark the (method, weighting) points that no other point dominates, over all objectives."""
    keys = [(m, w) for m in spec.config.methods for w in spec.config.weightings]
    table = np.stack(
        [scores.oriented.mean[[scores.index[m, w, o] for o in scores.objectives]] for m, w in keys]
    )
    # An objective without scores for some point cannot decide on dominance.
    known = np.isfinite(table).all(0)
    on_front = nondominated(table[:, known]) if known.any() else np.zeros(len(keys), bool)
    for (method, weighting), flag in zip(keys, on_front, strict=True):
        results["methods"][method].setdefault("pareto_front", {})[weighting] = bool(flag)


def _mean_costs(rows: Sequence[CostRow]) -> JsonDict:
    """Mean costs of a method's runs; for the peak memory the maximum."""
    costs: JsonDict = {"runs": len(rows)}
    for key in (*COST_COLUMNS, "steps"):
        values = [float(row[key]) for row in rows if row.get(key) is not None]
        if not values:
            costs[key] = None
        else:
            costs[key] = max(values) if key == "peak_memory" else sum(values) / len(values)
    return costs


def _tuning_costs(costs: Sequence[CostRow], method: str) -> JsonDict | None:
    """Total costs of all trials of a method."""
    rows = [row for row in costs if row["kind"] == "tuning" and row["method"] == method]
    if not rows:
        return None
    # Not the peak memory: a sum of peaks means nothing.
    keys = ("rollout_tokens", "trained_tokens", "reward_calls", "judge_calls", "seconds")
    return {"runs": len(rows), **{key: sum(float(row.get(key) or 0.0) for row in rows) for key in keys}}


def _side_metrics(
    spec: BenchmarkSpec,
    evaluations: Mapping[Any, JsonDict],
    method: str,
    refusal_categories: Mapping[str, str],
) -> JsonDict:
    """Weighting -> side metric -> means over the seeds before and after; null if no seed has a value."""
    means: JsonDict = {}
    for weighting in spec.config.weightings:
        per_seed = [
            _run_side_metrics(evaluations[method, weighting, seed], refusal_categories)
            for seed in spec.config.seeds
        ]
        means[weighting] = {}
        for key in per_seed[0]:
            means[weighting][key] = {}
            for arm in ("before", "after"):
                values = [metrics[key][arm] for metrics in per_seed if metrics[key][arm] is not None]
                means[weighting][key][arm] = float(np.mean(values)) if values else None
    return means


def _run_side_metrics(evaluation: JsonDict, refusal_categories: Mapping[str, str]) -> JsonDict:
    missing = {"before": None, "after": None}
    pairs = {"kl": kl_before_after(evaluation)} | {key: evaluation[key] for key in TEXT_METRICS}
    for category in refusal_categories:
        pairs[f"refusal_rate/{category}"] = evaluation["refusal_rate"].get(category, missing)
    calibration = evaluation.get("calibration")
    for key in CONFIDENCE_METRICS:
        arms = {arm: calibration[arm][key] for arm in ("before", "after")} if calibration else missing
        pairs[key] = arms
    return {key: {arm: pair[arm] for arm in ("before", "after")} for key, pair in pairs.items()}


def _initial_means(spec: BenchmarkSpec, scores: BenchmarkScores) -> JsonDict:
    """Objective -> mean of the initial policy over the seeds, from the runs of the first method."""
    method, weighting = next(iter(spec.config.methods)), next(iter(spec.config.weightings))
    return {o: float(scores.raw.initial_mean[scores.index[method, weighting, o]]) for o in scores.objectives}


def _tuning_summary(spec: BenchmarkSpec, tuning_results: Mapping[str, Any]) -> JsonDict | None:
    tuning = spec.config.tuning
    if tuning is None:
        return None
    return tuning.model_dump(mode="json") | {"methods": dict(tuning_results)}


def _caveats(spec: BenchmarkSpec, results: JsonDict) -> list[str]:
    """Limitations that a reader must know before reading a rank."""
    lines = unreliable_judge_warnings(results["objectives"])
    self_judged = [name for name, o in results["objectives"].items() if not o["independent"]]
    if self_judged:
        lines.append(
            f"Judge not independent for {', '.join(self_judged)}: a higher mean may only mean that the "
            "policy exploits the reward more; fix: add a `judge:` section with other data to the recipe."
        )
    lines += few_prompts_warning(min(results["num_prompts"]))
    num_seeds = len(spec.config.seeds)
    if num_seeds == 1:
        lines.append(ONE_SEED)
    elif num_seeds < 5:
        lines.append(
            f"{num_seeds} seeds: the variance between training runs is known only roughly; use 5 or more."
        )
    if spec.config.tuning is None:
        lines.append("No tuning: every method ran with its given settings.")
    elif spec.config.tuning.select_by == "judge":
        lines.append(
            "The judge selected the settings by responses to training prompts: it saw no evaluation prompt, "
            "but it is no longer fully independent of the tuning."
        )
    return lines
