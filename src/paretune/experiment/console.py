"""Progress display: a live progress bar on a terminal, plain lines in a pipe or a log."""

import sys
import time
from types import TracebackType
from typing import Protocol, TextIO, runtime_checkable

from rich.console import Console as RichConsole
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
)
from rich.text import Text

from paretune.report.formatting import sanitize

PROGRESS_INTERVAL = 15.0
"""Minimum seconds between two progress lines without a live display, to keep logs short."""
STAGE_WIDTH = len("tuning-trial")
"""Width of the stage names: that of the longest."""


@runtime_checkable
class Console(Protocol):
    """Receives the progress of the stages."""

    def start_stage(self, stage: str, index: int, total: int) -> None:
        """Start a stage."""

    def progress(self, done: int, total: int, note: str) -> None:
        """Show how many steps of the current stage are done; the note has further information."""

    def finish_stage(self, summary: str) -> None:
        """Finish the current stage and show its summary."""

    def log(self, text: str) -> None:
        """Print one or several lines."""

    def __enter__(self) -> "Console": ...

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None: ...


def _elapsed(start_time: float) -> str:
    return f"{time.monotonic() - start_time:.0f} s"


class PlainConsole:
    """Plain lines; progress at most every `PROGRESS_INTERVAL` seconds."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self.stream = stream or sys.stdout
        self.stage, self.label, self.start_time, self.last_progress_time = "", "", 0.0, 0.0

    def _write(self, text: str) -> None:
        print(sanitize(text), file=self.stream, flush=True)

    def __enter__(self) -> "PlainConsole":
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stream.flush()

    def start_stage(self, stage: str, index: int, total: int) -> None:
        """Remember the stage; a line is printed with its progress and when it is finished."""
        self.stage, self.label = stage, f"[{index}/{total}] {stage:<{STAGE_WIDTH}}"
        self.start_time = self.last_progress_time = time.monotonic()

    def progress(self, done: int, total: int, note: str) -> None:
        """Print a line if the last one is `PROGRESS_INTERVAL` seconds old."""
        if time.monotonic() - self.last_progress_time >= PROGRESS_INTERVAL:
            self.last_progress_time = time.monotonic()
            self._write(f"{self.label} {done}/{total}  {note}")

    def finish_stage(self, summary: str) -> None:
        """Print the summary and the duration of the stage."""
        self._write(f"{self.label} {summary}   {_elapsed(self.start_time)}")

    def log(self, text: str) -> None:
        """Print the lines."""
        for line in text.split("\n"):
            self._write(line)


class LiveConsole:
    """A terminal display: the current stage as a progress bar, finished stages as lines above it."""

    def __init__(self) -> None:
        self.rich_console = RichConsole(highlight=False)
        self.progress_bar = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[note]}", markup=False),
            console=self.rich_console,
            transient=True,
        )
        self.label, self.start_time = "", 0.0

    def start_stage(self, stage: str, index: int, total: int) -> None:
        """Start the progress bar of this stage."""
        self.label, self.start_time = f"[{index}/{total}] {stage:<{STAGE_WIDTH}}", time.monotonic()
        for task in self.progress_bar.task_ids:
            self.progress_bar.remove_task(task)
        self.progress_bar.add_task(self.label, total=None, note="")
        self.progress_bar.start()

    def progress(self, done: int, total: int, note: str) -> None:
        """Update the progress bar."""
        self.progress_bar.update(
            self.progress_bar.task_ids[-1], completed=done, total=total, note=sanitize(note)
        )

    def finish_stage(self, summary: str) -> None:
        """Replace the progress bar by the summary line."""
        self.progress_bar.stop()
        self.rich_console.print(
            Text(sanitize(f"{self.label} {summary}   {_elapsed(self.start_time)}")), soft_wrap=True
        )

    def log(self, text: str) -> None:
        """Print the lines; names and rows in them are never interpreted as markup."""
        for line in text.split("\n"):
            self.rich_console.print(Text(sanitize(line)), soft_wrap=True)

    def __enter__(self) -> "LiveConsole":
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.progress_bar.stop()


def make_console() -> Console:
    """A live display on a terminal, else plain lines."""
    return LiveConsole() if sys.stdout.isatty() else PlainConsole()
