"""Where each rank of a run is, in `ranks/` of the run folder, and which one failed first.

A rank that is killed or stuck cannot say so itself, and the launcher names the one that noticed. Every rank
therefore writes its step and phase whenever they change; the others read it when a message is not answered.
"""

import json
import os
import platform
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from paretune.core.errors import RankError, exit_code_of
from paretune.core.launch import PROCESS, rank

NO_FAULTS = ("RankError", "RunInterrupted", "KeyboardInterrupt")
"""Errors of a rank that was let down by another, or stopped by a signal."""
ERROR_WAIT = 3.0
"""Seconds that a rank waits for the error of another one, which is written at about the same time."""


def is_running(host: str, pid: int) -> bool:
    """Whether a process runs; one on another host counts as running."""
    if host != platform.node():
        return True
    import psutil  # not at the top: every command imports run folders, and few ask for processes

    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except (psutil.NoSuchProcess, ValueError):
        return False


@dataclass(frozen=True)
class Heartbeat:
    """What a rank was doing."""

    rank: int
    step: int | None
    phase: str
    """Phase of the step, or stage of the run."""
    time: float
    """Seconds since 1970 at which the phase began."""
    pid: int
    host: str
    error: str = ""
    """Message of the error that ended it; "" while it runs."""
    exit_code: int | None = None

    @property
    def position(self) -> str:
        """Step and phase in words."""
        return f"step {self.step}, {self.phase}" if self.step is not None else f"stage {self.phase}"

    def is_alive(self) -> bool:
        """See `is_running`."""
        return is_running(self.host, self.pid)


def write_heartbeat(run_dir: Path, step: int | None, phase: str, error: BaseException | None = None) -> None:
    """Replace the file of this rank; a full disk does not stop the run here."""
    message = "" if error is None else f"{type(error).__name__}: {error}"
    code = None if error is None else exit_code_of(error)
    beat = Heartbeat(rank(), step, phase, time.time(), os.getpid(), platform.node(), message, code)
    folder = run_dir / "ranks"
    with suppress(OSError):
        folder.mkdir(exist_ok=True)
        draft = folder / f"rank-{rank():05d}.json.tmp"
        draft.write_text(json.dumps(asdict(beat)), encoding="utf-8")
        draft.replace(draft.with_suffix(""))


def read_heartbeats(run_dir: Path) -> list[Heartbeat]:
    """The last heartbeat of each rank, in their order."""
    heartbeats = []
    for path in sorted((run_dir / "ranks").glob("rank-*.json")):
        with suppress(OSError, ValueError, TypeError):
            values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            heartbeats.append(Heartbeat(**values))
    return heartbeats


def remove_heartbeats(run_dir: Path) -> None:
    """Delete the files of an earlier attempt."""
    for path in (run_dir / "ranks").glob("rank-*"):
        path.unlink(missing_ok=True)


def explain_rank_error(run_dir: Path, error: RankError) -> None:
    """Complete the error of a rank that was let down: the one that failed first, its step and its phase.

    Its exit code becomes that of the first error; a rank that was killed or is stuck can be resumed. The
    lowest rank that is left tells it.
    """
    if PROCESS.stopped_rank is not None:
        stopped = PROCESS.stopped_rank
        _complete(error, describe_stopped(run_dir, stopped), 0 if stopped else 1)
        return
    end = time.monotonic() + ERROR_WAIT
    while time.monotonic() < end and first_fault(read_heartbeats(run_dir)) is None:
        time.sleep(0.1)
    heartbeats = read_heartbeats(run_dir)
    fault = first_fault(heartbeats)
    if fault is None:
        others = [beat for beat in heartbeats if beat.rank != rank()]
        if not others:
            return
        latest = min(others, key=lambda beat: beat.time)
        seconds = time.time() - latest.time
        text, culprit = f"rank {latest.rank} does not answer ({latest.position}, for {seconds:.0f} s)", latest
    elif fault.error:
        text, culprit = f"rank {fault.rank} failed ({fault.position}): {fault.error}", fault
    else:
        where = f"rank {fault.rank} ended without an error ({fault.position})"
        text, culprit = f"{where}; it may have been killed", fault
    # A rank with an error of its own tells it by itself; else the lowest of the others does.
    teller = culprit.rank if culprit.error else (0 if culprit.rank else 1)
    _complete(error, f"{text}; checkpoints are intact; fix: repeat the command to resume", teller)
    if culprit.exit_code is not None:
        error.exit_code = culprit.exit_code  # type: ignore[misc]


def _complete(error: RankError, text: str, teller: int) -> None:
    error.args = (text,)
    error.first_failed_rank = teller


def describe_stopped(run_dir: Path, number: int) -> str:
    """The rank that shows no sign of life, with its last step and phase."""
    last = next((beat for beat in read_heartbeats(run_dir) if beat.rank == number), None)
    where = "" if last is None else f" ({last.position}, for {time.time() - last.time:.0f} s)"
    return (
        f"rank {number} does not answer{where}; its process is stopped or its host is overloaded; "
        "checkpoints are intact; fix: repeat the command to resume"
    )


def first_fault(heartbeats: Sequence[Heartbeat]) -> Heartbeat | None:
    """The rank whose own error came first, or else one whose process is gone; None: nothing is known."""
    failed = [beat for beat in heartbeats if beat.error and not beat.error.startswith(NO_FAULTS)]
    if failed:
        return min(failed, key=lambda beat: beat.time)
    return next((beat for beat in heartbeats if not beat.error and not beat.is_alive()), None)
