"""Training reward against judge over the distance from the initial policy: where the two part."""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paretune.core.goals import Goal
from paretune.report.axes import Axis
from paretune.report.charts import line_path, metric_series, running_mean
from paretune.report.formatting import (
    MISSING,
    finite_or_none,
    format_compact,
    format_interval,
    format_number,
    format_percent,
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
    """An evaluated policy, by one objective or by the weighted gain of all."""

    label: str
    distance: float
    """Square root of the KL divergence to the initial policy, in nats per response."""
    judge: Change
    reward: Change | None


START = Checkpoint("initial policy", 0.0, (0.0, 0.0, 0.0), (0.0, 0.0, 0.0))


@dataclass(frozen=True, slots=True)
class DistancePlot:
    """Judge and training reward of one objective, in pixels."""

    title: str
    width: int
    height: int
    x_ticks: tuple[tuple[float, str], ...]
    y_ticks: tuple[tuple[float, str], ...]
    zero_y: float
    steps_path: str
    """Training reward of the steps, on training prompts."""
    judge_path: str
    """Through the evaluations during the training; "" without them."""
    reward_path: str
    judge_marks: tuple[tuple[str, float, float, float], ...]
    """SVG path, x, and the y of both ends of the interval."""
    reward_marks: tuple[str, ...]
    turning_x: float | None
    sentence: str
    rows: tuple[tuple[str, str, str, str], ...]
    """Policy, distance, and the changes of judge and reward."""


@dataclass(frozen=True)
class TrainingEvaluations:
    """What was evaluated between the first and the last step, on other prompts than the final evaluation."""

    steps: tuple[tuple[int, Evaluation], ...] = ()
    """(step, content of eval.json), in order."""
    selection: Mapping[str, Any] | None = None
    """Content of selection.json: the step that was kept, and the turning point."""

    @classmethod
    def read(cls, run_dir: Path, load: Callable[[Path], Evaluation | None]) -> "TrainingEvaluations":
        """Those of a run folder: `eval/step-N` and `eval/selection.json`.

        Args:
            run_dir: The run folder.
            load: Reads an eval.json, and raises an error if it has another schema.
        """
        found = {
            int(number[1]): results
            for path in (run_dir / "eval").glob("step-*/eval.json")
            if (number := re.fullmatch(r"step-(\d+)", path.parent.name)) is not None
            and (results := load(path)) is not None
        }
        selection = read_json(run_dir / "eval" / "selection.json")
        return cls(tuple(sorted(found.items())), selection)

    def sentences(self) -> list[str]:
        """The choice of a step, early stopping and the turning point, as selection.json has them."""
        if self.selection is None:
            return []
        s = self.selection
        lines = [f"Step {s['selected_step']} of {s['last_step']} is kept: {s['reason']}."]
        if stopped := s["early_stopping"]:
            lines.append(f"Stopped early, {format_percent(stopped['saved_fraction'])} of the steps saved.")
        if s["turn"]:
            lines.insert(0, f"Over-optimized: {s['turn']}.")
        elif len(self.steps) > 1:
            lines.insert(0, "No turning point: the judge did not fall beyond chance while the reward rose.")
        return lines

    def gains(self) -> list[Checkpoint]:
        """The weighted gain of all objectives at each step."""
        points = []
        for each in (self.selection or {}).get("evaluations", ()):
            numbers = [finite_or_none(each[key]) for key in ("gain", "low", "high")]
            kl, reward = each["kl"], finite_or_none(each["reward_gain"])
            divergence = finite_or_none(kl["k3"]) if kl else None
            if divergence is None or None in numbers:
                continue
            points.append(
                Checkpoint(
                    f"step {each['step']}",
                    math.sqrt(max(divergence, 0.0)),
                    (numbers[0] or 0.0, numbers[1] or 0.0, numbers[2] or 0.0),
                    None if reward is None else (reward, math.nan, math.nan),
                )
            )
        return points


def distance_plots(
    final: Evaluation, training: TrainingEvaluations, lines: Sequence[Mapping[str, Any]]
) -> list[DistancePlot]:
    """A plot for each objective that the judge and the training reward both score, after one of all of them.

    Args:
        final: Content of the eval.json of the final policy.
        training: The evaluations before it.
        lines: Lines of metrics.jsonl of the alignment.
    """
    drawn: list[tuple[str, list[Checkpoint], Checkpoint | None, list[tuple[float, float]]]] = []
    if gains := training.gains():
        drawn.append(("weighted gain of all objectives", gains, None, []))
    for name, objective in final["objectives"].items():
        steps = [
            point
            for step, results in training.steps
            if (point := _checkpoint(name, f"step {step}", results)) is not None
        ]
        last = _checkpoint(name, "final policy", final)
        if any(point.reward for point in (*steps, last) if point is not None):
            drawn.append((name, steps, last, _step_rewards(name, objective, lines)))
    # One unit, one axis: so that the objectives can be compared.
    points = [p for _, steps, last, _ in drawn for p in (*steps, last) if p is not None]
    courses = [pair for _, _, _, course in drawn for pair in course]
    if not points:
        return []
    values = [v for p in points for v in (*p.judge, *(p.reward or ())[:1])] + [v for _, v in courses]
    longest = max(*(p.distance for p in points), *(d for d, _ in courses), 1e-3)
    x = Axis(0.0, 1.05 * longest, LEFT, WIDTH - RIGHT)
    y = Axis.over([0.0, *values], MIN_SPAN, HEIGHT - BOTTOM, TOP)
    return [_plot(*each, x, y) for each in drawn]


def _checkpoint(name: str, label: str, results: Evaluation) -> Checkpoint | None:
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
    return (
        None
        if change is None or low is None or high is None
        else (change / deviation, low / deviation, high / deviation)
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
    means = running_mean(scores, window, MAX_STEP_POINTS)
    distances = running_mean(per_response, window, MAX_STEP_POINTS)
    start = next((v for _, v in means if v is not None), 0.0)
    sign = -1.0 if goal.kind == "lower" else 1.0
    return [
        (math.sqrt(d), sign * (v - start) / scale)
        for (_, d), (_, v) in zip(distances, means, strict=True)
        if d is not None and v is not None
    ]


def turning_point(points: Sequence[Checkpoint]) -> Checkpoint | None:
    """The policy after which the judge fell while the training reward rose; None if there is none.

    Args:
        points: In order of steps, without the initial policy, which counts as a policy without changes.
    """
    if not points:
        return None
    best, last = max((START, *points), key=lambda point: point.judge[0]), points[-1]
    if best is last or best.reward is None or last.reward is None:
        return None
    return best if last.reward[0] > best.reward[0] else None


def _sentence(name: str, points: Sequence[Checkpoint]) -> str:
    """What the judge and the reward of an objective did; "" without a reward."""
    last, turn = points[-1], turning_point(points)
    if last.reward is None:
        return ""
    gap = f"{name}: reward {format_signed(last.reward[0])}, judge {format_signed(last.judge[0])}"
    if turn is None or turn.reward is None or len(points) == 1:
        return f"{gap} standard deviations"
    beyond = last.judge[2] < turn.judge[1]
    strength = "their intervals do not overlap" if beyond else "within the intervals, so it may be chance"
    return (
        f"{gap} standard deviations at {last.label}; the judge was best at {turn.label} "
        f"({format_number(turn.judge[0] - last.judge[0])} higher: {strength})"
    )


def _plot(
    name: str,
    steps: Sequence[Checkpoint],
    final: Checkpoint | None,
    course: Sequence[tuple[float, float]],
    x: Axis,
    y: Axis,
) -> DistancePlot:
    points = [*steps, *([final] if final is not None else [])]
    turn = turning_point(steps)

    def path(pairs: Sequence[tuple[float, float]]) -> str:
        return line_path([(x.at(a), y.at(b)) for a, b in pairs]) if len(pairs) > 1 else ""

    # Only the evaluations during the training are joined: the final one is on other prompts, and a line from
    # the start to it would claim a course that nobody measured.
    joined = (START, *steps)
    return DistancePlot(
        title=name,
        width=WIDTH,
        height=HEIGHT,
        x_ticks=x.ticks(5),
        y_ticks=y.ticks(4),
        zero_y=y.at(0.0),
        steps_path=path(course),
        judge_path=path([(p.distance, p.judge[0]) for p in joined]),
        reward_path=path([(p.distance, p.reward[0]) for p in joined if p.reward]),
        judge_marks=tuple(
            (
                marker_path("square" if p is final else "circle", x.at(p.distance), y.at(p.judge[0]), 4.0),
                x.at(p.distance),
                y.at(p.judge[1]),
                y.at(p.judge[2]),
            )
            for p in points
        ),
        reward_marks=tuple(
            marker_path("down" if p is final else "triangle", x.at(p.distance), y.at(p.reward[0]), 4.0)
            for p in points
            if p.reward
        ),
        turning_x=None if turn is None else x.at(turn.distance),
        # Of the weighted gain, selection.json has the sentence.
        sentence="" if final is None else _sentence(name, steps or points),
        rows=tuple(_cells(point) for point in points),
    )


def _cells(point: Checkpoint) -> tuple[str, str, str, str]:
    changes = (point.judge, point.reward)
    cells = (
        MISSING if change is None else f"{format_signed(change[0])} {format_interval(*change[1:])}".rstrip()
        for change in changes
    )
    judge, reward = cells
    return (point.label, format_compact(point.distance), judge, reward)
