"""Paired changes of all methods and objectives of a weighting, with intervals that hold for all at once.

From the evaluations of all runs to compare.json: means, differences, hypervolumes, ranks, and why not.
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


SCHEMA = "paretune/compare/1"
TEXT_METRICS = ("length", "distinct_2", "unique", "similarity", "truncated")
CONFIDENCE_METRICS = ("ece", "auroc")
SIDE_METRICS = ("kl", *TEXT_METRICS, "refused_harmful", "refused_lookalike", *CONFIDENCE_METRICS)
"""What a method may have paid for its objectives; of `unique` and `distinct_2` less is worse."""

JsonDict = dict[str, Any]


def benchmark_results(
    spec: BenchmarkSpec,
    run_specs: Sequence[RunSpec],
    costs: Sequence[CostRow],
    tuning_results: Mapping[str, Any],
) -> JsonDict:
    """Everything that compare.json says.

    Raises:
        DataError: Two runs of a seed were evaluated on different prompts.
    """
    said = spec.config
    evals = {(e.method, e.weighting, e.seed): _load_evaluation(e) for e in run_specs}
    cells = load_scores(spec, run_specs)
    runs = [row for row in costs if row["kind"] == "run"]
    spent = {m: [row[said.budget.resource] for row in runs if row["method"] == m] for m in said.methods}
    refused = budget_violations(spent, said.budget.limit, said.budget.resource)
    found: JsonDict = {
        "schema": SCHEMA,
        "version": __version__,
        "name": said.name,
        "recipe": said.recipe,
        "budget": said.budget.model_dump() | {"tolerance": BUDGET_TOLERANCE},
        "reference": said.reference_point,
        "baseline": said.baseline_method,
        "seeds": list(said.seeds),
        "weightings": {name: dict(weights) for name, weights in said.weightings.items()},
        "objectives": _judge_info(cells.objectives, evals.values()),
        "prompts": list(cells.num_prompts),
        "crossed": cells.same_prompts,
        "level": said.confidence_level,
        "draws": said.bootstrap_samples,
        "scatter": [list(pair) for pair in said.scatter_pairs],
        "tuning": _tuning_summary(spec, tuning_results),
        "methods": {
            method: {
                "spent": {"least": min(spent[method]), "most": max(spent[method])},
                "refused": refused.get(method),
                "ledger": _mean_costs([row for row in runs if row["method"] == method]),
                "tuning_ledger": _tuning_costs(costs, method),
                "side": {w: _side_metrics(spec, evals, method, w) for w in said.weightings},
            }
            for method in said.methods
        },
        "shared": [row for row in costs if row["kind"] == "shared"],
        "start": _initial_means(spec, cells),
        "refused": list(refused.values()),
    }
    points = _score_table(spec, cells, found, refused)
    pushed = overoptimization(spec, run_specs, evals)
    for method in said.methods:
        found["methods"][method] |= {"points": points[method], "pressure": pushed[method]}
    _add_hypervolumes(spec, cells, found, refused)
    found["cautions"] = _caveats(spec, found)
    return found


def _load_evaluation(run_spec: RunSpec) -> JsonDict:
    folder = Path(run_spec.config.run.output_dir) / "eval" / "final"
    found = read_json(folder / "eval.json")
    if found is None:
        raise DataError(f"{folder}: holds no eval.json; fix: give the command again")
    return found


def _judge_info(objectives: Sequence[str], evaluations: Any) -> JsonDict:
    """Objective -> who judges it, whether independently, and the largest share of missing judgments."""
    found = {}
    for name in objectives:
        each = [numbers["objectives"][name] for numbers in evaluations]
        found[name] = {
            "judge": each[0]["judge"],
            "independent": all(o["independent"] for o in each),
            "missing": max(o["missing"]["share"] for o in each),
        }
    return found


def _score_table(
    spec: BenchmarkSpec, scores: BenchmarkScores, results: JsonDict, unranked: Mapping[str, str]
) -> JsonDict:
    """Method -> weighting -> objective -> mean, interval, seeds, both kinds of changes, rank."""
    said, judged = spec.config, results["objectives"]
    low, high = percentile_intervals(scores.bootstrap_samples, said.confidence_level)
    points: JsonDict = {method: {} for method in said.methods}
    for weighting in said.weightings:
        differences = changes_vs_baseline(spec, scores, judged, unranked, weighting)
        moved = changes_vs_initial(spec, scores, judged, weighting)
        for method in said.methods:
            points[method][weighting] = {
                o: {
                    "mean": scores.mean[c],
                    "low": low[c],
                    "high": high[c],
                    "seeds": scores.seed_means[:, c].tolist(),
                    "difference": differences.get((method, o)),
                    "from_start": moved[method, o],
                    "rank": None,
                }
                for o in scores.objectives
                for c in [scores.index[method, weighting, o]]
            }
        able = [method for method in said.methods if method not in unranked]
        for o in scores.objectives:
            _add_ranks([points[method][weighting][o] for method in able], "mean")
    return points


def _add_hypervolumes(
    spec: BenchmarkSpec, scores: BenchmarkScores, results: JsonDict, unranked: Mapping[str, str]
) -> None:
    """Write down each method's hypervolume, its interval, and its difference to the baseline's."""
    said = spec.config
    names = list(said.reference_point)
    corner = np.array([said.reference_point[name] for name in names], np.float64)
    values, drawn = {}, {}
    for method in said.methods:
        results["methods"][method]["hypervolume"] = None
        places = [[scores.index[method, w, o] for o in names] for w in said.weightings]
        if names and np.isfinite(scores.mean[places]).all():
            values[method] = hypervolume(scores.mean[places], corner)
            drawn[method] = np.array([hypervolume(row[places], corner) for row in scores.bootstrap_samples])
    base = said.baseline_method
    for method, value in values.items():
        low, high = percentile_intervals(drawn[method][:, None], said.confidence_level)
        entry: JsonDict = {"value": value, **_interval_bounds(low, high), "difference": None, "rank": None}
        if base in values and method != base:
            apart = drawn[method] - drawn[base]
            low, high = percentile_intervals(apart[:, None], said.confidence_level)
            entry["difference"] = {"change": value - values[base], **_interval_bounds(low, high)}
        results["methods"][method]["hypervolume"] = entry
    _add_ranks([results["methods"][m]["hypervolume"] for m in values if m not in unranked], "value")
    _add_pareto_front(spec, scores, results)


def _interval_bounds(low: NDArray[np.float64], high: NDArray[np.float64]) -> JsonDict:
    return {"low": float(low[0]), "high": float(high[0])}


def _add_pareto_front(spec: BenchmarkSpec, scores: BenchmarkScores, results: JsonDict) -> None:
    """Mark the points that no other one dominates, over all objectives."""
    keys = [(m, w) for m in spec.config.methods for w in spec.config.weightings]
    table = np.stack([scores.mean[[scores.index[m, w, o] for o in scores.objectives]] for m, w in keys])
    known = np.isfinite(table).all(0)
    on = nondominated(table[:, known]) if known.any() else np.zeros(len(keys), bool)
    for (method, weighting), front in zip(keys, on, strict=True):
        results["methods"][method].setdefault("front", {})[weighting] = bool(front)


def _add_ranks(run_specs: Sequence[JsonDict], key: str) -> None:
    """1 for the largest; equal ones share a rank; what nobody measured has none."""
    known = [entry for entry in run_specs if np.isfinite(entry[key])]
    for entry in known:
        entry["rank"] = 1 + sum(bool(other[key] > entry[key]) for other in known)


def _mean_costs(rows: Sequence[CostRow]) -> JsonDict:
    """A method's runs, on average: of peaks the highest."""
    found: JsonDict = {"runs": len(rows)}
    for key in (*COST_COLUMNS, "steps"):
        values = [float(row[key]) for row in rows if row.get(key) is not None]
        pick = max(values) if key == "peak_memory" and values else None
        found[key] = None if not values else pick if pick is not None else sum(values) / len(values)
    return found


