"""The page and the closing table of a comparison, from its compare.json alone."""

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from paretune.core.errors import ConfigError, DataError
from paretune.report.charts import (
    MARKER_SHAPES,
    MeanInterval,
    ScatterPlot,
    ScatterPoint,
    marker_path,
    scatter_plot,
)
from paretune.report.formatting import (
    MISSING,
    VERDICT_SYMBOLS,
    decimals_for,
    finite_or_none,
    format_number,
    format_percent,
    one_line,
)
from paretune.report.run_page import jinja_environment
from paretune.report.tables import align_columns
from paretune.run.io import read_json, write_atomic

TEMPLATE = "versus.html.j2"
SCHEMA = "paretune/compare/1"
MAX_FIGURES = 6
MAX_NAME_CHARS = 20

COST_LABELS = {
    "rollout_tokens": "tokens sampled",
    "trained_tokens": "tokens trained on",
    "reward_calls": "reward calls",
    "judge_calls": "judge calls",
    "seconds": "seconds",
    "peak_memory": "peak memory, MiB",
}
"""Key of the ledger -> what a column is called."""
SIDE_METRIC_LABELS = {
    "kl": ("KL to the start", "nats a response"),
    "length": ("length", "tokens a response"),
    "distinct_2": ("distinct-2", "different pairs of words among all pairs; a fall is a loss of variety"),
    "unique": ("different responses", "that no other one repeats word for word"),
    "similarity": (
        "similarity",
        "METEOR between responses to different requests; a rise is a loss of variety",
    ),
    "truncated": ("truncated", "responses that ran into the length limit"),
    "refused_harmful": ("harmful requests refused", "refusals; more are wanted"),
    "refused_lookalike": (
        "look-alikes refused",
        "refusals of harmless requests that look harmful; fewer are wanted",
    ),
    "ece": ("ECE", "gap between stated confidence and being right"),
    "auroc": ("AUROC", "of stated confidence: 0.5 says nothing about being right"),
}
OVEROPTIMIZATION_LABELS = {
    "reward": "training reward",
    "kl": "KL to the start",
    "similarity": "similarity of responses",
}
"""Sign of how far a policy was pushed -> what an axis is called."""
FRACTION_METRICS = ("unique", "truncated", "refused_harmful", "refused_lookalike")

Results = Mapping[str, Any]


def write_benchmark_report(benchmark_dir: Path) -> Path:
    """Write report.html beside compare.json, and return its path.

    Raises:
        ConfigError: There is no compare.json.
        DataError: It is of another schema.
    """
    found = read_json(benchmark_dir / "compare.json")
    if found is None:
        raise ConfigError(f"{benchmark_dir}: holds no compare.json; fix: name the folder of a comparison")
    if found.get("schema") != SCHEMA:
        wrong = f"schema: {found.get('schema')}, expected {SCHEMA}"
        raise DataError(f"{benchmark_dir / 'compare.json'}: {wrong}; fix: give the command again")
    path = benchmark_dir / "report.html"
    write_atomic(path, jinja_environment().get_template(TEMPLATE).render(template_context(found)))
    return path


def template_context(results: Results) -> dict[str, Any]:
    """Everything the template shows."""
    methods = list(results["methods"])
    return {
        "c": results,
        "methods": methods,
        "legend": {
            m: marker_path(MARKER_SHAPES[i % len(MARKER_SHAPES)], 8.0, 8.0) for i, m in enumerate(methods)
        },
        "numbers_of": {m: i for i, m in enumerate(methods, 1)},
        "own_judge": [name for name, o in results["objectives"].items() if not o["independent"]],
        "judges": _objectives_by_judge(results),
        "by_judge": (results["tuning"] or {}).get("by") == "judge",
        "moved": all("from_start" in cell for cell in _all_scores(results)),
        "figures": _pareto_figures(results),
        "cost": {m: _format_costs(results["methods"][m]["ledger"]) for m in methods},
        "currencies": COST_LABELS,
        "side": {key: words for key, words in SIDE_METRIC_LABELS.items() if _is_measured(results, key)},
        "pressure": _overoptimization_figures(results),
        "shares": FRACTION_METRICS,
        "digits": {o: _decimals(results, o) for o in results["objectives"]},
        "difference_digits": decimals_for,
    }


