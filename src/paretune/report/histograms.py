"""Histograms of the judged scores before and after, and reliability diagrams of reward heads."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from paretune.report.axes import Axis, percent_ticks
from paretune.report.charts import line_path, nice_ticks, tick_label
from paretune.report.formatting import finite_or_none, format_number, format_percent
from paretune.report.responses import Responses
from paretune.report.scatter import marker_path

WIDTH, HEIGHT = 300, 150
LEFT, RIGHT, TOP, BOTTOM = 34.0, 8.0, 8.0, 22.0
NUM_BINS = 20
"""About this many bins, with round ends."""
MAX_BARS = 12
"""Up to this many different scores get a bar each."""
RELIABILITY_SIZE = 210


@dataclass(frozen=True, slots=True)
class Histogram:
    """Shares of the scores of both policies per bin, in pixels."""

    objective: str
    width: int
    height: int
    before_path: str
    after_path: str
    x_ticks: tuple[tuple[float, str], ...]
    y_ticks: tuple[tuple[float, str], ...]
    rows: tuple[tuple[str, str, str], ...]
    """Bin, and the shares before and after."""


def score_histograms(evaluation: Mapping[str, Any], responses: Responses) -> list[Histogram]:
    """One histogram for each objective with judged responses."""
    found = (_histogram(name, responses) for name in evaluation["objectives"])
    return [histogram for histogram in found if histogram is not None]


def _histogram(name: str, responses: Responses) -> Histogram | None:
    arms = [responses.scores(arm, name) for arm in ("before", "after")]
    arms = [scores[~np.isnan(scores)] for scores in arms]
    if not all(map(len, arms)):
        return None
    values = np.unique(np.concatenate(arms))
    if len(values) <= MAX_BARS:  # ratings on a scale: a bar around each value
        middles = (values[1:] + values[:-1]) / 2
        half = (middles[0] - values[0]) if len(middles) else 0.5
        last = (values[-1] - middles[-1]) if len(middles) else 0.5
        edges = np.concatenate([[values[0] - half], middles, [values[-1] + last]])
        labels = [f"{value:.4g}".replace("-", "−") for value in values.tolist()]
    else:
        edges = np.array(nice_ticks(float(values[0]), float(values[-1]), NUM_BINS))
        texts = [tick_label(edge, float(edges[1] - edges[0])) for edge in edges.tolist()]
        labels = [f"{low} to {high}" for low, high in pairwise(texts)]
    shares = [np.histogram(scores, edges)[0] / len(scores) for scores in arms]
    x = Axis(float(edges[0]), float(edges[-1]), LEFT, WIDTH - RIGHT)
    y = Axis(0.0, 1.05 * float(max(share.max() for share in shares)), HEIGHT - BOTTOM, TOP)
    paths = []
    for share in shares:
        tops = [
            (x.at(edge), y.at(v)) for i, v in enumerate(share.tolist()) for edge in edges[i : i + 2].tolist()
        ]
        corners = [(tops[0][0], y.at(0.0)), *tops, (tops[-1][0], y.at(0.0))]
        paths.append(line_path(corners) + "Z")
    return Histogram(
        objective=name,
        width=WIDTH,
        height=HEIGHT,
        before_path=paths[0],
        after_path=paths[1],
        x_ticks=x.ticks(4),
        y_ticks=percent_ticks(y, 3),
        rows=tuple(
            (label, format_percent(one, 1), format_percent(two, 1))
            for label, one, two in zip(labels, shares[0].tolist(), shares[1].tolist(), strict=True)
        ),
    )


@dataclass(frozen=True, slots=True)
class ReliabilityPlot:
    """Mean label against mean prediction of a head, in bins of equal size."""

    objective: str
    size: int
    diagonal: tuple[float, float, float, float]
    """Where labels equal predictions: x and y of both ends."""
    markers: tuple[str, ...]
    path: str
    ticks: tuple[tuple[float, str], ...]
    """Of the x axis."""
    y_ticks: tuple[tuple[float, str], ...]
    rows: tuple[tuple[str, str, str], ...]
    """Mean prediction, mean label and count of each bin."""


def reliability_plots(report: Mapping[str, Any]) -> list[ReliabilityPlot]:
    """A plot for each head whose report has calibration bins.

    Args:
        report: Content of `<run>/reward/report.json`.
    """
    plots = []
    for name, head in report["objectives"].items():
        bins = [
            (each["predicted"], each["label"], each["count"])
            for each in (head.get("calibration") or {}).get("bins") or ()
            if finite_or_none(each["predicted"]) is not None and finite_or_none(each["label"]) is not None
        ]
        if len(bins) > 1:
            plots.append(_reliability_plot(name, bins))
    return plots


def _reliability_plot(name: str, bins: list[tuple[float, float, int]]) -> ReliabilityPlot:
    values = [v for predicted, label, _ in bins for v in (predicted, label)]
    x = Axis.over(values, 0.0, LEFT + 8, RELIABILITY_SIZE - RIGHT)
    y = Axis.over(values, 0.0, RELIABILITY_SIZE - BOTTOM - 14, TOP)
    points = [(x.at(predicted), y.at(label)) for predicted, label, _ in bins]
    return ReliabilityPlot(
        objective=name,
        size=RELIABILITY_SIZE,
        diagonal=(x.start, y.start, x.end, y.end),
        markers=tuple(marker_path("circle", *point, 3.0) for point in points),
        path=line_path(points),
        ticks=x.ticks(4),
        y_ticks=y.ticks(4),
        rows=tuple((format_number(p), format_number(label), f"{n:,}") for p, label, n in bins),
    )
