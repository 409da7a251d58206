"""Page and terminal table of a benchmark, from its benchmark.json alone."""

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from paretune.core.errors import ConfigError, DataError
from paretune.evaluate.verdicts import BETTER, JUDGE_UNRELIABLE, WORSE
from paretune.report.formatting import (
    MISSING,
    VERDICT_SYMBOLS,
    decimals_for,
    finite_or_none,
    format_number,
    format_percent,
    goal_arrow,
    one_line,
)
from paretune.report.run_page import jinja_environment
from paretune.report.scatter import (
    MARKER_SHAPES,
    MeanInterval,
    ScatterPlot,
    ScatterPoint,
    marker_path,
    scatter_plot,
)
from paretune.report.tables import align_columns, name_with_goal
from paretune.run.io import read_json, write_atomic

TEMPLATE = "benchmark.html.j2"
SCHEMA = "paretune/benchmark/3"
MAX_FIGURES = 6
"""Scatter plots drawn if the benchmark file names no pairs: all pairs of four objectives."""
MAX_NAME_CHARS = 20

COST_LABELS = {
    "rollout_tokens": "tokens sampled",
    "trained_tokens": "tokens trained on",
    "reward_calls": "reward calls",
    "judge_calls": "judge calls",
    "seconds": "seconds",
    "peak_memory": "peak memory, MiB",
}
"""Key of a cost -> column header."""
SIDE_METRIC_LABELS = {
    "kl": ("KL to initial", "nats per response"),
    "length": ("length", "tokens per response"),
    "distinct_2": ("distinct-2", "distinct word pairs among all word pairs; a fall is a loss of diversity"),
    "unique_fraction": ("unique responses", "responses that no other response repeats word for word"),
    "similarity": (
        "similarity",
        "METEOR between responses to different prompts; a rise is a loss of diversity",
    ),
    "truncation_rate": ("truncated", "responses that reached the length limit"),
    "ece": ("ECE", "expected gap between stated confidence and accuracy; lower is better"),
    "auroc": ("AUROC", "AUROC of stated confidence as a predictor of correctness; 0.5 is uninformative"),
}
"""Key of a side metric -> (column header, explanation); refusal rates are added per category."""
REFUSAL_RATE_PREFIX = "refusal_rate/"
OVEROPTIMIZATION_LABELS = {
    "training_reward": "training reward",
    "kl": "KL to initial",
    "similarity": "similarity of responses",
}
"""Measure of optimization pressure -> axis label."""
FRACTION_METRICS = ("unique_fraction", "truncation_rate")
"""Side metrics that are shown as percentages; refusal rates are added per category."""

Results = Mapping[str, Any]


def write_benchmark_report(benchmark_dir: Path) -> Path:
    """Write report.html beside benchmark.json and return its path.

    Raises:
        ConfigError: There is no benchmark.json.
        DataError: It has another schema.
    """
    results = read_results(benchmark_dir / "benchmark.json", SCHEMA, "compare")
    page = benchmark_dir / "report.html"
    write_atomic(page, jinja_environment().get_template(TEMPLATE).render(template_context(results)))
    return page


def read_results(path: Path, schema: str, command: str) -> dict[str, Any]:
    """The results of several runs.

    Args:
        path: The file, such as benchmark.json in the folder of a benchmark.
        schema: The schema that this version reads.
        command: The command that writes the file.

    Raises:
        ConfigError: There is no such file.
        DataError: It has another schema.
    """
    results = read_json(path)
    if results is None:
        raise ConfigError(f"{path.parent}: no {path.name}; fix: name the folder of a finished {path.stem}")
    if (found := results.get("schema")) != schema:
        raise DataError(f"{path}: schema: {found}, expected {schema}; fix: run `paretune {command}` again")
    return results


def template_context(results: Results) -> dict[str, Any]:
    """All values that the template shows."""
    methods = list(results["methods"])
    refusal_labels = _refusal_labels(results)
    return {
        "results": results,
        "methods": methods,
        "marker_paths": {
            m: marker_path(MARKER_SHAPES[i % len(MARKER_SHAPES)], 8.0, 8.0) for i, m in enumerate(methods)
        },
        "method_index": {m: i for i, m in enumerate(methods, 1)},
        "self_judged": [name for name, o in results["objectives"].items() if not o["independent"]],
        "objectives_by_judge": _objectives_by_judge(results),
        "tuned_by_judge": (results["tuning"] or {}).get("select_by") == "judge",
        "figures": _pareto_figures(results),
        "costs": {m: _format_costs(results["methods"][m]["costs"]) for m in methods},
        "cost_labels": COST_LABELS,
        "side_metric_labels": {
            key: labels
            for key, labels in (SIDE_METRIC_LABELS | refusal_labels).items()
            if _is_measured(results, key)
        },
        "overoptimization_figures": _overoptimization_figures(results),
        "fraction_metrics": (*FRACTION_METRICS, *refusal_labels),
        "decimals": {o: _decimals(results, o) for o in results["objectives"]},
    }


