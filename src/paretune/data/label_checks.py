"""Checks of the labels of a whole file: codes for "not rated" among ratings, outliers, spellings."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from paretune.core.errors import format_issue
from paretune.data.columns import LabelMapping, Scalar, closest_match, quote_text, summarize_names
from paretune.data.filters import format_cell
from paretune.data.labels import CellStatistics, value_spelling

Values = NDArray[np.float64]
Issue = Callable[..., str]
NEGATIVE_CODES = (-1, -2, -7, -8, -9, -77, -88, -99, -999, -9999)
POSITIVE_CODES = (9, 77, 88, 99, 999, 9999)
"""Numbers by which surveys mark that there is no answer."""
MIN_VALUES = 8
"""Fewer values than this say nothing about their scale."""
MAX_SCALE_WIDTH = 10
"""Difference of the ends of a rating scale, such as 0 to 10."""
MAX_OUTLIER_FRACTION = 0.1


@dataclass(frozen=True, kw_only=True)
class OddValues:
    """Values of an objective that do not fit the others."""

    values: tuple[float, ...]
    num_values: int
    num_others: int
    low: float
    high: float
    """Range of the others."""


def suspected_codes(numbers: Values) -> OddValues | None:
    """Values that look like codes for "not rated", such as -1 among 1 to 5; None if there are none."""
    values, counts = np.unique(numbers, return_counts=True)
    for codes, others in ((NEGATIVE_CODES, values >= 0), (POSITIVE_CODES, ~np.isin(values, POSITIVE_CODES))):
        rest = values[others]
        if counts[others].sum() < MIN_VALUES or len(rest) < 3 or not np.isin(values[~others], codes).all():
            continue
        odd = values[~others]
        low, high = rest[0], rest[-1]
        is_scale = _is_rating_scale(rest)
        if codes is NEGATIVE_CODES:
            repeated = counts[~others].min(initial=2) > 1
            # 0 to 2 with -1, or -2 to 2 without a 0, are scales of their own.
            suspicious = len(odd) == 1 and (low >= 1 or (high >= 3 if is_scale else repeated))
            suspicious |= len(odd) == 2 and low >= 1 and odd[0] != -high
        else:
            odd = odd[(odd > high + 1) & ((odd > 9) | ((high <= 5) & (counts[~others] > 1)))]
            suspicious = len(odd) > 0 and is_scale
        if suspicious and len(odd):
            return _odd_values(numbers, odd, low, high)
    return None


def outliers(numbers: Values) -> OddValues | None:
    """Values far from all others, such as 55 among 1 to 5; None if there are none or no scale is apparent."""
    values, counts = np.unique(numbers, return_counts=True)
    if len(values) < 4:
        return None
    gap = int(np.argmax(np.diff(values))) + 1
    sides = [(slice(None, gap), slice(gap, None)), (slice(gap, None), slice(None, gap))]
    for inside, outside in sides:
        rest = values[inside]
        is_scale = _is_rating_scale(rest) or (rest[0] >= 0 and rest[-1] <= 1)
        enough = counts[inside].sum() >= max(MIN_VALUES, (1 - MAX_OUTLIER_FRACTION) * len(numbers))
        if len(rest) >= 3 and is_scale and enough and np.diff(values)[gap - 1] > 2 * (rest[-1] - rest[0]):
            return _odd_values(numbers, values[outside], rest[0], rest[-1])
    return None


def _is_rating_scale(values: Values) -> bool:
    return bool((values == np.floor(values)).all() and values[-1] - values[0] <= MAX_SCALE_WIDTH)


def _odd_values(numbers: Values, odd: Values, low: float, high: float) -> OddValues:
    num_values = int(np.isin(numbers, odd).sum())
    return OddValues(
        values=tuple(odd.tolist()),
        num_values=num_values,
        num_others=len(numbers) - num_values,
        low=float(low),
        high=float(high),
    )


def code_issues(
    mappings: Mapping[str, LabelMapping] | None, statistics: Mapping[str, CellStatistics]
) -> Iterator[str]:
    """Questions about values that may be codes for "not rated", which `missing` or `keep` answers.

    Args:
        mappings: Objective -> where its labels come from; None = all entries of `scores`.
        statistics: Objective -> its cells.
    """
    for objective, mapping, cells in _with_mappings(mappings, statistics):
        odd = suspected_codes(_unkept(cells, mapping))
        if odd is not None:
            verb, values = "is" if odd.num_values == 1 else "are", _listed(odd.values)
            problem = (
                f"{odd.num_others} of {odd.num_others + odd.num_values} values are {_range(odd)}, "
                f"{odd.num_values} {verb} {values}"
            )
            fix = (
                f"under labels.{objective}, missing: [{values}] if it means not rated, "
                f"or keep: [{values}] if it is a label"
            )
            place = _first_location(cells, odd.values)
            yield format_issue(place, None, None, _column_key(mapping), problem, fix=fix)


def unused_value_issues(
    mappings: Mapping[str, LabelMapping] | None,
    statistics: Mapping[str, CellStatistics],
    missing: tuple[Scalar, ...],
    issue: Issue,
) -> Iterator[str]:
    """Settings about values that no cell has.

    Args:
        mappings: As in `code_issues`.
        statistics: As in `code_issues`.
        missing: The values that mean "not rated" in every column of the file.
        issue: Makes a line from key, problem, suggestion and fix.
    """
    fix = "remove it, or write the value as it is in the file"
    for objective, mapping, cells in _with_mappings(mappings, statistics):
        kept = [value_spelling(value) for value in mapping.keep]
        numbers = {value_spelling(number) for number in set(cells.numbers)} if kept else set()
        for key, values, used in (
            ("missing", [value_spelling(value) for value in mapping.missing], cells.used_values),
            ("map", list(mapping.value_map), cells.used_values),
            ("keep", kept, numbers),
        ):
            if values and used.isdisjoint(values):
                problem = f"no cell has the value {summarize_names(values)}"
                observed = list(cells.assumed_missing)
                suggestion = next((name for value in values if (name := closest_match(value, observed))), "")
                yield issue(f"labels.{objective}.{key}", problem, suggestion, fix)
    used_anywhere = {value for cells in statistics.values() for value in cells.used_values}
    if missing and used_anywhere.isdisjoint(map(value_spelling, missing)):
        yield issue("missing", f"no label has the value {', '.join(map(format_cell, missing))}", "", fix)


def label_notes(
    mappings: Mapping[str, LabelMapping] | None, statistics: Mapping[str, CellStatistics]
) -> Iterator[str]:
    """Outliers, and what was read as something else than it spells; arguments as in `code_issues`."""
    for objective, mapping, cells in _with_mappings(mappings, statistics):
        key = _column_key(mapping)
        for text, (count, first) in cells.assumed_missing.items():
            verb = "cell is" if count == 1 else "cells are"
            problem = f"{count} {verb} {quote_text(text)}, read as not rated; the first is in this line"
            yield format_issue(first, None, None, key, problem)
        count, first, text = cells.decimal_commas
        if count:
            number = text.replace(",", ".")
            problem = f"{count} numbers have a decimal comma: {quote_text(text)} is read as {number}"
            yield format_issue(first, None, None, key, problem)
        odd = outliers(_unkept(cells, mapping))
        if odd is not None:
            values = _listed(odd.values)
            fix = f"correct it, or under labels.{objective} missing: [{values}], or keep: [{values}]"
            problem = f"{values} is far from the other {odd.num_others} values, which are {_range(odd)}"
            place = _first_location(cells, odd.values)
            yield format_issue(place, None, None, key, problem, fix=fix)


def _with_mappings(
    mappings: Mapping[str, LabelMapping] | None, statistics: Mapping[str, CellStatistics]
) -> Iterator[tuple[str, LabelMapping, CellStatistics]]:
    for objective, cells in statistics.items():
        yield objective, (mappings or {}).get(objective) or LabelMapping(column=objective), cells


def _column_key(mapping: LabelMapping) -> str:
    return ", ".join(mapping.columns)


def _unkept(cells: CellStatistics, mapping: LabelMapping) -> Values:
    """The numbers that are not known to be real."""
    numbers = np.asarray(cells.numbers, dtype=np.float64)
    kept = [float(value) for value in mapping.keep if not isinstance(value, str | bool)]
    return numbers[~np.isin(numbers, kept)]


def _first_location(cells: CellStatistics, values: tuple[float, ...]) -> str:
    wanted = set(values)
    return next(
        place for place, number in zip(cells.locations, cells.numbers, strict=True) if number in wanted
    )


def _range(odd: OddValues) -> str:
    return f"{odd.low:g} to {odd.high:g}"


def _listed(values: tuple[float, ...]) -> str:
    """The first few values."""
    return ", ".join(f"{value:g}" for value in values[:3]) + (", ..." if len(values) > 3 else "")
