"""Attention of packed rows by `flex_attention`: one kernel call per layer, without a dense mask.

Used on CUDA, where triton compiles it. A query of a packed row attends to at most two ranges of keys: of its
own segment up to itself, and of the prefix that its row shares with others. Kernels skip blocks of keys that
no query of a block attends to.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache, cached_property
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from numpy.typing import NDArray
from torch import Tensor

from paretune.models.forward.attention import AttentionParams, apply_softcap

BLOCK_SIZE = 128
"""Queries and keys of a block of the mask; the default of `flex_attention`."""

MIN_HEAD_DIM = 16
"""Width of a head below which triton's matrix products do not compile."""

# One compiled version per width and number of heads, soft cap, and pass with or without gradients. Beyond its
# limit of 8, torch.compile would run the uncompiled function, which computes all pairs of queries and keys.
RECOMPILE_LIMIT = 64


@cache
def is_flex_device(device_type: str) -> bool:
    """Whether packed rows use `flex_attention` on such a device."""
    return device_type == "cuda" and find_spec("triton") is not None


@dataclass(frozen=True, slots=True)
class KeyRanges:
    """The keys that each of N queries of the long row attends to: two ranges [first, last)."""

    segment: Int[NDArray[np.int64], "N 2"]
    """Of the query's own segment."""
    prefix: Int[NDArray[np.int64], "N 2"]
    """Of the prefix of its row; empty ranges in prefixes."""

    @classmethod
    def of_segments(cls, segments: NDArray[np.int64], window: int | None) -> "KeyRanges":
        """Ranges of a long row.

        Args:
            segments: [S, 3] per segment in order of the long row: its length, and start and length of the
                prefix that it follows; (length, 0, 0) of a prefix.
            window: A query attends to itself and the window - 1 tokens of its row before it.
        """
        lengths = segments[:, 0]
        query = np.arange(lengths.sum())
        start = np.repeat(lengths.cumsum() - lengths, lengths)
        prefix_start, prefix_length = (np.repeat(column, lengths) for column in segments[:, 1:].T)
        first, first_in_prefix = start, prefix_start
        if window is not None:
            first = np.maximum(start, query - window + 1)
            # Tokens of the prefix before the window: the query's position in its row is past the prefix.
            outside = np.clip(query - start + prefix_length - window + 1, 0, prefix_length)
            first_in_prefix = prefix_start + outside
        return cls(
            np.stack([first, query + 1], 1),
            np.stack([first_in_prefix, prefix_start + prefix_length], 1),
        )

    def block_counts(self) -> Int[NDArray[np.int64], "B B"]:
        """Pairs of a query and a key that it attends to, per block of queries and block of keys."""
        num_blocks = -(-len(self.segment) // BLOCK_SIZE)
        steps = np.zeros((num_blocks, num_blocks + 2), np.int64)  # of the counts from one block to the next
        query_block = np.arange(len(self.segment)) // BLOCK_SIZE
        for ranges in (self.segment, self.prefix):
            for edge, sign in (
                (ranges[:, 1], 1),
                (ranges[:, 0], -1),
            ):  # keys before the end, less before the start
                block, rest = edge // BLOCK_SIZE, edge % BLOCK_SIZE
                np.add.at(steps, (query_block, np.zeros_like(block)), sign * BLOCK_SIZE)
                np.add.at(steps, (query_block, block), sign * (rest - BLOCK_SIZE))
                np.add.at(steps, (query_block, block + 1), -sign * rest)
        return steps.cumsum(1)[:, :num_blocks]


@dataclass(frozen=True)
class FlexAttention:
    """Attention of the long row [1, N, heads, D] (an `AttentionFn`)."""

    compute_segments: Callable[[], NDArray[np.int64]]
    """Called once for the first mask: layouts of other devices never need it."""
    mask_cache: dict[int | None, Any] = field(default_factory=dict)
    """`BlockMask` by window, shared by the layers."""

    @cached_property
    def segments(self) -> NDArray[np.int64]:
        """As for `KeyRanges.of_segments`."""
        return self.compute_segments()

    @cached_property
    def max_row_length(self) -> int:
        """Tokens of the longest row with its prefix."""
        return int((self.segments[:, 0] + self.segments[:, 2]).max())

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, params: AttentionParams) -> Tensor:
        """One call for all rows."""
        q, k, v = (x.transpose(1, 2) for x in (query, key, value))
        out = _flex_function(query.device.type)(
            q,
            k,
            v,
            score_mod=_score_mod(params.softcap),
            block_mask=self._block_mask(params.window, query.device),
            scale=params.scale,
            enable_gqa=q.shape[1] != k.shape[1],
        )
        assert isinstance(out, Tensor)
        return out.transpose(1, 2)

    def _block_mask(self, window: int | None, device: torch.device) -> Any:
        # A window wider than the rows has no effect: layers with and without it share a mask.
        if window is not None and window >= self.max_row_length:
            window = None
        if window not in self.mask_cache:
            self.mask_cache[window] = block_mask_of(KeyRanges.of_segments(self.segments, window), device)
        return self.mask_cache[window]


def block_mask_of(ranges: KeyRanges, device: torch.device) -> Any:
    """The `BlockMask` of these ranges; `create_block_mask` would compute it from all pairs of tokens."""
    from torch.nn.attention.flex_attention import BlockMask

    counts = ranges.block_counts()
    is_full = counts == BLOCK_SIZE**2
    size, indices = zip(*(_block_indices(x, device) for x in ((counts > 0) & ~is_full, is_full)), strict=True)
    own, prefix = (torch.from_numpy(x.astype(np.int32)).to(device) for x in (ranges.segment, ranges.prefix))
    own_first, prefix_first, prefix_last = own[:, 0].contiguous(), *prefix.T.contiguous()

    def mask_mod(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        in_own = (key >= own_first[query]) & (key <= query)
        return in_own | ((key >= prefix_first[query]) & (key < prefix_last[query]))

    return BlockMask.from_kv_blocks(
        size[0],
        indices[0],
        size[1],
        indices[1],
        BLOCK_SIZE=BLOCK_SIZE,
        mask_mod=mask_mod,
        seq_lengths=(len(ranges.segment), len(ranges.segment)),
    )


def _block_indices(blocks: NDArray[np.bool_], device: torch.device) -> tuple[Tensor, Tensor]:
    """Number of blocks of keys of each block of queries, and their indices first in its row: [1, 1, ...]."""
    order = np.argsort(~blocks, axis=1, kind="stable").astype(np.int32)
    count = blocks.sum(1).astype(np.int32)
    return torch.from_numpy(count)[None, None].to(device), torch.from_numpy(order)[None, None].to(device)


@cache
def _score_mod(softcap: float | None) -> Any:
    """The soft cap, applied after the scale and before the mask. Cached: a new function would be compiled."""
    if softcap is None:
        return None

    def score_mod(score: Tensor, batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return apply_softcap(score, softcap)

    return score_mod


@cache
def _flex_function(device_type: str) -> Any:
    """`flex_attention`, compiled once on CUDA; elsewhere it computes all pairs (for tests on a CPU)."""
    from torch.nn.attention.flex_attention import flex_attention

    if not is_flex_device(device_type):
        return flex_attention
    compiled = torch.compile(flex_attention, fullgraph=True, dynamic=True)  # no new version per length

    def call(*args: Any, **kwargs: Any) -> Any:
        with torch._dynamo.config.patch(recompile_limit=RECOMPILE_LIMIT):
            return compiled(*args, **kwargs)

    return call
