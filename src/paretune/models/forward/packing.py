"""How many rows a product is given where fewer are asked for.

Rows without their padding, and what several rows begin with computed once for all of them.

A model's linear layers see one long row of real tokens. Attention puts the pieces that are of like length
side by side: beginnings causally, and what is each row's own after the beginning that it shares.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Int
from numpy.typing import NDArray
from torch import Tensor

from paretune.models.forward.attention import AttentionParams, dot_product_attention
from paretune.models.forward.prefix_sharing import PrefixGroup, compact_rows, group_by_prefix

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


MIN_TOKENS_PER_CALL = 512
"""Tokens that are enough for an attention call of their own, where more would be padded by a third."""


def _gather(x: Tensor, index: Tensor, inverse_index: Tensor) -> Tensor:
    moved = _Gather.apply(x, index, inverse_index)  # type: ignore[no-untyped-call]
    assert isinstance(moved, Tensor)
    return moved


class _Gather(torch.autograd.Function):
    """x[index] along the first axis, where every row of x is taken once, or again where nobody will look."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, index: Tensor, inverse_index: Tensor) -> Tensor:
        ctx.save_for_backward(inverse_index)
        return x.index_select(0, index)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return grad.index_select(0, ctx.saved_tensors[0]), None, None


@dataclass(frozen=True, slots=True)
class _PrefixBlock:
    """Beginnings of like length, in one causal call."""

    offset: int
    """Where their rectangle begins among all."""
    lengths: NDArray[np.int64]

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.lengths), int(self.lengths.max())


@dataclass(frozen=True, slots=True)
class _SuffixBlock:
    """What is rows' own, of like length, after beginnings of one `_Begin`."""

    offset: int
    lengths: NDArray[np.int64]
    prefix: _PrefixBlock
    prefix_row: Int[Tensor, " R"]
    """Of each row, the place of its beginning."""

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.lengths), int(self.lengths.max())

    def attn_mask(self, window: int | None, device: torch.device) -> Bool[Tensor, "R Q S"]:
        """Which keys [beginning, own] each query sees; one mask for all rows where they do not differ."""
        wide, width = self.prefix.shape[1], self.shape[1]
        before = torch.from_numpy(self.prefix.lengths)[self.prefix_row.cpu()]
        if bool((before == wide).all()):
            before = before[:1]
        place = torch.arange(wide + width)
        key = torch.where(place < wide, place, place - wide + before[:, None])  # its place in its row
        there = (place >= wide) | (place < before[:, None])
        gap = (torch.arange(width) + before[:, None])[:, :, None] - key[:, None]
        seen = there[:, None] & (gap >= 0)
        return (seen if window is None else seen & (gap < window)).to(device)


@dataclass(frozen=True, slots=True)
class PackedLayout:
    """Where the pieces lie, and the attention between them: a `How` of `models.attention`."""

    blocks: tuple[_PrefixBlock | _SuffixBlock, ...]
    """As they lie; a beginning stands before what follows it."""
    gather_index: Int[Tensor, " M"]
    """From places in the rectangles to places in the long row; of padding, any."""
    inverse_index: Int[Tensor, " N"]
    """And from the long row to the rectangles."""
    mask_cache: dict[tuple[int, int | None], Tensor] = field(default_factory=dict)

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, params: AttentionParams) -> Tensor:
        """Attention of the long row [1, N, heads, D]."""
        dtype = (
            torch.float32 if is_half_on_cpu(query) else query.dtype
        )  # it goes back at half the speed there
        q, k, v = (
            _gather(x[0].to(dtype), self.gather_index, self.inverse_index) for x in (query, key, value)
        )
        how: dict[str, Any] = {"scale": params.scale, "softcap": params.softcap}
        out: list[Tensor] = []
        known: dict[int, list[Tensor]] = {}
        sizes = [math.prod(piece.shape) for piece in self.blocks]
        cut = zip(self.blocks, *(x.split(sizes) for x in (q, k, v)), strict=True)  # slices go back slowly
        for piece, *flat in cut:
            asks, *parts = (x.unflatten(0, piece.shape) for x in flat)
            if isinstance(piece, _PrefixBlock):
                known[piece.offset] = parts
                part = dot_product_attention(asks, *parts, window=params.window, is_causal=True, **how)
            else:
                before = (x.index_select(0, piece.unit) for x in known[piece.begin.start])
                keys, values = (torch.cat(pair, 1) for pair in zip(before, parts, strict=True))
                seen = self._mask(piece, params.window, query.device)
                part = dot_product_attention(asks, keys, values, attn_mask=seen, **how)
            out.append(part.flatten(0, 1))
        return torch.cat(out).index_select(0, self.inverse_index)[None].to(query.dtype)

    def _mask(self, suffix: _SuffixBlock, window: int | None, device: torch.device) -> Tensor:
        if window is not None and window >= suffix.prefix.shape[1] + suffix.shape[1]:
            window = None
        if (suffix.offset, window) not in self.mask_cache:
            self.mask_cache[suffix.offset, window] = suffix.attn_mask(window, device)
        return self.mask_cache[suffix.offset, window]


