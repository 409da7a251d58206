"""A thread per rank that shows that its process lives, and notices another one that does not.

A killed process closes its connections, which its peers notice at once. A stopped one (SIGSTOP, a host that
swaps, a hung file system) closes nothing: the others would wait for hours.
"""

import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path

from paretune.core.errors import RankError
from paretune.core.launch import PROCESS, is_distributed, rank, world_size
from paretune.run.heartbeat import describe_stopped

INTERVAL = 2.0
"""Seconds between two signs of life."""
STOPPED_AFTER = 60.0
"""Seconds without one after which a rank counts as stopped; code that holds Python's lock shows none."""
EXIT_AFTER = 180.0
"""Seconds after which the process ends by itself: it waits inside a library, where no error can be raised."""


class Liveness:
    """Writes a counter to `ranks/` and reads those of the other ranks.

    The counters are compared with this process's own clock, so that the clocks of hosts need not agree.
    """

    def __init__(self, run_dir: Path) -> None:
        self.folder, self._run_dir = run_dir / "ranks", run_dir
        self._seen: dict[int, tuple[str, float]] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="paretune-liveness", daemon=True)

    def __enter__(self) -> "Liveness":
        self.folder.mkdir(exist_ok=True)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join()
        PROCESS.stopped_rank = None

    def _watch(self) -> None:
        counter, last = 0, time.monotonic()
        while not self._stop.wait(INTERVAL):
            counter += 1
            with suppress(OSError):
                self._file(rank()).write_text(str(counter))
            now = time.monotonic()
            if now - last > 3 * INTERVAL:  # this process itself was stopped: nothing is known of the others
                self._seen.clear()
            last = now
            self._check(now)

    def _check(self, now: float) -> None:
        for other in set(range(world_size())) - {rank()}:
            with suppress(OSError):
                text = self._file(other).read_text()
                if text != self._seen.get(other, ("", 0.0))[0]:
                    self._seen[other] = (text, now)
        ages = {other: now - since for other, (_, since) in self._seen.items()}
        stopped = [other for other, age in ages.items() if age > STOPPED_AFTER]
        PROCESS.stopped_rank = min(stopped, default=None)
        if any(ages[other] > EXIT_AFTER for other in stopped):
            sys.stderr.write(f"{describe_stopped(self._run_dir, min(stopped))}\n")
            os._exit(RankError.exit_code)

    def _file(self, number: int) -> Path:
        return self.folder / f"alive-{number:05d}"


@contextmanager
def watch_ranks(run_dir: Path) -> Iterator[None]:
    """Context in which the ranks of a run watch each other; does nothing with one process."""
    with Liveness(run_dir) if is_distributed() else nullcontext():
        yield