def benchmark_table(results: Results) -> str:
    """Lines of plain text: means per weighting, hypervolume, used budget, caveats."""
    lines = []
    several = len(results["weightings"]) > 1
    for weighting in results["weightings"]:
        header = f"method, {one_line(weighting, MAX_NAME_CHARS)}" if several else "method"
        objectives = (name_with_goal(name, entry) for name, entry in results["objectives"].items())
        rows = [(header, *objectives, "hypervolume", "budget used")]
        for name, method in results["methods"].items():
            scores = method["scores"][weighting]
            cells = (_score_cell(scores[o], _decimals(results, o)) for o in results["objectives"])
            rows.append(
                (
                    one_line(name, MAX_NAME_CHARS),
                    *cells,
                    _hypervolume_cell(method),
                    _budget_cell(results, method),
                )
            )
        lines += [*align_columns(rows, right_aligned=()), ""]
    budget = results["budget"]
    lines.append(
        f"means over {len(results['seeds'])} seeds with {100 * results['confidence_level']:.0f} % intervals; "
        f"▲ better and ▼ worse than {one_line(results['baseline'], MAX_NAME_CHARS)}; "
        f"budget {budget['limit']:,} {budget['resource']} per run"
    )
    judges = _objectives_by_judge(results)
    lines += [f"judge: {one_line(judge)} ({', '.join(names)})" for judge, names in judges.items()]
    lines += [f"⚠ {one_line(line)}" for line in [*results["unranked"], *results["caveats"]]]
    return "\n".join(lines)


def _score_cell(score: Results, decimals: int) -> str:
    """Mean and interval, with a symbol where the score differs from the baseline."""
    verdict = (score["change_from_baseline"] or {}).get("verdict")
    symbol = f" {VERDICT_SYMBOLS[verdict]}" if verdict in (BETTER, WORSE, JUDGE_UNRELIABLE) else ""
    low, high = format_number(score["low"], decimals), format_number(score["high"], decimals)
    return f"{format_number(score['mean'], decimals)} [{low}, {high}]{symbol}"


def _hypervolume_cell(method: Results) -> str:
    volume = method["hypervolume"]
    if volume is None:
        return MISSING
    value, low, high = (format_number(volume[key], 3) for key in ("value", "low", "high"))
    return f"{value} [{low}, {high}]"


def _budget_cell(results: Results, method: Results) -> str:
    fraction = method["costs"][results["budget"]["resource"]] / results["budget"]["limit"]
    return format_percent(fraction, 1) + (" (not ranked)" if method["unranked_reason"] else "")


def _objectives_by_judge(results: Results) -> dict[str, list[str]]:
    judges: dict[str, list[str]] = {}
    for name, objective in results["objectives"].items():
        judges.setdefault(objective["judge"], []).append(name)
    return judges


def _decimals(results: Results, objective: str) -> int:
    """Decimals for the means of an objective over all methods and weightings."""
    return common_decimals([s[objective] for m in results["methods"].values() for s in m["scores"].values()])


