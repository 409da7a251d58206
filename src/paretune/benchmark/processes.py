"""Runs as processes of their own: started, waited for, stopped together."""

import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from paretune.core.errors import ConfigError, NonFiniteError, ParetuneError, ResourceError, RunInterrupted
from paretune.run.lock import lock_holder
from paretune.training.guards import StopRequest

CLI_COMMAND = (sys.executable, "-c", "from paretune.cli import main; main()")
EXIT_TRAINING_GUARD, EXIT_STOPPED, EXIT_INTERRUPTED = 4, 75, 130
ERROR_OF_EXIT_CODE: dict[int, type[ParetuneError]] = {
    2: ConfigError,
    3: ResourceError,
    EXIT_TRAINING_GUARD: NonFiniteError,
    EXIT_STOPPED: RunInterrupted,
}
"""Exit code of a run -> the error that leaves with the same code."""
POLL_SECONDS = 0.05
"""Seconds between two looks at the processes."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """One command of ours."""

    label: str
    cli_args: Sequence[str]
    run_dir: Path
    """Of the run that it works on."""
    log_file: Path
    """Where all it says goes."""
    allow_guard_exit: bool = False
    """Training that stops itself is a result, not the end of everything."""
    needs_judge_scores: bool = False
    """It is complete only with the judge's scores of a trial."""


@dataclass
class JobRunner:
    """Works jobs off, several at one time; a signal is passed on to all of them."""

    max_parallel: int
    stop: StopRequest
    on_progress: Callable[[int, str], None]
    """Hears of every job that is begun, ended, or waited for, and how many have ended."""
    running: dict[str, tuple[Job, "subprocess.Popen[bytes]"]] = field(default_factory=dict)
    num_finished: int = 0
    """Jobs that are over."""

    def run_all(self, jobs: Iterable[Job]) -> dict[str, int]:
        """Label -> exit code of every job.

        Raises:
            ParetuneError: One failed; the others were stopped first, each with a checkpoint.
            Stopped: SIGTERM came.
            KeyboardInterrupt: Ctrl-C came.
        """
        left, codes = list(jobs), dict[str, int]()
        try:
            while left or self.running:
                while left and len(self.running) < self.max_parallel:
                    self._start(left.pop(0))
                time.sleep(POLL_SECONDS)
                for label, (job, process) in list(self.running.items()):
                    if process.poll() is not None:
                        del self.running[label]
                        codes[label] = self._check_exit_code(job, process.returncode)
                        self.num_finished += 1
                        self.on_progress(self.num_finished, f"{label}: done")
                if self.stop.requested:
                    self._terminate_all()
                    self.stop.raise_if_stopped("the last complete step of every run under way")
        finally:
            self._terminate_all()
        return codes

    def _start(self, job: Job) -> None:
        """Start a job once nobody else is at work in its folder: a run outlives a killed comparison."""
        waited = False
        while other := lock_holder(job.run_dir):
            if not waited:
                self.on_progress(
                    self.num_finished, f"{job.label}: waits for {other}, which is still at work on it"
                )
            waited = True
            self.stop.raise_if_stopped("the last complete step of every run under way")
            time.sleep(POLL_SECONDS)
        self.on_progress(self.num_finished, f"{job.label} …")
        job.log_file.parent.mkdir(parents=True, exist_ok=True)
        with job.log_file.open("ab") as log:
            process = subprocess.Popen(
                [*CLI_COMMAND, *job.cli_args], stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT
            )
        self.running[job.label] = (job, process)

    def _check_exit_code(self, job: Job, code: int) -> int:
        """The code of a job that is over.

        Raises:
            ParetuneError: It failed, and may not.
        """
        if code == 0 or (code == EXIT_TRAINING_GUARD and job.allow_guard_exit):
            return code
        if self.stop.requested and code in (EXIT_STOPPED, EXIT_INTERRUPTED):
            return code
        if code == EXIT_INTERRUPTED:
            raise KeyboardInterrupt(f"{job.label} was interrupted; give the same command again to go on")
        said = _last_line(job.log_file)
        if code < 0:
            raise ResourceError(
                f"{job.label}: was killed by signal {-code}; fix: lower jobs if memory ran out; see {job.log_file}"
            )
        raise ERROR_OF_EXIT_CODE.get(code, ParetuneError)(f"{job.label}: {said}; see {job.log_file}")

    def _terminate_all(self) -> None:
        """Ask every run to stop after its step, and wait; Ctrl-C in a terminal has reached them already."""
        for _, process in self.running.values():
            process.terminate()
        for _, process in self.running.values():
            process.wait()
        self.running.clear()


def _last_line(log_file: Path) -> str:
    lines = log_file.read_text(encoding="utf-8", errors="replace").split("\n")
    return next((line for line in reversed(lines) if line.strip()), "it said nothing")
