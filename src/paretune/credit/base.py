"""The interface of a credit step, and the chain of steps."""

from dataclasses import dataclass
from typing import Any

import torch

from paretune.core.batch import Batch
from paretune.core.errors import WiringError

State = Any
"""Carried by a step from one training step to the next: a tree of tensors and numbers, or None."""

Metrics = dict[str, float]


class CreditStep:
    """One step. A subclass is a frozen dataclass whose fields are its hyper-parameters.

    A step that is neither stateful nor random and logs nothing overrides `apply`; any other overrides
    `init_state` (if it has state) and `apply_stateful`.
    """

    def init_state(self) -> State:
        """The state before the first training step."""
        return None

    def apply(self, batch: Batch) -> Batch:
        """Transform the batch.

        Raises:
            WiringError: The subclass overrides neither this nor `apply_stateful`.
        """
        raise WiringError(
            f"{type(self).__name__} does nothing: it overrides neither apply nor apply_stateful"
        )

    def apply_stateful(
        self, batch: Batch, state: State, rng: torch.Generator
    ) -> tuple[Batch, State, Metrics]:
        """Transform the batch; return it with the next state and the metrics of this training step."""
        return self.apply(batch), state, {}


@dataclass(frozen=True)
class Chain(CreditStep):
    """Steps applied one after the other; the state is the tuple of their states."""

    steps: tuple[CreditStep, ...]

    def init_state(self) -> State:
        """The initial states of all steps."""
        return tuple(step.init_state() for step in self.steps)

    def apply_stateful(
        self, batch: Batch, state: State, rng: torch.Generator
    ) -> tuple[Batch, State, Metrics]:
        """Apply every step in turn; metrics of later steps overwrite equal keys of earlier ones."""
        next_states: list[State] = []
        metrics: Metrics = {}
        for step, step_state in zip(self.steps, state, strict=True):
            batch, next_state, step_metrics = step.apply_stateful(batch, step_state, rng)
            next_states.append(next_state)
            metrics |= step_metrics
        return batch, tuple(next_states), metrics


def chain(*steps: CreditStep) -> Chain:
    """The steps as one step."""
    return Chain(steps)


def flatten_steps(step: CreditStep) -> tuple[CreditStep, ...]:
    """All steps of a chain, nested chains flattened; for any other step, a tuple of that step."""
    return (
        tuple(inner for nested in step.steps for inner in flatten_steps(nested))
        if isinstance(step, Chain)
        else (step,)
    )
