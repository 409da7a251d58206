"""Signals that ask a run to stop: noted when they come, obeyed when a step is complete."""

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

from paretune.errors import RunInterrupted

NOTHING_SAVED = "before anything of it was saved; give the same command again to begin where this one began"
"""How a message goes on that says of a stop that nothing came of this attempt."""


class StopRequest:
    """While the context lasts, SIGTERM and the first Ctrl-C are only noted; a second Ctrl-C interrupts.

    A context inside another knows what came before it, and hands on what it did not obey itself. Outside
    the main thread, where handlers cannot be set, nothing is ever requested.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self._previous_handlers: dict[int, Any] = {}

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._previous_handlers[number] = signal.signal(number, self._handle_signal)
                around = getattr(self._previous_handlers[number], "__self__", None)
                if isinstance(around, StopRequest):
                    self.signal = around.signal
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for number, handler in self._previous_handlers.items():
            signal.signal(number, handler)
        around = getattr(self._previous_handlers.get(self.signal or 0), "__self__", None)
        if exc is None and isinstance(around, StopRequest):
            around.signal = around.signal or self.signal

    @property
    def requested(self) -> bool:
        """Has a signal come?"""
        return self.signal is not None

    def raise_if_stopped(self, saved_at: str = "") -> None:
        """Stop if a signal has come; call it when everything is saved, and say where; "": nothing was.

        Raises:
            Stopped: SIGTERM came.
            KeyboardInterrupt: Ctrl-C came; its text says what was saved, like that of Stopped.
        """
        if self.signal is None:
            return
        kept = (
            f"after {saved_at}; give the same command again to go on from there"
            if saved_at
            else NOTHING_SAVED
        )
        if self.signal == signal.SIGINT:
            raise KeyboardInterrupt(f"interrupted {kept}")
        raise RunInterrupted(f"stopped by a signal {kept}")

    def _handle_signal(self, signum: int, frame: FrameType | None) -> None:
        if signum == signal.SIGINT and self.signal == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = self.signal or signum
