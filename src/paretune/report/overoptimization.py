"""Training reward against judge over the distance from the initial policy: where the gain stops being real."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paretune.core.goals import Goal
from paretune.report.axes import Axis
from paretune.report.charts import metric_series, running_mean, thinned
from paretune.report.formatting import (
    MISSING,
    finite_or_none,
    format_compact,
    format_number,
    format_signed,
)
from paretune.report.scatter import marker_path
from paretune.run.folder import read_json

WIDTH, HEIGHT = 320, 210
LEFT, RIGHT, TOP, BOTTOM = 40.0, 12.0, 12.0, 36.0
MIN_SPAN = 1.0
"""Shortest axis of changes, in standard deviations of the scores before."""
MAX_STEP_POINTS = 150

Evaluation = Mapping[str, Any]
Change = tuple[float, float, float]
"""Oriented change and its interval, in standard deviations of the scores before."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """One evaluated checkpoint, for one objective."""

    label: str
    step: int | None
    """None: the final one."""
    distance: float
    """Square root of the KL divergence to the initial policy, in nats per response."""
    judge: Change
    reward: Change | None


@dataclass(frozen=True, slots=True)
class DistancePlot:
    """Judge and training reward of one objective, in pixels."""

    objective: str
    width: int
    height: int
    x_ticks: tuple[tuple[float, str], ...]
    y_ticks: tuple[tuple[float, str], ...]
    zero_y: float
    steps_path: str
    """Training reward of the steps, on training prompts."""
    judge_path: str
    reward_path: str
    judge_marks: tuple[tuple[str, float, float, float], ...]
    """SVG path, x, and the y of both ends of the interval."""
    reward_marks: tuple[str, ...]
    turning_x: float | None
    sentence: str
    rows: tuple[tuple[str, str, str, str], ...]
    """Checkpoint, distance, and the changes of judge and reward."""


def read_checkpoints(run_dir: Path, schema: str, final: Evaluation) -> list[tuple[str, int | None, Evaluation]]:
    """(label, step, content of eval.json) of the evaluated checkpoints in order of steps; the final one last.

    Args:
        run_dir: The run folder; evaluations of checkpoints are `eval/step-N`.
        schema: Evaluations with another schema are left out.
        final: The evaluation that the page is about.
    """
    found = []
    for path in (run_dir / "eval").glob("step-*/eval.json"):
        number = re.fullmatch(r"step-(\d+)", path.parent.name)
        results = read_json(path)
        if number and results is not None and results.get("schema") == schema:
            found.append((f"step {int(number[1])}", int(number[1]), results))
    return [*sorted(found, key=lambda each: each[1]), ("final policy", None, final)]


def distance_plots(
    checkpoints: Sequence[tuple[str, int | None, Evaluation]], lines: Sequence[Mapping[str, Any]]
) -> list[DistancePlot]:
    """A plot for each objective that the judge and the training reward both score.

    Args:
        checkpoints: Those of `read_checkpoints`.
        lines: Lines of metrics.jsonl of the alignment.
    """
    points_by_name, steps_by_name = {}, {}
    for name, objective in checkpoints[-1][2]["objectives"].items():
        points = [point for each in checkpoints if (point := _checkpoint(name, *each)) is not None]
        if points and any(point.reward for point in points):
            points_by_name[name] = points
            steps_by_name[name] = _step_rewards(name, objective, lines)
    # One unit, one axis: so that the objectives can be compared.
    values, distances = [0.0], [0.0]
    for name, points in points_by_name.items():
        values += [v for p in points for v in (*p.judge, *(p.reward or ())[:1])]
        values += [v for _, v in steps_by_name[name]]
        distances += [*(p.distance for p in points), *(d for d, _ in steps_by_name[name])]
    x = Axis(0.0, 1.05 * max(*distances, 1e-3), LEFT, WIDTH - RIGHT)
    y = Axis.over(values, MIN_SPAN, HEIGHT - BOTTOM, TOP)
    return [_plot(name, points, steps_by_name[name], x, y) for name, points in points_by_name.items()]


def _checkpoint(name: str, label: str, step: int | None, results: Evaluation) -> Checkpoint | None:
    objective, kl = results["objectives"].get(name), results.get("kl")
    divergence = None if kl is None else finite_or_none(kl["k3"])
    if objective is None or divergence is None:
        return None
    judge = _scaled(objective, objective.get("std"))
    if judge is None:
        return None
    reward = objective.get("reward")
    return Checkpoint(
        label=label,
        step=step,
        distance=math.sqrt(max(divergence, 0.0)),
        judge=judge,
        reward=None if reward is None else _scaled(reward, reward.get("std")),
    )


def _scaled(entry: Mapping[str, Any], std: Any) -> Change | None:
    values = [finite_or_none(entry["oriented"][key]) for key in ("change", "low", "high")]
    deviation = finite_or_none(std)
    if deviation is None or deviation <= 0:
        return None
    change, low, high = values
    return None if change is None or low is None or high is None else (
        change / deviation, low / deviation, high / deviation
    )


def _step_rewards(
    name: str, objective: Mapping[str, Any], lines: Sequence[Mapping[str, Any]]
) -> list[tuple[float, float]]:
    """(distance, change of the mean reward in standard deviations) over the steps, smoothed."""
    scores = metric_series(lines, f"score/{name}/mean")
    goal = Goal.of(objective)
    if not scores or goal.kind == "target":  # the distance of a mean is not the mean distance
        return []
    kl, lengths = metric_series(lines, "kl/k3"), metric_series(lines, "responses/length")
    deviations = metric_series(lines, f"score/{name}/std")
    known = [v for _, v in deviations[: max(1, len(lines) // 12)] if v]
    if not kl or not lengths or not known:
        return []
    scale = sum(known) / len(known)
    per_response = [
        (step, None if k is None or length is None else max(k, 0.0) * length)
        for (step, k), (_, length) in zip(kl, lengths, strict=True)
    ]
    window = max(1, len(lines) // 12)
    means, distances = running_mean(scores, window), running_mean(per_response, window)
    start = next((v for _, v in means if v is not None), 0.0)
    sign = -1.0 if goal.kind == "lower" else 1.0
    pairs = [
        (math.sqrt(d), sign * (v - start) / scale)
        for (_, d), (_, v) in zip(distances, means, strict=True)
        if d is not None and v is not None
    ]
    return [(x, y or 0.0) for x, y in thinned(pairs, MAX_STEP_POINTS)]


def turning_point(points: Sequence[Checkpoint]) -> Checkpoint | None:
    """The checkpoint after which the judge fell while the training reward rose; None if there is none.

    Args:
        points: In order of steps.
    """
    best = max(points, key=lambda point: point.judge[0])
    last = points[-1]
    if best is last or best.reward is None or last.reward is None:
        return None
    return best if last.reward[0] > best.reward[0] else None


def _sentence(name: str, points: Sequence[Checkpoint]) -> str:
    last, turn = points[-1], turning_point(points)
    if last.reward is None:
        return ""
    gap = f"reward {format_signed(last.reward[0])}, judge {format_signed(last.judge[0])}"
    if len(points) == 1:
        return f"{name}: {gap} standard deviations"
    if turn is None or turn.reward is None:
        return f"{name}: {gap} standard deviations at the end; the judge did not fall while the reward rose"
    beyond = last.judge[2] < turn.judge[1]
    strength = "their intervals do not overlap" if beyond else "within the intervals, so it may be chance"
    return (
        f"{name}: the judge was best at {turn.label} (√KL {format_compact(turn.distance)}); after it, the "
        f"reward rose by {format_number(last.reward[0] - turn.reward[0])} and the judge fell by "
        f"{format_number(turn.judge[0] - last.judge[0])} standard deviations ({strength})"
    )


def _plot(
    name: str, points: Sequence[Checkpoint], steps: Sequence[tuple[float, float]], x: Axis, y: Axis
) -> DistancePlot:
    rewards = [(p.distance, p.reward[0]) for p in points if p.reward]
    turn = turning_point(points)

    def path(pairs: Sequence[tuple[float, float]]) -> str:
        return "M" + "L".join(f"{x.at(a)} {y.at(b)}" for a, b in pairs) if pairs else ""

    return DistancePlot(
        objective=name,
        width=WIDTH,
        height=HEIGHT,
        x_ticks=x.ticks(5),
        y_ticks=y.ticks(4),
        zero_y=y.at(0.0),
        steps_path=path(steps),
        # A line between the start and a single evaluation would claim a course that nobody measured.
        judge_path=path([(0.0, 0.0), *((p.distance, p.judge[0]) for p in points)]) if len(points) > 1 else "",
        reward_path=path([(0.0, 0.0), *rewards]) if len(points) > 1 else "",
        judge_marks=tuple(
            (marker_path("circle", x.at(p.distance), y.at(p.judge[0]), 4.0), x.at(p.distance),
             y.at(p.judge[1]), y.at(p.judge[2]))
            for p in points
        ),
        reward_marks=tuple(marker_path("triangle", x.at(a), y.at(b), 4.0) for a, b in rewards),
        turning_x=None if turn is None else x.at(turn.distance),
        sentence=_sentence(name, points),
        rows=tuple(_cells(point) for point in points),
    )


def _cells(point: Checkpoint) -> tuple[str, str, str, str]:
    judge, reward = point.judge, point.reward
    return (
        point.label,
        format_compact(point.distance),
        f"{format_signed(judge[0])} [{format_signed(judge[1])}, {format_signed(judge[2])}]",
        MISSING
        if reward is None
        else f"{format_signed(reward[0])} [{format_signed(reward[1])}, {format_signed(reward[2])}]",
    )
