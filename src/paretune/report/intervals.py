"""Before and after of each objective as one row of a drawing: both means, and the interval of the change.

The interval is drawn from the mean before, so that it leaves out the line of "no change" exactly where the
change is beyond chance. Rows share an axis where that hides none of them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from paretune.core.goals import Goal
from paretune.report.axes import Axis
from paretune.report.formatting import (
    VERDICT_SYMBOLS,
    decimals_for,
    finite_or_none,
    format_interval,
    format_signed,
    one_line,
)
from paretune.report.scatter import marker_path

WIDTH = 400
LEFT, RIGHT = 14.0, 14.0
ROW_HEIGHT, AXIS_HEIGHT = 40, 36
MAX_NAME_CHARS = 36
MAX_SHARED_SPAN = 3.0
"""An axis is at most this many times as long as that of any of its rows alone."""
VERDICT_SHAPES = {"better": "triangle", "worse": "down", "not worse": "diamond"}
"""Marker of the mean after; a circle for all other verdicts."""

Objective = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class IntervalRow:
    """One objective; all x in pixels, `y` is the middle of its line."""

    name: str
    label: str
    """Change with its interval."""
    verdict: str
    sign: str
    y: float
    before_x: float
    after_x: float
    low_x: float
    high_x: float
    target_x: float | None
    after_mark: str
    """SVG path of the mean after."""
    before_mark: str
    """SVG path of the mean before."""


@dataclass(frozen=True, slots=True)
class IntervalFigure:
    """Rows over one axis."""

    width: int
    height: int
    axis_y: float
    ticks: tuple[tuple[float, str], ...]
    direction: str
    """Words on where better scores are."""
    rows: tuple[IntervalRow, ...]


def interval_figures(objectives: Mapping[str, Objective]) -> tuple[list[IntervalFigure], list[str]]:
    """One figure per group of objectives with a common axis, and the objectives without numbers.

    Args:
        objectives: Entries of eval.json.
    """
    missing = [name for name, o in objectives.items() if _extent(o) is None]
    groups: list[list[str]] = []
    for name in objectives:
        if name in missing:
            continue
        fitting = (group for group in groups if _share_axis([objectives[other] for other in (*group, name)]))
        group = next(fitting, None)
        if group is None:
            groups.append(group := [])
        group.append(name)
    return [_figure({name: objectives[name] for name in group}) for group in groups], missing


def _extent(objective: Objective) -> tuple[float, float] | None:
    """The values that the row of an objective must show, at least two standard deviations of its scores."""
    before, low, high = (finite_or_none(objective[key]) for key in ("before", "low", "high"))
    after = finite_or_none(objective["after"])
    if before is None or after is None or low is None or high is None:
        return None
    goal = Goal.of(objective)
    values = [before, after, before + low, before + high, *([goal.target] if goal.target is not None else [])]
    deviation = finite_or_none(objective.get("std")) or 0.0
    # So a change far below the spread of the scores looks as small as it is.
    return min([*values, before - deviation]), max([*values, before + deviation])


def _share_axis(objectives: Sequence[Objective]) -> bool:
    extents = [extent for each in objectives if (extent := _extent(each)) is not None]
    span = max(high for _, high in extents) - min(low for low, _ in extents)
    same_way = len({Goal.of(each).kind == "lower" for each in objectives}) == 1
    return same_way and all(span <= MAX_SHARED_SPAN * (high - low) for low, high in extents)


def _figure(objectives: Mapping[str, Objective]) -> IntervalFigure:
    ends = [end for o in objectives.values() for end in _extent(o) or ()]
    goals = [Goal.of(o) for o in objectives.values()]
    is_lower = goals[0].kind == "lower"
    pixels = (WIDTH - RIGHT, LEFT) if is_lower else (LEFT, WIDTH - RIGHT)
    axis = Axis.over(ends, 0.0, *pixels)
    directions = [] if is_lower else [goal.words for goal in goals if goal.kind == "target"]
    if is_lower or len(directions) < len(goals):
        directions.insert(0, "better to the right" + (": lower scores" if is_lower else ""))
    rows = [_row(name, o, i, axis) for i, (name, o) in enumerate(objectives.items())]
    return IntervalFigure(
        width=WIDTH,
        height=ROW_HEIGHT * len(rows) + AXIS_HEIGHT,
        axis_y=ROW_HEIGHT * len(rows) + 4.0,
        ticks=axis.ticks(5),
        direction="; ".join(dict.fromkeys(directions)),
        rows=tuple(rows),
    )


def _row(name: str, objective: Objective, index: int, axis: Axis) -> IntervalRow:
    before, decimals, target = objective["before"], decimals_for(objective), Goal.of(objective).target
    change = format_signed(objective["change"], decimals)
    y = ROW_HEIGHT * index + 28.0
    after_x = axis.at(before + objective["change"])
    bounds = sorted(axis.at(before + objective[end]) for end in ("low", "high"))
    return IntervalRow(
        name=one_line(f"{name} {Goal.of(objective).arrow}", MAX_NAME_CHARS),
        label=f"{change} {format_interval(objective['low'], objective['high'], decimals)}",
        verdict=objective["verdict"],
        sign=VERDICT_SYMBOLS.get(objective["verdict"], "?"),
        y=y,
        before_x=axis.at(before),
        after_x=after_x,
        low_x=bounds[0],
        high_x=bounds[1],
        target_x=None if target is None else axis.at(target),
        after_mark=marker_path(VERDICT_SHAPES.get(objective["verdict"], "circle"), after_x, y, 5.0),
        before_mark=marker_path("circle", axis.at(before), y, 4.5),
    )
