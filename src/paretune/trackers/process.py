"""The process of a tracker: started by the run, and ended after it."""

import json
import os
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from filelock import FileLock

from paretune.config.tracker_schema import TrackerSection
from paretune.core.errors import DataError, first_line
from paretune.core.launch import requested_rank
from paretune.reward.function_calls import Attempt
from paretune.run.io import read_json
from paretune.trackers.base import Tracker
from paretune.trackers.feed import FOLDER, Feed, read_state
from paretune.trackers.loading import make_tracker, section_of, tracker_names

POLL_SECONDS = 1.0
"""Between two looks at the files of a run."""
END_SECONDS = 5.0
"""That a run waits at its end for its trackers; they go on by themselves."""
CALL_SECONDS = 120.0
"""After which a tracker that does not answer is given up."""
MAX_LINE_BYTES = 2_000
"""Of the last line of a tracker's output, which says why it stopped."""
NICE = 10
"""Trackers get the processor after the training."""


@dataclass
class _Started:
    name: str
    process: "subprocess.Popen[bytes]"


class TrackerProcesses:
    """The trackers of a run, as a context around it; nothing that happens to them changes the run."""

    def __init__(self, end_seconds: float = END_SECONDS) -> None:
        self.end_seconds = end_seconds
        self.run_dir = Path()
        self._started: list[_Started] = []
        self.notes: list[str] = []
        """After the context: a line per tracker that failed or still sends."""

    def start(self, run_dir: Path, sections: Sequence[TrackerSection]) -> None:
        """Start a process per tracker; only the first of several ranks does."""
        if requested_rank() > 0 or not sections:
            return
        self.run_dir = run_dir
        folder = run_dir / FOLDER
        folder.mkdir(exist_ok=True)
        for name, section in zip(tracker_names(sections), sections, strict=True):
            settings = section.model_dump_json()
            command = [sys.executable, "-P", "-m", "paretune.trackers", str(run_dir), name, settings]
            with (folder / f"{name}.log").open("ab") as log:
                process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,  # Ctrl-C is for the run; a tracker ends after it
                )
            self._started.append(_Started(name, process))

    def __enter__(self) -> "TrackerProcesses":
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        exc_traceback: TracebackType | None,
    ) -> None:
        deadline = time.monotonic() + self.end_seconds
        for each in self._started:
            log = self.run_dir / FOLDER / f"{each.name}.log"
            try:
                code = each.process.wait(max(deadline - time.monotonic(), 0.01))
            except subprocess.TimeoutExpired:
                note = f"tracker {each.name}: is still sending, and will end by itself"
                self.notes.append(f"{note}; its log is {log}")
                each.process.returncode = 0  # it outlives this process: nobody waits for it
                continue
            if code or not _is_complete(self.run_dir, each.name):  # a library may end it with exit code 0
                again = f"paretune track {self.run_dir} --to {each.name.partition('-')[0]}"
                self.notes.append(
                    f"warning: tracker {each.name} stopped: {_last_line(log) or f'exit code {code}'}; "
                    f"fix: see {log}, then {again} sends the rest"
                )


def _is_complete(run_dir: Path, name: str) -> bool:
    try:
        return bool(read_state(run_dir, name).get("complete"))
    except (OSError, DataError):
        return False


def _last_line(log: Path) -> str:
    """The end of a log, which may be of any size; "" if it is gone."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - MAX_LINE_BYTES))
            lines = file.read().decode("utf-8", "replace").strip().splitlines()
    except OSError:
        return ""
    return lines[-1] if lines else ""


class Watchdog:
    """Ends this process if a call inside the context takes too long: a library that hangs raises nothing."""

    def __init__(self, seconds: float = CALL_SECONDS) -> None:
        self.seconds = seconds
        self._deadline = time.monotonic() + seconds
        self._stop = threading.Event()

    def reset(self) -> None:
        """A call has returned."""
        self._deadline = time.monotonic() + self.seconds

    def __enter__(self) -> "Watchdog":
        threading.Thread(target=self._watch, name="paretune-tracker-watchdog", daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()

    def _watch(self) -> None:
        while not self._stop.wait(min(self.seconds / 4, 1.0)):
            if time.monotonic() >= self._deadline:
                sys.stdout.write(f"no answer for {self.seconds:g} s\n")
                sys.stdout.flush()
                os._exit(1)


def follow(run_dir: Path, name: str, tracker: Tracker, *, parent: int | None) -> None:
    """Pass a run on to a tracker until the run has ended and everything is sent.

    Args:
        run_dir: The run folder.
        name: Of the tracker.
        tracker: The tracker.
        parent: Process that runs it; the run has ended too if it is gone. None: the run has ended.
    """
    feed = Feed(run_dir, name)
    with Watchdog() as watchdog:
        tracker.start(feed.tracked_run())
        feed.save()
        while True:
            # Asked before the files are read: nothing is written after the end.
            status = run_status(run_dir, parent)
            watchdog.reset()
            if not feed.send_new(tracker, watchdog.reset) and status != "running":
                break
            if status == "running":
                time.sleep(POLL_SECONDS)
        tracker.finish(status)
    feed.is_complete = True
    feed.save()


def run_status(run_dir: Path, parent: int | None) -> str:
    """How a run is going, as its folder and its process tell."""
    status = str((read_json(run_dir / "run.json") or {}).get("status", "killed"))
    is_gone = parent is None or os.getppid() != parent
    return "killed" if status == "running" and is_gone else status


def main(arguments: Sequence[str]) -> int:
    """Run the tracker that the arguments name; the exit code. An error is its last line of output."""
    run_dir, name, settings = Path(arguments[0]), arguments[1], json.loads(arguments[2])
    parent = os.getppid()
    if hasattr(os, "nice"):
        os.nice(NICE)
    # Of an earlier attempt that still sends: its state is read when it has ended.
    with FileLock(run_dir / FOLDER / f"{name}.lock"), Attempt() as attempt:
        follow(run_dir, name, make_tracker(section_of(settings)), parent=parent)
    if attempt.error is None:
        return 0
    traceback.print_exception(attempt.error, file=sys.stdout)
    print(f"{type(attempt.error).__name__}: {first_line(attempt.error)}", flush=True)
    return 1
