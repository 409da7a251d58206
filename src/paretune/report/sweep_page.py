"""Page and terminal table of a sweep, from its sweep.json alone."""

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from paretune.report.benchmark_page import (
    MAX_FIGURES,
    axis_label,
    common_decimals,
    is_dominated,
    read_results,
)
from paretune.report.formatting import (
    VERDICT_SYMBOLS,
    finite_or_none,
    format_compact,
    format_number,
    format_percent,
    one_line,
)
from paretune.report.merge_page import weights_label
from paretune.report.run_page import jinja_environment
from paretune.report.scatter import ScatterPlot, ScatterPoint, scatter_plot
from paretune.report.tables import align_columns, name_with_goal
from paretune.run.io import write_atomic

TEMPLATE = "sweep.html.j2"
RESULTS_FILE = "sweep.json"
SCHEMA = "paretune/sweep/1"
MAX_MATRIX = 16
"""The table of who dominates whom has at most this many points."""
POINT_MARKER, KNEE_MARKER = 1, 4
"""A circle and a diamond; see `scatter_plot`."""

Results = Mapping[str, Any]


class Figure(NamedTuple):
    """A plot of two swept objectives."""

    x_label: str
    y_label: str
    plot: ScatterPlot
    front_line: str
    """SVG points of the line through the front, where these two are all that is swept; else ""."""


def write_sweep_report(output_dir: Path) -> Path:
    """Write report.html beside sweep.json and return its path.

    Raises:
        ConfigError: There is no sweep.json.
        DataError: It has another schema.
    """
    results = read_results(output_dir / RESULTS_FILE, SCHEMA, "sweep")
    page = output_dir / "report.html"
    write_atomic(
        page, jinja_environment().get_template(TEMPLATE).render(template_context(results, output_dir))
    )
    return page


def template_context(results: Results, output_dir: Path) -> dict[str, Any]:
    """All values that the template shows."""
    labels = point_labels(results)
    return {
        "results": results,
        "labels": labels,
        "shares": {point["name"]: weights_label([*point["shares"].values()]) for point in results["points"]},
        "others": [name for name in results["objectives"] if name not in results["over"]],
        "figures": _figures(results, labels),
        "decimals": _decimals(results),
        "front": [point for point in results["points"] if point["on_pareto_front"]],
        "headline": headline(results),
        "show_matrix": len(results["points"]) <= MAX_MATRIX,
        "folder": str(output_dir),
        "is_one_seed": len(results["seeds"]) == 1,
    }


def point_labels(results: Results) -> dict[str, str]:
    """Name of a point -> its short label: A, B, ..., Z, AA, ..."""
    letters = [chr(ord("A") + i) for i in range(26)]
    labels = itertools.chain(letters, (a + b for a in letters for b in letters))
    return dict(zip((point["name"] for point in results["points"]), labels, strict=False))


def headline(results: Results) -> list[str]:
    """The sentences that come first: the front, its knee, its volume."""
    labels, points = point_labels(results), {point["name"]: point for point in results["points"]}
    front = [labels[name] for name, point in points.items() if point["on_pareto_front"]]
    volume, level = results["hypervolume"], format_percent(results["confidence_level"])
    low, high = format_compact(volume["low"]), format_compact(volume["high"])
    return [
        f"{len(front)} of {len(points)} points are on the front: {', '.join(front)}.",
        _knee_sentence(results, labels, points),
        f"Hypervolume {format_compact(volume['value'])} [{low}, {high}] ({level} interval); the initial "
        f"policy alone has {format_compact(volume['initial'])}.",
    ]


def _knee_sentence(results: Results, labels: Mapping[str, str], points: Mapping[str, Any]) -> str:
    knee = results["knee"]
    if knee is None:
        if sum(point["on_pareto_front"] for point in points.values()) < 3:
            return "No knee: a front of fewer than three points has none."
        return "No knee: no point lies beyond the plane through the extremes of the front."
    shares = weights_label([*points[knee["point"]]["shares"].values()])
    chance = format_percent(knee["probability"])
    if not knee["is_clear"]:
        name = labels[knee["point"]]
        return f"No clear knee: {name} ({shares}) is it in {chance} of the bootstrap samples only."
    return f"Knee: {labels[knee['point']]} ({shares}), in {chance} of the bootstrap samples."


