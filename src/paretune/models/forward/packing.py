"""Packing: padded rows become one long row without padding, and a prefix that rows share occurs once.

The linear layers of a model process the one long row. Attention works on rectangles, blocks of segments of
similar length that are padded to the longest: prefixes attend causally to themselves, and the suffix of each
row attends to its prefix and causally to itself. On CUDA it is one call of `flex_attention` (`forward.flex`).
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Int
from numpy.typing import NDArray
from torch import Tensor

from paretune.models.forward.attention import AttentionParams, dot_product_attention
from paretune.models.forward.flex import BLOCK_SIZE as FLEX_BLOCK_SIZE
from paretune.models.forward.flex import MIN_HEAD_DIM, FlexAttention, is_flex_device
from paretune.models.forward.prefix_sharing import PrefixGroup, compact_rows, group_by_prefix

HALF_DTYPES = frozenset({torch.bfloat16, torch.float16})

# Up to this number of rows, `round_up_rows` uses small steps: each row added to a decoding step costs as much
# as a generated token.
SMALL_ROW_COUNT = 128


def is_half_on_cpu(x: Tensor) -> bool:
    """Half precision on a CPU, where only matrix products are fast, and those not for every shape."""
    return x.device.type == "cpu" and x.dtype in HALF_DTYPES


def round_up_rows(n: int, like: Tensor) -> int:
    """Number of rows to compute where n are needed; results of the added rows are ignored.

    In half precision on a CPU, the matrix library compiles a kernel for every new number of rows. That takes
    milliseconds and half a megabyte that is never freed: with packed passes of ever new sizes, passes took
    twice their time and memory grew with every step. Rounding leaves few different sizes.

    Args:
        n: Number of rows, counting all tokens.
        like: A weight of the model, or its input.
    """
    if not is_half_on_cpu(like):
        return n
    return round_up(n, 8 if n <= SMALL_ROW_COUNT else 64)


def round_up_packed(n: int, like: Tensor) -> int:
    """Length of the long row of n tokens: whole blocks of `flex_attention`, or as `round_up_rows`."""
    return round_up(n, FLEX_BLOCK_SIZE) if is_flex_device(like.device.type) else round_up_rows(n, like)


def round_up(n: int, multiple: int) -> int:
    """The smallest multiple that is at least n."""
    return -(-n // multiple) * multiple


# Segments of different length share an attention call until it has this many tokens: below, the overhead of a
# call costs more than padding. 512 turns about a hundred calls per layer into about fourteen.
MIN_TOKENS_PER_CALL = 512


def _gather(x: Tensor, index: Tensor, inverse_index: Tensor) -> Tensor:
    gathered = _Gather.apply(x, index, inverse_index)  # type: ignore[no-untyped-call]
    assert isinstance(gathered, Tensor)
    return gathered


class _Gather(torch.autograd.Function):
    """x[index] along the first axis, where every row of x is used exactly once apart from padding.

    Its backward pass is a gather by the inverse index; that of index_select would scatter and add, which is
    slower. Gradients at padding are zero, since padding is masked as key and dropped as output.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, index: Tensor, inverse_index: Tensor) -> Tensor:
        ctx.save_for_backward(inverse_index)
        return x.index_select(0, index)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return grad.index_select(0, ctx.saved_tensors[0]), None, None


@dataclass(frozen=True, slots=True)
class _PrefixBlock:
    """A rectangle of prefixes of similar length, processed in one causal attention call."""

    offset: int
    """First cell of the rectangle, in a concatenation of all rectangles."""
    lengths: NDArray[np.int64]

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.lengths), int(self.lengths.max())


@dataclass(frozen=True, slots=True)
class _SuffixBlock:
    """A rectangle of suffixes of similar length whose prefixes are in the same `_PrefixBlock`."""

    offset: int
    lengths: NDArray[np.int64]
    prefix: _PrefixBlock
    prefix_row: Int[Tensor, " R"]
    """Row of each suffix's prefix in `prefix`."""

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.lengths), int(self.lengths.max())

    def attn_mask(self, window: int | None, device: torch.device) -> Bool[Tensor, "R Q S"]:
        """Which keys [prefix, suffix] each query attends to; R = 1 if that is equal for all rows."""
        prefix_width, width = self.prefix.shape[1], self.shape[1]
        prefix_lengths = torch.from_numpy(self.prefix.lengths)[self.prefix_row.cpu()]
        if bool((prefix_lengths == prefix_width).all()):
            prefix_lengths = prefix_lengths[:1]
        column = torch.arange(prefix_width + width)
        # The key's position in its row: prefix padding lies between a short prefix and the suffix.
        key_position = torch.where(
            column < prefix_width, column, column - prefix_width + prefix_lengths[:, None]
        )
        is_real = (column >= prefix_width) | (column < prefix_lengths[:, None])
        distance = (torch.arange(width) + prefix_lengths[:, None])[:, :, None] - key_position[:, None]
        visible = is_real[:, None] & (distance >= 0)
        return (visible if window is None else visible & (distance < window)).to(device)


