"""Where the seconds of a training step go, and what was done in them."""

import math
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

import torch

STEP_PHASES = ("sample", "score", "measure", "learn", "save")
"""Responses drawn, scored, put to old and frozen models, learnt from; checkpoints written before the step."""


class PhaseTimer:
    """Seconds of each phase since the last reading, tokens and floating-point operations."""

    def __init__(self) -> None:
        self._reset()

    def _reset(self) -> None:
        self.seconds = dict.fromkeys(STEP_PHASES, 0.0)
        self._tokens: dict[str, int] = defaultdict(int)
        self._flops: dict[str, float] = defaultdict(float)

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

    def record_work(self, phase: str, *, flops: float, tokens: int = 0) -> None:
        """Count what a phase had to do; NaN: nobody can say, and so not of the whole phase either."""
        self._tokens[phase] += tokens
        self._flops[phase] += flops

    def read_and_reset(self, total_seconds: float) -> dict[str, float]:
        """The phases of a step that took `total_seconds` seconds, and begin anew; "idle" is what is left of it.

        Tokens a second and operations stand beside the seconds of a phase where it had any.
        """
        found, tokens, flops = self.seconds, self._tokens, self._flops
        self._reset()
        rates = {
            f"tokens_per_second/{phase}": n / found[phase]
            for phase, n in tokens.items()
            if n and found[phase]
        }
        done = {f"flops/{phase}": n for phase, n in flops.items() if n and math.isfinite(n)}
        # A checkpoint is written between two steps, so it is no part of either.
        return {
            **found,
            "idle": max(total_seconds - sum(found.values()) + found["save"], 0.0),
            **rates,
            **done,
        }
