"""Curves and intervals as coordinates; the page's template draws them as inline SVG.

Only numbers pass through here: all words of a figure are text nodes of the page. Drawing them ourselves
lets them follow the reader's light or dark colours, which a picture of a plotting library cannot.

Which curves the page draws, from the lines of metrics.jsonl and timing.jsonl.

Points of methods over two objectives as coordinates; the page's template draws them as inline SVG.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from paretune.report.formatting import finite_or_none, format_compact, format_number
from paretune.run.metrics import find_metric

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


MetricLines = Sequence[Mapping[str, Any]]

OBJECTIVE_METRICS = (
    ("score/{}/mean", "raw score"),
    ("weighted_score/{}/mean", "weighted, gates applied"),
    ("variance_share/{}", "share of the advantage"),
)
TRAINING_METRICS = (
    ("kl/k3", "KL to the start"),
    ("entropy", "entropy"),
    ("length", "response length"),
    ("truncated", "truncated responses"),
    ("groups/zero_variance", "prompts that teach nothing"),
    ("clip_fraction/high", "clipped above"),
    ("clip_fraction/low", "clipped below"),
    ("grad_norm", "gradient norm"),
    ("loss/total", "loss"),
    ("lr", "learning rate"),
)


def objective_curves(lines: MetricLines, objectives: Sequence[str]) -> list[dict[str, Any]]:
    """For each objective, a chart a kind of curve, None where the run did not write it."""
    found = []
    any_drawn = False
    for name in objectives:
        drawn = []
        for pattern, title in OBJECTIVE_METRICS:
            key = pattern.format(name)
            bounds = (0.0, 1.0) if pattern.startswith("share") else None
            drawn.append(_titled_chart(title, key, lines, bounds))
        any_drawn |= any(item["chart"] is not None for item in drawn)
        unscored = [finite_or_none(line.get(f"score/{name}/unscored_fraction")) for line in lines]
        worst = max((value for value in unscored if value is not None), default=0.0)
        found.append({"objective": name, "charts": drawn, "unscored": worst})
    return found if any_drawn else []


def scored_objectives(lines: MetricLines) -> list[str]:
    """Names of the objectives that the lines hold scores of, in their order."""
    first, last = "score/", "/mean"
    keys = dict.fromkeys(
        key for line in lines for key in line if key.startswith(first) and key.endswith(last)
    )
    return [key[len(first) : -len(last)] for key in keys]


def training_curves(lines: MetricLines) -> list[dict[str, Any]]:
    """Charts of the training's own numbers, those the run wrote."""
    drawn = [_titled_chart(title, key, lines, None) for key, title in TRAINING_METRICS]
    return [item for item in drawn if item["chart"] is not None]


PHASES = ("sample", "score", "measure", "learn", "save", "idle")
"""Of a training step; "idle" is what no other phase accounts for."""


def time_by_stage(lines: MetricLines) -> list[dict[str, Any]]:
    """Seconds and tokens of the steps of each stage, and which phases took the seconds."""
    stages: dict[str, dict[str, float]] = {}
    for line in lines:
        stage = stages.setdefault(
            str(line.get("stage")), dict.fromkeys(("steps", "seconds", "tokens", *PHASES), 0.0)
        )
        stage["steps"] += 1
        for key in ("seconds", "tokens", *PHASES):
            stage[key] += finite_or_none(line.get(key)) or 0.0
    return [{"stage": name, **sums, "phases": _format_phase_shares(sums)} for name, sums in stages.items()]


def _format_phase_shares(sums: Mapping[str, float]) -> str:
    """The phases with their shares, the largest first; "" where a stage has none."""
    whole = sum(sums[phase] for phase in PHASES)
    shares = sorted(((sums[phase] / whole, phase) for phase in PHASES), reverse=True) if whole else []
    return ", ".join(f"{phase} {share:.0%}" for share, phase in shares if share >= 0.005)


def _titled_chart(
    title: str, key: str, lines: MetricLines, y_range: tuple[float, float] | None
) -> dict[str, Any]:
    points = metric_series(lines, key)
    drawn: LineChart | None = line_chart(points, y_range) if points else None
    entry = find_metric(key)
    return {"title": title, "chart": drawn, "unit": entry.unit if entry else "", "key": key}


SCATTER_WIDTH, SCATTER_HEIGHT = 430, 330
SCATTER_LEFT, SCATTER_RIGHT, SCATTER_TOP, SCATTER_BOTTOM = 52, 16, 14, 42
MARKER_SHAPES = ("circle", "square", "triangle", "diamond", "down", "cross")
"""A shape for each method in turn, so that nothing hangs on colour."""
MARKER_SIZE = 5.5
LABEL_SPACING = 12.0
"""Pixels between two labels, so that both can be read."""

MeanInterval = tuple[float, float, float]
"""Mean, low and high end."""


@dataclass(frozen=True, slots=True)
class ScatterPoint:
    """One policy: what it is called, and its mean and interval in both objectives."""

    label: str
    method_index: int
    """Decides shape and colour; 0: the start."""
    x: MeanInterval
    y: MeanInterval
    on_pareto_front: bool = False
    """No other one dominates it in these two objectives."""


