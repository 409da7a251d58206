"""Communication with workers: a worker is a process that does one step per request."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Any

Numbers = dict[str, float]


class Worker:
    """A worker process, as seen by the benchmark."""

    def __init__(self, module: str, job: Mapping[str, Any], log: Path) -> None:
        """Start the process; `ready` waits until it has loaded its models.

        Args:
            module: Module of this package, whose `main` receives the job.
            job: Description of the work; JSON values.
            log: File for everything that the process prints.
        """
        self.name, self.log = module, log
        log.parent.mkdir(parents=True, exist_ok=True)
        offline = {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "TOKENIZERS_PARALLELISM": "false"}
        with log.open("w") as log_file:
            self.process = subprocess.Popen(
                [sys.executable, "-m", f"bench.{module}", json.dumps(job)],
                cwd=Path(__file__).parent.parent,
                env=os.environ | offline,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log_file,
                text=True,
            )

    def ready(self) -> Numbers:
        """Wait until the process is ready."""
        return self._receive()

    def step(self) -> Numbers:
        """Run one step, while all other workers are idle; returns its figures."""
        assert self.process.stdin is not None
        self.process.stdin.write("step\n")
        self.process.stdin.flush()
        return self._receive()

    def _receive(self) -> Numbers:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"bench: the worker {self.name} exited unexpectedly; see {self.log}")
        numbers: Numbers = json.loads(line)
        return numbers

    def __enter__(self) -> "Worker":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        try:
            self.process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self.process.kill()


class BenchChannel:
    """The benchmark, as seen by a worker."""

    def __init__(self) -> None:
        """Reserve standard output for results; everything else that is printed goes to the log."""
        self.out: IO[str] = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)

    def send(self, numbers: Mapping[str, float]) -> None:
        """Send one line of figures."""
        self.out.write(json.dumps(dict(numbers)) + "\n")
        self.out.flush()

    def wait_for_request(self) -> None:
        """Wait for the next step; exits the process when there are no more."""
        if not sys.stdin.readline():
            sys.stdout.flush()
            os._exit(0)  # the only way out of a trainer's loop
        reset_peak_memory()

    def serve(self, step: Callable[[], Numbers]) -> None:
        """Call `step` for every request, until the process exits."""
        while True:
            self.wait_for_request()
            timer = Timer()
            self.send({**step(), **timer.read()})


class Timer:
    """Time and memory since construction."""

    def __init__(self) -> None:
        """Start."""
        self.wall, self.processor = time.perf_counter(), time.process_time()

    def read(self) -> Numbers:
        """Wall time, processor time of all threads, and peak memory in bytes.

        On a busy machine, processor time of a single thread is more reliable than wall time.
        """
        wall, processor = time.perf_counter() - self.wall, time.process_time() - self.processor
        return {"step": wall, "processor": processor, "memory": peak_memory_bytes()}


def reset_peak_memory() -> None:
    """Reset the process's peak memory; without /proc it remains the peak since the process started."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


def peak_memory_bytes() -> float:
    """Peak resident memory in bytes since `reset_peak_memory`."""
    from paretune.run.system import peak_rss_bytes

    return float(peak_rss_bytes())
