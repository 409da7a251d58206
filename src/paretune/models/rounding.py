"""How many rows a product is given where fewer are asked for."""

import torch
from torch import Tensor

HALF_DTYPES = frozenset({torch.bfloat16, torch.float16})
SMALL_ROW_COUNT = 128
"""Rows up to which numbers are close together: each counts in a step of decoding."""


def is_half_on_cpu(x: Tensor) -> bool:
    """Whether this is half precision on a CPU, where products alone are fast, and they not in every shape."""
    return x.device.type == "cpu" and x.dtype in HALF_DTYPES


def round_up_rows(n: int, like: Tensor) -> int:
    """Rows to compute where n are asked for; what fills up is ignored.

    In half precision on a CPU the library compiles a kernel for every new number of rows. That takes some
    milliseconds, and the half megabyte that it needs is not given back: passes of ever new sizes took twice
    their time, and memory grew with every step of a run.

    Args:
        n: Rows, tokens all in one.
        like: A weight of the model, or its input.
    """
    if not is_half_on_cpu(like):
        return n
    return round_up(n, 8 if n <= SMALL_ROW_COUNT else 64)


def round_up(n: int, multiple: int) -> int:
    """The next multiple."""
    return -(-n // multiple) * multiple