def common_decimals(scores: Sequence[Results]) -> int:
    """Decimals for several means: the median of those that their intervals need."""
    needed = sorted(decimals_for({"low": score["low"], "high": score["high"]}) for score in scores)
    return needed[len(needed) // 2]


def _format_costs(costs: Results) -> dict[str, str]:
    values = {key: costs[key] for key in COST_LABELS}
    if finite_or_none(values["peak_memory"]) is not None:
        values["peak_memory"] = values["peak_memory"] / 2**20
    return {
        key: MISSING if finite_or_none(value) is None else f"{value:,.0f}" for key, value in values.items()
    }


def _pareto_figures(results: Results) -> list[tuple[str, str, ScatterPlot]]:
    """(x objective, y objective, plot) of each declared pair of objectives, or of the first pairs."""
    declared: Sequence[Sequence[str]] = results["scatter_pairs"]
    pairs = declared or list(itertools.combinations(results["objectives"], 2))[:MAX_FIGURES]
    plots = [(x, y, scatter_plot(_scatter_points(results, x, y))) for x, y in pairs]
    labels = {name: axis_label(name, entry) for name, entry in results["objectives"].items()}
    return [(labels[x], labels[y], plot) for x, y, plot in plots if plot is not None]


def axis_label(name: str, objective: Results) -> str:
    """The name of an objective with its direction."""
    return f"{name} {goal_arrow(objective)}"


def _scatter_points(results: Results, x_objective: str, y_objective: str) -> list[ScatterPoint]:
    several = len(results["weightings"]) > 1
    points: list[tuple[str, int, tuple[MeanInterval, MeanInterval]]] = []
    oriented: list[tuple[float, float]] = []
    for index, (name, method) in enumerate(results["methods"].items(), 1):
        for weighting, scores in method["scores"].items():
            pair = (scores[x_objective], scores[y_objective])
            if all(finite_or_none(score["mean"]) is not None for score in pair):
                x, y = ((score["mean"], score["low"], score["high"]) for score in pair)
                label = f"{name} {weighting}" if several else name
                points.append((one_line(label, MAX_NAME_CHARS), index, (x, y)))
                oriented.append((pair[0]["oriented_mean"], pair[1]["oriented_mean"]))
    scatter_points = [
        ScatterPoint(label, index, ends[0], ends[1], not is_dominated(means, oriented))
        for (label, index, ends), means in zip(points, oriented, strict=True)
    ]
    initial = [results["initial"].get(o) for o in (x_objective, y_objective)]
    if all(_within_range(value, [point[2][i] for point in points]) for i, value in enumerate(initial)):
        x, y = ((value, value, value) for value in initial)
        scatter_points.append(ScatterPoint("initial", 0, x, y))
    return scatter_points


def _refusal_labels(results: Results) -> dict[str, tuple[str, str]]:
    """Column header and explanation of the refusal rate of each category with a better direction."""
    better = {"up": "higher is better", "down": "lower is better"}
    return {
        f"{REFUSAL_RATE_PREFIX}{category}": (
            f"{category} refused",
            f"refusals of {category} prompts; {better[direction]}",
        )
        for category, direction in results["refusal_categories"].items()
    }


def _is_measured(results: Results, key: str) -> bool:
    """Whether any method has a value of this side metric."""
    cells = [w[key] for m in results["methods"].values() for w in m["side_metrics"].values() if key in w]
    return any(finite_or_none(cell[arm]) is not None for cell in cells for arm in ("before", "after"))


def _overoptimization_figures(results: Results) -> list[tuple[str, str, ScatterPlot]]:
    """(weighting, x label, plot): the judge score against measures of optimization pressure."""
    figures = []
    for weighting in results["weightings"]:
        for metric, label in OVEROPTIMIZATION_LABELS.items():
            plot = scatter_plot(_overoptimization_points(results, weighting, metric))
            if plot is not None:
                figures.append((weighting, label, plot))
    return figures


def _overoptimization_points(results: Results, weighting: str, metric: str) -> list[ScatterPoint]:
    """A point per method (mean over seeds, bars from lowest to highest seed), and the initial policy."""
    points, initial = [], []
    for index, (name, method) in enumerate(results["methods"].items(), 1):
        values = method.get("overoptimization", {}).get(weighting)
        if values is None:
            continue
        after = [values[key]["after"] for key in (metric, "judge_score")]
        if any(finite_or_none(v) is None for seeds in after for v in seeds):
            continue
        x, y = ((sum(seeds) / len(seeds), min(seeds), max(seeds)) for seeds in after)
        points.append(ScatterPoint(one_line(name, MAX_NAME_CHARS), index, x, y, True))
        initial.append([finite_or_none(values[key]["before"]) for key in (metric, "judge_score")])
    if initial and None not in initial[0]:
        x, y = ((float(v), float(v), float(v)) for v in initial[0] if v is not None)
        points.append(ScatterPoint("initial", 0, x, y))
    return points


def _within_range(value: Any, intervals: Sequence[MeanInterval]) -> bool:
    """Whether a point here would leave the others at least half of the axis."""
    if finite_or_none(value) is None or not intervals:
        return False
    low, high = min(end[1] for end in intervals), max(end[2] for end in intervals)
    return low - 0.5 * (high - low) <= value <= high + 0.5 * (high - low)


def is_dominated(means: tuple[float, float], others: Sequence[tuple[float, float]]) -> bool:
    """Whether another point is at least as good in both oriented means and better in one."""
    return any(other != means and other[0] >= means[0] and other[1] >= means[1] for other in others)