@dataclass(frozen=True, slots=True)
class PackedRows:
    """Rows as one long row."""

    input_ids: Int[Tensor, "1 N"]
    position_ids: Int[Tensor, "1 N"]
    """Of each token in its own row, from 0."""
    index: Int[Tensor, "B T"]
    """Where each real token lies in the long row; of padding, where the last real token before it does."""
    layout: PackedLayout


def pack_rows(
    input_ids: Int[Tensor, "B T"],
    attention_mask: Bool[Tensor, "B T"],
    device: torch.device | None = None,
    *,
    padded_length: Callable[[int], int] = lambda n: n,
) -> PackedRows:
    """Lay rows out without padding, common beginnings once.

    Args:
        input_ids: Rows of token ids, at least one of them real.
        attention_mask: Real tokens, wherever they stand.
        device: Where the answer is to lie.
        padded_length: From the tokens that must be computed to the length of the long row. What fills it up stands
            behind as a row of its own, at which nobody looks.
    """
    rows, lengths = compact_rows(input_ids, attention_mask)
    found = [s for s in group_by_prefix(rows, lengths) if lengths[list(s.rows)].max() > 0]
    pieces, place = _place_blocks(found, lengths, rows.shape)
    real = np.arange(rows.shape[1]) < lengths[:, None]
    n = int(sum(piece.lengths.sum() for piece in pieces))
    behind = padded_length(n) - n
    flat, positions = np.zeros(n + behind, np.int64), np.zeros(n + behind, np.int64)
    if behind:
        pieces.append(_PrefixBlock(sum(math.prod(piece.shape) for piece in pieces), np.array([behind])))
        positions[n:] = np.arange(behind)
    flat[place[real]] = rows[real]
    positions[place[real]] = np.broadcast_to(np.arange(rows.shape[1]), rows.shape)[real]
    index, back = _rectangle_indices(pieces)
    where = torch.from_numpy(place).gather(1, (attention_mask.cpu().long().cumsum(1) - 1).clamp(min=0))
    on = [torch.from_numpy(x).to(device) for x in (flat, positions, index, back)]
    there = tuple(
        p if isinstance(p, _PrefixBlock) else replace(p, prefix_row=p.prefix_row.to(device)) for p in pieces
    )
    return PackedRows(on[0][None], on[1][None], where.to(device), PackedLayout(there, on[2], on[3]))


def _place_blocks(
    prefix_groups: Sequence[PrefixGroup], lengths: NDArray[np.int64], shape: tuple[int, ...]
) -> tuple[list[_PrefixBlock | _SuffixBlock], NDArray[np.int64]]:
    """The pieces in the order in which they lie, and where each row's tokens come to lie."""
    pieces: list[_PrefixBlock | _SuffixBlock] = []
    place = np.zeros(shape, np.int64)
    at = corner = 0  # in the long row, and among the rectangles
    for part in _length_buckets([s.prefix_length for s in prefix_groups]):
        sizes = np.array([prefix_groups[i].prefix_length for i in part])
        begin = _PrefixBlock(corner, sizes)
        pieces.append(begin)
        corner += int(np.prod(begin.shape))
        for i in part:
            for row in prefix_groups[i].rows:
                place[row, : prefix_groups[i].prefix_length] = np.arange(
                    at, at + prefix_groups[i].prefix_length
                )
            at += prefix_groups[i].prefix_length
        rest = [
            (row, u) for u, i in enumerate(part) for row in prefix_groups[i].rows if lengths[row] > sizes[u]
        ]
        tails = [int(lengths[row] - sizes[u]) for row, u in rest]
        for piece in _length_buckets(tails):
            unit = torch.tensor([rest[j][1] for j in piece])
            own = _SuffixBlock(corner, np.array([tails[j] for j in piece]), begin, unit)
            pieces.append(own)
            corner += int(np.prod(own.shape))
            for j in piece:
                row, u = rest[j]
                place[row, sizes[u] : lengths[row]] = np.arange(at, at + tails[j])
                at += tails[j]
    return pieces, place


def _length_buckets(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Numbers of pieces of like length, the longest first."""
    part: list[int] = []
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if (
            part
            and 4 * lengths[i] < 3 * lengths[part[0]]
            and len(part) * lengths[part[0]] >= MIN_TOKENS_PER_CALL
        ):
            yield part
            part = []
        part.append(i)
    if part:
        yield part


def _rectangle_indices(
    blocks: Sequence[_PrefixBlock | _SuffixBlock],
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """From the rectangles to the long row, padding reading its row's first; and back."""
    index, back, at = [], [], 0
    for piece in blocks:
        width = piece.shape[1]
        starts = at + np.concatenate([[0], piece.lengths[:-1].cumsum()])
        column = np.arange(width)
        real = column < piece.lengths[:, None]
        index.append(np.where(real, starts[:, None] + column, starts[:, None]).reshape(-1))
        back.append(piece.offset + np.flatnonzero(real))
        at += int(piece.lengths.sum())
    return np.concatenate(index), np.concatenate(back)