@dataclass(frozen=True, slots=True)
class PackedLayout:
    """Arrangement of segments in the long row, and the attention between them (an `AttentionFn`)."""

    blocks: tuple[_PrefixBlock | _SuffixBlock, ...]
    """In order of the long row; a block of prefixes comes before the suffixes that follow them."""
    gather_index: Int[Tensor, " M"]
    """Index in the long row of each cell of the rectangles; any index for padding."""
    inverse_index: Int[Tensor, " N"]
    """Cell of each token of the long row."""
    flex: FlexAttention
    """The same attention as one call, where the device has a kernel for it."""
    mask_cache: dict[tuple[int, int | None], Tensor] = field(default_factory=dict)
    """Masks by block and window, shared by the layers."""

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, params: AttentionParams) -> Tensor:
        """Attention of the long row [1, N, heads, D]."""
        if is_flex_device(query.device.type) and query.shape[-1] >= MIN_HEAD_DIM:
            return self.flex(query, key, value, params)
        # In half precision on a CPU the backward pass of attention is slower than in float32, and less exact.
        dtype = torch.float32 if is_half_on_cpu(query) else query.dtype
        q, k, v = (
            _gather(x[0].to(dtype), self.gather_index, self.inverse_index) for x in (query, key, value)
        )
        options: dict[str, Any] = {"scale": params.scale, "softcap": params.softcap}
        outputs: list[Tensor] = []
        prefix_keys_values: dict[int, list[Tensor]] = {}
        sizes = [math.prod(block.shape) for block in self.blocks]
        # `split`: the backward pass of each slice would allocate zeros of the full size.
        for block, *flat in zip(self.blocks, *(x.split(sizes) for x in (q, k, v)), strict=True):
            queries, *keys_values = (x.unflatten(0, block.shape) for x in flat)
            if isinstance(block, _PrefixBlock):
                prefix_keys_values[block.offset] = keys_values
                out = dot_product_attention(
                    queries, *keys_values, window=params.window, is_causal=True, **options
                )
            else:
                prefixes = (
                    x.index_select(0, block.prefix_row) for x in prefix_keys_values[block.prefix.offset]
                )
                keys, values = (torch.cat(pair, 1) for pair in zip(prefixes, keys_values, strict=True))
                mask = self._mask(block, params.window, query.device)
                out = dot_product_attention(queries, keys, values, attn_mask=mask, **options)
            outputs.append(out.flatten(0, 1))
        return torch.cat(outputs).index_select(0, self.inverse_index)[None].to(query.dtype)

    def _mask(self, suffix: _SuffixBlock, window: int | None, device: torch.device) -> Tensor:
        # A window wider than the rows has no effect: layers with and without it share a mask.
        if window is not None and window >= suffix.prefix.shape[1] + suffix.shape[1]:
            window = None
        if (suffix.offset, window) not in self.mask_cache:
            self.mask_cache[suffix.offset, window] = suffix.attn_mask(window, device)
        return self.mask_cache[suffix.offset, window]


@dataclass(frozen=True, slots=True)
class PackedRows:
    """A batch of rows packed into one long row of N tokens."""

    input_ids: Int[Tensor, "1 N"]
    position_ids: Int[Tensor, "1 N"]
    """Position of each token in its own row, counted from 0."""
    index: Int[Tensor, "B T"]
    """Index in the long row of each real token; of padding, that of the last real token before it."""
    layout: PackedLayout


def pack_rows(
    input_ids: Int[Tensor, "B T"],
    attention_mask: Bool[Tensor, "B T"],
    device: torch.device | None = None,
    *,
    round_up_length: Callable[[int], int] = lambda n: n,
) -> PackedRows:
    """Pack rows without padding and with shared prefixes once.

    Args:
        input_ids: Rows of token ids with at least one real token in total.
        attention_mask: True at real tokens, with padding on any side.
        device: Device of the result.
        round_up_length: Maps the number of tokens to the length of the long row. Filler tokens are appended
            as a row of their own, whose results are ignored.
    """
    rows, lengths = compact_rows(input_ids, attention_mask)
    groups = [group for group in group_by_prefix(rows, lengths) if lengths[list(group.rows)].max() > 0]
    blocks, row_index = _place_blocks(groups, lengths, rows.shape)
    is_real = np.arange(rows.shape[1]) < lengths[:, None]
    n = int(sum(block.lengths.sum() for block in blocks))
    num_filler = round_up_length(n) - n
    flat_ids, flat_positions = np.zeros(n + num_filler, np.int64), np.zeros(n + num_filler, np.int64)
    if num_filler:
        blocks.append(_PrefixBlock(sum(math.prod(block.shape) for block in blocks), np.array([num_filler])))
        flat_positions[n:] = np.arange(num_filler)
    flat_ids[row_index[is_real]] = rows[is_real]
    flat_positions[row_index[is_real]] = np.broadcast_to(np.arange(rows.shape[1]), rows.shape)[is_real]
    gather_index, inverse_index = _rectangle_indices(blocks)
    # From compact rows back to the padded rows of the input.
    index = torch.from_numpy(row_index).gather(1, (attention_mask.cpu().long().cumsum(1) - 1).clamp(min=0))
    ids, positions, gather, inverse = (
        torch.from_numpy(x).to(device) for x in (flat_ids, flat_positions, gather_index, inverse_index)
    )
    device_blocks = tuple(
        block if isinstance(block, _PrefixBlock) else replace(block, prefix_row=block.prefix_row.to(device))
        for block in blocks
    )
    layout = PackedLayout(device_blocks, gather, inverse, FlexAttention(partial(_segments, blocks)))
    return PackedRows(ids[None], positions[None], index.to(device), layout)


