"""The protocol of a tracker, and the run that it shows."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

Row = Mapping[str, str | float | int | bool | None]
"""A row of a table: column -> value."""


@dataclass(frozen=True, kw_only=True)
class TrackedRun:
    """A run, as a tracker sees it."""

    name: str
    folder: Path
    config: Mapping[str, Any]
    """Every key of the recipe, by sections."""
    memory: dict[str, str] = field(default_factory=dict)
    """What the tracker wants to know again when the run is resumed, such as the id of the run there."""

    @property
    def flat_config(self) -> dict[str, Any]:
        """The recipe by dotted keys, without those that have no value."""
        return dict(_flattened(self.config, ""))


def _flattened(values: Mapping[str, Any], parent: str) -> list[tuple[str, Any]]:
    items: list[tuple[str, Any]] = []
    for key, value in values.items():
        if isinstance(value, Mapping):
            items += _flattened(value, f"{parent}{key}.")
        elif value is not None:
            items.append((f"{parent}{key}", value))
    return items


@runtime_checkable
class Tracker(Protocol):
    """Sends the metrics of a run to another tool; called in a separate process, in this order."""

    def start(self, run: TrackedRun) -> None:
        """Begin with a run, or go on with it: `run.memory` is then as it was left."""
        ...

    def log_metrics(self, step: int, metrics: Mapping[str, float]) -> None:
        """Numbers of one step, by `STAGE/METRIC`; steps of a stage come in order, each of them once."""
        ...

    def log_table(self, name: str, step: int, rows: Sequence[Row]) -> None:
        """A table, such as responses with their scores."""
        ...

    def finish(self, status: str) -> None:
        """The run has ended: done, stopped, failed or killed."""
        ...
