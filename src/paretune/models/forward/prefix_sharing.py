"""Prefix sharing: rows that start with the same tokens, and forward passes that compute these tokens once."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int
from numpy.typing import NDArray
from torch import Tensor

# A prefix is shared if that saves at least one token in 8. Less does not pay for the additional attention
# calls and for keys that are copied per row.
SHARE_IF_SAVES_ONE_IN = 8

# Without a strict token limit, rows get room for 3 times their shared prefix. With a small limit, a long
# prompt would otherwise be recomputed for nearly every response.
LONG_PREFIX_FACTOR = 3


@dataclass(frozen=True, slots=True)
class PrefixGroup:
    """Rows that start with the same tokens."""

    rows: tuple[int, ...]
    prefix_length: int
    """Number of shared tokens; for a single row, its length."""


@dataclass(frozen=True, slots=True)
class _PrefixSpan:
    """A range of rows in sorted order, and the tokens saved by the best sharing among them."""

    first: int
    last: int
    saved_tokens: int
    prefix_length: int
    """Length of the prefix that all of them share; 0 if the two `children` share separately."""
    children: "tuple[_PrefixSpan, _PrefixSpan] | None"


def find_prefix_groups(
    input_ids: Int[Tensor, "B T"], attention_mask: Bool[Tensor, "B T"]
) -> list[PrefixGroup]:
    """Partition rows into groups with a shared prefix such that the most tokens are saved.

    Only token ids are compared, not the prompt a row belongs to: sharing is exact by construction.
    """
    rows, lengths = compact_rows(input_ids, attention_mask)
    return group_by_prefix(rows, lengths)


def group_by_prefix(rows: NDArray[np.int64], lengths: NDArray[np.int64]) -> list[PrefixGroup]:
    """As `find_prefix_groups`, of rows from `compact_rows`.

    In sorted order, rows with a common prefix are neighbors. Neighboring spans are joined in descending order
    of their common prefix, as in a prefix tree; each join shares the joint prefix or keeps the sharing of its
    parts, whichever saves more.
    """
    order = sorted(range(len(rows)), key=lambda i: rows[i, : lengths[i]].tobytes())
    cumulative_tokens = np.concatenate([[0], lengths[order].cumsum()])
    is_equal = rows[order[1:]] == rows[order[:-1]]
    common = (
        np.where(is_equal.all(1), rows.shape[1], is_equal.argmin(1)) if len(rows) > 1 else np.zeros(0, int)
    )
    common = np.minimum(common, np.minimum(lengths[order[1:]], lengths[order[:-1]]))
    leaves = [_PrefixSpan(i, i, 0, 0, None) for i in range(len(order))]
    span_at: dict[int, _PrefixSpan] = dict(enumerate(leaves))  # kept for the first and last row of each span
    for i in sorted(range(len(common)), key=lambda i: -common[i]):
        left, right, depth = span_at[i], span_at[i + 1], int(common[i])
        saved = (right.last - left.first) * depth
        num_tokens = cumulative_tokens[right.last + 1] - cumulative_tokens[left.first]
        is_worthwhile = saved * SHARE_IF_SAVES_ONE_IN >= num_tokens
        saved_separately = left.saved_tokens + right.saved_tokens
        prefix_length = depth if is_worthwhile and saved > saved_separately else 0
        joint = _PrefixSpan(
            left.first,
            right.last,
            max(saved, saved_separately) if prefix_length else saved_separately,
            prefix_length,
            (left, right),
        )
        span_at[joint.first] = span_at[joint.last] = joint
    groups, pending = [], [span_at[0]] if order else []
    while pending:
        span = pending.pop()
        if span.children is None or span.prefix_length:
            group_rows = tuple(sorted(order[span.first : span.last + 1]))
            groups.append(PrefixGroup(group_rows, span.prefix_length or int(lengths[group_rows[0]])))
        else:
            pending += span.children
    return sorted(groups, key=lambda group: group.rows)


def compact_rows(input_ids: Tensor, attention_mask: Tensor) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Real tokens moved to the front of their rows, followed by -1; and the number of tokens per row."""
    ids, is_real = input_ids.cpu().numpy(), attention_mask.cpu().numpy()
    lengths = is_real.sum(1)
    rows = np.full((len(ids), max(int(lengths.max(initial=0)), 1)), -1, dtype=np.int64)
    rows[np.arange(rows.shape[1]) < lengths[:, None]] = ids[is_real]
    return rows, lengths


def plan_passes(
    lengths: Sequence[int],
    max_tokens_per_pass: int,
    prefix_groups: Sequence[PrefixGroup],
    group: Sequence[int] | None = None,
    *,
    strict_token_limit: bool = True,
) -> list[list[int]]:
    """Split rows into forward passes of at most `max_tokens_per_pass` tokens, counting shared prefixes once.

    Rows that share a prefix are kept together, and the longest rows come first. Rows of a `group` are never
    split, even if they exceed the limit; otherwise only a single row may exceed it.

    Args:
        lengths: Tokens per row.
        max_tokens_per_pass: Tokens per pass.
        prefix_groups: Prefix groups of all rows; see `find_prefix_groups`.
        group: If given, rows with equal numbers stay in the same pass.
        strict_token_limit: If False, rows with a long shared prefix may use `LONG_PREFIX_FACTOR` times the
            prefix's length, whatever the limit is; otherwise the prefix is recomputed for every few of them.

    Returns:
        Row indices of each pass.
    """
    group_of_row = {row: prefix_group for prefix_group in prefix_groups for row in prefix_group.rows}
    passes: list[list[int]] = []
    current: list[int] = []
    for unit in _pass_units(lengths, max_tokens_per_pass, prefix_groups, group, strict_token_limit):
        if not passes or _num_tokens(current + unit, lengths, group_of_row) > max_tokens_per_pass:
            passes.append([])
            current = []
        passes[-1] += unit
        current = current + unit
    return [sorted(rows) for rows in passes]


def _pass_units(
    lengths: Sequence[int],
    max_tokens_per_pass: int,
    prefix_groups: Sequence[PrefixGroup],
    group: Sequence[int] | None,
    strict_token_limit: bool,
) -> list[list[int]]:
    """Sets of rows that are not split, sorted by their longest row in descending order."""
    units: list[list[int]] = []
    if group is None:
        for prefix_group in prefix_groups:
            max_tokens = (
                max_tokens_per_pass
                if strict_token_limit
                else max(max_tokens_per_pass, LONG_PREFIX_FACTOR * prefix_group.prefix_length)
            )
            num_tokens = max_tokens + 1  # the first row starts a unit
            for row in prefix_group.rows:
                suffix_length = lengths[row] - prefix_group.prefix_length
                if num_tokens + suffix_length > max_tokens:
                    units.append([])
                    num_tokens = prefix_group.prefix_length
                units[-1].append(row)
                num_tokens += suffix_length
    else:
        rows_by_group: dict[int, list[int]] = {}
        for row in (row for prefix_group in prefix_groups for row in prefix_group.rows):
            rows_by_group.setdefault(group[row], []).append(row)
        units = list(rows_by_group.values())
    return sorted(units, key=lambda rows: -max(lengths[row] for row in rows))


def _num_tokens(rows: Sequence[int], lengths: Sequence[int], group_of_row: dict[int, PrefixGroup]) -> int:
    """Tokens that a forward pass over these rows computes."""
    prefixes = {group_of_row[row].rows: group_of_row[row].prefix_length for row in rows}
    return sum(prefixes.values()) + sum(lengths[row] - group_of_row[row].prefix_length for row in rows)
