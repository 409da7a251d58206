"""Calls of code that is not ours: with a deadline, and with its errors as values."""

import asyncio
import inspect
import threading
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from queue import Empty, SimpleQueue
from traceback import walk_tb
from types import TracebackType
from typing import Any

from paretune.core.errors import ScoringError, first_line

MAX_HANGING_CALLS = 4
"""Calls that may hang at the same time before the run stops."""
_MAX_REASON_CHARS = 200
_GRACE_SECONDS = 1.0
"""Further seconds for a coroutine to be cancelled, before its thread counts as hanging."""


class CallTimeout(Exception):
    """A call took longer than its deadline."""


@dataclass
class Attempt(AbstractContextManager["Attempt"]):
    """The result or the error of code that is not ours, which can raise anything; its body never raises.

    In the main thread, Ctrl-C is the user's, and passes.
    """

    value: Any = None
    error: BaseException | None = None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        self.error = error
        in_main_thread = threading.current_thread() is threading.main_thread()
        return isinstance(error, Exception | SystemExit) or (error is not None and not in_main_thread)


def describe_error(error: BaseException, source: Path | None = None) -> str:
    """One line such as `ValueError: no number found (rewards.py:12)`.

    Args:
        error: The error of a call.
        source: File of the code that was called; its innermost line in the traceback is given.
    """
    if isinstance(error, CallTimeout):
        return "timeout"
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]  # what failed in a task group
    name = type(error).__name__
    with Attempt() as attempt:  # an error may fail to describe itself
        attempt.value = first_line(error)
    text = name if attempt.error is not None else str(attempt.value)
    reason = text if text == name else f"{name}: {text}"
    if len(reason) > _MAX_REASON_CHARS:
        reason = f"{reason[:_MAX_REASON_CHARS]}..."
    if isinstance(error, ValueError) and "signal" in text and "thread" in text:
        reason = f"{reason}; fix: timeout: null calls the function in the main thread"
    line = line_of_error(error, source)
    return reason if line is None or source is None else f"{reason} ({source.name}:{line})"


def line_of_error(error: BaseException, source: Path | None) -> int | None:
    """The innermost line of a file in the traceback of an error; None if the file is not in it."""
    if isinstance(error, SyntaxError) and source is not None and error.filename == str(source):
        return error.lineno
    lines = [
        line
        for frame, line in walk_tb(error.__traceback__)
        if source is not None and frame.f_code.co_filename == str(source)
    ]
    return lines[-1] if lines else None


def is_async(function: Callable[..., Any]) -> bool:
    """Whether a function, or the `__call__` of an object, is a coroutine function."""
    function = function.func if isinstance(function, partial) else function
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(type(function).__call__)


async def _within(awaitable: Awaitable[Any], timeout: float | None) -> Any:
    try:
        async with asyncio.timeout(timeout) as scope:
            return await awaitable
    except TimeoutError as error:
        # The function may raise a TimeoutError of its own.
        if scope.expired():
            raise CallTimeout from error
        raise


async def _attempt_all(calls: Sequence[Callable[[], Any]], timeout: float | None) -> list[Attempt]:
    async def attempt_one(call: Callable[[], Any]) -> Attempt:
        with Attempt() as attempt:
            attempt.value = await _within(call(), timeout)
        return attempt

    return await asyncio.gather(*(attempt_one(call) for call in calls))


def _serve(
    requests: SimpleQueue[tuple[Callable[[asyncio.Runner], Any], SimpleQueue[Attempt]] | None],
) -> None:
    """Loop of a thread: one event loop for all its coroutines, so that clients and sessions stay open."""
    runner = asyncio.Runner()
    runner.get_loop()  # makes it the thread's loop, for functions that ask for `asyncio.get_event_loop()`
    while (request := requests.get()) is not None:
        call, reply = request
        with Attempt() as attempt:
            attempt.value = call(runner)
        reply.put(attempt)
    runner.close()


@dataclass
class CallThread:
    """Runs the calls of one function in a thread of their own, which is given up when a call hangs.

    Python cannot end a thread: a call that hangs keeps its thread, and whatever it uses, until it returns or
    the process ends, and further calls get a new thread. The threads are daemons, so that the process can
    end. A call that holds the interpreter's lock all the time, such as `re` on a pattern with catastrophic
    backtracking, delays its own deadline too.
    """

    _requests: SimpleQueue[Any] | None = None
    _thread: threading.Thread | None = None
    _hanging: list[threading.Thread] = field(default_factory=list)

    def __reduce__(self) -> tuple[type["CallThread"], tuple[()]]:
        """Another process starts a thread of its own."""
        return CallThread, ()

    def attempt_all(
        self, calls: Sequence[Callable[[], Any]], timeout: float | None, *, concurrent: bool
    ) -> list[Attempt]:
        """The results or errors of the calls, in their order.

        Args:
            calls: Functions without arguments; what they return may be awaitable.
            timeout: Seconds per call; None: no limit.
            concurrent: They are coroutine functions, and run at the same time.

        Raises:
            ScoringError: Too many calls hang.
        """
        if concurrent:
            together = self._attempt(
                lambda runner: runner.run(_attempt_all(calls, timeout)),
                None if timeout is None else timeout + _GRACE_SECONDS,
            )
            return together.value if together.error is None else [together] * len(calls)
        if timeout is None:
            return [self._attempt_here(call) for call in calls]
        return [self._attempt(_request(call, timeout), timeout) for call in calls]

    def _attempt_here(self, call: Callable[[], Any]) -> Attempt:
        """In the calling thread: without a deadline nothing has to be given up."""
        with Attempt() as attempt:
            value = call()
            attempt.value = asyncio.run(_within(value, None)) if inspect.isawaitable(value) else value
        return attempt

    def _attempt(self, call: Callable[[asyncio.Runner], Any], timeout: float | None) -> Attempt:
        if self._requests is None:
            self._requests = SimpleQueue()
            self._thread = threading.Thread(
                target=_serve, args=(self._requests,), name="paretune-function", daemon=True
            )
            self._thread.start()
        reply: SimpleQueue[Attempt] = SimpleQueue()
        self._requests.put((call, reply))
        try:
            return reply.get(timeout=timeout)
        except Empty:
            self._give_up(timeout)
            return Attempt(error=CallTimeout())

    def _give_up(self, timeout: float | None) -> None:
        assert self._requests is not None
        assert self._thread is not None
        self._requests.put(None)  # the thread ends if the call ever returns
        self._hanging = [thread for thread in (*self._hanging, self._thread) if thread.is_alive()]
        self._requests = self._thread = None
        if len(self._hanging) >= MAX_HANGING_CALLS:
            raise ScoringError(
                f"{len(self._hanging)} calls did not return within {timeout:g} s and still run; "
                "fix: give the function's own requests and loops a limit, or raise timeout"
            )


def _request(call: Callable[[], Any], timeout: float) -> Callable[[asyncio.Runner], Any]:
    def run(runner: asyncio.Runner) -> Any:
        value = call()
        return runner.run(_within(value, timeout)) if inspect.isawaitable(value) else value

    return run
