"""Curves of a run that is still going on: metrics.jsonl is read on from where the last page left off."""

import hashlib
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from threading import Lock
from typing import Any

from paretune.report.charts import MAX_POINTS, TRAINING_METRICS, LineChart, line_chart
from paretune.report.formatting import finite_or_none
from paretune.run.metrics import find_metric
from paretune.view.folders import Folder
from paretune.view.reading import parse_lines

READ_BYTES = 8_000_000
CHECKED_BYTES = 256
"""Bytes before the offset whose hash tells whether the file is still the one that was read."""
SCORE_PREFIX, JUDGE_PREFIX, SCORE_SUFFIX = "score/", "eval/", "/mean"
REWARD_METRICS = (("reward/mean", "reward"),)
FIT_METRICS = (("fit/loss", "training loss"), ("fit/test_loss", "held-out loss"))

Points = Sequence[tuple[float, float | None]]


@dataclass
class Feed:
    """The curves of one metrics.jsonl up to an offset."""

    offset: int = 0
    checked: str = ""
    num_damaged: int = 0
    steps: dict[str, list[float]] = field(default_factory=dict)
    """Stage -> its steps."""
    values: dict[tuple[str, str], list[float | None]] = field(default_factory=dict)
    """(stage, metric) -> a value per step of the stage."""

    def read_on(self, folder: Folder) -> None:
        """Add the lines that were written since; start over if a resume has cut the file."""
        try:
            with folder.open_file("metrics.jsonl") as file:
                size = file.seek(0, os.SEEK_END)
                if size < self.offset or _hash_before(file, self.offset) != self.checked:
                    self.__init__()  # type: ignore[misc]  # the file is another one
                while True:
                    file.seek(self.offset)
                    data = file.read(READ_BYTES)
                    whole = data.rfind(b"\n") + 1
                    if not whole:
                        break
                    self._add(data[:whole].split(b"\n")[:-1])
                    self.offset += whole
                self.checked = _hash_before(file, self.offset)
        except OSError:
            return  # there is no file yet, or no longer: the page shows what was read before

    def _add(self, lines: list[bytes]) -> None:
        objects, num_damaged = parse_lines(lines)
        self.num_damaged += num_damaged
        for line in objects:
            stage, step = str(line.get("stage", "")), finite_or_none(line.get("step"))
            if step is None:
                continue
            steps = self.steps.setdefault(stage, [])
            for key in filter(_is_drawn, line):
                values = self.values.setdefault((stage, key), [])
                values += [None] * (len(steps) - len(values))
                values.append(finite_or_none(line[key]))
            steps.append(step)

    def points(self, stage: str, key: str) -> Points:
        """(step, value) of a metric."""
        steps, values = self.steps[stage], self.values[stage, key]
        points = list(zip(steps, [*values, *[None] * (len(steps) - len(values))], strict=True))
        # An evaluation every some steps: a line from one to the next.
        return [point for point in points if point[1] is not None] if key.startswith(JUDGE_PREFIX) else points


def _hash_before(file: Any, offset: int) -> str:
    file.seek(max(0, offset - CHECKED_BYTES))
    return hashlib.sha256(file.read(min(offset, CHECKED_BYTES))).hexdigest() if offset else ""


def _is_drawn(key: str) -> bool:
    is_judged = key.startswith(JUDGE_PREFIX) and key.endswith(SCORE_SUFFIX)
    return is_judged or key.startswith((SCORE_PREFIX, "fit/")) or key in _TITLES


_TITLES = dict((*REWARD_METRICS, *FIT_METRICS, *TRAINING_METRICS))


@dataclass
class Feeds:
    """The feeds of all runs that a page has shown."""

    feeds: dict[str, Feed] = field(default_factory=dict)
    lock: Lock = field(default_factory=Lock)

    def read(self, folder: Folder) -> Feed:
        """The feed of a run, up to date."""
        with self.lock:
            feed = self.feeds.setdefault(str(folder.path), Feed())
            feed.read_on(folder)
            return feed


def charts_by_stage(feed: Feed) -> list[dict[str, Any]]:
    """The stages of a run with their charts: the alignment first, then the newest one."""
    stages = list(reversed(feed.steps))
    stages.sort(key=lambda stage: stage != "align")
    result = []
    for stage in stages:
        keys = [key for of_stage, key in feed.values if of_stage == stage]
        charts = [_titled_chart(title, key, feed.points(stage, key)) for key, title in _ordered(keys)]
        result.append(
            {
                "stage": stage,
                "num_steps": len(feed.steps[stage]),
                "charts": [chart for chart in charts if chart["chart"] is not None],
            }
        )
    return result


def _ordered(keys: Iterable[str]) -> list[tuple[str, str]]:
    """(metric, title), the scores of objectives first."""
    keys = list(keys)
    scores = [
        (key, key.removeprefix(SCORE_PREFIX).removesuffix(SCORE_SUFFIX))
        for key in keys
        if key.startswith(SCORE_PREFIX) and key.endswith(SCORE_SUFFIX)
    ]
    judged = [
        (key, f"{key.removeprefix(JUDGE_PREFIX).removesuffix(SCORE_SUFFIX)}, by the judge")
        for key in keys
        if key.startswith(JUDGE_PREFIX) and key.endswith(SCORE_SUFFIX)
    ]
    fits = [
        (key, f"{key.removeprefix('fit/').removesuffix('/loss')}: training loss")
        for key in keys
        if key.startswith("fit/") and key.endswith("/loss") and key not in _TITLES
    ]
    return [*scores, *judged, *((key, title) for key, title in _TITLES.items() if key in keys), *fits]


def _titled_chart(title: str, key: str, points: Points) -> dict[str, Any]:
    metric = find_metric(key)
    steps_per_point = -(-len(points) // MAX_POINTS)
    return {
        "title": title,
        "chart": downsampled_chart(points, steps_per_point),
        "unit": metric.unit if metric else "",
        "key": key,
        "steps_per_point": steps_per_point,
    }


def downsampled_chart(points: Points, steps_per_point: int) -> LineChart | None:
    """The chart of many points.

    The thick line is drawn from the means of `steps_per_point` steps, the thin one from their extremes, so
    that no spike is lost.
    """
    values = [value for _, value in points if value is not None]
    if steps_per_point <= 1 or not values:
        return line_chart(points)
    groups = [points[i : i + steps_per_point] for i in range(0, len(points), steps_per_point)]
    means: list[tuple[float, float | None]] = []
    extremes: list[tuple[float, float | None]] = []
    for group in groups:
        known = [(step, value) for step, value in group if value is not None]
        if not known:
            means.append((group[-1][0], None))
            continue
        means.append((group[-1][0], sum(value for _, value in known) / len(known)))
        ends = {min(known, key=lambda point: point[1]), max(known, key=lambda point: point[1])}
        extremes += sorted(ends)
    # Both lines need one pair of axes.
    start, end = (points[0][0], None), (points[-1][0], None)
    y_range = (min(values), max(values))
    smoothed = line_chart([start, *means, end], y_range)
    raw = line_chart([start, *extremes, end], y_range)
    assert smoothed is not None
    assert raw is not None
    return replace(smoothed, raw_path=raw.raw_path)
