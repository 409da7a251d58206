"""Trade-offs between objectives: each pair of them as a plane, and all of them side by side.

Positions are those of the oriented scores: right and up are better, whatever the goals are. The region is
that of the paired change, drawn from the mean before, as the verdicts rest on paired changes.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paretune.core.goals import Goal
from paretune.report.axes import Axis
from paretune.report.charts import line_path
from paretune.report.formatting import finite_or_none, format_number, format_percent, one_line
from paretune.report.responses import Responses
from paretune.report.scatter import MARKER_SHAPES, marker_path

PAIR_WIDTH, PAIR_HEIGHT = 300, 240
LEFT, RIGHT, TOP, BOTTOM = 62.0, 12.0, 10.0, 38.0
MAX_PAIRS = 10
"""Planes of five objectives; more of them are only shown side by side."""
MIN_JOINT_PROMPTS = 10
"""Fewer prompts with both scores give no region."""
NUM_CORNERS = 48
"""Corners of the drawn ellipse."""
PARALLEL_WIDTH, PARALLEL_ROW, PARALLEL_LABEL = 400, 40, 16
MIN_PARALLEL_SPAN = 1.0
"""Shortest axis of changes, in standard deviations of the scores before."""
MAX_CATEGORIES = 5
MAX_AXIS_CHARS = 40
"""Characters that fit along an axis."""

Objective = Mapping[str, Any]
Matrix = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class PairPlot:
    """Before and after in the plane of two objectives, in pixels."""

    x_name: str
    y_name: str
    x_label: tuple[str, str]
    """Short name, and the goal in words where there is room for them."""
    y_label: tuple[str, str]
    x_ticks: tuple[tuple[float, str], ...]
    y_ticks: tuple[tuple[float, str], ...]
    before: tuple[float, float]
    after: tuple[float, float]
    before_mark: str
    after_mark: str
    region: str
    """SVG path of the confidence region; "" if it could not be computed."""
    cells: tuple[str, ...]
    """Correlation of the changes, and shares of prompts: both better, x only, y only, both worse."""


@dataclass(frozen=True, slots=True)
class ParallelLine:
    """One policy or category across the objectives."""

    label: str
    index: int
    """0: all prompts; else the category, which selects shape and colour."""
    path: str
    markers: tuple[str, ...]
    key: str
    """Marker of the legend, in a box of 16 by 16."""
    changes: tuple[str, ...]
    """Change of each objective in standard deviations, as text."""


@dataclass(frozen=True, slots=True)
class ParallelPlot:
    """Objectives as parallel axes of oriented changes in standard deviations of the scores before."""

    width: int
    height: int
    zero_x: float
    axis_y: float
    ticks: tuple[tuple[float, str], ...]
    rows: tuple[tuple[str, float, float, float], ...]
    """Name, y, and the interval of the change."""
    lines: tuple[ParallelLine, ...]


def measured(objectives: Mapping[str, Objective]) -> dict[str, Objective]:
    """The objectives whose oriented change has an interval."""
    keys = ("before", "change", "low", "high")
    return {
        name: o
        for name, o in objectives.items()
        if all(finite_or_none(o["oriented"][key]) is not None for key in keys)
    }


def pair_plots(evaluation: Mapping[str, Any], responses: Responses) -> list[PairPlot]:
    """A plane for each pair of measured objectives; none for more than five objectives."""
    objectives = measured(evaluation["objectives"])
    pairs = list(combinations(objectives, 2))
    if len(pairs) > MAX_PAIRS:
        return []
    level = evaluation["confidence_level"]
    return [_pair_plot(names, [objectives[name] for name in names], responses, level) for names in pairs]


def joint_region(changes: Matrix, clusters: NDArray[np.int64], level: float) -> Matrix | None:
    """[2, 2] linear map of the unit circle to the region of the mean change around its estimate.

    It is Hotelling's region with the covariance between prompts, equal prompts counting as one. Its area has
    the given probability for normal means.

    Args:
        changes: [rows, 2] changes of two objectives, without NaN.
        clusters: [rows] number of the prompt.
        level: Probability.

    Returns:
        The map, or None with fewer than `MIN_JOINT_PROMPTS` prompts.
    """
    prompts = np.unique(clusters)
    n = len(prompts)
    if n < MIN_JOINT_PROMPTS:
        return None
    deviations = changes - changes.mean(0)
    sums = np.stack([deviations[clusters == prompt].sum(0) for prompt in prompts])
    covariance = sums.T @ sums / len(changes) ** 2 * n / (n - 1)
    # 2 (n - 1) / (n - 2) times the quantile of F(2, n - 2), which has a closed form.
    radius = math.sqrt((n - 1) * ((1 - level) ** (-2 / (n - 2)) - 1))
    eigenvalues, eigenvectors = np.linalg.eigh(covariance)
    root: Matrix = eigenvectors * np.sqrt(np.clip(eigenvalues, 0.0, None)) * radius
    return root


def _pair_plot(
    names: Sequence[str], entries: Sequence[Objective], responses: Responses, level: float
) -> PairPlot:
    goals = [Goal.of(entry) for entry in entries]
    before = np.array([entry["oriented"]["before"] for entry in entries])
    after = before + np.array([entry["oriented"]["change"] for entry in entries])
    changes = np.stack([responses.changes(*pair) for pair in zip(names, goals, strict=True)], -1)
    known = ~np.isnan(changes).any(-1) if len(changes) else np.zeros(0, bool)
    root = joint_region(changes[known], responses.prompt_numbers()[known], level) if known.any() else None
    corners = np.stack([before, after])
    if root is not None:
        angles = np.linspace(0, 2 * math.pi, NUM_CORNERS, endpoint=False)
        ellipse = after + np.stack([np.cos(angles), np.sin(angles)], -1) @ root.T
        corners = np.concatenate([corners, ellipse])
    spans = [finite_or_none(entry.get("std")) or 0.0 for entry in entries]
    x_axis = Axis.over(corners[:, 0].tolist(), spans[0], LEFT, PAIR_WIDTH - RIGHT)
    y_axis = Axis.over(corners[:, 1].tolist(), spans[1], PAIR_HEIGHT - BOTTOM, TOP)
    points = [(x_axis.at(x), y_axis.at(y)) for x, y in corners.tolist()]
    return PairPlot(
        x_name=names[0],
        y_name=names[1],
        x_label=_axis_label(names[0], goals[0]),
        y_label=_axis_label(names[1], goals[1]),
        x_ticks=x_axis.ticks(4, _sign(goals[0])),
        y_ticks=y_axis.ticks(4, _sign(goals[1])),
        before=points[0],
        after=points[1],
        before_mark=marker_path("circle", *points[0], 5.0),
        after_mark=marker_path("square", *points[1], 4.5),
        region=line_path(points[2:]) + "Z" if root is not None else "",
        cells=_joint_cells(changes[known]),
    )


def _sign(goal: Goal) -> float:
    """Axes of lower scores and of distances to a target show the score, not its opposite."""
    return 1.0 if goal.kind == "higher" else -1.0


def _axis_label(name: str, goal: Goal) -> tuple[str, str]:
    words = f"distance to {goal.target:g}" if goal.kind == "target" else goal.words
    short = one_line(name, MAX_AXIS_CHARS)
    # Bold characters of the name are about a quarter wider than those of the goal.
    return short, words if 1.25 * len(short) + len(words) <= MAX_AXIS_CHARS else ""


def _joint_cells(changes: Matrix) -> tuple[str, ...]:
    """Pearson correlation of two changes, and the share of responses in each of the four directions."""
    if len(changes) < 2:
        return ("–",) * 5
    deviations = changes.std(0)
    correlation = None
    if deviations.min() > 0:
        correlation = float(((changes - changes.mean(0)) / deviations).prod(1).mean())
    up, down = changes > 0, changes < 0
    shares = (up.all(1), up[:, 0] & down[:, 1], down[:, 0] & up[:, 1], down.all(1))
    return (format_number(correlation), *(format_percent(float(share.mean())) for share in shares))


def parallel_plot(evaluation: Mapping[str, Any]) -> ParallelPlot | None:
    """All objectives side by side, with the prompt categories; None with fewer than two objectives."""
    objectives = {
        name: o
        for name, o in measured(evaluation["objectives"]).items()
        if finite_or_none(o.get("std")) and o["std"] > 0
    }
    if len(objectives) < 2:
        return None
    scaled = {
        name: tuple(o["oriented"][key] / o["std"] for key in ("change", "low", "high"))
        for name, o in objectives.items()
    }
    by_label = {"all prompts": [change for change, _, _ in scaled.values()]}
    by_label |= _category_changes(evaluation, objectives)
    values = [0.0, *(v for row in scaled.values() for v in row)]
    values += [v for row in by_label.values() for v in row if v is not None]
    axis = Axis.over(values, MIN_PARALLEL_SPAN, 14.0, PARALLEL_WIDTH - 14.0)
    ys = [PARALLEL_ROW * i + 12.0 + PARALLEL_LABEL for i in range(len(objectives))]
    return ParallelPlot(
        width=PARALLEL_WIDTH,
        height=PARALLEL_ROW * len(objectives) + 40,
        zero_x=axis.at(0.0),
        axis_y=PARALLEL_ROW * len(objectives) + 6.0,
        ticks=axis.ticks(5),
        rows=tuple(
            (one_line(name, MAX_AXIS_CHARS), y, axis.at(low), axis.at(high))
            for (name, (_, low, high)), y in zip(scaled.items(), ys, strict=True)
        ),
        lines=tuple(
            _parallel_line(label, i, row, ys, axis) for i, (label, row) in enumerate(by_label.items())
        ),
    )


def _category_changes(
    evaluation: Mapping[str, Any], objectives: Mapping[str, Objective]
) -> dict[str, list[float | None]]:
    """Category -> oriented changes in standard deviations; without targets, whose distance is not known."""
    changes: dict[str, list[float | None]] = {}
    for category, results in list((evaluation.get("categories") or {}).items())[:MAX_CATEGORIES]:
        row = []
        for name, o in objectives.items():
            goal, change = Goal.of(o), finite_or_none(results["objectives"].get(name, {}).get("change"))
            known = change is not None and goal.kind != "target"
            row.append(_sign(goal) * (change or 0.0) / o["std"] if known else None)
        changes[category] = row
    return changes if len(changes) > 1 else {}


def _parallel_line(
    label: str, index: int, row: Sequence[float | None], ys: Sequence[float], axis: Axis
) -> ParallelLine:
    points = [(axis.at(v), y) for v, y in zip(row, ys, strict=True) if v is not None]
    shape = "square" if index == 0 else MARKER_SHAPES[index % len(MARKER_SHAPES)]
    if index and shape == "square":
        shape = "cross"
    return ParallelLine(
        label=label,
        index=index,
        path=line_path(points),
        markers=tuple(marker_path(shape, x, y, 4.5 if index == 0 else 3.5) for x, y in points),
        key=marker_path(shape, 8.0, 8.0, 5.5),
        changes=tuple("–" if v is None else format_number(v) for v in row),
    )