def benchmark_table(results: Results) -> str:
    """Lines of plain text for the terminal: means by weighting, hypervolume, what was spent, cautions."""
    lines = []
    for weighting in results["weightings"]:
        head = (
            "method" if len(results["weightings"]) == 1 else f"method, {one_line(weighting, MAX_NAME_CHARS)}"
        )
        rows = [(head, *(one_line(o, MAX_NAME_CHARS) for o in results["objectives"]), "hypervolume", "spent")]
        for name, method in results["methods"].items():
            point = method["points"][weighting]
            cells = (_score_cell(point[o], _decimals(results, o)) for o in results["objectives"])
            rows.append(
                (
                    one_line(name, MAX_NAME_CHARS),
                    *cells,
                    _hypervolume_cell(method),
                    _budget_cell(results, method),
                )
            )
        lines += [*align_columns(rows, right_aligned=()), ""]
    currency, amount = results["budget"]["currency"], results["budget"]["amount"]
    lines.append(
        f"means over {len(results['seeds'])} seeds with {100 * results['level']:.0f} % intervals; ▲ ▼ against "
        f"{one_line(results['baseline'], MAX_NAME_CHARS)}; budget {amount:,} {currency} a run"
    )
    lines += [
        f"judge: {one_line(judge)} ({', '.join(who)})" for judge, who in _objectives_by_judge(results).items()
    ]
    return "\n".join(
        [*lines, *(f"⚠ {one_line(line)}" for line in [*results["refused"], *results["cautions"]])]
    )


def _score_cell(point: Results, decimals: int) -> str:
    """Mean, interval, and a sign where it differs from the baseline."""
    word = (point["difference"] or {}).get("verdict")
    sign = f" {VERDICT_SYMBOLS[word]}" if word in ("better", "worse") else ""
    low, high = format_number(point["low"], decimals), format_number(point["high"], decimals)
    return f"{format_number(point['mean'], decimals)} [{low}, {high}]{sign}"


def _hypervolume_cell(method: Results) -> str:
    found = method["hypervolume"]
    if found is None:
        return MISSING
    return f"{format_number(found['value'], 3)} [{format_number(found['low'], 3)}, {format_number(found['high'], 3)}]"


def _budget_cell(results: Results, method: Results) -> str:
    spent = method["ledger"][results["budget"]["currency"]] / results["budget"]["amount"]
    return format_percent(spent, 1) + (" (not ranked)" if method["refused"] else "")


def _objectives_by_judge(results: Results) -> dict[str, list[str]]:
    judges: dict[str, list[str]] = {}
    for name, objective in results["objectives"].items():
        judges.setdefault(objective["judge"], []).append(name)
    return judges


def _all_scores(results: Results) -> list[Results]:
    points = [point for method in results["methods"].values() for point in method["points"].values()]
    return [cell for point in points for cell in point.values()]


