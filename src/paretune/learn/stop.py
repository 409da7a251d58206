"""Signals that ask a run to stop: noted when they come, obeyed when a step is complete."""

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

from paretune.errors import Stopped

NOTHING = "before anything of it was saved; give the same command again to begin where this one began"
"""How a message goes on that says of a stop that nothing came of this attempt."""


class StopRequest:
    """While the context lasts, SIGTERM and the first Ctrl-C are only noted; a second Ctrl-C interrupts.

    A context inside another knows what came before it, and hands on what it did not obey itself. Outside
    the main thread, where handlers cannot be set, nothing is ever requested.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._note)
                around = getattr(self._before[number], "__self__", None)
                if isinstance(around, StopRequest):
                    self.signal = around.signal
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        around = getattr(self._before.get(self.signal or 0), "__self__", None)
        if error is None and isinstance(around, StopRequest):
            around.signal = around.signal or self.signal

    @property
    def requested(self) -> bool:
        """Has a signal come?"""
        return self.signal is not None

    def obey(self, saved: str = "") -> None:
        """Stop if a signal has come; call it when everything is saved, and say where; "": nothing was.

        Raises:
            Stopped: SIGTERM came.
            KeyboardInterrupt: Ctrl-C came; its text says what was saved, like that of Stopped.
        """
        if self.signal is None:
            return
        kept = f"after {saved}; give the same command again to go on from there" if saved else NOTHING
        if self.signal == signal.SIGINT:
            raise KeyboardInterrupt(f"interrupted {kept}")
        raise Stopped(f"stopped by a signal {kept}")

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.signal == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = self.signal or number
