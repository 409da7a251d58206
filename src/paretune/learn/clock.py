"""Where the seconds of a training step go."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

PHASES = ("sample", "score", "measure", "learn", "save")
"""Responses drawn, scored, put to old and frozen models, learnt from; checkpoints written before the step."""


class Clock:
    """Seconds of each phase since the last reading."""

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(PHASES, 0.0)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Count what happens inside; on an accelerator until it has really happened."""
        start = time.perf_counter()
        try:
            yield
        finally:
            if torch.cuda.is_initialized():
                torch.cuda.synchronize()
            self.seconds[name] += time.perf_counter() - start

    def reading(self, whole: float) -> dict[str, float]:
        """The phases of a step that took `whole` seconds, and begin anew; "idle" is what is left of it."""
        found, self.seconds = self.seconds, dict.fromkeys(PHASES, 0.0)
        # A checkpoint is written between two steps, so it is no part of either.
        return {**found, "idle": max(whole - sum(found.values()) + found["save"], 0.0)}
