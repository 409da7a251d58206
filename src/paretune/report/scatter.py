"""Points of methods over two objectives as coordinates; the page's template draws them as inline SVG."""

from collections.abc import Sequence
from dataclasses import dataclass

from paretune.report.figures import nice_ticks, tick_label

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
