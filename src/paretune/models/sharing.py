"""Which rows begin with the same tokens, and how rows are cut into forward passes that compute those once."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int
from numpy.typing import NDArray
from torch import Tensor

WORTH = 8
"""A beginning is shared where that saves one token in so many."""
LONG = 3
"""Beginnings that fill more than one part in so many of a pass are not computed again to keep to its size."""


@dataclass(frozen=True, slots=True)
class Sharing:
    """Rows that begin with the same tokens."""

    rows: tuple[int, ...]
    shared: int
    """Tokens of the common beginning; of a row alone, all of it."""


@dataclass(frozen=True, slots=True)
class _Run:
    """Rows beside each other in sorted order, and how much the best sharing among them saves."""

    first: int
    last: int
    saved: int
    whole: int
    """Tokens that all of them share; 0: `parts` share apart."""
    parts: "tuple[_Run, _Run] | None"


def sharings(tokens: Int[Tensor, "B T"], attend: Bool[Tensor, "B T"]) -> list[Sharing]:
    """Who shares how much, such that the most tokens are saved; every row is in one of them.

    Only equal tokens count, whatever group a row belongs to: sharing is exact by construction.
    """
    rows, lengths = compact(tokens, attend)
    return sharings_of(rows, lengths)


def sharings_of(rows: NDArray[np.int64], lengths: NDArray[np.int64]) -> list[Sharing]:
    """The same, of `compact` rows."""
    order = sorted(range(len(rows)), key=lambda i: rows[i, : lengths[i]].tobytes())
    total = np.concatenate([[0], lengths[order].cumsum()])
    equal = rows[order[1:]] == rows[order[:-1]]
    same = np.where(equal.all(1), rows.shape[1], equal.argmin(1)) if len(rows) > 1 else np.zeros(0, int)
    same = np.minimum(same, np.minimum(lengths[order[1:]], lengths[order[:-1]]))
    runs = [_Run(i, i, 0, 0, None) for i in range(len(order))]
    of: dict[int, _Run] = dict(enumerate(runs))  # at its first and at its last row
    for i in sorted(range(len(same)), key=lambda i: -same[i]):
        left, right, depth = of[i], of[i + 1], int(same[i])
        saved = (right.last - left.first) * depth
        enough = saved * WORTH >= total[right.last + 1] - total[left.first]
        apart = left.saved + right.saved
        shared = depth if enough and saved > apart else 0
        joint = _Run(left.first, right.last, max(saved, apart) if shared else apart, shared, (left, right))
        of[joint.first] = of[joint.last] = joint
    found, left_over = [], [of[0]] if order else []
    while left_over:
        run = left_over.pop()
        if run.parts is None or run.whole:
            rows_of = tuple(sorted(order[run.first : run.last + 1]))
            found.append(Sharing(rows_of, run.whole or int(lengths[rows_of[0]])))
        else:
            left_over += run.parts
    return sorted(found, key=lambda sharing: sharing.rows)


def compact(tokens: Tensor, attend: Tensor) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Real tokens moved to the front of their rows, -1 behind them; and how many there are."""
    ids, real = tokens.cpu().numpy(), attend.cpu().numpy()
    lengths = real.sum(1)
    rows = np.full((len(ids), max(int(lengths.max(initial=0)), 1)), -1, dtype=np.int64)
    rows[np.arange(rows.shape[1]) < lengths[:, None]] = ids[real]
    return rows, lengths


def plan(
    lengths: Sequence[int],
    budget: int,
    shared: Sequence[Sharing],
    group: Sequence[int] | None = None,
    *,
    strict: bool = True,
) -> list[list[int]]:
    """Row numbers of forward passes of at most `budget` tokens, what rows share counted once.

    Rows that share stand together and the longest come first. What must not be parted and is larger than
    the budget stands alone; what may be parted is.

    Args:
        lengths: Tokens of each row.
        budget: Tokens of a pass.
        shared: Of all rows; see `sharings`.
        group: Where given, rows of equal number are never parted.
        strict: Else rows that share much get room for `LONG` times their beginning, however small the budget
            is: it would be computed again for every few of them.
    """
    of = {row: sharing for sharing in shared for row in sharing.rows}
    parts: list[list[int]] = []
    held: list[int] = []
    for rows in _units(lengths, budget, shared, group, strict):
        if not parts or _tokens(held + rows, lengths, of) > budget:
            parts.append([])
            held = []
        parts[-1] += rows
        held = held + rows
    return [sorted(part) for part in parts]


def _units(
    lengths: Sequence[int],
    budget: int,
    shared: Sequence[Sharing],
    group: Sequence[int] | None,
    strict: bool,
) -> list[list[int]]:
    """Rows that a plan keeps together, those with the longest row first."""
    units: list[list[int]] = []
    if group is None:
        for sharing in shared:
            room = budget if strict else max(budget, LONG * sharing.shared)
            held = room + 1
            for row in sharing.rows:
                own = lengths[row] - sharing.shared
                if held + own > room:
                    units.append([])
                    held = sharing.shared
                units[-1].append(row)
                held += own
    else:
        whole: dict[int, list[int]] = {}
        for row in (row for sharing in shared for row in sharing.rows):
            whole.setdefault(group[row], []).append(row)
        units = list(whole.values())
    return sorted(units, key=lambda rows: -max(lengths[row] for row in rows))


def _tokens(rows: Sequence[int], lengths: Sequence[int], of: dict[int, Sharing]) -> int:
    """What a forward pass over these rows computes."""
    begun = {of[row].rows: of[row].shared for row in rows}
    return sum(begun.values()) + sum(lengths[row] - of[row].shared for row in rows)