def _segments(blocks: Sequence[_PrefixBlock | _SuffixBlock]) -> NDArray[np.int64]:
    """Length, and start and length of its prefix, of each segment in order of the long row."""
    segments: list[NDArray[np.int64]] = []
    starts: dict[int, NDArray[np.int64]] = {}  # of the prefixes of a block, in the long row
    position = 0
    for block in blocks:
        prefix = np.zeros((2, len(block.lengths)), np.int64)
        if isinstance(block, _SuffixBlock):
            row = block.prefix_row.numpy()
            prefix = np.stack([starts[block.prefix.offset][row], block.prefix.lengths[row]])
        else:
            starts[block.offset] = position + block.lengths.cumsum() - block.lengths
        segments.append(np.stack([block.lengths, *prefix], 1))
        position += int(block.lengths.sum())
    return np.concatenate(segments)


def _place_blocks(
    prefix_groups: Sequence[PrefixGroup], lengths: NDArray[np.int64], shape: tuple[int, ...]
) -> tuple[list[_PrefixBlock | _SuffixBlock], NDArray[np.int64]]:
    """The blocks in order of the long row, and the index in the long row of each token of `shape` rows."""
    blocks: list[_PrefixBlock | _SuffixBlock] = []
    row_index = np.zeros(shape, np.int64)
    position = cell = 0  # in the long row, and in the concatenation of all rectangles
    for bucket in _length_buckets([group.prefix_length for group in prefix_groups]):
        prefix_lengths = np.array([prefix_groups[i].prefix_length for i in bucket])
        prefix_block = _PrefixBlock(cell, prefix_lengths)
        blocks.append(prefix_block)
        cell += int(np.prod(prefix_block.shape))
        for i in bucket:
            for row in prefix_groups[i].rows:
                row_index[row, : prefix_groups[i].prefix_length] = np.arange(
                    position, position + prefix_groups[i].prefix_length
                )
            position += prefix_groups[i].prefix_length
        suffixes = [
            (row, prefix_row)
            for prefix_row, i in enumerate(bucket)
            for row in prefix_groups[i].rows
            if lengths[row] > prefix_lengths[prefix_row]
        ]
        suffix_lengths = [int(lengths[row] - prefix_lengths[prefix_row]) for row, prefix_row in suffixes]
        for suffix_bucket in _length_buckets(suffix_lengths):
            prefix_rows = torch.tensor([suffixes[j][1] for j in suffix_bucket])
            suffix_block = _SuffixBlock(
                cell, np.array([suffix_lengths[j] for j in suffix_bucket]), prefix_block, prefix_rows
            )
            blocks.append(suffix_block)
            cell += int(np.prod(suffix_block.shape))
            for j in suffix_bucket:
                row, prefix_row = suffixes[j]
                row_index[row, prefix_lengths[prefix_row] : lengths[row]] = np.arange(
                    position, position + suffix_lengths[j]
                )
                position += suffix_lengths[j]
    return blocks, row_index


def _length_buckets(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Indices of segments in buckets of similar length, longest first.

    A bucket of at least `MIN_TOKENS_PER_CALL` tokens ends where the next segment would be padded by more than
    a third of its length.
    """
    bucket: list[int] = []
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if (
            bucket
            and 4 * lengths[i] < 3 * lengths[bucket[0]]
            and len(bucket) * lengths[bucket[0]] >= MIN_TOKENS_PER_CALL
        ):
            yield bucket
            bucket = []
        bucket.append(i)
    if bucket:
        yield bucket


def _rectangle_indices(
    blocks: Sequence[_PrefixBlock | _SuffixBlock],
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Index in the long row of each cell (padding: the first token of its segment), and the inverse."""
    gather_indices, inverse_indices, position = [], [], 0
    for block in blocks:
        width = block.shape[1]
        starts = position + np.concatenate([[0], block.lengths[:-1].cumsum()])
        column = np.arange(width)
        is_real = column < block.lengths[:, None]
        gather_indices.append(np.where(is_real, starts[:, None] + column, starts[:, None]).reshape(-1))
        inverse_indices.append(block.offset + np.flatnonzero(is_real))
        position += int(block.lengths.sum())
    return np.concatenate(gather_indices), np.concatenate(inverse_indices)
