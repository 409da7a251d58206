"""Guards of a training loop: finite checks before weights change, and stop requests by signal."""

import math
import os
import signal
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from types import FrameType, TracebackType
from typing import Any

from torch import Tensor

from paretune.core import ranks
from paretune.core.batch import Batch
from paretune.core.errors import NonFiniteError, RunInterrupted
from paretune.data.records import Sample

SCORES_FIX = "look at the scores of these responses and at the weights of the objectives"
NUM_NAMED_PROMPTS = 5
"""Prompts that an error names: enough to find a pattern, few enough for one line."""


@dataclass(frozen=True)
class FiniteCheck:
    """Checks that the numbers of one training step are finite.

    Every method raises a NonFiniteError that names the step, the quantity and the prompts it comes from.
    """

    step: int
    prompt_names: Mapping[int, str]
    """Group number to the name of its prompt."""
    last_checkpoint_step: int | None = None
    """Steps in the last checkpoint; None: there is none yet."""

    @classmethod
    def from_batch(
        cls, step: int, batch: Batch, samples: Sequence[Sample], last_checkpoint_step: int | None = None
    ) -> "FiniteCheck":
        """Checks for a step with the prompts of this batch."""
        groups = batch.group.tolist()
        names = {g: s.prompt.id for g, s in zip(groups, samples, strict=True) if s.prompt.id}
        return cls(step, {g: names.get(g, f"number {g} of the step") for g in groups}, last_checkpoint_step)

    def check_rollout(self, batch: Batch) -> None:
        """Scores may be NaN (not scored) but not infinite; log-probabilities of the sampler are finite."""
        self._check_fields(batch, ("rollout_logprobs",), self._model_fix())
        for k, name in enumerate(batch.objectives):
            bad = batch.scores[:, k].isinf()
            if bad.any():
                fix = "look at the scorer of this objective, and at these responses"
                self.fail(f'the score "{name}" is infinite', batch.select(bad.nonzero().squeeze(-1)), fix)

    def check_rewards(self, batch: Batch) -> None:
        """At least one response has a reward, and none is infinite."""
        bad = batch.rewards.isinf().any(-1)
        if bad.any():
            self.fail("the reward is infinite", batch.select(bad.nonzero().squeeze(-1)), SCORES_FIX)
        if batch.rewards.isnan().all():
            unscored = [n for k, n in enumerate(batch.objectives) if batch.scores[:, k].isnan().all()]
            which = ": no response has a score for " + ", ".join(unscored) if unscored else ""
            fix = "find out why they are not scored (too long for the reward model?)"
            self.fail(f"the reward of every response is NaN{which}", batch, fix)

    def check_model_passes(self, batch: Batch) -> None:
        """Log-probabilities, values and token rewards are finite."""
        self._check_fields(batch, ("old_logprobs", "ref_logprobs", "values"), self._model_fix())
        self._check_fields(batch, ("token_rewards",), SCORES_FIX)

    def check_advantages(self, batch: Batch) -> None:
        """Advantages and returns are finite."""
        self._check_fields(batch, ("advantages", "returns"), SCORES_FIX)

    def check_tokens(self, quantity: str, x: Tensor, batch: Batch, fix: str = "") -> None:
        """A quantity per token is finite on the responses; default `fix`: that for outputs of a model."""
        invalid = ~x.isfinite()
        bad = (invalid if invalid.ndim == 2 else invalid.any(-1)) & batch.response_mask
        if bad.any():
            rows = batch.select(bad.any(-1).nonzero().squeeze(-1))
            self.fail(f"{quantity} is not finite", rows, fix or self._model_fix())

    def check_loss(self, value: Tensor, loss_values: Mapping[str, float], batch: Batch) -> None:
        """The loss of a micro-batch is finite."""
        if not math.isfinite(float(value.detach())):
            terms = ", ".join(f"{name} {term:g}" for name, term in loss_values.items())
            self.fail(f"the loss is {float(value.detach())} ({terms})", batch, self._update_fix())

    def check_grad_norm(self, value: float, batch: Batch) -> None:
        """The gradient norm is finite."""
        if not math.isfinite(value):
            self.fail(f"the gradient norm is {value}", batch, self._update_fix())

    def _check_fields(self, batch: Batch, names: Sequence[str], fix: str) -> None:
        for name in names:
            x = getattr(batch, name)
            if x is not None:
                self.check_tokens(f"batch.{name}", x, batch, fix)

    def _model_fix(self) -> str:
        # Before the first update the learning rate cannot be the cause.
        first = "lower training.learning_rate" if self.step else "look at the weights in policy.path"
        return f"{first}, or try policy.dtype=float32"

    def _update_fix(self) -> str:
        return "look at these prompts and their scores, or " + (
            "lower training.learning_rate" if self.step else "try policy.dtype=float32"
        )

    def fail(self, problem: str, batch: Batch, fix: str) -> None:
        """Stop the run.

        Args:
            problem: The quantity and its value.
            batch: The rows it comes from.
            fix: What to try.

        Raises:
            NonFiniteError: Always.
        """
        names = list(dict.fromkeys(self.prompt_names.get(g, f"number {g}") for g in batch.group.tolist()))
        rest = len(names) - NUM_NAMED_PROMPTS
        more = f" and {rest} more" if rest > 0 else ""
        intact = "there is no checkpoint yet"
        if self.last_checkpoint_step is not None:
            intact = f"the checkpoint after {self.last_checkpoint_step} steps is intact"
        raise NonFiniteError(
            f"step {self.step}: {problem}, on responses to the prompts "
            f"{', '.join(names[:NUM_NAMED_PROMPTS])}{more}; this update did not reach the weights, and "
            f"{intact}; fix: {fix}"
        )


