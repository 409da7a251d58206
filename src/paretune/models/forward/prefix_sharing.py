"""Which rows begin with the same tokens, and how rows are cut into forward passes that compute those once."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int
from numpy.typing import NDArray
from torch import Tensor

SHARE_IF_SAVES_ONE_IN = 8
"""A beginning is shared where that saves one token in so many."""
LONG_PREFIX_FACTOR = 3
"""Beginnings that fill more than one part in so many of a pass are not computed again to keep to its size."""


@dataclass(frozen=True, slots=True)
class PrefixGroup:
    """Rows that begin with the same tokens."""

    rows: tuple[int, ...]
    prefix_length: int
    """Tokens of the common beginning; of a row alone, all of it."""


@dataclass(frozen=True, slots=True)
class _PrefixSpan:
    """Rows beside each other in sorted order, and how much the best sharing among them saves."""

    first: int
    last: int
    saved_tokens: int
    prefix_length: int
    """Tokens that all of them share; 0: `children` share apart."""
    children: "tuple[_PrefixSpan, _PrefixSpan] | None"


def find_prefix_groups(
    input_ids: Int[Tensor, "B T"], attention_mask: Bool[Tensor, "B T"]
) -> list[PrefixGroup]:
    """Who shares how much, such that the most tokens are saved; every row is in one of them.

    Only equal tokens count, whatever group a row belongs to: sharing is exact by construction.
    """
    rows, lengths = compact_rows(input_ids, attention_mask)
    return group_by_prefix(rows, lengths)


def group_by_prefix(rows: NDArray[np.int64], lengths: NDArray[np.int64]) -> list[PrefixGroup]:
    """The same, of `compact` rows."""
    order = sorted(range(len(rows)), key=lambda i: rows[i, : lengths[i]].tobytes())
    total = np.concatenate([[0], lengths[order].cumsum()])
    equal = rows[order[1:]] == rows[order[:-1]]
    same = np.where(equal.all(1), rows.shape[1], equal.argmin(1)) if len(rows) > 1 else np.zeros(0, int)
    same = np.minimum(same, np.minimum(lengths[order[1:]], lengths[order[:-1]]))
    runs = [_PrefixSpan(i, i, 0, 0, None) for i in range(len(order))]
    of: dict[int, _PrefixSpan] = dict(enumerate(runs))  # at its first and at its last row
    for i in sorted(range(len(same)), key=lambda i: -same[i]):
        left, right, depth = of[i], of[i + 1], int(same[i])
        saved = (right.last - left.first) * depth
        enough = saved * SHARE_IF_SAVES_ONE_IN >= total[right.last + 1] - total[left.first]
        apart = left.saved_tokens + right.saved_tokens
        shared = depth if enough and saved > apart else 0
        joint = _PrefixSpan(
            left.first, right.last, max(saved, apart) if shared else apart, shared, (left, right)
        )
        of[joint.first] = of[joint.last] = joint
    found, left_over = [], [of[0]] if order else []
    while left_over:
        run = left_over.pop()
        if run.children is None or run.prefix_length:
            rows_of = tuple(sorted(order[run.first : run.last + 1]))
            found.append(PrefixGroup(rows_of, run.prefix_length or int(lengths[rows_of[0]])))
        else:
            left_over += run.children
    return sorted(found, key=lambda sharing: sharing.rows)


def compact_rows(input_ids: Tensor, attention_mask: Tensor) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Real tokens moved to the front of their rows, -1 behind them; and how many there are."""
    ids, real = input_ids.cpu().numpy(), attention_mask.cpu().numpy()
    lengths = real.sum(1)
    rows = np.full((len(ids), max(int(lengths.max(initial=0)), 1)), -1, dtype=np.int64)
    rows[np.arange(rows.shape[1]) < lengths[:, None]] = ids[real]
    return rows, lengths


def plan_passes(
    lengths: Sequence[int],
    max_tokens_per_pass: int,
    prefix_groups: Sequence[PrefixGroup],
    group: Sequence[int] | None = None,
    *,
    strict_token_limit: bool = True,
) -> list[list[int]]:
    """Row numbers of forward passes of at most `max_tokens_per_pass` tokens, what rows share counted once.

    Rows that share stand together and the longest come first. What must not be parted and is larger than
    the budget stands alone; what may be parted is.

    Args:
        lengths: Tokens of each row.
        max_tokens_per_pass: Tokens of a pass.
        prefix_groups: Of all rows; see `sharings`.
        group: Where given, rows of equal number are never parted.
        strict_token_limit: Else rows that share much get room for `LONG` times their beginning, however small the budget
            is: it would be computed again for every few of them.
    """
    of = {row: sharing for sharing in prefix_groups for row in sharing.rows}
    parts: list[list[int]] = []
    held: list[int] = []
    for rows in _pass_units(lengths, max_tokens_per_pass, prefix_groups, group, strict_token_limit):
        if not parts or _num_tokens(held + rows, lengths, of) > max_tokens_per_pass:
            parts.append([])
            held = []
        parts[-1] += rows
        held = held + rows
    return [sorted(part) for part in parts]


def _pass_units(
    lengths: Sequence[int],
    max_tokens_per_pass: int,
    prefix_groups: Sequence[PrefixGroup],
    group: Sequence[int] | None,
    strict_token_limit: bool,
) -> list[list[int]]:
    """Rows that a plan keeps together, those with the longest row first."""
    units: list[list[int]] = []
    if group is None:
        for sharing in prefix_groups:
            room = (
                max_tokens_per_pass
                if strict_token_limit
                else max(max_tokens_per_pass, LONG_PREFIX_FACTOR * sharing.prefix_length)
            )
            held = room + 1
            for row in sharing.rows:
                own = lengths[row] - sharing.prefix_length
                if held + own > room:
                    units.append([])
                    held = sharing.prefix_length
                units[-1].append(row)
                held += own
    else:
        whole: dict[int, list[int]] = {}
        for row in (row for sharing in prefix_groups for row in sharing.rows):
            whole.setdefault(group[row], []).append(row)
        units = list(whole.values())
    return sorted(units, key=lambda rows: -max(lengths[row] for row in rows))


def _num_tokens(rows: Sequence[int], lengths: Sequence[int], group_of_row: dict[int, PrefixGroup]) -> int:
    """What a forward pass over these rows computes."""
    begun = {group_of_row[row].rows: group_of_row[row].prefix_length for row in rows}
    return sum(begun.values()) + sum(lengths[row] - group_of_row[row].prefix_length for row in rows)
