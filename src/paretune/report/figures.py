"""Curves and intervals as coordinates; the page's template draws them as inline SVG.

Only numbers pass through here: all words of a figure are text nodes of the page. Drawing them ourselves
lets them follow the reader's light or dark colours, which a picture of a plotting library cannot.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from paretune.report.words import finite_or_none, format_compact, format_number

CHART_WIDTH, CHART_HEIGHT = 300, 130
CHART_LEFT, CHART_RIGHT, CHART_TOP, CHART_BOTTOM = 46, 8, 8, 20
STRIP_WIDTH, STRIP_HEIGHT = 180, 22

Points = Sequence[tuple[float, float | None]]


@dataclass(frozen=True, slots=True)
class LineChart:
    """A line over the steps: every step thin, a running mean thick."""

    width: int
    height: int
    raw_path: str
    """SVG path data."""
    smoothed_path: str
    zero_y: float | None
    """Height of the line at 0, where 0 is inside."""
    x_ticks: tuple[tuple[float, str], ...]
    """Ticks of the steps: place, label."""
    y_ticks: tuple[tuple[float, str], ...]
    """Ticks of the values."""
    first_label: str
    last_label: str
    smoothing_window: int
    """Steps in the running mean."""


@dataclass(frozen=True, slots=True)
class IntervalStrip:
    """A change with its interval on a line that has a mark at 0."""

    width: int
    height: int
    zero_x: float
    low_x: float
    high_x: float
    mean_x: float


def line_chart(points: Points, y_range: tuple[float, float] | None = None) -> LineChart | None:
    """The chart of (step, value) points, or None where no value is known.

    Args:
        points: In the order of the steps; None = nobody could say, and a gap in the line.
        y_range: Values the axis must reach at least.
    """
    values = [value for _, value in points if value is not None]
    if not values:
        return None
    window = max(1, len(points) // 12)
    smooth = running_mean(points, window)
    low, high = min([*values, *(y_range or ())]), max([*values, *(y_range or ())])
    if high - low < 1e-12 * max(1.0, abs(high)):
        pad = abs(high) / 10
        low, high = (low - pad, high + pad) if pad else (0.0, 1.0)
    ticks = nice_ticks(low, high, 4)
    low, high = min(low, ticks[0]), max(high, ticks[-1])
    first, last = points[0][0], max(points[-1][0], points[0][0] + 1)

    def x(step: float) -> float:
        return round(
            CHART_LEFT + (step - first) / (last - first) * (CHART_WIDTH - CHART_LEFT - CHART_RIGHT), 1
        )

    def y(value: float) -> float:
        return round(CHART_TOP + (high - value) / (high - low) * (CHART_HEIGHT - CHART_TOP - CHART_BOTTOM), 1)

    steps = [tick for tick in nice_ticks(first, last, 4) if first <= tick <= last and tick == int(tick)]
    return LineChart(
        width=CHART_WIDTH,
        height=CHART_HEIGHT,
        raw_path=_svg_path([(x(step), None if v is None else y(v)) for step, v in points]),
        smoothed_path=_svg_path([(x(step), None if v is None else y(v)) for step, v in smooth]),
        zero_y=y(0.0) if low < 0 < high else None,
        x_ticks=tuple((x(tick), f"{tick:.0f}") for tick in steps),
        y_ticks=tuple((y(tick), tick_label(tick, ticks[1] - ticks[0])) for tick in ticks),
        first_label=format_compact(next(v for _, v in smooth if v is not None)),
        last_label=format_compact(next(v for _, v in reversed(smooth) if v is not None)),
        smoothing_window=window,
    )


def metric_series(lines: Sequence[Mapping[str, Any]], key: str) -> list[tuple[float, float | None]]:
    """One metric over the steps, from lines of metrics.jsonl; empty where no line has the key."""
    if not any(key in line for line in lines):
        return []
    return [(float(line["step"]), finite_or_none(line.get(key))) for line in lines]


def interval_strips(intervals: Sequence[tuple[Any, Any, Any]]) -> tuple[list[IntervalStrip | None], bool]:
    """Strips for (change, low, high), and whether they share one scale.

    They do, unless their extents differ so much that the small ones could not be seen.
    """
    extents = [
        None
        if finite_or_none(c) is None or finite_or_none(a) is None or finite_or_none(b) is None
        else max(abs(a), abs(b), 1e-12)
        for c, a, b in intervals
    ]
    there = [extent for extent in extents if extent is not None]
    shared = not there or max(there) <= 10 * min(there)
    found: list[IntervalStrip | None] = []
    for (change, low, high), extent in zip(intervals, extents, strict=True):
        if extent is None:
            found.append(None)
            continue
        reach = 1.08 * (max(there) if shared else extent)
        places = [round(STRIP_WIDTH / 2 * (1 + value / reach), 1) for value in (low, high, change)]
        found.append(IntervalStrip(STRIP_WIDTH, STRIP_HEIGHT, STRIP_WIDTH / 2, *places))
    return found, shared


def running_mean(points: Points, window: int) -> list[tuple[float, float | None]]:
    """Mean of the known values among the last `window` steps; None where the step itself is unknown."""
    found: list[tuple[float, float | None]] = []
    for i, (step, value) in enumerate(points):
        recent = [v for _, v in points[max(0, i - window + 1) : i + 1] if v is not None]
        found.append((step, None if value is None else sum(recent) / len(recent)))
    return found


def nice_ticks(low: float, high: float, max_intervals: int) -> list[float]:
    """Round numbers, at most `max_intervals` steps apart, that cover [low, high]."""
    raw = (high - low) / max_intervals
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= raw * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def tick_label(value: float, step: float) -> str:
    """As many decimals as the distance of the ticks has; powers of ten for what is tiny or huge."""
    if value == 0:
        return "0"
    if step < 1e-4 or abs(value) >= 1e5:
        mantissa, power = f"{value:.3g}".split("e") if "e" in f"{value:.3g}" else (f"{value:.3g}", "")
        return f"{mantissa}e{int(power)}".replace("-", "−") if power else mantissa
    digits = next(d for d in range(8) if abs(round(step, d) - step) < 1e-9)
    return format_number(value, digits)


def _svg_path(points: Sequence[tuple[float, float | None]]) -> str:
    parts, pen = [], "M"
    for x, y in points:
        if y is None:
            pen = "M"
            continue
        parts.append(f"{pen}{x} {y}")
        pen = "L"
    return "".join(parts)
