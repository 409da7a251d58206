"""Line charts of metrics, as coordinates for inline SVG.

Only numbers pass through here; every word of a figure is a text node of the page's template. The charts are
drawn without a plotting library, so that they follow the reader's light or dark color scheme.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np

from paretune.report.formatting import finite_or_none, format_compact, format_number
from paretune.run.metrics import find_metric

CHART_WIDTH, CHART_HEIGHT = 300, 130
CHART_LEFT, CHART_RIGHT, CHART_TOP, CHART_BOTTOM = 46, 8, 8, 20
MAX_POINTS = 600
"""Points of a line: a chart is 300 units wide, on most screens at two pixels each."""

Points = Sequence[tuple[float, float | None]]


@dataclass(frozen=True, slots=True)
class LineChart:
    """A metric over the training steps: each step as a thin line, a running mean as a thick one."""

    width: int
    height: int
    raw_path: str
    """SVG path data."""
    smoothed_path: str
    zero_y: float | None
    """y coordinate of value 0; None where 0 is outside the axis."""
    x_ticks: tuple[tuple[float, str], ...]
    """(coordinate, label) of the step axis."""
    y_ticks: tuple[tuple[float, str], ...]
    """(coordinate, label) of the value axis."""
    first_label: str
    last_label: str
    smoothing_window: int
    """Steps in the running mean."""


def line_chart(
    points: Points, y_range: tuple[float, float] | None = None, min_span: float = 0.0
) -> LineChart | None:
    """The chart of (step, value) points, or None if every value is missing.

    Args:
        points: In step order; a value of None leaves a gap in the line.
        y_range: Values that the axis must include; without it, the axis ends at a tick.
        min_span: Shortest value axis, so that noise does not look like a trend.
    """
    values = [value for _, value in points if value is not None]
    if not values:
        return None
    # A twelfth of the run: long enough to smooth sampling noise, short enough to keep the trend.
    window = max(1, len(points) // 12)
    smoothed = running_mean(points, window, MAX_POINTS)
    low, high = min([*values, *(y_range or ())]), max([*values, *(y_range or ())])
    if min(values) < max(values):
        low, high = widen_range(low, high, min_span)
    # A constant series has no range of its own: pad it by a tenth, or show 0 to 1 if it is zero.
    if high - low < 1e-12 * max(1.0, abs(high)):
        pad = abs(high) / 10
        low, high = (low - pad, high + pad) if pad else (0.0, 1.0)
    ticks = nice_ticks(low, high, 4)
    if y_range is None:
        low, high = min(low, ticks[0]), max(high, ticks[-1])
    else:  # charts with one range stand side by side: their axes are equal, and no emptier than they must be
        ticks = [tick for tick in ticks if low <= tick <= high]
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
        raw_path=line_path([(x(step), None if v is None else y(v)) for step, v in extremes(points)]),
        smoothed_path=line_path([(x(step), None if v is None else y(v)) for step, v in smoothed]),
        zero_y=y(0.0) if low < 0 < high else None,
        x_ticks=tuple((x(tick), f"{tick:.0f}") for tick in steps),
        y_ticks=tuple((y(tick), tick_label(tick, ticks[1] - ticks[0])) for tick in ticks),
        first_label=format_compact(next(v for _, v in smoothed if v is not None)),
        last_label=format_compact(next(v for _, v in reversed(smoothed) if v is not None)),
        smoothing_window=window,
    )


def metric_series(lines: Sequence[Mapping[str, Any]], key: str) -> list[tuple[float, float | None]]:
    """One metric over the steps, from the lines of metrics.jsonl; empty if no line has the key."""
    if not any(key in line for line in lines):
        return []
    isfinite = math.isfinite
    # Nearly all values are finite floats: a call for each would take seconds in a long run.
    values = ((line["step"], line.get(key)) for line in lines)
    return [(float(step), v if type(v) is float and isfinite(v) else finite_or_none(v)) for step, v in values]


def running_mean(points: Points, window: int, max_points: int = 0) -> list[tuple[float, float | None]]:
    """Mean of the known values in the last `window` steps; None where the step's own value is missing.

    Args:
        points: (step, value) in step order.
        window: Steps.
        max_points: Of a longer run, only the means at about this many steps, with the last one; 0: all.
    """
    values = np.array([math.nan if value is None else value for _, value in points])
    stride = math.ceil(len(points) / max_points) if max_points else 1
    means: list[tuple[float, float | None]] = []
    for i in range((len(points) - 1) % stride, len(points), stride):
        recent = values[max(0, i - window + 1) : i + 1]
        step, value = points[i]
        means.append((step, None if value is None else float(np.nanmean(recent))))
    return means


def extremes(points: Points, max_points: int = MAX_POINTS) -> Points:
    """The lowest and the highest point of each block of a long run: no peak is lost between the pixels."""
    size = math.ceil(2 * len(points) / max_points)
    if size <= 2:
        return points
    values = np.array([math.nan if value is None else value for _, value in points])
    shown: list[tuple[float, float | None]] = []
    for start in range(0, len(points), size):
        block = values[start : start + size]
        if np.isnan(block).all():
            shown.append((points[start][0], None))
        else:
            ends = {start + int(np.nanargmin(block)), start + int(np.nanargmax(block))}
            shown += [points[i] for i in sorted(ends)]
    return shown


def widen_range(low: float, high: float, min_span: float) -> tuple[float, float]:
    """The range, widened about its middle to `min_span`; a range without extent gets one in any case."""
    missing = min_span - (high - low)
    if missing > 0:
        low, high = low - missing / 2, high + missing / 2
    if high - low < 1e-12 * max(1.0, abs(high)):
        pad = abs(high) / 10 or 0.5
        low, high = low - pad, high + pad
    return low, high


def nice_ticks(low: float, high: float, max_intervals: int) -> list[float]:
    """Round numbers that cover [low, high]; about `max_intervals` intervals between them."""
    raw = (high - low) / max_intervals
    power = 10.0 ** math.floor(math.log10(raw))
    # The tolerances absorb floating-point error, which would add an empty interval at either end.
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= raw * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def tick_label(value: float, step: float) -> str:
    """As many decimals as the tick distance needs; scientific notation for tiny distances and huge values."""
    if value == 0:
        return "0"
    # Three digits tell ticks apart unless they are close together far from 0.
    if abs(value) >= 1e5 or (step < 1e-4 and abs(value) < 1000 * step):
        mantissa, power = f"{value:.3g}".split("e") if "e" in f"{value:.3g}" else (f"{value:.3g}", "")
        return f"{mantissa}e{int(power)}".replace("-", "−") if power else mantissa
    decimals = next((d for d in range(12) if abs(round(step, d) - step) < 1e-3 * step), 12)
    return format_number(value, decimals)


def line_path(points: Points) -> str:
    """SVG path data of a line through points in pixels; a y of None leaves a gap."""
    parts, pen = [], "M"
    for x, y in points:
        if y is None:
            pen = "M"
            continue
        parts.append(f"{pen}{x} {y}")
        pen = "L"
    return "".join(parts)


MetricLines = Sequence[Mapping[str, Any]]

SHARE_METRIC = "variance_share/{}"
OBJECTIVE_METRICS = (
    ("score/{}/mean", "raw score"),
    ("weighted_score/{}/mean", "weighted score"),
    (SHARE_METRIC, "share of variance"),
)
TRAINING_METRICS = (
    ("kl/k3", "KL to reference"),
    ("entropy", "entropy"),
    ("responses/length", "response length"),
    ("responses/truncated", "truncated responses"),
    ("groups/zero_variance", "zero-variance groups"),
    ("clip_fraction/high", "clipped above"),
    ("clip_fraction/low", "clipped below"),
    ("grad_norm", "gradient norm"),
    ("loss/total", "loss"),
    ("learning_rate", "learning rate"),
)


def objective_curves(lines: MetricLines, objectives: Sequence[str]) -> list[dict[str, Any]]:
    """Charts of each objective's metrics, None for a metric the run did not write; empty if it wrote none."""
    rows = []
    any_drawn = False
    shares = [
        value
        for name in objectives
        for _, value in metric_series(lines, SHARE_METRIC.format(name))
        if value is not None
    ]
    share_range = (min([0.0, *shares]), max([1.0, *shares]))  # outside 0 to 1 where objectives oppose
    for name in objectives:
        charts = []
        for pattern, title in OBJECTIVE_METRICS:
            key = pattern.format(name)
            y_range = share_range if pattern == SHARE_METRIC else None
            charts.append(_titled_chart(title, key, lines, y_range))
        any_drawn |= any(item["chart"] is not None for item in charts)
        unscored = [finite_or_none(line.get(f"score/{name}/unscored_fraction")) for line in lines]
        max_unscored = max((value for value in unscored if value is not None), default=0.0)
        rows.append({"objective": name, "charts": charts, "max_unscored_fraction": max_unscored})
    return rows if any_drawn else []


