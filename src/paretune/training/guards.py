"""The guard: a NaN or an infinity stops the run before it reaches the weights, and is told by its source.

Signals that ask a run to stop: noted when they come, obeyed when a step is complete.
"""

import math
import signal
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import FrameType, TracebackType
from typing import Any

from torch import Tensor

from paretune.core.batch import Batch
from paretune.core.errors import NonFiniteError, RunInterrupted
from paretune.data.records import Sample

SCORES_FIX = "look at the scores of these responses and at the weights of the objectives"


@dataclass(frozen=True)
class FiniteCheck:
    """Looks at the numbers of one training step.

    Every method raises a TrainingGuard that names the step, the quantity, and the prompts it came from.
    """

    step: int
    prompt_names: Mapping[int, str]
    """Group number to the name of its prompt."""
    last_checkpoint_step: int | None = None
    """Of the last checkpoint, the steps that it holds; None: there is none yet."""

    @classmethod
    def from_batch(
        cls, step: int, batch: Batch, samples: Sequence[Sample], last_checkpoint_step: int | None = None
    ) -> "FiniteCheck":
        """A guard that knows the prompts of this batch, and of the last checkpoint."""
        groups = batch.group.tolist()
        names = {g: s.prompt.id for g, s in zip(groups, samples, strict=True) if s.prompt.id}
        return cls(step, {g: names.get(g, f"number {g} of the step") for g in groups}, last_checkpoint_step)

    def check_rollout(self, batch: Batch) -> None:
        """Scores may be NaN (nobody could say) and never infinite; the sampler's answers must be numbers."""
        self._check_fields(batch, ("sampler_logp",), self._model_fix())
        for k, name in enumerate(batch.objectives):
            bad = batch.scores[:, k].isinf()
            if bad.any():
                fix = "look at what scores it, and at these responses"
                self.fail(f'the score "{name}" is infinite', batch.select(bad.nonzero().squeeze(-1)), fix)

    def check_rewards(self, batch: Batch) -> None:
        """Some response must have a signal, and none an infinite one."""
        bad = batch.rewards.isinf().any(-1)
        if bad.any():
            self.fail("the signal is infinite", batch.select(bad.nonzero().squeeze(-1)), SCORES_FIX)
        if batch.rewards.isnan().all():
            unscored = [n for k, n in enumerate(batch.objectives) if batch.scores[:, k].isnan().all()]
            which = ": no response has a score for " + ", ".join(unscored) if unscored else ""
            fix = "look at why they are not scored (too long for the reward model?)"
            self.fail(f"the signal of every response is NaN{which}", batch, fix)

    def check_model_passes(self, batch: Batch) -> None:
        """What models said of the batch."""
        self._check_fields(batch, ("behaviour_logp", "reference_logp", "values"), self._model_fix())
        self._check_fields(batch, ("token_reward",), SCORES_FIX)

    def check_advantages(self, batch: Batch) -> None:
        """What the losses will read."""
        self._check_fields(batch, ("advantages", "returns"), SCORES_FIX)

    def check_tokens(self, quantity: str, x: Tensor, batch: Batch, fix: str = "") -> None:
        """A quantity per token is finite on the responses; `fix`: where it does not come from the policy."""
        wrong = ~x.isfinite()
        bad = (wrong if wrong.ndim == 2 else wrong.any(-1)) & batch.response_mask
        if bad.any():
            rows = batch.select(bad.any(-1).nonzero().squeeze(-1))
            self.fail(f"{quantity} is not finite", rows, fix or self._model_fix())

    def check_loss(self, value: Tensor, loss_values: Mapping[str, float], batch: Batch) -> None:
        """The loss of a micro-batch is finite."""
        if not math.isfinite(float(value.detach())):
            each = ", ".join(f"{name} {term:g}" for name, term in loss_values.items())
            self.fail(f"the loss is {float(value.detach())} ({each})", batch, self._update_fix())

    def check_grad_norm(self, value: float, batch: Batch) -> None:
        """The norm of the gradient is finite."""
        if not math.isfinite(value):
            self.fail(f"the norm of the gradient is {value}", batch, self._update_fix())

    def _check_fields(self, batch: Batch, names: Sequence[str], fix: str) -> None:
        for name in names:
            x = getattr(batch, name)
            if x is not None:
                self.check_tokens(f"batch.{name}", x, batch, fix)

    def _model_fix(self) -> str:
        """What to do about a model's numbers; before the first update no learning rate is to blame."""
        first = "lower training.learning_rate" if self.step else "look at the weights in policy.path"
        return f"{first}, or try policy.dtype=float32"

    def _update_fix(self) -> str:
        return "look at these prompts and their scores, or " + (
            "lower training.learning_rate" if self.step else "try policy.dtype=float32"
        )

    def fail(self, problem: str, batch: Batch, fix: str) -> None:
        """Give up, and say what to do.

        Raises:
            TrainingGuard: Always.
        """
        names = list(dict.fromkeys(self.prompt_names.get(g, f"number {g}") for g in batch.group.tolist()))
        more = f" and {len(names) - 5} more" if len(names) > 5 else ""
        kept = "there is no checkpoint yet"
        if self.last_checkpoint_step is not None:
            kept = f"the checkpoint after {self.last_checkpoint_step} steps is intact"
        raise NonFiniteError(
            f"step {self.step}: {problem}, on responses to the prompts {', '.join(names[:5])}{more}; "
            f"this update did not reach the weights, and {kept}; fix: {fix}"
        )


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
