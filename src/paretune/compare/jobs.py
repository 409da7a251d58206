"""Runs as processes of their own: started, waited for, stopped together."""

import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from paretune.errors import ConfigError, ParetuneError, ResourceError, Stopped, TrainingGuard
from paretune.learn.stop import StopRequest
from paretune.lock import holder

PROGRAM = (sys.executable, "-c", "from paretune.cli import main; main()")
GUARD, SIGNAL, INTERRUPTED = 4, 75, 130
ERRORS: dict[int, type[ParetuneError]] = {
    2: ConfigError,
    3: ResourceError,
    GUARD: TrainingGuard,
    SIGNAL: Stopped,
}
"""Exit code of a run -> the error that leaves with the same code."""
POLL = 0.05
"""Seconds between two looks at the processes."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """One command of ours."""

    label: str
    arguments: Sequence[str]
    folder: Path
    """Of the run that it works on."""
    log: Path
    """Where all it says goes."""
    may_fail: bool = False
    """Training that stops itself is a result, not the end of everything."""
    judged: bool = False
    """It is complete only with the judge's scores of a trial."""


@dataclass
class Worker:
    """Works jobs off, several at one time; a signal is passed on to all of them."""

    at_once: int
    stop: StopRequest
    tell: Callable[[int, str], None]
    """Hears of every job that is begun, ended, or waited for, and how many have ended."""
    running: dict[str, tuple[Job, "subprocess.Popen[bytes]"]] = field(default_factory=dict)
    ended: int = 0
    """Jobs that are over."""

    def work_off(self, jobs: Iterable[Job]) -> dict[str, int]:
        """Label -> exit code of every job.

        Raises:
            ParetuneError: One failed; the others were stopped first, each with a checkpoint.
            Stopped: SIGTERM came.
            KeyboardInterrupt: Ctrl-C came.
        """
        left, codes = list(jobs), dict[str, int]()
        try:
            while left or self.running:
                while left and len(self.running) < self.at_once:
                    self._start(left.pop(0))
                time.sleep(POLL)
                for label, (job, process) in list(self.running.items()):
                    if process.poll() is not None:
                        del self.running[label]
                        codes[label] = self._ended(job, process.returncode)
                        self.ended += 1
                        self.tell(self.ended, f"{label}: done")
                if self.stop.requested:
                    self._stop_all()
                    self.stop.obey("the last complete step of every run under way")
        finally:
            self._stop_all()
        return codes

    def _start(self, job: Job) -> None:
        """Start a job once nobody else is at work in its folder: a run outlives a killed comparison."""
        waited = False
        while other := holder(job.folder):
            if not waited:
                self.tell(self.ended, f"{job.label}: waits for {other}, which is still at work on it")
            waited = True
            self.stop.obey("the last complete step of every run under way")
            time.sleep(POLL)
        self.tell(self.ended, f"{job.label} …")
        job.log.parent.mkdir(parents=True, exist_ok=True)
        with job.log.open("ab") as log:
            process = subprocess.Popen(
                [*PROGRAM, *job.arguments], stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT
            )
        self.running[job.label] = (job, process)

    def _ended(self, job: Job, code: int) -> int:
        """The code of a job that is over.

        Raises:
            ParetuneError: It failed, and may not.
        """
        if code == 0 or (code == GUARD and job.may_fail):
            return code
        if self.stop.requested and code in (SIGNAL, INTERRUPTED):
            return code
        if code == INTERRUPTED:
            raise KeyboardInterrupt(f"{job.label} was interrupted; give the same command again to go on")
        said = _last_line(job.log)
        if code < 0:
            raise ResourceError(
                f"{job.label}: was killed by signal {-code}; fix: lower jobs if memory ran out; see {job.log}"
            )
        raise ERRORS.get(code, ParetuneError)(f"{job.label}: {said}; see {job.log}")

    def _stop_all(self) -> None:
        """Ask every run to stop after its step, and wait; Ctrl-C in a terminal has reached them already."""
        for _, process in self.running.values():
            process.terminate()
        for _, process in self.running.values():
            process.wait()
        self.running.clear()


def _last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").split("\n")
    return next((line for line in reversed(lines) if line.strip()), "it said nothing")
