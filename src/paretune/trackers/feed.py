"""Reads the files of a run as they grow, and passes each line on once, over all attempts of the run."""

import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from paretune.run.compat import RESOLVED_CONFIG_FILE, TRACKERS_FOLDER
from paretune.run.io import read_json, to_json
from paretune.trackers.base import Row, TrackedRun, Tracker

FOLDER = TRACKERS_FOLDER
"""Folder of the trackers' own files below the run folder."""
STATE_SCHEMA = "paretune/tracker/1"
LINES = {"metrics.jsonl": "{stage}/{key}", "timing.jsonl": "{stage}/timing/{key}"}
"""Files of numbers -> names of their metrics elsewhere."""
ROLLOUTS, EVENTS = "rollouts.jsonl", "events.jsonl"
VERDICT_KEYS = ("verdict", "before", "after", "change", "low", "high", "judge")
"""What other programs get of an objective in eval.json."""
MAX_SAMPLES = 100
"""Rows of a table of samples; the run folder has all of them."""


def state_file(run_dir: Path, name: str) -> Path:
    """How much a tracker was sent, and what it wants to know again."""
    return run_dir / FOLDER / f"{name}.json"


def read_state(run_dir: Path, name: str) -> dict[str, Any]:
    """The content of `state_file`; empty before the first call of the tracker."""
    return read_json(state_file(run_dir, name)) or {}


@dataclass
class TailedFile:
    """The lines of a file that were not read yet.

    A resume cuts files at the checkpoint, and the same lines are written again. Lines are therefore counted:
    line n after a resume is that of the same step as line n before, also where its length differs.
    """

    path: Path
    num_sent: int
    """Lines that were passed on, in this or an earlier process."""
    _offset: int = 0
    _num_read: int = 0

    def new_lines(self) -> Iterator[dict[str, Any]]:
        """The complete lines behind those that were sent; `mark_sent` says that the last one was."""
        if not self.path.exists():
            return
        if self.path.stat().st_size < self._offset:
            self._offset = self._num_read = 0
        with self.path.open("rb") as file:
            file.seek(self._offset)
            for line in file:
                if not line.endswith(b"\n"):
                    return  # it is just being written
                self._offset += len(line)
                self._num_read += 1
                if self._num_read > self.num_sent:
                    yield json.loads(line)

    def mark_sent(self) -> None:
        """All lines that were read are sent."""
        self.num_sent = max(self.num_sent, self._num_read)


