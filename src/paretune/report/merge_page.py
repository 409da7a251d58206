"""Page of merged policies, from merge.json alone."""

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from paretune import __version__
from paretune.core.errors import DataError
from paretune.report.benchmark_page import MAX_FIGURES, axis_label, is_dominated
from paretune.report.formatting import decimals_for, finite_or_none
from paretune.report.run_page import jinja_environment
from paretune.report.scatter import MeanInterval, ScatterPlot, ScatterPoint, scatter_plot
from paretune.run.io import read_json, write_atomic

TEMPLATE = "merge.html.j2"
SCHEMA = "paretune/merge/2"

Results = Mapping[str, Any]


def write_merge_report(output_dir: Path) -> Path:
    """Write report.html beside merge.json and return its path.

    Raises:
        DataError: There is no merge.json, or it has another schema.
    """
    path = output_dir / "merge.json"
    results = read_json(path) or {}
    if (schema := results.get("schema")) != SCHEMA:
        raise DataError(f"{path}: schema: {schema}, expected {SCHEMA}; fix: run `paretune merge` again")
    names = list(results["objectives"])
    context = {
        "title": output_dir.resolve().name,
        "version": __version__,
        "results": results,
        "merges": [merge | {"label": weights_label(merge["weights"])} for merge in results["merges"]],
        "figures": _figures(results),
        "decimals": {name: max(decimals_for(m["scores"][name]) for m in results["merges"]) for name in names},
    }
    page = output_dir / "report.html"
    write_atomic(page, jinja_environment().get_template(TEMPLATE).render(context))
    return page


def weights_label(weights: Sequence[float]) -> str:
    """The weights of a merge, such as "0.25 : 0.75"."""
    return " : ".join(f"{weight:.3g}" for weight in weights)


def _figures(results: Results) -> list[tuple[str, str, ScatterPlot]]:
    """(x label, y label, plot) of the first pairs of objectives."""
    objectives, figures = results["objectives"], []
    for x, y in list(itertools.combinations(objectives, 2))[:MAX_FIGURES]:
        plot = scatter_plot(_points(results, x, y))
        if plot is not None:
            figures.append((axis_label(x, objectives[x]), axis_label(y, objectives[y]), plot))
    return figures


def _points(results: Results, x: str, y: str) -> list[ScatterPoint]:
    pairs = [(merge["scores"][x], merge["scores"][y]) for merge in results["merges"]]
    known = [pair for pair in pairs if all(finite_or_none(entry["low"]) is not None for entry in pair)]
    if len(known) < len(pairs):
        return []
    means = [(a["oriented"]["after"], b["oriented"]["after"]) for a, b in pairs]
    points = [
        ScatterPoint(weights_label(merge["weights"]), i, _ends(a), _ends(b), not is_dominated(mean, means))
        for i, (merge, (a, b), mean) in enumerate(zip(results["merges"], pairs, means, strict=True), 1)
    ]
    start = [(results["initial"][name],) * 3 for name in (x, y)]
    return [*points, ScatterPoint("initial", 0, start[0], start[1])]


def _ends(entry: Results) -> MeanInterval:
    """The mean after merging, and the ends of its change as scores."""
    before = entry["before"]
    return entry["after"], before + entry["low"], before + entry["high"]