def scored_objectives(lines: MetricLines) -> list[str]:
    """Names of the objectives that have scores in the lines, in order of appearance."""
    prefix, suffix = "score/", "/mean"
    keys = dict.fromkeys(
        key for line in lines for key in line if key.startswith(prefix) and key.endswith(suffix)
    )
    return [key[len(prefix) : -len(suffix)] for key in keys]


FIT_STAGES = {"sft": "supervised", "reward": "reward model", "judge": "judge"}
FIT_METRICS = {"fit/loss": "training loss", "fit/test_loss": "held-out loss"}


def fit_curves(lines: MetricLines) -> list[dict[str, Any]]:
    """Charts of the losses of the fits before the alignment, of those that the run wrote."""
    charts = []
    for stage, name in FIT_STAGES.items():
        own = [line for line in lines if line.get("stage") == stage]
        for key, title in FIT_METRICS.items():
            # A held-out loss is written at some steps only.
            written = [line for line in own if key in line]
            charts.append(_titled_chart(f"{name}: {title}", key, written, None))
    return [item for item in charts if item["chart"] is not None]


def training_curves(lines: MetricLines) -> list[dict[str, Any]]:
    """Charts of the training metrics that the run wrote."""
    charts = [_titled_chart(title, key, lines, None) for key, title in TRAINING_METRICS]
    return [item for item in charts if item["chart"] is not None]


