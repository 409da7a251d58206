"""Scatter plots of methods over two objectives, as coordinates for inline SVG."""

from collections.abc import Sequence
from dataclasses import dataclass

from paretune.report.charts import nice_ticks, tick_label

SCATTER_WIDTH, SCATTER_HEIGHT = 430, 330
SCATTER_LEFT, SCATTER_RIGHT, SCATTER_TOP, SCATTER_BOTTOM = 52, 16, 14, 42
MARKER_SHAPES = ("circle", "square", "triangle", "diamond", "down", "cross")
"""Shapes of the methods in turn, so that no method is told apart by color alone."""
MARKER_SIZE = 5.5
LABEL_SPACING = 12.0
"""Vertical pixels between two labels, at the font size of the plot."""
# Average width of a character of a label, in pixels.
CHAR_WIDTH = 6.2

MeanInterval = tuple[float, float, float]
"""Mean, lower end, upper end."""


@dataclass(frozen=True, slots=True)
class ScatterPoint:
    """One policy: its label, and its mean and interval in both objectives."""

    label: str
    method_index: int
    """Selects shape and color, from 1; 0 is the initial policy."""
    x: MeanInterval
    y: MeanInterval
    on_pareto_front: bool = False
    """No other point dominates it in these two objectives."""


@dataclass(frozen=True, slots=True)
class Marker:
    """A scatter point in pixel coordinates."""

    label: str
    method_index: int
    shape: str
    x: float
    y: float
    outline: str
    """SVG path data of the shape."""
    x_interval: tuple[float, float]
    y_interval: tuple[float, float]
    label_x: float
    label_y: float
    on_pareto_front: bool


@dataclass(frozen=True, slots=True)
class ScatterPlot:
    """A complete scatter plot: axes and markers."""

    width: int
    height: int
    plot_area: tuple[int, int, int, int]
    """Left, right, top and bottom."""
    x_ticks: tuple[tuple[float, str], ...]
    y_ticks: tuple[tuple[float, str], ...]
    markers: tuple[Marker, ...]


def scatter_plot(points: Sequence[ScatterPoint]) -> ScatterPlot | None:
    """The plot of these points, or None without any."""
    if not points:
        return None
    xs = _padded_ticks([end for point in points for end in point.x])
    ys = _padded_ticks([end for point in points for end in point.y])

    def x(value: float) -> float:
        width = SCATTER_WIDTH - SCATTER_LEFT - SCATTER_RIGHT
        return round(SCATTER_LEFT + (value - xs[0]) / (xs[-1] - xs[0]) * width, 1)

    def y(value: float) -> float:
        height = SCATTER_HEIGHT - SCATTER_TOP - SCATTER_BOTTOM
        return round(SCATTER_TOP + (ys[-1] - value) / (ys[-1] - ys[0]) * height, 1)

    markers: list[Marker] = []
    # Top to bottom, so that a label that has to move can move down.
    for point in sorted(points, key=lambda point: -point.y[0]):
        center = (x(point.x[0]), y(point.y[0]))
        shape = "ring"
        if point.method_index:
            shape = MARKER_SHAPES[(point.method_index - 1) % len(MARKER_SHAPES)]
        label_x, label_y = _label_position(center, point.label, markers)
        markers.append(
            Marker(
                label=point.label,
                method_index=point.method_index,
                shape=shape,
                x=center[0],
                y=center[1],
                outline=marker_path(shape, *center),
                x_interval=(x(point.x[1]), x(point.x[2])),
                y_interval=(y(point.y[1]), y(point.y[2])),
                label_x=label_x,
                label_y=label_y,
                on_pareto_front=point.on_pareto_front,
            )
        )
    return ScatterPlot(
        width=SCATTER_WIDTH,
        height=SCATTER_HEIGHT,
        plot_area=(SCATTER_LEFT, SCATTER_WIDTH - SCATTER_RIGHT, SCATTER_TOP, SCATTER_HEIGHT - SCATTER_BOTTOM),
        x_ticks=tuple((x(tick), tick_label(tick, xs[1] - xs[0])) for tick in xs),
        y_ticks=tuple((y(tick), tick_label(tick, ys[1] - ys[0])) for tick in ys),
        markers=tuple(markers),
    )


def marker_path(shape: str, x: float, y: float, size: float = MARKER_SIZE) -> str:
    """SVG path data of a shape that is centered on a point; an unknown shape is a circle."""
    r = size
    # The factors give all shapes about the same area.
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
    # No negative half-axis for quantities that cannot be negative, such as a KL divergence.
    return nice_ticks(max(low - pad, 0.0) if low >= 0 else low - pad, high + pad, 5)


def _label_position(
    position: tuple[float, float], label: str, markers: Sequence[Marker]
) -> tuple[float, float]:
    """Position beside the marker where the label covers no other label and no other marker."""
    width = CHAR_WIDTH * len(label)
    right_fits = position[0] + 9 + width < SCATTER_WIDTH - 2
    left = position[0] + 9 if right_fits else position[0] - 9 - width
    taken = [(m.label_x, m.label_x + CHAR_WIDTH * len(m.label), m.label_y) for m in markers]
    taken += [(m.x - MARKER_SIZE, m.x + MARKER_SIZE, m.y + 4) for m in markers]
    # Half a label's height at a time, alternately below and above.
    for step in range(12):
        for sign in (1, -1):
            baseline = position[1] - 3 + sign * step * LABEL_SPACING / 2
            free = all(
                left > b or left + width < a or abs(baseline - y) >= LABEL_SPACING for a, b, y in taken
            )
            if free and SCATTER_TOP < baseline < SCATTER_HEIGHT - SCATTER_BOTTOM:
                return left, round(baseline, 1)
    return left, position[1] - 3
