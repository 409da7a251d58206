"""Samplers that hold a copy of the weights: optional methods of a sampler, and functions that call them.

A sampler needs `__call__` alone. One with an engine of its own has some of `sync`, `sleep` and `close` too;
the functions here call a method where there is one, so that the training loop need not ask.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol, runtime_checkable

from paretune.credit.base import Metrics
from paretune.rollout.sampler import Sampler


@runtime_checkable
class SyncedSampler(Sampler, Protocol):
    """A sampler whose engine holds a copy of the weights."""

    def sync(self, step: int) -> Metrics:
        """Hand the weights over to the engine if they changed since the last time; called before a rollout.

        Args:
            step: The training step whose rollout comes next.

        Returns:
            Metrics of the step.

        Raises:
            ResourceError: The engine cannot be reached, or samples from other weights.
        """
        ...

    def sleep(self) -> None:
        """Free the engine's memory until the next `sync`; called after a rollout."""
        ...

    def close(self) -> None:
        """End the engine and delete its files; a second call does nothing."""
        ...


def sync_sampler(sampler: Sampler, step: int) -> Metrics:
    """Call `sync`, if the sampler has it."""
    method = _method(sampler, "sync")
    return {} if method is None else method(step)


def sleep_sampler(sampler: Sampler) -> None:
    """Call `sleep`, if the sampler has it."""
    method = _method(sampler, "sleep")
    if method is not None:
        method()


def close_sampler(sampler: Sampler) -> None:
    """Call `close`, if the sampler has it."""
    method = _method(sampler, "close")
    if method is not None:
        method()


@contextmanager
def closing_sampler(sampler: Sampler) -> Iterator[None]:
    """Call `close` after the block, whatever happened in it, if the sampler has it."""
    try:
        yield
    finally:
        close_sampler(sampler)


def _method(sampler: Sampler, name: str) -> Any:
    return getattr(sampler, name, None)
