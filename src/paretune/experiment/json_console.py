"""Progress for machines: one JSON object per line and event, on standard output.

start      schema, name, output_dir, resumed
stage      stage, index, total: it begins
progress   stage, done, total, seconds_left, note: at most one per second
step       stage, step, metrics: a line of metrics.jsonl
stage_end  stage, seconds, summary
warning    stage, text
log        stage, text: any other line
verdicts   objectives {name: verdict, before, after, change, low, high, judge}, warnings
error      exit_code, message; the last event of a run that failed or was stopped
end        exit_code 0, output_dir, report; the last event of a complete run
"""

import json
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from paretune.core.errors import ParetuneError, exit_code_of
from paretune.experiment.console import TimeLeft
from paretune.report.formatting import finite_or_none
from paretune.report.terminal import TextStream, safe_stream
from paretune.run.io import read_json
from paretune.trackers.feed import VERDICT_KEYS

EVENTS_SCHEMA = "paretune/events/1"
PROGRESS_SECONDS = 1.0
"""Between two events of progress: a machine needs no more."""
WARNING = "warning: "


class JsonConsole:
    """Writes every event as a line of JSON."""

    def __init__(self, stream: TextStream | None = None) -> None:
        self.stream = safe_stream(stream or sys.stdout)
        self.stage, self.start_time, self.last_progress_time = "", 0.0, 0.0
        self.time_left = TimeLeft()

    def write(self, event: str, **values: Any) -> None:
        """Write one event."""
        text = json.dumps({"event": event, **values}, ensure_ascii=True, allow_nan=False)
        print(text, file=self.stream, flush=True)

    def start(self, name: str, output_dir: Path) -> None:
        """The first event."""
        resumed = (output_dir / "run.json").exists()
        self.write("start", schema=EVENTS_SCHEMA, name=name, output_dir=str(output_dir), resumed=resumed)

    def start_stage(self, stage: str, index: int, total: int) -> None:
        """A stage begins."""
        self.stage, self.start_time, self.last_progress_time = stage, time.monotonic(), 0.0
        self.time_left = TimeLeft()
        self.write("stage", stage=stage, index=index, total=total)

    def progress(self, done: int, total: int, note: str, values: Sequence[str] = ()) -> None:
        """How far the stage is, if the last event of this kind is old enough."""
        self.time_left.add(done, total)
        if time.monotonic() - self.last_progress_time >= PROGRESS_SECONDS:
            self.last_progress_time, seconds = time.monotonic(), self.time_left.seconds()
            left = None if seconds is None else round(seconds, 1)
            self.write("progress", stage=self.stage, done=done, total=total, seconds_left=left, note=note)

    def step(self, step: int, metrics: Mapping[str, int | float]) -> None:
        """The metrics of a step, as in metrics.jsonl."""
        values = {name: finite_or_none(value) for name, value in metrics.items()}
        self.write("step", stage=self.stage, step=step, metrics=values)

    def finish_stage(self, summary: str) -> None:
        """A stage ends."""
        seconds = round(time.monotonic() - self.start_time, 1)
        self.write("stage_end", stage=self.stage, seconds=seconds, summary=summary)

    def log(self, text: str) -> None:
        """Lines; each warning is an event of its own."""
        for line in filter(str.strip, text.split("\n")):
            event = "warning" if line.startswith(WARNING) else "log"
            self.write(event, stage=self.stage, text=line.removeprefix(WARNING))

    def finish(self, run_dir: Path) -> None:
        """The verdicts of the evaluation, if there was one, and the end."""
        results = read_json(run_dir / "eval" / "final" / "eval.json")
        if results is not None:
            objectives = {
                name: {key: values.get(key) for key in VERDICT_KEYS}
                for name, values in results["objectives"].items()
            }
            self.write("verdicts", objectives=objectives, warnings=results.get("warnings", []))
        page = run_dir / "report.html"
        self.write("end", exit_code=0, output_dir=str(run_dir), report=str(page) if page.exists() else None)

    def error(self, error: BaseException, message: str = "") -> None:
        """What ended the run."""
        is_known = isinstance(error, ParetuneError | KeyboardInterrupt)
        text = message or str(error) if is_known else f"bug in paretune: {type(error).__name__}"
        self.write("error", exit_code=exit_code_of(error), message=text)

    def __enter__(self) -> "JsonConsole":
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stream.flush()
