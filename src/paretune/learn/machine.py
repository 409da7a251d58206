"""How fast this machine multiplies matrices: what a run's own rate is held against."""

import time
from typing import Literal

import torch

from paretune.chance import torch_generator

MATMUL_SIZE, MATMUL_SIZE_CUDA = 1024, 4096
"""Rows and columns: enough to keep a few cores, or an accelerator, busy."""
TIME_LIMIT_SECONDS = 0.15
"""Seconds after which no further product is tried."""


def matmul_throughput(
    device: torch.device, dtype: Literal["float32", "bfloat16"]
) -> dict[str, str | int | float]:
    """The best of a few products of two square matrices, with the threads and settings of this process.

    Nothing is trained with it, and nobody else's chance moves.

    Returns:
        What was measured (`device`, `dtype`, `threads`, `size`) and `flops_per_second`.
    """
    kind = torch.bfloat16 if dtype == "bfloat16" else torch.float32
    size = MATMUL_SIZE_CUDA if device.type == "cuda" else MATMUL_SIZE
    rng = torch_generator(0, 0, "matrix rate")
    a, b = (torch.rand(size, size, generator=rng).to(device, kind) for _ in range(2))
    out, best, begin = a @ b, float("inf"), time.perf_counter()  # the first one also wakes threads up
    while best == float("inf") or time.perf_counter() - begin < TIME_LIMIT_SECONDS:
        _synchronize(device)
        start = time.perf_counter()
        torch.mm(a, b, out=out)
        _synchronize(device)
        best = min(best, time.perf_counter() - start)
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "dtype": dtype,
        "threads": torch.get_num_threads(),
        "size": size,
        "flops_per_second": 2 * size**3 / best,
    }


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
