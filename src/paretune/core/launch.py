"""Which of the processes of a run this one is; without torch, since reports and run folders need it too."""

import hashlib
import os
import time
from dataclasses import dataclass
from datetime import timedelta

DEFAULT_TIMEOUT = 4 * 3600.0
"""Seconds that a rank waits for the others outside of a training loop, which knows how long its steps take.

The end of a process is noticed at once; this is for one that is stuck, or has much to score alone."""

FIRST_FAILED_RANK = "first_failed_rank"
"""Attribute of an error that other ranks know of: the first of those that failed at the same place."""
TELL_SECONDS = 2.0
"""Seconds by which the first rank is ahead in telling an error that several ranks may have."""


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


def is_first_to_tell(message: str) -> bool:
    """Whether this process prints an error that happened before the ranks had joined.

    A mistake in a recipe is found by all ranks and printed by the first of them; an error of one rank alone,
    such as a missing file on its host, by that rank. They count the same message in the store of torchrun;
    where there is none (srun), every rank prints.
    """
    if requested_rank() == 0 and requested_world_size() == 1:
        return True
    if requested_rank() > 0:
        time.sleep(TELL_SECONDS)
    try:
        from torch.distributed import TCPStore

        address = os.environ.get("MASTER_ADDR", ""), _number("MASTER_PORT", 0)
        store = TCPStore(*address, is_master=False, timeout=timedelta(seconds=TELL_SECONDS))
        is_first_message = store.add(f"paretune/{hashlib.sha256(message.encode()).hexdigest()}", 1) == 1
    except (ImportError, RuntimeError, ValueError):
        return True
    return is_first_message or requested_rank() == 0
