"""Runs as child processes: start several in parallel, wait for them, stop them together."""

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
"""Exit code of a run -> the error with the same exit code."""
POLL_SECONDS = 0.05
"""Seconds between two polls of the child processes."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """One `paretune` command to run as a child process."""

    label: str
    cli_args: Sequence[str]
    run_dir: Path
    """Folder of the run that the command works on."""
    log_file: Path
    """File that receives stdout and stderr."""
    allow_guard_exit: bool = False
    """An exit by a training guard is a result (of a tuning trial), not a failure of the benchmark."""
    may_fail: bool = False
    """A failure is a result of this job alone: the others go on, and its exit code is returned."""
    needs_judge_scores: bool = False
    """The trial is complete only with the judge's scores."""


@dataclass
class JobRunner:
    """Runs jobs, several in parallel; forwards a stop signal to all of them."""

    max_parallel: int
    stop: StopRequest
    on_progress: Callable[[int, str], None]
    """Called with (finished jobs, message) when a job starts, waits or ends."""
    running: dict[str, tuple[Job, "subprocess.Popen[bytes]"]] = field(default_factory=dict)
    num_finished: int = 0

    def run_all(self, jobs: Iterable[Job]) -> dict[str, int]:
        """Run all jobs and return label -> exit code.

        Raises:
            ParetuneError: A job failed; the others were stopped first, each with a checkpoint.
            RunInterrupted: SIGTERM arrived.
            KeyboardInterrupt: Ctrl-C was pressed.
        """
        pending, codes = list(jobs), dict[str, int]()
        try:
            while pending or self.running:
                while pending and len(self.running) < self.max_parallel:
                    self._start(pending.pop(0))
                time.sleep(POLL_SECONDS)
                for label, (job, process) in list(self.running.items()):
                    if process.poll() is not None:
                        del self.running[label]
                        codes[label] = self._check_exit_code(job, process.returncode)
                        self.num_finished += 1
                        word = "failed" if codes[label] and job.may_fail else "done"
                        self.on_progress(self.num_finished, f"{label}: {word}")
                if self.stop.requested:
                    self._terminate_all()
                    self.stop.raise_if_stopped("the last complete step of every run in progress")
        finally:
            self._terminate_all()
        return codes

    def _start(self, job: Job) -> None:
        """Start a job as soon as its run folder is free: a run survives a benchmark that was killed."""
        waiting = False
        while other := lock_holder(job.run_dir):
            if not waiting:
                self.on_progress(
                    self.num_finished, f"{job.label}: waiting for {other}, which still works on this run"
                )
            waiting = True
            self.stop.raise_if_stopped("the last complete step of every run in progress")
            time.sleep(POLL_SECONDS)
        self.on_progress(self.num_finished, f"{job.label} …")
        job.log_file.parent.mkdir(parents=True, exist_ok=True)
        with job.log_file.open("ab") as log:
            process = subprocess.Popen(
                [*CLI_COMMAND, *job.cli_args], stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT
            )
        self.running[job.label] = (job, process)

    def _check_exit_code(self, job: Job, code: int) -> int:
        """The exit code of a finished job.

        Raises:
            ParetuneError: The job failed.
        """
        if code == 0 or (code == EXIT_TRAINING_GUARD and job.allow_guard_exit):
            return code
        if self.stop.requested and code in (EXIT_STOPPED, EXIT_INTERRUPTED):
            return code
        if job.may_fail and code not in (EXIT_STOPPED, EXIT_INTERRUPTED):
            return code
        if code == EXIT_INTERRUPTED:
            raise KeyboardInterrupt(f"{job.label} was interrupted; run the same command again to resume")
        # Popen reports death by a signal as its negative number.
        if code < 0:
            raise ResourceError(
                f"{job.label}: killed by signal {-code}; "
                f"fix: lower num_processes if memory ran out; see the log {job.log_file}"
            )
        message = last_line(job.log_file)
        raise ERROR_OF_EXIT_CODE.get(code, ParetuneError)(
            f"{job.label} failed: {message}; see the log {job.log_file}"
        )

    def _terminate_all(self) -> None:
        """Ask every run to stop after its step, and wait for all of them.

        Ctrl-C in a terminal has reached the children already: they share its process group.
        """
        for _, process in self.running.values():
            process.terminate()
        for _, process in self.running.values():
            process.wait()
        self.running.clear()


def last_line(log_file: Path) -> str:
    """The last line of a log with any text."""
    lines = log_file.read_text(encoding="utf-8", errors="replace").split("\n")
    return next((line for line in reversed(lines) if line.strip()), "no output")
