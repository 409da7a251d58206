"""Between the bench and its workers: a worker is a process that does one step each time it is asked."""

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
    """A side of the comparison, seen from the bench."""

    def __init__(self, module: str, job: Mapping[str, Any], log: Path) -> None:
        """Start it; `ready` waits until it has loaded what it needs.

        Args:
            module: Of this package; its `main` is given the job.
            job: What to do, as JSON can say it.
            log: Where everything goes that it prints.
        """
        self.name, self.log = module, log
        log.parent.mkdir(parents=True, exist_ok=True)
        offline = {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "TOKENIZERS_PARALLELISM": "false"}
        with log.open("w") as printed:
            self.process = subprocess.Popen(
                [sys.executable, "-m", f"bench.{module}", json.dumps(job)],
                cwd=Path(__file__).parent.parent,
                env=os.environ | offline,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=printed,
                text=True,
            )

    def ready(self) -> Numbers:
        """Wait until it is; what it says of itself."""
        return self._hear()

    def step(self) -> Numbers:
        """Let it do one step, and nobody else anything; what that took."""
        assert self.process.stdin is not None
        self.process.stdin.write("step\n")
        self.process.stdin.flush()
        return self._hear()

    def _hear(self) -> Numbers:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"bench: {self.name} ended before its time; see {self.log}")
        found: Numbers = json.loads(line)
        return found

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


class Stage:
    """The bench, seen from a worker."""

    def __init__(self) -> None:
        """Keep standard output for the bench; whatever else prints goes to the log."""
        self.out: IO[str] = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)

    def tell(self, numbers: Mapping[str, float]) -> None:
        """Send the bench one line."""
        self.out.write(json.dumps(dict(numbers)) + "\n")
        self.out.flush()

    def wait(self) -> None:
        """Wait to be asked for a step; end where no more are wanted."""
        if not sys.stdin.readline():
            sys.stdout.flush()
            os._exit(0)  # from within a trainer's loop there is no other way out
        forget_peak()

    def serve(self, step: Callable[[], Numbers]) -> None:
        """One call a step, for ever."""
        while True:
            self.wait()
            clock = Clock()
            self.tell({**step(), **clock.read()})


class Clock:
    """What a step took, from its making on."""

    def __init__(self) -> None:
        """Begin."""
        self.wall, self.processor = time.perf_counter(), time.process_time()

    def read(self) -> Numbers:
        """Seconds, those of the processor (all threads) and the peak of memory.

        On a machine with other work those of the processor say more; it must then be a single thread.
        """
        wall, processor = time.perf_counter() - self.wall, time.process_time() - self.processor
        return {"step": wall, "processor": processor, "memory": peak()}


def forget_peak() -> None:
    """Let the process's peak memory begin anew; where the system cannot, it stays that of its whole life."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


def peak() -> float:
    """Bytes of main memory that this process held at most since `forget_peak`."""
    from paretune.run.system import peak_rss_bytes

    return float(peak_rss_bytes())
