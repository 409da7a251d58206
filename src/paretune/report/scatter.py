"""Points of methods over two objectives as coordinates; the page's template draws them as inline SVG."""

from collections.abc import Sequence
from dataclasses import dataclass

from paretune.report.figures import nice_ticks, tick_label

WIDTH, HEIGHT = 430, 330
LEFT, RIGHT, TOP, BOTTOM = 52, 16, 14, 42
SHAPES = ("circle", "square", "triangle", "diamond", "down", "cross")
"""A shape for each method in turn, so that nothing hangs on colour."""
SIZE = 5.5
APART = 12.0
"""Pixels between two labels, so that both can be read."""

End = tuple[float, float, float]
"""Mean, low and high end."""


@dataclass(frozen=True, slots=True)
class Dot:
    """One policy: what it is called, and its mean and interval in both objectives."""

    label: str
    number: int
    """Decides shape and colour; 0: the start."""
    across: End
    up: End
    front: bool = False
    """No other one dominates it in these two objectives."""


@dataclass(frozen=True, slots=True)
class Mark:
    """A dot in coordinates."""

    label: str
    number: int
    shape: str
    x: float
    y: float
    outline: str
    """SVG path data of its shape."""
    across: tuple[float, float]
    up: tuple[float, float]
    label_x: float
    label_y: float
    front: bool


@dataclass(frozen=True, slots=True)
class Scatter:
    """A whole figure."""

    width: int
    height: int
    frame: tuple[int, int, int, int]
    """Left, right, top and bottom of the plot."""
    across: tuple[tuple[float, str], ...]
    up: tuple[tuple[float, str], ...]
    marks: tuple[Mark, ...]


def scatter(dots: Sequence[Dot]) -> Scatter | None:
    """The figure, or None where there is nothing to draw."""
    if not dots:
        return None
    xs, ys = _ticks([end for dot in dots for end in dot.across]), _ticks([e for dot in dots for e in dot.up])

    def x(value: float) -> float:
        return round(LEFT + (value - xs[0]) / (xs[-1] - xs[0]) * (WIDTH - LEFT - RIGHT), 1)

    def y(value: float) -> float:
        return round(TOP + (ys[-1] - value) / (ys[-1] - ys[0]) * (HEIGHT - TOP - BOTTOM), 1)

    marks: list[Mark] = []
    for dot in sorted(dots, key=lambda dot: -dot.up[0]):
        place = (x(dot.across[0]), y(dot.up[0]))
        shape = "ring" if dot.number == 0 else SHAPES[(dot.number - 1) % len(SHAPES)]
        label = _free(place, dot.label, marks)
        marks.append(
            Mark(
                label=dot.label,
                number=dot.number,
                shape=shape,
                x=place[0],
                y=place[1],
                outline=outline(shape, *place),
                across=(x(dot.across[1]), x(dot.across[2])),
                up=(y(dot.up[1]), y(dot.up[2])),
                label_x=label[0],
                label_y=label[1],
                front=dot.front,
            )
        )
    return Scatter(
        width=WIDTH,
        height=HEIGHT,
        frame=(LEFT, WIDTH - RIGHT, TOP, HEIGHT - BOTTOM),
        across=tuple((x(tick), tick_label(tick, xs[1] - xs[0])) for tick in xs),
        up=tuple((y(tick), tick_label(tick, ys[1] - ys[0])) for tick in ys),
        marks=tuple(marks),
    )


def outline(shape: str, x: float, y: float, size: float = SIZE) -> str:
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


def _ticks(values: Sequence[float]) -> list[float]:
    low, high = min(values), max(values)
    pad = 0.06 * (high - low) or abs(high) / 10 or 1.0
    return nice_ticks(low - pad, high + pad, 5)


def _free(place: tuple[float, float], label: str, marks: Sequence[Mark]) -> tuple[float, float]:
    """Where the label of a mark covers no other label and no other mark: beside it, or a little lower."""
    wide = 6.2 * len(label)
    left = place[0] + 9 if place[0] + 9 + wide < WIDTH - 2 else place[0] - 9 - wide
    taken = [(m.label_x, m.label_x + 6.2 * len(m.label), m.label_y) for m in marks]
    taken += [(m.x - SIZE, m.x + SIZE, m.y + 4) for m in marks]
    for step in range(12):
        for sign in (1, -1):
            down = place[1] - 3 + sign * step * APART / 2
            free = all(left > b or left + wide < a or abs(down - y) >= APART for a, b, y in taken)
            if free and TOP < down < HEIGHT - BOTTOM:
                return left, round(down, 1)
    return left, place[1] - 3