NOTHING_SAVED = "before anything was saved; repeat the command to start again"
"""End of the message if a run stops without a checkpoint."""


STOPPING = "stopping after this step"
_INTERRUPT_AGAIN = "; press Ctrl-C again to stop at once"


class StopRequest:
    """Context in which SIGTERM and the first Ctrl-C only set a flag; a second Ctrl-C interrupts at once.

    The loop asks for the flag when a step is complete, so that a checkpoint is written first. A nested
    context takes over the flag of the outer one and passes on a request that it did not raise. Outside the
    main thread, where Python allows no signal handlers, nothing is ever requested.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self._previous_handlers: dict[int, Any] = {}

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._previous_handlers[number] = signal.signal(number, self._handle_signal)
                outer = getattr(self._previous_handlers[number], "__self__", None)
                if isinstance(outer, StopRequest):
                    self.signal = outer.signal
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for number, handler in self._previous_handlers.items():
            signal.signal(number, handler)
        outer = getattr(self._previous_handlers.get(self.signal or 0), "__self__", None)
        if exc is None and isinstance(outer, StopRequest):
            outer.signal = outer.signal or self.signal

    @property
    def requested(self) -> bool:
        """A signal came."""
        return self.signal is not None

    def share(self) -> None:
        """Let all ranks know of a signal that came to some of them, so that they stop at the same step."""
        number = ranks.largest(self.signal or 0)
        self.signal = self.signal or (number or None)

    def raise_if_stopped(self, saved_at: str = "") -> None:
        """Stop if a signal came; to be called when everything is saved.

        Args:
            saved_at: Where the run is saved, for the message; "": nothing is.

        Raises:
            RunInterrupted: SIGTERM came.
            KeyboardInterrupt: Ctrl-C came; the message is like that of RunInterrupted.
        """
        if self.signal is None:
            return
        outcome = f"after {saved_at}; repeat the command to resume" if saved_at else NOTHING_SAVED
        if self.signal == signal.SIGINT:
            raise KeyboardInterrupt(f"interrupted {outcome}")
        raise RunInterrupted(f"stopped by a signal {outcome}")

    def _handle_signal(self, signum: int, frame: FrameType | None) -> None:
        if signum == signal.SIGINT and self.signal == signal.SIGINT:
            raise KeyboardInterrupt
        if self.signal is None:
            _tell_stopping(signum)
        self.signal = self.signal or signum


def _tell_stopping(signum: int) -> None:
    """Say at once that the request came: a step may take minutes. Of several ranks, the first one says it."""
    if not ranks.is_first():
        return
    with suppress(OSError):  # no standard error
        # Not through sys.stderr or the console: the signal may have come while they were writing.
        text = STOPPING + _INTERRUPT_AGAIN * (signum == signal.SIGINT)
        os.write(2, b"\n" * os.isatty(2) + text.encode() + b"\n")