def sweep_table(results: Results) -> str:
    """Lines of plain text: the points with intervals and verdicts, the front, failures and caveats."""
    labels, decimals, over = point_labels(results), _decimals(results), results["over"]
    header = [" : ".join(one_line(name, 16) for name in over)]
    header += [name_with_goal(name, entry) for name, entry in results["objectives"].items()]
    rows: list[Sequence[str]] = [("", *header, "on the front", "")]
    for point in results["points"]:
        cells = [_score_cell(point["scores"][o], decimals[o]) for o in results["objectives"]]
        chance = format_percent(point["front_probability"])
        on_front = f"{'yes' if point['on_pareto_front'] else 'no'} ({chance})"
        is_knee = (results["knee"] or {}).get("point") == point["name"] and results["knee"]["is_clear"]
        label = weights_label([*point["shares"].values()])
        rows.append((labels[point["name"]], label, *cells, on_front, "knee" if is_knee else ""))
    used, seeds = results["budget"], results["seeds"]
    lines = [*align_columns(rows, right_aligned=()), ""]
    lines.append(
        f"means over {len(seeds)} {'seed' if len(seeds) == 1 else 'seeds'} with "
        f"{format_percent(results['confidence_level'])} intervals; ▲ better and ▼ worse than the initial "
        f"policy, ● no evidence; budget {used['limit']:,} {used['resource']} per run"
    )
    lines += headline(results)
    lines += [f"⚠ failed: {f['point']}, seed {f['seed']}: {one_line(f['reason'])}" for f in results["failed"]]
    lines += [f"⚠ {one_line(line)}" for line in results["caveats"]]
    return "\n".join(lines)


def _score_cell(score: Results, decimals: int) -> str:
    symbol = VERDICT_SYMBOLS.get(score["change_from_initial"]["verdict"], "?")
    low, high = format_number(score["low"], decimals), format_number(score["high"], decimals)
    return f"{format_number(score['mean'], decimals)} [{low}, {high}] {symbol}"


def _decimals(results: Results) -> dict[str, int]:
    """Objective -> decimals for its means."""
    return {
        o: common_decimals([point["scores"][o] for point in results["points"]]) for o in results["objectives"]
    }


def _figures(results: Results, labels: Mapping[str, str]) -> list[Figure]:
    """The plots of the first pairs of swept objectives."""
    figures, objectives = [], results["objectives"]
    for x, y in list(itertools.combinations(results["over"], 2))[:MAX_FIGURES]:
        plot = scatter_plot(_points(results, labels, x, y))
        if plot is not None:
            line = _front_line(plot) if len(results["over"]) == 2 else ""
            figures.append(Figure(axis_label(x, objectives[x]), axis_label(y, objectives[y]), plot, line))
    return figures


def _points(results: Results, labels: Mapping[str, str], x: str, y: str) -> list[ScatterPoint]:
    knee = (results["knee"] or {}).get("point")
    pairs = [(point["name"], point["scores"][x], point["scores"][y]) for point in results["points"]]
    oriented = [(a["oriented_mean"], b["oriented_mean"]) for _, a, b in pairs]
    points = [
        ScatterPoint(
            labels[name],
            KNEE_MARKER if name == knee else POINT_MARKER,
            (a["mean"], a["low"], a["high"]),
            (b["mean"], b["low"], b["high"]),
            not is_dominated(means, oriented),
        )
        for (name, a, b), means in zip(pairs, oriented, strict=True)
    ]
    start = [finite_or_none(results["initial"].get(name)) for name in (x, y)]
    if start[0] is not None and start[1] is not None:
        points.append(ScatterPoint("initial", 0, (start[0],) * 3, (start[1],) * 3))
    return points


def _front_line(plot: ScatterPlot) -> str:
    front = sorted((m.x, m.y) for m in plot.markers if m.on_pareto_front and m.method_index)
    return " ".join(f"{x},{y}" for x, y in front) if len(front) > 1 else ""
