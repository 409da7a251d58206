"""Numbers that do not fit the other labels of an objective: codes for "not rated", and typing errors.

A label is asked about only where the others show a scale: whole or evenly spaced ratings such as 1 to 5, or
numbers within 0 to 1, 0 to 10 or 0 to 100. Counts, standardized labels and numbers with long tails have none.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]
Counts = NDArray[np.int64]
MIN_VALUES = 8
"""Fewer values than this say nothing about their scale."""
MAX_GRID_VALUES = 21
"""Different values of a rating scale, such as 0 to 10 in halves."""
MAX_SCALE_WIDTH = 10
"""Difference of the ends of a rating scale, such as 0 to 10."""
MAX_ODD_VALUES = 3
"""More different values than this beyond a gap are a part of the scale."""
RARE_FRACTION = 0.1
"""A value that fewer labels have may be a slip."""
CODES = (9, 77, 88, 99, 999, 9999)
"""Numbers by which surveys mark that there is no answer."""
ZERO_FREE_TOPS = (5, 7)
"""Highest ratings of scales that begin with 1; 0 to 5 is asked about too, as they cannot be told apart."""


@dataclass(frozen=True, kw_only=True)
class OddValues:
    """Values of an objective that do not fit the others."""

    values: tuple[float, ...]
    num_values: int
    num_others: int
    low: float
    high: float
    """Range of the others."""


def find_odd_values(numbers: Values) -> OddValues | None:
    """Values that look like codes for "not rated" or like typing errors, such as -1, 0 or 55 among 1 to 5.

    Args:
        numbers: The labels that are not known to be real, shape [n].

    Returns:
        The odd values; None if all fit.
    """
    values, counts = np.unique(numbers, return_counts=True)
    found: list[float] = []
    # An odd value on one side can hide that of the other, so both sides are tried until nothing is found.
    while odd := _odd_side(values, counts):
        found += odd
        kept = ~np.isin(values, odd)
        values, counts = values[kept], counts[kept]
    if not found:
        return None
    num_odd = len(numbers) - int(counts.sum())
    return OddValues(
        values=tuple(sorted(found)),
        num_values=num_odd,
        num_others=len(numbers) - num_odd,
        low=float(values[0]),
        high=float(values[-1]),
    )


def _odd_side(values: Values, counts: Counts) -> list[float]:
    """The odd values below all others, or above; empty if there are none."""
    for num_odd in range(1, min(MAX_ODD_VALUES, len(values) - 2) + 1):
        for is_low in (True, False):
            odd, core = slice(None, num_odd), slice(num_odd, None)
            if not is_low:
                odd, core = slice(-num_odd, None), slice(None, -num_odd)
            if counts[core].sum() < max(MIN_VALUES, counts[odd].sum()):
                continue
            split = (values[odd], counts[odd], values[core], counts[core])
            if _is_low_odd(*split) if is_low else _is_high_odd(*split):
                return [float(value) for value in values[odd]]
    return []


def _is_low_odd(odd: Values, odd_counts: Counts, core: Values, core_counts: Counts) -> bool:
    low, high, width = core[0], core[-1], core[-1] - core[0]
    gap = low - odd[-1]
    if (odd == 0).all():
        return _is_zero_of_no_scale(core, core_counts)
    if not _are_whole(odd) or odd[-1] >= 0:
        return False  # the low end of a scale from 0 or 1 on
    if low < 0 or _is_symmetric_scale(odd, odd_counts, core, core_counts):
        return low < 0 and _is_far(odd, core, gap, width)
    if len(odd) > 1:
        return bool(low >= 1) or _is_far(odd, core, gap, width)
    if low >= 1 or _is_far(odd, core, gap, width):
        return True
    # A single negative number among wide ones may be a balance.
    return bool(high >= 3 if _is_rating_scale(core) else odd_counts[0] > 1 or high <= 1)


def _is_symmetric_scale(odd: Values, odd_counts: Counts, core: Values, core_counts: Counts) -> bool:
    """True if negative numbers are the lower half of a scale around 0, such as -2 to 2."""
    if not _is_rating_scale(core) or core[0] > 1 or odd[0] < -core[-1]:
        return False
    if len(odd) > 1:
        return bool(core[0] == 0 or odd[0] == -core[-1])
    if len(core) == 2:  # 0 and 1, with a -1 that is as frequent
        return bool(core[0] == 0 and odd_counts[0] > RARE_FRACTION * core_counts.sum())
    return bool(core[0] == 0 and core[-1] <= (2 if odd[0] == -1 else 3))


def _is_zero_of_no_scale(core: Values, core_counts: Counts) -> bool:
    """True if 0 is no rating, as the others are 1 to 5 or 7; counts, of which most are low, have zeros."""
    if core[0] < 1 or len(core) < 3 or not _is_grid(core) or core[-1] not in ZERO_FREE_TOPS:
        return False
    return not _are_counts(core, core_counts)


def _is_high_odd(odd: Values, odd_counts: Counts, core: Values, core_counts: Counts) -> bool:
    low, high = core[0], core[-1]
    gap, bottom = odd[0] - high, min(low, 1.0) if low >= 0 else low
    width = high - bottom
    if not _are_whole(odd):
        return False
    if _are_counts(core, core_counts):
        return bool(gap > 4 * width) and _is_far(odd, core, gap, width)
    if np.isin(odd, CODES).all() and len(core) >= 3 and _is_rating_scale(core) and gap > 1:
        return bool(odd[0] > 9 or (high <= 5 and odd_counts.sum() > 1) or gap >= max(width, 4))
    if _is_grid(core) and odd[0] <= 10 and width < 4:
        return False  # a part of a scale up to 10 that was hardly used
    if low >= 0 and high > 10 and odd[0] <= 100:
        return False  # a part of a scale up to 100
    return _is_far(odd, core, gap, width)


def _is_far(odd: Values, core: Values, gap: float, width: float) -> bool:
    """True if the gap is as wide as the scale of the others; wider, if it is not known to be a scale."""
    if (_is_grid(core) and len(core) >= 3) or (core[0] == 0 and core[-1] == 1):
        is_scale = core[0] >= 0 or _is_rating_scale(core)
        return bool(gap >= (width if is_scale else 2 * width))
    is_bounded = core[0] >= 0 and core[-1] <= 1 and width >= 0.5
    if is_bounded and len(core) >= 3:
        return bool(gap >= width) if odd[0] < 0 else bool(gap >= 2 * width)
    if core[0] >= 0 and core[-1] <= 100 and len(core) >= 3 and (core[-1] <= 10 or _are_whole(core)):
        return bool(gap >= 2 * width)
    return bool(np.isin(np.abs(odd), CODES).all() and abs(odd[0]) > 9 and gap >= 2 * width and len(core) >= 3)


def _are_whole(values: Values) -> bool:
    return bool((values == np.floor(values)).all())


def _is_rating_scale(values: Values) -> bool:
    return _are_whole(values) and bool(values[-1] - values[0] <= MAX_SCALE_WIDTH)


def _is_grid(values: Values) -> bool:
    """True if few values are evenly spaced, some places left empty."""
    if not 2 <= len(values) <= MAX_GRID_VALUES:
        return False
    steps = (values - values[0]) / np.diff(values).min()
    return bool(np.allclose(steps, np.round(steps), atol=1e-6) and steps[-1] < 2 * MAX_GRID_VALUES)


def _are_counts(core: Values, core_counts: Counts) -> bool:
    """True if whole numbers from 0 or 1 on become rarer the higher they are, as those of events do."""
    if not _are_whole(core) or core[0] not in (0, 1):
        return False
    middle = (core[0] + core[-1]) / 2
    return bool(core_counts[core < middle].sum() > 2 * core_counts[core > middle].sum())
