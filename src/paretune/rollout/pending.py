"""Responses that are sampled while the caller goes on, and how such a rollout is started and cancelled."""

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from socket import SHUT_RDWR, socket
from threading import Lock
from typing import Any, Generic, Protocol, TypeVar, runtime_checkable

from paretune.data.records import Prompt
from paretune.rollout.sampler import OnPolicy, Rollout, Sampler

T = TypeVar("T")

CANCEL_SECONDS = 10.0
"""Longest wait for a thread whose requests were cancelled."""


@runtime_checkable
class PendingRollout(Protocol):
    """A rollout that was started."""

    @property
    def seconds(self) -> float:
        """Seconds that the sampling took; 0 while it goes on."""
        ...

    def result(self) -> Rollout:
        """Wait for the responses; of several ranks all call it. Raises what the sampler raises."""
        ...

    def cancel(self) -> None:
        """Give the responses up; nothing happens if they are there."""
        ...


class FinishedRollout:
    """A rollout that was sampled when it was asked for, since it needs the device of the training."""

    def __init__(self, sample: Callable[[], Rollout]) -> None:
        start = time.perf_counter()
        self._rollout = sample()
        self.seconds = time.perf_counter() - start

    def result(self) -> Rollout:
        """See `PendingRollout`."""
        return self._rollout

    def cancel(self) -> None:
        """See `PendingRollout`."""


class ThreadRollout(Generic[T]):
    """A rollout whose requests are answered in a thread.

    Args:
        request: Gets the answers; called in the thread, so it uses neither models nor tokenizers.
        build: Makes the rollout of the answers; called by `result` in the caller's thread.
        stop: Ends the requests early, from another thread.
    """

    def __init__(
        self, request: Callable[[], T], build: Callable[[T], Rollout], stop: Callable[[], None]
    ) -> None:
        self.seconds = 0.0
        self._request, self._build, self._stop = request, build, stop
        executor = ThreadPoolExecutor(1, "rollout")
        self._answers: Future[T] = executor.submit(self._run)
        executor.shutdown(wait=False)  # the thread ends with its only task

    def _run(self) -> T:
        start = time.perf_counter()
        try:
            return self._request()
        finally:
            self.seconds = time.perf_counter() - start

    def result(self) -> Rollout:
        """See `PendingRollout`."""
        return self._build(self._answers.result())

    def cancel(self) -> None:
        """See `PendingRollout`. The interpreter would wait at its end for a thread that goes on."""
        if not self._answers.done():
            self._stop()
            wait([self._answers], CANCEL_SECONDS)


class Cancellation:
    """Ends requests that are in flight, from another thread."""

    def __init__(self) -> None:
        self.requested = False
        self._sockets: set[socket] = set()
        self._lock = Lock()

    def cancel(self) -> None:
        """Close the connections of all requests; a request that starts later fails at once."""
        with self._lock:
            self.requested = True
            for connection in self._sockets:
                with suppress(OSError):  # the other side closed it first
                    connection.shutdown(SHUT_RDWR)

    @contextmanager
    def guards(self, connection: socket) -> Iterator[None]:
        """A block in which `cancel` closes the connection.

        Raises:
            ConnectionAbortedError: It was cancelled before.
        """
        with self._lock:
            if self.requested:
                raise ConnectionAbortedError("the rollout was cancelled")
            self._sockets.add(connection)
        try:
            yield
        finally:
            with self._lock:
                self._sockets.discard(connection)


def start_sampler(
    sampler: Sampler,
    prompts: Sequence[Prompt],
    rollout: OnPolicy,
    *,
    seed: int,
    step: int,
    prompt_index: Sequence[int] | None = None,
) -> PendingRollout:
    """Start to sample, if the sampler has a method `start`; else sample now. Arguments as for `Sampler`."""
    arguments: dict[str, Any] = {"seed": seed, "step": step, "prompt_index": prompt_index}
    start = getattr(sampler, "start", None)
    if start is None:
        return FinishedRollout(lambda: sampler(prompts, rollout, **arguments))
    pending: PendingRollout = start(prompts, rollout, **arguments)
    return pending