@dataclass
class Feed:
    """What a tracker gets of a run."""

    run_dir: Path
    name: str
    """Of the tracker; its state is in the file of this name."""
    memory: dict[str, str] = field(default_factory=dict)
    sent_tables: list[str] = field(default_factory=list)
    """Evaluations that were sent, by folder."""
    is_complete: bool = False
    """The run has ended, and the tracker got everything of it."""

    def __post_init__(self) -> None:
        state = read_state(self.run_dir, self.name)
        self.memory.update(state.get("memory", {}))
        self.sent_tables += state.get("tables", [])
        sent = state.get("lines", {})
        self.files = {
            name: TailedFile(self.run_dir / name, sent.get(name, 0)) for name in (*LINES, ROLLOUTS, EVENTS)
        }

    def tracked_run(self) -> TrackedRun:
        """The run."""
        import yaml

        resolved = self.run_dir / RESOLVED_CONFIG_FILE
        config = yaml.safe_load(resolved.read_text(encoding="utf-8")) if resolved.exists() else {}
        state = read_json(self.run_dir / "run.json") or {}
        name = str(state.get("name", self.run_dir.name))
        # The folder's name too, where it says more: seeds and repetitions share the name of the recipe.
        return TrackedRun(
            name=name if self.run_dir.name == name else f"{name} ({self.run_dir.name})",
            folder=self.run_dir,
            config=config,
            memory=self.memory,
        )

    def send_new(self, tracker: Tracker, on_sent: Callable[[], None] = lambda: None) -> int:
        """Pass on what is new; the number of calls.

        Args:
            tracker: The tracker.
            on_sent: Called after each call.
        """
        num_calls = 0
        senders = (self._send_numbers, self._send_rollouts, self._send_events, self._send_evaluations)
        for send in senders:
            for _ in send(tracker):
                num_calls += 1
                self.save()
                on_sent()
        return num_calls

    def save(self) -> None:
        """Write down how much was sent."""
        lines = {name: file.num_sent for name, file in self.files.items()}
        state = {
            "schema": STATE_SCHEMA,
            "lines": lines,
            "tables": self.sent_tables,
            "memory": self.memory,
            "complete": self.is_complete,
        }
        file = state_file(self.run_dir, self.name)
        file.parent.mkdir(exist_ok=True)
        # Not synced to disk, which would slow the run: after a power cut some lines are sent again.
        draft = file.with_suffix(".tmp")
        draft.write_text(to_json(state), encoding="utf-8")
        draft.replace(file)

    def _send_numbers(self, tracker: Tracker) -> Iterator[None]:
        for file, pattern in LINES.items():
            for line in self.files[file].new_lines():
                stage, step = str(line.pop("stage")), int(line.pop("step"))
                numbers = {
                    pattern.format(stage=stage, key=key): float(value)
                    for key, value in line.items()
                    if isinstance(value, int | float) and math.isfinite(value)
                }
                if numbers:
                    tracker.log_metrics(step, numbers)
                self.files[file].mark_sent()
                yield

    def _send_rollouts(self, tracker: Tracker) -> Iterator[None]:
        for line in self.files[ROLLOUTS].new_lines():
            tracker.log_table(f"{line['stage']}/rollouts", int(line["step"]), line["samples"])
            self.files[ROLLOUTS].mark_sent()
            yield

    def _send_events(self, tracker: Tracker) -> Iterator[None]:
        file = self.files[EVENTS]
        rows: list[Row] = [{key: str(value) for key, value in line.items()} for line in file.new_lines()]
        if rows:
            tracker.log_table("events", file.num_sent, rows)
            file.mark_sent()
            yield

    def _send_evaluations(self, tracker: Tracker) -> Iterator[None]:
        for file in sorted((self.run_dir / "eval").glob("*/eval.json")):
            name = file.parent.name
            results = read_json(file) if name not in self.sent_tables else None
            if results is None:
                continue
            step = self.last_step()
            if numbers := dict(_evaluation_numbers(name, results)):
                tracker.log_metrics(step, numbers)
            tracker.log_table(f"evaluate-{name}/verdicts", step, list(_verdict_rows(results)))
            if samples := read_samples(file.with_name("generations.parquet")):
                tracker.log_table(f"evaluate-{name}/samples", step, samples)
            self.sent_tables.append(name)
            yield

    def last_step(self) -> int:
        """The last step of the alignment that the run saved."""
        return int((read_json(self.run_dir / "run.json") or {}).get("step", 0))


def _evaluation_numbers(name: str, results: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    for objective, values in results.get("objectives", {}).items():
        for key in ("before", "after", "change", "low", "high"):
            value = values.get(key)
            if isinstance(value, int | float) and math.isfinite(value):
                yield f"evaluate-{name}/{objective}/{key}", float(value)


def _verdict_rows(results: Mapping[str, Any]) -> Iterator[Row]:
    for objective, values in results.get("objectives", {}).items():
        yield {"objective": objective, **{key: values.get(key) for key in VERDICT_KEYS}}


def read_samples(file: Path) -> list[Row]:
    """The first rows of the responses of an evaluation, with their scores."""
    if not file.exists():
        return []
    import pyarrow.parquet as pq

    rows: list[Row] = pq.read_table(file).slice(0, MAX_SAMPLES).to_pylist()
    return rows
