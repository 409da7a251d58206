"""Curves and intervals as coordinates; the page's template draws them as inline SVG.

Only numbers pass through here: all words of a figure are text nodes of the page. Drawing them ourselves
lets them follow the reader's light or dark colours, which a picture of a plotting library cannot.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from paretune.report.words import compact, known, number

WIDTH, HEIGHT = 300, 130
LEFT, RIGHT, TOP, BOTTOM = 46, 8, 8, 20
STRIP_WIDTH, STRIP_HEIGHT = 180, 22

Points = Sequence[tuple[float, float | None]]


@dataclass(frozen=True, slots=True)
class Chart:
    """A line over the steps: every step thin, a running mean thick."""

    width: int
    height: int
    thin: str
    """SVG path data."""
    thick: str
    zero: float | None
    """Height of the line at 0, where 0 is inside."""
    across: tuple[tuple[float, str], ...]
    """Ticks of the steps: place, label."""
    up: tuple[tuple[float, str], ...]
    """Ticks of the values."""
    first: str
    last: str
    smoothed: int
    """Steps in the running mean."""


@dataclass(frozen=True, slots=True)
class Strip:
    """A change with its interval on a line that has a mark at 0."""

    width: int
    height: int
    zero: float
    low: float
    high: float
    point: float


def chart(points: Points, bounds: tuple[float, float] | None = None) -> Chart | None:
    """The chart of (step, value) points, or None where no value is known.

    Args:
        points: In the order of the steps; None = nobody could say, and a gap in the line.
        bounds: Values the axis must reach at least.
    """
    values = [value for _, value in points if value is not None]
    if not values:
        return None
    window = max(1, len(points) // 12)
    smooth = running_mean(points, window)
    low, high = min([*values, *(bounds or ())]), max([*values, *(bounds or ())])
    if high - low < 1e-12 * max(1.0, abs(high)):
        pad = abs(high) / 10
        low, high = (low - pad, high + pad) if pad else (0.0, 1.0)
    ticks = nice_ticks(low, high, 4)
    low, high = min(low, ticks[0]), max(high, ticks[-1])
    first, last = points[0][0], max(points[-1][0], points[0][0] + 1)

    def x(step: float) -> float:
        return round(LEFT + (step - first) / (last - first) * (WIDTH - LEFT - RIGHT), 1)

    def y(value: float) -> float:
        return round(TOP + (high - value) / (high - low) * (HEIGHT - TOP - BOTTOM), 1)

    steps = [tick for tick in nice_ticks(first, last, 4) if first <= tick <= last and tick == int(tick)]
    return Chart(
        width=WIDTH,
        height=HEIGHT,
        thin=_path([(x(step), None if v is None else y(v)) for step, v in points]),
        thick=_path([(x(step), None if v is None else y(v)) for step, v in smooth]),
        zero=y(0.0) if low < 0 < high else None,
        across=tuple((x(tick), f"{tick:.0f}") for tick in steps),
        up=tuple((y(tick), tick_label(tick, ticks[1] - ticks[0])) for tick in ticks),
        first=compact(next(v for _, v in smooth if v is not None)),
        last=compact(next(v for _, v in reversed(smooth) if v is not None)),
        smoothed=window,
    )


def series(lines: Sequence[Mapping[str, Any]], key: str) -> list[tuple[float, float | None]]:
    """One metric over the steps, from lines of metrics.jsonl; empty where no line has the key."""
    if not any(key in line for line in lines):
        return []
    return [(float(line["step"]), known(line.get(key))) for line in lines]


def strips(intervals: Sequence[tuple[Any, Any, Any]]) -> tuple[list[Strip | None], bool]:
    """Strips for (change, low, high), and whether they share one scale.

    They do, unless their extents differ so much that the small ones could not be seen.
    """
    extents = [
        None if known(c) is None or known(a) is None or known(b) is None else max(abs(a), abs(b), 1e-12)
        for c, a, b in intervals
    ]
    there = [extent for extent in extents if extent is not None]
    shared = not there or max(there) <= 10 * min(there)
    found: list[Strip | None] = []
    for (change, low, high), extent in zip(intervals, extents, strict=True):
        if extent is None:
            found.append(None)
            continue
        reach = 1.08 * (max(there) if shared else extent)
        places = [round(STRIP_WIDTH / 2 * (1 + value / reach), 1) for value in (low, high, change)]
        found.append(Strip(STRIP_WIDTH, STRIP_HEIGHT, STRIP_WIDTH / 2, *places))
    return found, shared


def running_mean(points: Points, window: int) -> list[tuple[float, float | None]]:
    """Mean of the known values among the last `window` steps; None where the step itself is unknown."""
    found: list[tuple[float, float | None]] = []
    for i, (step, value) in enumerate(points):
        recent = [v for _, v in points[max(0, i - window + 1) : i + 1] if v is not None]
        found.append((step, None if value is None else sum(recent) / len(recent)))
    return found


def nice_ticks(low: float, high: float, most: int) -> list[float]:
    """Round numbers, at most `most` steps apart, that cover [low, high]."""
    raw = (high - low) / most
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
    return number(value, digits)


def _path(points: Sequence[tuple[float, float | None]]) -> str:
    parts, pen = [], "M"
    for x, y in points:
        if y is None:
            pen = "M"
            continue
        parts.append(f"{pen}{x} {y}")
        pen = "L"
    return "".join(parts)
