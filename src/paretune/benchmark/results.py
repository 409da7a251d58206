"""The content of benchmark.json: means, paired changes, hypervolumes, ranks and caveats.

The intervals of the changes are simultaneous over all methods and objectives of a weighting.
"""

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paretune import __version__
from paretune.benchmark.costs import BUDGET_TOLERANCE, COST_COLUMNS, CostRow, budget_violations
from paretune.benchmark.scores import BenchmarkScores, kl_before_after, load_scores, overoptimization
from paretune.benchmark.spec import BenchmarkSpec, RunSpec
from paretune.core.errors import DataError
from paretune.core.pareto import hypervolume, nondominated
from paretune.evaluate.statistics import max_t_intervals, percentile_intervals, verdict
from paretune.evaluate.warnings import few_prompts_warning
from paretune.run.io import read_json

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
        spec: The benchmark.
        scores: Judge scores of all runs.
        judge_info: Objective -> its judge, as in benchmark.json.
        unranked: Method -> the reason why it is not ranked. It gets no verdict, since a larger budget may
            explain any difference; an unranked baseline leaves every method without one.
        weighting: The weighting to compare under.
    """
    baseline = spec.config.baseline_method
    keys = [(m, o) for m in spec.config.methods if m != baseline for o in scores.objectives]
    columns = [scores.index[m, weighting, o] for m, o in keys]
    baseline_columns = [scores.index[baseline, weighting, o] for _, o in keys]
    without_verdict = {m for m in spec.config.methods if {m, baseline} & unranked.keys()}
    change = scores.mean[columns] - scores.mean[baseline_columns]
    samples = scores.bootstrap_samples[:, columns] - scores.bootstrap_samples[:, baseline_columns]
    return _with_verdicts(spec, judge_info, keys, change, samples, without_verdict)


def changes_vs_initial(
    spec: BenchmarkSpec, scores: BenchmarkScores, judge_info: Mapping[str, Any], weighting: str
) -> dict[MethodObjective, Change]:
    """Paired changes of all methods, the baseline included, from the initial policies of their own runs.

    Arguments as in `changes_vs_baseline`. Unranked methods have verdicts here: no budgets are compared.
    """
    keys = [(m, o) for m in spec.config.methods for o in scores.objectives]
    columns = [scores.index[m, weighting, o] for m, o in keys]
    change = scores.mean[columns] - scores.initial_mean[columns]
    samples = scores.bootstrap_samples[:, columns] - scores.initial_bootstrap_samples[:, columns]
    return _with_verdicts(spec, judge_info, keys, change, samples)


def _with_verdicts(
    spec: BenchmarkSpec,
    judge_info: Mapping[str, Any],
    keys: Sequence[MethodObjective],
    change: FloatArray,
    bootstrap_samples: FloatArray,
    unranked_methods: AbstractSet[str] = frozenset(),
) -> dict[MethodObjective, Change]:
    """Change, simultaneous interval and verdict of each key."""
    if not keys:
        return {}
    low, high = max_t_intervals(change, bootstrap_samples, spec.config.confidence_level)
    changes: dict[MethodObjective, Change] = {}
    for i, (method, objective) in enumerate(keys):
        bounds = float(low[i]), float(high[i])
        info = judge_info[objective]
        word = verdict(*bounds, independent=info["independent"], missing_fraction=info["missing_fraction"])
        changes[method, objective] = {
            "change": float(change[i]),
            "low": bounds[0],
            "high": bounds[1],
            "verdict": "not ranked" if method in unranked_methods else word,
        }
    return changes


SCHEMA = "paretune/benchmark/2"
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
) -> JsonDict:
    """The content of benchmark.json.

    Raises:
        DataError: A run has no evaluation, or two runs of a seed were evaluated on different prompts.
    """
    config = spec.config
    evaluations = {(r.method, r.weighting, r.seed): _load_evaluation(r) for r in run_specs}
    scores = load_scores(spec, run_specs)
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
        "objectives": _judge_info(scores.objectives, evaluations.values()),
        "num_prompts": list(scores.num_prompts),
        "same_prompts": scores.same_prompts,
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
        "initial": _initial_means(spec, scores),
        "unranked": list(unranked.values()),
    }
    score_table = _score_table(spec, scores, results["objectives"], unranked)
    pressure = overoptimization(spec, run_specs, evaluations)
    for method in config.methods:
        results["methods"][method] |= {"scores": score_table[method], "overoptimization": pressure[method]}
    _add_hypervolumes(spec, scores, results, unranked)
    results["caveats"] = _caveats(spec, results)
    return results


def _load_evaluation(run_spec: RunSpec) -> JsonDict:
    folder = Path(run_spec.config.run.output_dir) / "eval" / "final"
    evaluation = read_json(folder / "eval.json")
    if evaluation is None:
        raise DataError(f"{folder}: no eval.json; fix: run the same command again")
    return evaluation


def _judge_info(objectives: Sequence[str], evaluations: Any) -> JsonDict:
    """Objective -> its judge, whether it is independent, and the largest fraction of missing scores."""
    info = {}
    for name in objectives:
        rows = [evaluation["objectives"][name] for evaluation in evaluations]
        info[name] = {
            "judge": rows[0]["judge"],
            "independent": all(row["independent"] for row in rows),
            "missing_fraction": max(row["missing"]["fraction"] for row in rows),
        }
    return info


def _score_table(
    spec: BenchmarkSpec, scores: BenchmarkScores, judge_info: JsonDict, unranked: Mapping[str, str]
) -> JsonDict:
    """Method -> weighting -> objective -> mean, interval, seed means, changes and rank."""
    config = spec.config
    low, high = percentile_intervals(scores.bootstrap_samples, config.confidence_level)
    table: JsonDict = {method: {} for method in config.methods}
    for weighting in config.weightings:
        vs_baseline = changes_vs_baseline(spec, scores, judge_info, unranked, weighting)
        vs_initial = changes_vs_initial(spec, scores, judge_info, weighting)
        for method in config.methods:
            table[method][weighting] = {
                objective: {
                    "mean": scores.mean[column],
                    "low": low[column],
                    "high": high[column],
                    "seed_means": scores.seed_means[:, column].tolist(),
                    "change_from_baseline": vs_baseline.get((method, objective)),
                    "change_from_initial": vs_initial[method, objective],
                    "rank": None,
                }
                for objective in scores.objectives
                for column in [scores.index[method, weighting, objective]]
            }
        ranked = [method for method in config.methods if method not in unranked]
        for objective in scores.objectives:
            _add_ranks([table[method][weighting][objective] for method in ranked], "mean")
    return table


def _add_hypervolumes(
    spec: BenchmarkSpec, scores: BenchmarkScores, results: JsonDict, unranked: Mapping[str, str]
) -> None:
    """Add each method's hypervolume, its interval, its difference to the baseline, and its rank."""
    config = spec.config
    names = list(config.reference_point)
    reference_point = np.array([config.reference_point[name] for name in names], np.float64)
    values, samples = {}, {}
    for method in config.methods:
        results["methods"][method]["hypervolume"] = None
        columns = [[scores.index[method, w, o] for o in names] for w in config.weightings]
        if names and np.isfinite(scores.mean[columns]).all():
            values[method] = hypervolume(scores.mean[columns], reference_point)
            samples[method] = np.array(
                [hypervolume(row[columns], reference_point) for row in scores.bootstrap_samples]
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
    _add_ranks([results["methods"][m]["hypervolume"] for m in values if m not in unranked], "value")
    _add_pareto_front(spec, scores, results)


def _interval_bounds(low: FloatArray, high: FloatArray) -> JsonDict:
    return {"low": float(low[0]), "high": float(high[0])}


def _add_pareto_front(spec: BenchmarkSpec, scores: BenchmarkScores, results: JsonDict) -> None:
    """Mark the (method, weighting) points that no other point dominates, over all objectives."""
    keys = [(m, w) for m in spec.config.methods for w in spec.config.weightings]
    table = np.stack([scores.mean[[scores.index[m, w, o] for o in scores.objectives]] for m, w in keys])
    # An objective without scores for some point cannot decide on dominance.
    known = np.isfinite(table).all(0)
    on_front = nondominated(table[:, known]) if known.any() else np.zeros(len(keys), bool)
    for (method, weighting), flag in zip(keys, on_front, strict=True):
        results["methods"][method].setdefault("pareto_front", {})[weighting] = bool(flag)


def _add_ranks(entries: Sequence[JsonDict], key: str) -> None:
    """Rank 1 for the largest value; equal values share a rank, missing ones have none."""
    known = [entry for entry in entries if np.isfinite(entry[key])]
    for entry in known:
        entry["rank"] = 1 + sum(bool(other[key] > entry[key]) for other in known)


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
    return {o: float(scores.initial_mean[scores.index[method, weighting, o]]) for o in scores.objectives}


def _tuning_summary(spec: BenchmarkSpec, tuning_results: Mapping[str, Any]) -> JsonDict | None:
    tuning = spec.config.tuning
    if tuning is None:
        return None
    return tuning.model_dump(mode="json") | {"methods": dict(tuning_results)}


def _caveats(spec: BenchmarkSpec, results: JsonDict) -> list[str]:
    """Limitations that a reader must know before reading a rank."""
    lines = list[str]()
    self_judged = [name for name, o in results["objectives"].items() if not o["independent"]]
    if self_judged:
        lines.append(
            f"Judge not independent for {', '.join(self_judged)}: a higher mean may only mean that the "
            "policy exploits the reward more; fix: add a `judge:` section with other data to the recipe."
        )
    lines += few_prompts_warning(min(results["num_prompts"]))
    num_seeds = len(spec.config.seeds)
    if num_seeds == 1:
        lines.append("One seed: the intervals do not include the variance between training seeds.")
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