PHASES = ("rollout", "score", "model_passes", "update", "checkpoint", "other")
"""Phases of a training step in timing.jsonl; "other" is the time that no other phase accounts for."""


def time_by_stage(lines: MetricLines) -> list[dict[str, Any]]:
    """Steps, seconds and tokens of each stage, and the share of each phase in its seconds."""
    stages: dict[str, dict[str, float]] = {}
    for line in lines:
        stage = stages.setdefault(
            str(line.get("stage")), dict.fromkeys(("steps", "seconds", "tokens", *PHASES), 0.0)
        )
        stage["steps"] += 1
        for key in ("seconds", "tokens", *PHASES):
            stage[key] += finite_or_none(line.get(key)) or 0.0
    return [
        {"stage": name, **sums, "phase_shares": _format_phase_shares(sums)} for name, sums in stages.items()
    ]


def _format_phase_shares(sums: Mapping[str, float]) -> str:
    """The phases with their shares of the time, largest first; "" for a stage without phases."""
    total = sum(sums[phase] for phase in PHASES)
    shares = sorted(((sums[phase] / total, phase) for phase in PHASES), reverse=True) if total else []
    # Shares below 0.5 % would read "0%".
    return ", ".join(f"{phase} {share:.0%}" for share, phase in shares if share >= 0.005)


def _titled_chart(
    title: str, key: str, lines: MetricLines, y_range: tuple[float, float] | None
) -> dict[str, Any]:
    points = metric_series(lines, key)
    metric = find_metric(key)
    span = _min_span(key, metric.unit if metric else "", lines, points)
    chart: LineChart | None = line_chart(points, y_range, span) if points else None
    return {"title": title, "chart": chart, "unit": metric.unit if metric else "", "key": key}


MIN_RELATIVE_SPAN = 0.05
"""Shortest axis of a metric relative to its size: what varies by less is shown as flat."""
MIN_FRACTION_SPAN = 0.02
"""Shortest axis of a fraction."""


def _min_span(key: str, unit: str, lines: MetricLines, points: Points) -> float:
    """Shortest value axis of a metric, on the scale on which it is measured.

    That of a mean score is half a standard deviation of the scores it is the mean of.
    """
    if key.startswith("score/") and key.endswith("/mean"):
        deviations = [v for _, v in metric_series(lines, key.removesuffix("mean") + "std") if v is not None]
        if deviations:
            return median(deviations) / 2
    if unit == "fraction":
        return MIN_FRACTION_SPAN
    return MIN_RELATIVE_SPAN * median([abs(v) for _, v in points if v is not None] or [0.0])
