"""Progress display: a live progress line on a terminal, plain lines in a pipe or a log."""

import os
import sys
import textwrap
import time
from collections import deque
from collections.abc import Sequence
from types import TracebackType
from typing import Protocol, runtime_checkable

from rich.console import Console as RichConsole
from rich.progress import Progress, ProgressColumn, SpinnerColumn, Task
from rich.text import Text

from paretune.core.launch import requested_rank
from paretune.report.formatting import sanitize
from paretune.report.terminal import TextStream, safe_stream

PROGRESS_INTERVAL = 15.0
"""Minimum seconds between two progress lines without a live display, to keep logs short."""
STAGE_WIDTH = len("tuning-trial")
"""Width of the stage names: that of the longest."""
RATE_WINDOW = 50
"""Progress reports that the time left is estimated from: recent ones, as the length of responses changes."""
BAR_WIDTHS = ((100, 24), (70, 8), (0, 6))
"""Width of the bar by the smallest width of the terminal."""
SPINNER_WIDTH = 2
STARTING = "loading"
"""Shown before the first progress of a stage."""


@runtime_checkable
class Console(Protocol):
    """Receives the progress of the stages."""

    def start_stage(self, stage: str, index: int, total: int) -> None:
        """Start a stage."""

    def progress(self, done: int, total: int, note: str, values: Sequence[str] = ()) -> None:
        """Show how many steps of the current stage are done.

        Args:
            done: Steps that are done.
            total: All steps; 0: unknown, the note tells what is done.
            note: Further information, which is always shown.
            values: More of it, of which the first that fit are shown.
        """

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


class TimeLeft:
    """Estimates the seconds to the end of a stage from its latest progress."""

    def __init__(self) -> None:
        self._reports: deque[tuple[float, int]] = deque(maxlen=RATE_WINDOW)
        self._total = 0

    def add(self, done: int, total: int) -> None:
        """Record progress; another total or a smaller number starts a new part of the stage.

        The first report is the start of a step, or its end where its start was not reported.
        """
        if self._reports and (total != self._total or done < self._reports[-1][1]):
            self._reports.clear()
        self._total = total
        self._reports.append((time.monotonic(), done))

    def seconds(self) -> float | None:
        """Seconds left; None if unknown, as after a single report, or if no step is left."""
        if len(self._reports) < 2 or self._reports[-1][1] >= self._total:
            return None
        last_time, last_done = self._reports[-1]
        first_time, first_done = self._reports[0]
        if last_done == first_done:
            return None
        per_step = (last_time - first_time) / (last_done - first_done)
        return max(per_step * (self._total - last_done) - (time.monotonic() - last_time), 0.0)


