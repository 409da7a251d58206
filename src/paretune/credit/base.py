"""Credit assignment as a chain of small steps: (batch, state, rng) -> (batch, state, metrics)."""

from dataclasses import dataclass
from typing import Any

import torch

from paretune.core.batch import Batch
from paretune.core.errors import WiringError

State = Any
"""What a step remembers from one training step to the next: a tree of tensors and numbers, or None."""

Metrics = dict[str, float]


class CreditStep:
    """One step. A subclass is a frozen dataclass whose fields are its hyper-parameters.

    Steps without memory or chance override `apply`; the others override `init_state` and `apply_stateful`.
    """

    def init_state(self) -> State:
        """The state before the first training step."""
        return None

    def apply(self, batch: Batch) -> Batch:
        """What the step does to a batch.

        Raises:
            WiringError: The subclass overrides neither this nor `apply_stateful`.
        """
        raise WiringError(f"{type(self).__name__} does nothing: it overrides neither apply nor advance")

    def apply_stateful(
        self, batch: Batch, state: State, rng: torch.Generator
    ) -> tuple[Batch, State, Metrics]:
        """What the step does to a batch, what it remembers, and what it has to report."""
        return self.apply(batch), state, {}


@dataclass(frozen=True)
class Chain(CreditStep):
    """Steps one after the other; the state is the tuple of their states."""

    steps: tuple[CreditStep, ...]

    def init_state(self) -> State:
        """The states of all steps."""
        return tuple(step.init_state() for step in self.steps)

    def apply_stateful(
        self, batch: Batch, state: State, rng: torch.Generator
    ) -> tuple[Batch, State, Metrics]:
        """Every step in turn."""
        after: list[State] = []
        metrics: Metrics = {}
        for step, memory in zip(self.steps, state, strict=True):
            batch, remembered, seen = step.apply_stateful(batch, memory, rng)
            after.append(remembered)
            metrics |= seen
        return batch, tuple(after), metrics


def chain(*steps: CreditStep) -> Chain:
    """The steps as one step."""
    return Chain(steps)


def flatten_steps(step: CreditStep) -> tuple[CreditStep, ...]:
    """Every step of a chain, those of chains within it included; of another step, itself."""
    return (
        tuple(inner for part in step.steps for inner in flatten_steps(part))
        if isinstance(step, Chain)
        else (step,)
    )