@dataclass(frozen=True, slots=True)
class Marker:
    """A dot in coordinates."""

    label: str
    method_index: int
    shape: str
    x: float
    y: float
    outline: str
    """SVG path data of its shape."""
    x_interval: tuple[float, float]
    y_interval: tuple[float, float]
    label_x: float
    label_y: float
    on_pareto_front: bool


@dataclass(frozen=True, slots=True)
class ScatterPlot:
    """A whole figure."""

    width: int
    height: int
    plot_area: tuple[int, int, int, int]
    """Left, right, top and bottom of the plot."""
    x_ticks: tuple[tuple[float, str], ...]
    y_ticks: tuple[tuple[float, str], ...]
    markers: tuple[Marker, ...]


def scatter_plot(points: Sequence[ScatterPoint]) -> ScatterPlot | None:
    """The figure, or None where there is nothing to draw."""
    if not points:
        return None
    xs, ys = (
        _padded_ticks([end for dot in points for end in dot.x]),
        _padded_ticks([e for dot in points for e in dot.y]),
    )

    def x(value: float) -> float:
        return round(
            SCATTER_LEFT
            + (value - xs[0]) / (xs[-1] - xs[0]) * (SCATTER_WIDTH - SCATTER_LEFT - SCATTER_RIGHT),
            1,
        )

    def y(value: float) -> float:
        return round(
            SCATTER_TOP
            + (ys[-1] - value) / (ys[-1] - ys[0]) * (SCATTER_HEIGHT - SCATTER_TOP - SCATTER_BOTTOM),
            1,
        )

    marks: list[Marker] = []
    for dot in sorted(points, key=lambda dot: -dot.y[0]):
        place = (x(dot.x[0]), y(dot.y[0]))
        shape = (
            "ring" if dot.method_index == 0 else MARKER_SHAPES[(dot.method_index - 1) % len(MARKER_SHAPES)]
        )
        label = _label_position(place, dot.label, marks)
        marks.append(
            Marker(
                label=dot.label,
                method_index=dot.method_index,
                shape=shape,
                x=place[0],
                y=place[1],
                outline=marker_path(shape, *place),
                x_interval=(x(dot.x[1]), x(dot.x[2])),
                y_interval=(y(dot.y[1]), y(dot.y[2])),
                label_x=label[0],
                label_y=label[1],
                on_pareto_front=dot.on_pareto_front,
            )
        )
    return ScatterPlot(
        width=SCATTER_WIDTH,
        height=SCATTER_HEIGHT,
        plot_area=(SCATTER_LEFT, SCATTER_WIDTH - SCATTER_RIGHT, SCATTER_TOP, SCATTER_HEIGHT - SCATTER_BOTTOM),
        x_ticks=tuple((x(tick), tick_label(tick, xs[1] - xs[0])) for tick in xs),
        y_ticks=tuple((y(tick), tick_label(tick, ys[1] - ys[0])) for tick in ys),
        markers=tuple(marks),
    )


def marker_path(shape: str, x: float, y: float, size: float = MARKER_SIZE) -> str:
    """SVG path data of a shape around a point."""
    r = size
    paths = {
        "square": [(-r, -r), (r, -r), (r, r), (-r, r)],
        "triangle": [(0, -1.2 * r), (1.15 * r, 0.9 * r), (-1.15 * r, 0.9 * r)],
        "down": [(0, 1.2 * r), (1.15 * r, -0.9 * r), (-1.15 * r, -0.9 * r)],
        "diamond": [(0, -1.35 * r), (1.35 * r, 0), (0, 1.35 * r), (-1.35 * r, 0)],
        "cross": [(-r, -r / 3), (-r / 3, -r / 3), (-r / 3, -r), (r / 3, -r), (r / 3, -r / 3), (r, -r / 3),
                  (r, r / 3), (r / 3, r / 3), (r / 3, r), (-r / 3, r), (-r / 3, r / 3), (-r, r / 3)],
    }  # fmt: skip
    if shape not in paths:
        return f"M{x - r:.1f} {y:.1f}a{r} {r} 0 1 0 {2 * r} 0a{r} {r} 0 1 0 {-2 * r} 0Z"
    return "M" + "L".join(f"{x + a:.1f} {y + b:.1f}" for a, b in paths[shape]) + "Z"


def _padded_ticks(values: Sequence[float]) -> list[float]:
    low, high = min(values), max(values)
    pad = 0.06 * (high - low) or abs(high) / 10 or 1.0
    return nice_ticks(low - pad, high + pad, 5)


def _label_position(
    position: tuple[float, float], label: str, markers: Sequence[Marker]
) -> tuple[float, float]:
    """Where the label of a mark covers no other label and no other mark: beside it, or a little lower."""
    wide = 6.2 * len(label)
    left = position[0] + 9 if position[0] + 9 + wide < SCATTER_WIDTH - 2 else position[0] - 9 - wide
    taken = [(m.label_x, m.label_x + 6.2 * len(m.label), m.label_y) for m in markers]
    taken += [(m.x - MARKER_SIZE, m.x + MARKER_SIZE, m.y + 4) for m in markers]
    for step in range(12):
        for sign in (1, -1):
            down = position[1] - 3 + sign * step * LABEL_SPACING / 2
            free = all(left > b or left + wide < a or abs(down - y) >= LABEL_SPACING for a, b, y in taken)
            if free and SCATTER_TOP < down < SCATTER_HEIGHT - SCATTER_BOTTOM:
                return left, round(down, 1)
    return left, position[1] - 3