def format_duration(seconds: float) -> str:
    """Seconds as 0:07, 12:30 or 1:02:03."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"


def progress_line(
    label: str,
    done: int,
    total: int,
    seconds_left: float | None,
    note: str = "",
    values: Sequence[str] = (),
    *,
    width: int = 0,
    bar: tuple[str, str] | None = None,
) -> str:
    """One line of progress that is at most `width` characters long, and has whole values only.

    Label, bar, steps and time left come first; then the note and the first values that fit, in their order,
    with the number of the others.

    Args:
        label: The stage.
        done: Steps that are done.
        total: All steps.
        seconds_left: None: unknown.
        note: Shown before the values.
        values: Always in the same order, so that a reader finds one where it was.
        width: Columns of the terminal; 0: unlimited.
        bar: Character of the done and of the remaining part; None: no bar.
    """
    parts = [label]
    if bar is not None:
        bar_width = next(size for least, size in BAR_WIDTHS if width >= least)
        filled = bar_width * min(done, total) // total if total else 0
        parts.append(bar[0] * filled + bar[1] * (bar_width - filled))
    if total:  # else: work without steps, of which the note tells
        parts.append(f"{done}/{total}")
    if done < total and (bar is not None or seconds_left is not None):
        parts.append(f"{'-:--' if seconds_left is None else format_duration(seconds_left)} left")
    line = " ".join(parts)
    limit = width or sys.maxsize
    items = [*([note] if note else []), *values]
    for shown in range(len(items), 0, -1):
        rest = f" +{len(items) - shown}" if shown < len(items) else ""
        candidate = f"{line}  {'  '.join(items[:shown])}{rest}"
        if len(candidate) <= limit:
            return candidate
    return line[:limit]


class PlainConsole:
    """Plain lines; progress at most every `PROGRESS_INTERVAL` seconds."""

    def __init__(self, stream: TextStream | None = None) -> None:
        self.stream = safe_stream(stream or sys.stdout)
        # Set by those who read a log in a window of this width; a log has none itself.
        columns = os.environ.get("COLUMNS", "")
        self.width = int(columns) if columns.isdecimal() else 0
        self.stage, self.label, self.start_time, self.last_progress_time = "", "", 0.0, 0.0
        self.time_left = TimeLeft()

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
        self.time_left = TimeLeft()

    def progress(self, done: int, total: int, note: str, values: Sequence[str] = ()) -> None:
        """Print a line if the last one is `PROGRESS_INTERVAL` seconds old."""
        self.time_left.add(done, total)
        if time.monotonic() - self.last_progress_time >= PROGRESS_INTERVAL:
            self.last_progress_time = time.monotonic()
            seconds = self.time_left.seconds()
            self._write(progress_line(self.label, done, total, seconds, note, values, width=self.width))

    def finish_stage(self, summary: str) -> None:
        """Print the summary and the duration of the stage."""
        self._write(f"{self.label} {summary}   {format_duration(time.monotonic() - self.start_time)}")

    def log(self, text: str) -> None:
        """Print the lines."""
        for line in text.split("\n"):
            self._write(line)


class _LineColumn(ProgressColumn):
    """The whole progress line as one column: several would shrink or vanish on a narrow terminal."""

    def __init__(self, console: "LiveConsole") -> None:
        super().__init__()
        self.live = console

    def render(self, task: Task) -> Text:
        """The line of this moment; the time left runs down between two reports."""
        return Text(self.live.current_line(), no_wrap=True, overflow="crop")


class LiveConsole:
    """A terminal display: the current stage as a progress line, finished stages as lines above it."""

    def __init__(self, rich_console: RichConsole | None = None) -> None:
        self.rich_console = rich_console or RichConsole(
            file=safe_stream(sys.stdout),  # type: ignore[arg-type]
            highlight=False,
        )
        self.progress_bar = Progress(
            SpinnerColumn("line"), _LineColumn(self), console=self.rich_console, transient=True
        )
        self.label, self.start_time, self.time_left = "", 0.0, TimeLeft()
        self.done, self.total, self.note, self.values = 0, 0, "", tuple[str, ...]()

    def current_line(self) -> str:
        """The progress line, as wide as the terminal is now."""
        width = self.rich_console.width - SPINNER_WIDTH
        if not self.total:
            elapsed = format_duration(time.monotonic() - self.start_time)
            return f"{self.label} {elapsed}  {self.note or STARTING}"[: max(width, 0)]
        return progress_line(
            self.label,
            self.done,
            self.total,
            self.time_left.seconds(),
            self.note,
            self.values,
            width=width,
            bar=("#", "-") if self.rich_console.options.ascii_only else ("█", "░"),
        )

    def start_stage(self, stage: str, index: int, total: int) -> None:
        """Start the progress line of this stage."""
        self.label, self.start_time = f"[{index}/{total}] {stage}", time.monotonic()
        self.time_left, self.done, self.total, self.note, self.values = TimeLeft(), 0, 0, "", ()
        for task in self.progress_bar.task_ids:
            self.progress_bar.remove_task(task)
        self.progress_bar.add_task(self.label, total=None)
        self.progress_bar.start()

    def progress(self, done: int, total: int, note: str, values: Sequence[str] = ()) -> None:
        """Update the progress line."""
        self.time_left.add(done, total)
        self.done, self.total = done, total
        self.note, self.values = sanitize(note), tuple(sanitize(value) for value in values)

    def finish_stage(self, summary: str) -> None:
        """Replace the progress line by the summary."""
        self.progress_bar.stop()
        label = f"{self.label:<{len(self.label.split(' ')[0]) + 1 + STAGE_WIDTH}}"
        self._print_wrapped(
            f"{label} {summary}   {format_duration(time.monotonic() - self.start_time)}", len(label) + 1
        )

    def log(self, text: str) -> None:
        """Print the lines; names and rows in them are never interpreted as markup."""
        for line in text.split("\n"):
            self.rich_console.print(Text(sanitize(line)), soft_wrap=True)

    def _print_wrapped(self, text: str, indent: int) -> None:
        """Print one line, or several whose continuations are indented; words, such as paths, stay whole."""
        lines = textwrap.wrap(
            sanitize(text),
            max(self.rich_console.width, 2 * indent),
            subsequent_indent=" " * indent,
            break_long_words=False,
            break_on_hyphens=False,
            drop_whitespace=True,
        )
        for line in lines:
            self.rich_console.print(Text(line), soft_wrap=True)

    def __enter__(self) -> "LiveConsole":
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.progress_bar.stop()


class SilentConsole:
    """Prints nothing: that of every rank but the first."""

    def start_stage(self, stage: str, index: int, total: int) -> None:
        """See `Console`."""

    def progress(self, done: int, total: int, note: str, values: Sequence[str] = ()) -> None:
        """See `Console`."""

    def finish_stage(self, summary: str) -> None:
        """See `Console`."""

    def log(self, text: str) -> None:
        """See `Console`."""

    def __enter__(self) -> "Console":
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None: ...


def make_console() -> Console:
    """A live display on a terminal, else plain lines; nothing on a rank that is not the first."""
    if requested_rank() > 0:
        return SilentConsole()
    return LiveConsole() if safe_stream(sys.stdout).isatty() else PlainConsole()
