"""The processes of one run, started by torchrun or srun: who does which rows, and what all of them must know.

Every rank holds the whole batch, which is small; only the passes of models are divided. Whatever is computed
from the batch is then the same on all ranks, as with one process; with one process nothing here has an
effect.

Control messages and the numbers of rows travel as CPU tensors through gloo, gradients through the backend of
their device. No message is a pickled object.
"""

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from paretune.core.batch import Batch
from paretune.core.errors import ConfigError, RankError, exit_code_of
from paretune.core.launch import (
    DEFAULT_TIMEOUT,
    FIRST_FAILED_RANK,
    PROCESS,
    ProcessInfo,
    is_distributed,
    is_first,
    rank,
    requested_rank,
    requested_world_size,
    world_size,
)

__all__ = [
    "add_",
    "any_flags",
    "any_of",
    "fail_together",
    "from_first",
    "gather",
    "gather_json",
    "gather_rows",
    "is_distributed",
    "is_first",
    "is_first_to_tell",
    "joined",
    "largest",
    "local_part",
    "on_first",
    "partition",
    "partition_rows",
    "rank",
    "set_timeout",
    "timeout",
    "world_size",
]

BUCKET_SIZE = 2**24
"""Numbers per message when gradients are summed: large enough to be efficient, small against the model."""
POLL_SECONDS = 2.0
"""Seconds between two looks whether the other ranks are alive, while this one waits."""
TELL_SECONDS = 2.0
"""Seconds by which the first rank is ahead in telling an error that several ranks may have."""
_DTYPES = (torch.float32, torch.float64, torch.int64, torch.int32, torch.bool, torch.uint8, torch.bfloat16)
_MAX_DIMS = 4


@contextmanager
def joined(device: str = "cpu") -> Iterator[None]:
    """Context in which this process is one of those that torchrun or srun started; does nothing without them.

    Args:
        device: "cuda": the rank takes the accelerator of its number on the host.

    Raises:
        ConfigError: The environment has WORLD_SIZE and lacks another variable of the launcher.
        RankError: The other processes could not be reached.
    """
    _check_launcher()
    if requested_world_size() == 1:
        yield
        return
    missing = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if missing:
        raise ConfigError(
            f"the environment has WORLD_SIZE={os.environ['WORLD_SIZE']} and no {', '.join(missing)}; "
            "fix: start by torchrun, or set all four as docs/scale.md shows for srun"
        )
    backend, local = "gloo", int(os.environ.get("LOCAL_RANK", "0"))
    if device == "cuda":
        torch.cuda.set_device(local)
        backend = "cpu:gloo,cuda:nccl"
    try:
        dist.init_process_group(backend, timeout=timedelta(seconds=DEFAULT_TIMEOUT))
    except (RuntimeError, ValueError) as error:
        unconnected = RankError(f"the processes of the run could not connect: {error}")
        unconnected.first_failed_rank = int(os.environ["RANK"])  # no other rank can tell it
        raise unconnected from error
    vars(PROCESS).update(asdict(ProcessInfo(dist.get_rank(), dist.get_world_size())))
    try:
        yield
    except RankError:  # to leave the group would wait for the one that does not answer
        raise
    except BaseException:
        if dist.is_initialized():
            dist.destroy_process_group()
        raise
    else:
        dist.destroy_process_group()
    finally:
        vars(PROCESS).update(asdict(ProcessInfo()))


def is_first_to_tell(message: str) -> bool:
    """Whether this process prints an error that happened before the ranks had joined.

    A mistake in a recipe is found by all ranks and printed by the first of them; an error of one rank alone,
    such as a missing file on its host, by that rank. They count the same message in the store of torchrun;
    where there is none (srun), every rank prints.
    """
    if requested_rank() > 0:
        time.sleep(TELL_SECONDS)
    try:
        host, port = os.environ.get("MASTER_ADDR", ""), int(os.environ.get("MASTER_PORT", ""))
        wait = timedelta(seconds=TELL_SECONDS)
        store = dist.TCPStore(host, port, is_master=False, timeout=wait)  # type: ignore[attr-defined]
        is_first_message = store.add(f"paretune/{hashlib.sha256(message.encode()).hexdigest()}", 1) == 1
    except (RuntimeError, ValueError):
        return True
    return is_first_message or requested_rank() == 0


