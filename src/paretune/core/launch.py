"""Which of the processes of a run this one is; without torch, since reports and run folders need it too."""

import os
from dataclasses import dataclass

DEFAULT_TIMEOUT = 4 * 3600.0
"""Seconds that a rank waits for the others outside of a training loop, which knows how long its steps take.

The end of a process is noticed at once; this is for one that is stuck, or has much to score alone."""

FIRST_FAILED_RANK = "first_failed_rank"
"""Attribute of an error that other ranks know of: the first of those that failed at the same place."""


@dataclass
class ProcessInfo:
    """Place of this process among those of the run; changed by `core.ranks.joined` alone."""

    rank: int = 0
    world_size: int = 1
    timeout: float = DEFAULT_TIMEOUT
    stopped_rank: int | None = None
    """A rank that shows no sign of life; set by `run.liveness`."""


PROCESS = ProcessInfo()


def rank() -> int:
    """Number of this process, from 0."""
    return PROCESS.rank


def world_size() -> int:
    """Number of processes of the run."""
    return PROCESS.world_size


def is_first() -> bool:
    """This process writes the files and prints."""
    return PROCESS.rank == 0


def is_distributed() -> bool:
    """There are several processes."""
    return PROCESS.world_size > 1


def requested_rank() -> int:
    """The number of this process that the launcher gives in the environment; 0 without a launcher."""
    return _number("RANK", 0) if requested_world_size() > 1 else 0


def requested_world_size() -> int:
    """The number of processes that the launcher gives in the environment; 1 without a launcher."""
    return _number("WORLD_SIZE", 1)


def _number(name: str, default: int) -> int:
    """A variable of the launcher; the default where it is no number, which `core.ranks.joined` refuses."""
    text = os.environ.get(name, "")
    return int(text) if text.isdecimal() else default