def _decimals(results: Results, objective: str) -> int:
    """Decimals for the means of an objective: those that its middle interval asks for."""
    points = [p[objective] for m in results["methods"].values() for p in m["points"].values()]
    return sorted(decimals_for({"low": p["low"], "high": p["high"]}) for p in points)[len(points) // 2]


def _format_costs(costs: Results) -> dict[str, str]:
    shown = {key: costs[key] for key in COST_LABELS}
    if finite_or_none(shown["peak_memory"]) is not None:
        shown["peak_memory"] = shown["peak_memory"] / 2**20
    return {
        key: MISSING if finite_or_none(value) is None else f"{value:,.0f}" for key, value in shown.items()
    }


def _pareto_figures(results: Results) -> list[tuple[str, str, ScatterPlot]]:
    """(across, up, figure) of each pair of objectives that is asked for, or of all."""
    pairs: Sequence[Sequence[str]] = results["scatter"] or list(
        itertools.combinations(results["objectives"], 2)
    )
    drawn = [
        (a, b, scatter_plot(_scatter_points(results, a, b)))
        for a, b in pairs[: len(results["scatter"]) or MAX_FIGURES]
    ]
    return [(a, b, figure) for a, b, figure in drawn if figure is not None]


def _scatter_points(results: Results, x_objective: str, y_objective: str) -> list[ScatterPoint]:
    several = len(results["weightings"]) > 1
    dots: list[tuple[str, int, tuple[MeanInterval, MeanInterval]]] = []
    for place, (name, method) in enumerate(results["methods"].items(), 1):
        for weighting, point in method["points"].items():
            if all(finite_or_none(point[o]["mean"]) is not None for o in (x_objective, y_objective)):
                a, b = (
                    (point[o]["mean"], point[o]["low"], point[o]["high"]) for o in (x_objective, y_objective)
                )
                label = f"{name} {weighting}" if several else name
                dots.append((one_line(label, MAX_NAME_CHARS), place, (a, b)))
    marks = [
        ScatterPoint(label, place, ends[0], ends[1], not _is_dominated(ends, dots))
        for label, place, ends in dots
    ]
    start = [results["start"].get(o) for o in (x_objective, y_objective)]
    if all(_within_range(value, [dot[2][i] for dot in dots]) for i, value in enumerate(start)):
        one, two = ((value, value, value) for value in start)
        marks.append(ScatterPoint("start", 0, one, two))
    return marks


def _is_measured(results: Results, key: str) -> bool:
    """Did anybody measure it? Older comparisons have fewer keys."""
    cells = [w[key] for m in results["methods"].values() for w in m["side"].values() if key in w]
    return any(finite_or_none(cell[arm]) is not None for cell in cells for arm in ("before", "after"))


def _overoptimization_figures(results: Results) -> list[tuple[str, str, ScatterPlot]]:
    """(weighting, sign, figure): the judge's sum against signs of how far a policy was pushed."""
    figures = []
    for weighting in results["weightings"]:
        for sign, title in OVEROPTIMIZATION_LABELS.items():
            figure = scatter_plot(_overoptimization_points(results, weighting, sign))
            if figure is not None:
                figures.append((weighting, title, figure))
    return figures


def _overoptimization_points(results: Results, weighting: str, metric: str) -> list[ScatterPoint]:
    """A dot for each method: means over the seeds, lines from the least seed to the most, and the start."""
    dots, starts = [], []
    for place, (name, method) in enumerate(results["methods"].items(), 1):
        of = method.get("pressure", {}).get(weighting)
        if of is None or any(
            finite_or_none(v) is None for key in (metric, "judge") for v in of[key]["after"]
        ):
            continue
        ends = [(sum(v) / len(v), min(v), max(v)) for key in (metric, "judge") for v in [of[key]["after"]]]
        dots.append(ScatterPoint(one_line(name, MAX_NAME_CHARS), place, ends[0], ends[1], True))
        starts.append([finite_or_none(of[key]["before"]) for key in (metric, "judge")])
    if starts and None not in starts[0]:
        across, up = ((float(v), float(v), float(v)) for v in starts[0] if v is not None)
        dots.append(ScatterPoint("start", 0, across, up))
    return dots


def _within_range(value: Any, intervals: Sequence[MeanInterval]) -> bool:
    """Would a point here leave the others most of the figure?"""
    if finite_or_none(value) is None or not intervals:
        return False
    low, high = min(end[1] for end in intervals), max(end[2] for end in intervals)
    return low - 0.5 * (high - low) <= value <= high + 0.5 * (high - low)


def _is_dominated(point: Sequence[Any], others: Sequence[tuple[str, int, Sequence[Any]]]) -> bool:
    """Does some other point dominate this one, in these two objectives?"""
    mine = (point[0][0], point[1][0])
    for _, _, other in others:
        theirs = (other[0][0], other[1][0])
        if theirs != mine and theirs[0] >= mine[0] and theirs[1] >= mine[1]:
            return True
    return False