def _check_launcher() -> None:
    """Refuse variables of the launcher that are no numbers, or a rank beyond their number.

    Raises:
        ConfigError: Naming the variable.
    """
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_PORT"):
        text = os.environ.get(name)
        if "WORLD_SIZE" in os.environ and text is not None and not text.isdecimal():
            raise ConfigError(f'the environment has {name}="{text}"; fix: unset it, or set a whole number')
    if requested_world_size() > 1 and int(os.environ.get("RANK", "0")) >= requested_world_size():
        raise ConfigError(
            f"the environment has RANK={os.environ['RANK']} and WORLD_SIZE={os.environ['WORLD_SIZE']}; "
            "fix: ranks count from 0"
        )


def set_timeout(seconds: float = DEFAULT_TIMEOUT) -> None:
    """Seconds after which a rank gives up to wait for the others."""
    PROCESS.timeout = seconds


@contextmanager
def timeout(seconds: float = DEFAULT_TIMEOUT) -> Iterator[None]:
    """Context with another timeout, for work that takes longer than a step, such as a checkpoint."""
    before = PROCESS.timeout
    set_timeout(seconds)
    try:
        yield
    finally:
        set_timeout(before)


@contextmanager
def fail_together(what: str) -> Iterator[None]:
    """A block in which some ranks may fail alone: if one does, all leave it with an error.

    The others would wait for it in their next message. Blocks may be nested.

    Args:
        what: The work, for the message of the others.

    Raises:
        RankError: Another rank failed.
    """
    try:
        yield
    except RankError:
        raise  # the others know, or cannot be reached
    except BaseException as error:
        if is_distributed():
            known = _known_failure(error)
            setattr(
                error,
                FIRST_FAILED_RANK,
                _exchange_failure(exit_code_of(error))[0] if known is None else known,
            )
        raise
    failed, code = _exchange_failure(None)
    if failed is not None:
        let_down = RankError(f"rank {failed} failed in the {what}")
        let_down.exit_code = code  # type: ignore[misc]
        raise let_down


def _known_failure(error: BaseException) -> int | None:
    """The first rank that failed, if the others know of this error, or of the one that it was made from."""
    current: BaseException | None = error
    while current is not None:
        if hasattr(current, FIRST_FAILED_RANK):
            return int(getattr(current, FIRST_FAILED_RANK))
        current = current.__cause__ or current.__context__
    return None


def _exchange_failure(exit_code: int | None) -> tuple[int | None, int]:
    """The first rank that failed and its exit code; None and 0 if none did.

    Args:
        exit_code: Of this rank's error; None: it has none.
    """
    if not is_distributed():
        return None, 0
    codes = _all_gather(torch.tensor([-1 if exit_code is None else exit_code]))
    return next(((number, int(code)) for number, code in enumerate(codes) if code >= 0), (None, 0))


def any_of(flag: bool) -> bool:
    """Whether the flag of at least one rank is set."""
    return bool(largest(int(flag)))


def any_flags(flags: Sequence[bool]) -> list[bool]:
    """For each flag, whether it is set on at least one rank."""
    value = torch.tensor(flags, dtype=torch.uint8)
    if is_distributed():
        _wait(dist.all_reduce(value, dist.ReduceOp.MAX, async_op=True))
    return [bool(flag) for flag in value]


def largest(number: int) -> int:
    """The largest number of all ranks."""
    if not is_distributed():
        return number
    value = torch.tensor([number])
    _wait(dist.all_reduce(value, dist.ReduceOp.MAX, async_op=True))
    return int(value)


def from_first(value: Any) -> Any:
    """A value of JSON as the first rank has it; that of the others is ignored."""
    return gather_json(value if is_first() else None)[0]


def gather_json(value: Any) -> list[Any]:
    """The values of all ranks in their order; a value is what JSON can hold."""
    if not is_distributed():
        return [value]
    data = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
    return [json.loads(bytes(part.numpy())) for part in gather(data)]


def gather(local: Tensor | None) -> list[Tensor]:
    """The tensors of all ranks in their order, on the CPU; they may differ in the length of each dimension.

    Args:
        local: Of the same type and number of dimensions on all ranks; None: this rank has no rows.
    """
    if not is_distributed():
        return [] if local is None else [local]
    header = torch.full((2 + _MAX_DIMS,), -1, dtype=torch.int64)
    if local is not None:
        local = local.detach().cpu()
        header[:2] = torch.tensor([_DTYPES.index(local.dtype), local.ndim])
        header[2 : 2 + local.ndim] = torch.tensor(local.shape)
    headers = _all_gather(header)
    known = [h for h in headers if h[0] >= 0]
    if not known:
        return []
    dtype, ndim = _DTYPES[int(known[0][0])], int(known[0][1])
    shapes = [h[2 : 2 + ndim].tolist() if h[0] >= 0 else [0] * ndim for h in headers]
    sizes = [int(torch.tensor(shape).prod()) for shape in shapes]
    wire = torch.uint8 if dtype == torch.bool else dtype
    flat = torch.zeros(max(1, *sizes), dtype=wire)  # of equal length on all ranks
    if local is not None:
        flat[: local.numel()] = local.reshape(-1).to(wire)
    parts = zip(_all_gather(flat), shapes, sizes, strict=True)
    return [part[:size].to(dtype).reshape(shape) for part, shape, size in parts]


