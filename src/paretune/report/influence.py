"""Influence of each objective on the policy over time: its share of the variance of the advantage."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from paretune.report.axes import Axis, percent_ticks
from paretune.report.charts import (
    MAX_POINTS,
    SHARE_METRIC,
    line_path,
    metric_series,
    nice_ticks,
    running_mean,
)
from paretune.report.formatting import format_percent
from paretune.report.scatter import MARKER_SHAPES, marker_path

WIDTH, HEIGHT = 400, 200
LEFT, RIGHT, TOP, BOTTOM = 44.0, 12.0, 10.0, 24.0
NUM_MARKERS = 5
"""Markers along a line, which tell the objectives apart without colour."""


@dataclass(frozen=True, slots=True)
class InfluenceLine:
    """One objective."""

    objective: str
    path: str
    markers: tuple[str, ...]
    key: str
    """Marker of the legend, in a box of 16 by 16."""
    first: str
    """Mean share over the first tenth of the steps."""
    last: str
    """Mean share over the last tenth."""


@dataclass(frozen=True, slots=True)
class InfluenceChart:
    """Shares of all objectives over the steps, in pixels."""

    width: int
    height: int
    x_ticks: tuple[tuple[float, str], ...]
    y_ticks: tuple[tuple[float, str], ...]
    zero_y: float
    lines: tuple[InfluenceLine, ...]


def influence_chart(lines: Sequence[Mapping[str, Any]], objectives: Sequence[str]) -> InfluenceChart | None:
    """The chart of the running means; None with fewer than two objectives that have shares.

    Args:
        lines: Lines of metrics.jsonl of the alignment.
        objectives: Names.
    """
    window = max(1, len(lines) // 12)
    series = {name: metric_series(lines, SHARE_METRIC.format(name)) for name in objectives}
    smoothed = {
        name: [(step, v) for step, v in running_mean(points, window, MAX_POINTS) if v is not None]
        for name, points in series.items()
        if any(v is not None for _, v in points)
    }
    if len(smoothed) < 2:
        return None
    values = [v for points in smoothed.values() for _, v in points]
    # Shares are outside 0 to 1 where objectives oppose each other.
    y = Axis(min([0.0, *values]), max([0.5, *values]), HEIGHT - BOTTOM, TOP)
    steps = [step for points in smoothed.values() for step, _ in points]
    x = Axis(min(steps), max(*steps, min(steps) + 1), LEFT, WIDTH - RIGHT)
    ticks = [t for t in nice_ticks(x.low, x.high, 4) if x.low <= t <= x.high and t == int(t)]
    return InfluenceChart(
        width=WIDTH,
        height=HEIGHT,
        x_ticks=tuple((x.at(tick), f"{tick:.0f}") for tick in ticks),
        y_ticks=percent_ticks(y),
        zero_y=y.at(0.0),
        lines=tuple(_line(name, points, i, x, y) for i, (name, points) in enumerate(smoothed.items())),
    )


def _line(name: str, points: Sequence[tuple[float, float]], index: int, x: Axis, y: Axis) -> InfluenceLine:
    pixels = [(x.at(step), y.at(v)) for step, v in points]
    shape = MARKER_SHAPES[index % len(MARKER_SHAPES)]
    # Not at the same steps, so that lines that meet do not hide each other's markers.
    places = [int((i + index / 8) / NUM_MARKERS * len(pixels)) for i in range(NUM_MARKERS)]
    tenth = max(1, len(points) // 10)
    first, last = (sum(v for _, v in part) / len(part) for part in (points[:tenth], points[-tenth:]))
    return InfluenceLine(
        objective=name,
        path=line_path(pixels),
        markers=tuple(
            marker_path(shape, *pixels[min(i, len(pixels) - 1)], 3.5) for i in dict.fromkeys(places)
        ),
        key=marker_path(shape, 8.0, 8.0, 5.5),
        first=format_percent(first),
        last=format_percent(last),
    )