def _tuning_costs(costs: Sequence[CostRow], method: str) -> JsonDict | None:
    """What all trials of a method took together."""
    rows = [row for row in costs if row["kind"] == "tuning" and row["method"] == method]
    if not rows:
        return None
    keys = ("rollout_tokens", "trained_tokens", "reward_calls", "judge_calls", "seconds")
    return {"runs": len(rows), **{key: sum(float(row.get(key) or 0.0) for row in rows) for key in keys}}


def _side_metrics(
    spec: BenchmarkSpec, evaluations: Mapping[Any, JsonDict], method: str, weighting: str
) -> JsonDict:
    """Signs of a collapse, means over the seeds; before and after where both are known."""
    each = [_run_side_metrics(evaluations[method, weighting, seed]) for seed in spec.config.seeds]
    return {
        key: {
            arm: float(np.mean(values)) if values else None
            for arm in ("before", "after")
            for values in [[side[key][arm] for side in each if side[key][arm] is not None]]
        }
        for key in SIDE_METRICS
    }


def _run_side_metrics(evaluation: JsonDict) -> JsonDict:
    nothing = {"before": None, "after": None}
    pairs = {key: evaluation[key] for key in TEXT_METRICS}
    stated = evaluation.get("calibration")
    for key in CONFIDENCE_METRICS:
        pairs[key] = {arm: stated[arm][key] for arm in ("before", "after")} if stated else nothing
    for kind in ("harmful", "lookalike"):
        pairs[f"refused_{kind}"] = evaluation["refusals"].get(kind, nothing)
    pairs["kl"] = kl_before_after(evaluation)
    return {key: {arm: pair[arm] for arm in ("before", "after")} for key, pair in pairs.items()}


def _initial_means(spec: BenchmarkSpec, scores: BenchmarkScores) -> JsonDict:
    """Objective -> mean over the seeds of the policy before any training, that of the first method."""
    method, weighting = next(iter(spec.config.methods)), next(iter(spec.config.weightings))
    return {o: float(scores.initial_mean[scores.index[method, weighting, o]]) for o in scores.objectives}


def _tuning_summary(spec: BenchmarkSpec, tuning_results: Mapping[str, Any]) -> JsonDict | None:
    tuning = spec.config.tuning
    if tuning is None:
        return None
    return tuning.model_dump(mode="json") | {"methods": dict(tuning_results)}


def _caveats(spec: BenchmarkSpec, results: JsonDict) -> list[str]:
    """What a reader has to be told before any rank."""
    lines = list[str]()
    own = [name for name, o in results["objectives"].items() if not o["independent"]]
    if own:
        lines.append(
            f"Judge = training reward for {', '.join(own)}: a higher mean cannot be told from a policy that "
            "pleases its reward better; fix: add a `judge:` fitted on other data to the recipe."
        )
    lines += few_prompts_warning(min(results["prompts"]))
    count = len(spec.config.seeds)
    if count == 1:
        lines.append("One seed: how much another training seed would change is in no interval.")
    elif count < 5:
        lines.append(f"{count} seeds: the spread between training runs is known only roughly; 5 are better.")
    if spec.config.tuning is None:
        lines.append("No tuning: every method ran with the settings it was given.")
    elif spec.config.tuning.select_by == "judge":
        lines.append(
            "The judge chose the settings, by answers to training prompts: it saw no prompt of the "
            "evaluation before, but it is no longer wholly fresh."
        )
    return lines