def gather_rows(parts: Sequence[Sequence[int]], local: Tensor | None) -> Tensor:
    """The rows of all ranks in the order of the batch.

    Args:
        parts: Row numbers of each rank, as from `partition`.
        local: The rows of this rank, in the order of its part; None if it has none.
    """
    if not is_distributed():
        assert local is not None
        return local
    rows = torch.cat([part for part in gather(local) if len(part)])
    order = torch.tensor([i for part in parts for i in part]).argsort()
    return rows[order].to("cpu" if local is None else local.device)


def add_(tensors: Sequence[Tensor]) -> None:
    """Sum each tensor over the ranks, in place; half precision is added up in float32."""
    if not is_distributed():
        return
    for bucket in _buckets(tensors):
        flat = torch.cat([x.reshape(-1) for x in bucket])
        flat = flat.to(torch.promote_types(flat.dtype, torch.float32))
        work = dist.all_reduce(flat, async_op=True)
        if flat.is_cuda:
            # NCCL ends the group where a wait with a timeout runs out; without one it orders the streams.
            work.wait()
        else:
            _wait(work)
        for x, part in zip(bucket, flat.split([x.numel() for x in bucket]), strict=True):
            x.copy_(part.view_as(x))


def partition(costs: Sequence[int]) -> list[list[int]]:
    """The numbers of the units of work that each rank does; the same on all ranks.

    The most expensive come first, each to the rank with the least work so far.

    Args:
        costs: Relative cost of each unit.
    """
    if not is_distributed():
        return [list(range(len(costs)))]
    parts: list[list[int]] = [[] for _ in range(world_size())]
    work = [0] * world_size()
    for unit in sorted(range(len(costs)), key=lambda i: -costs[i]):
        least = work.index(min(work))
        parts[least].append(unit)
        work[least] += costs[unit]
    return [sorted(part) for part in parts]


def partition_rows(batch: Batch) -> list[list[int]]:
    """The rows of a batch that each rank computes: whole groups, balanced by tokens, prompts counted once."""
    if not is_distributed():
        return [list(range(len(batch)))]
    response, prompt = batch.response_mask.sum(-1), (batch.attention_mask & ~batch.response_mask).sum(-1)
    groups = [(batch.group == g).nonzero().squeeze(-1) for g in batch.group.unique().tolist()]
    costs = [int(response[rows].sum() + prompt[rows].max()) for rows in groups]
    return [sorted(i for unit in part for i in groups[unit].tolist()) for part in partition(costs)]


def local_part(parts: Sequence[Sequence[int]]) -> Sequence[int]:
    """The part of this rank."""
    return parts[rank()]


def on_first(make: Callable[[], Any], what: str) -> Any:
    """A value of JSON that the first rank makes, on all ranks."""
    value = None
    with fail_together(what):
        if is_first():
            value = make()
    return from_first(value)


def _all_gather(local: Tensor) -> list[Tensor]:
    out = [torch.empty_like(local) for _ in range(world_size())]
    _wait(dist.all_gather(out, local, async_op=True))
    return out


def _buckets(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    bucket: list[Tensor] = []
    size = 0
    for x in tensors:
        same_kind = not bucket or (x.dtype, x.device) == (bucket[0].dtype, bucket[0].device)
        if bucket and (not same_kind or size + x.numel() > BUCKET_SIZE):
            yield bucket
            bucket, size = [], 0
        bucket.append(x)
        size += x.numel()
    if bucket:
        yield bucket


def _wait(work: Any) -> None:
    end = time.monotonic() + PROCESS.timeout
    while True:
        try:
            work.wait(timedelta(seconds=POLL_SECONDS))  # the message stays on its way after a timeout
            return
        except RuntimeError as error:
            if work.is_completed():  # it failed: a connection was closed
                raise RankError("another rank ended") from error
        if PROCESS.stopped_rank is not None:
            raise RankError(f"rank {PROCESS.stopped_rank} shows no sign of life")
        if time.monotonic() > end:
            raise RankError(f"another rank did not answer for {PROCESS.timeout:.0f} s")
