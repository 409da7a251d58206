"""Checks of the labels of a whole file: odd values, settings without effect, spellings."""

import re
from collections.abc import Callable, Iterator, Mapping

import numpy as np

from paretune.core.errors import format_issue
from paretune.data.columns import LabelMapping, Scalar, closest_match, quote_text, summarize_names
from paretune.data.filters import format_cell
from paretune.data.labels import CellStatistics, value_spelling
from paretune.data.odd_values import Values, find_odd_values

Issue = Callable[..., str]


def odd_value_issues(
    mappings: Mapping[str, LabelMapping] | None, statistics: Mapping[str, CellStatistics]
) -> Iterator[str]:
    """Questions about numbers that do not fit the others, which `missing` or `keep` answers.

    Args:
        mappings: Objective -> where its labels come from; None = all entries of `scores`.
        statistics: Objective -> its cells.
    """
    for objective, mapping, cells in _with_mappings(mappings, statistics):
        odd = find_odd_values(_unkept(cells, mapping))
        if odd is None:
            continue
        verb = "is" if odd.num_values == 1 else "are"
        problem = (
            f"{odd.num_others} of {odd.num_others + odd.num_values} values are {odd.low:g} to {odd.high:g}, "
            f"{odd.num_values} {verb} {_listed(odd.values)}; the first is in this line"
        )
        place = _first_location(cells, odd.values)
        missing, keep = (_label_entry(objective, mapping, key, odd.values) for key in ("missing", "keep"))
        fix = f"under labels, write {missing} if not rated, or {keep} if real; else correct the file"
        yield format_issue(place, None, None, _column_key(mapping), problem, fix=fix)


def _label_entry(objective: str, mapping: LabelMapping, key: str, values: tuple[float, ...]) -> str:
    """The entry of an objective under `labels` with further values under `missing` or `keep`."""
    entry: dict[str, str] = {}
    if mapping.columns != (objective,):
        columns = ", ".join(map(_yaml_name, mapping.columns))
        entry["from"] = columns if len(mapping.columns) == 1 else f"[{columns}]"
    entry |= {name: f"{getattr(mapping, name):g}" for name in ("scale", "offset")}
    entry = {name: text for name, text in entry.items() if (name, text) not in DEFAULT_ENTRIES}
    for name, known in (("missing", mapping.missing), ("keep", mapping.keep)):
        texts = [quote_text(value) if isinstance(value, str) else format_cell(value) for value in known]
        texts += [f"{value:g}" for value in values] if name == key else []
        if texts:
            entry[name] = f"[{', '.join(texts)}]"
    if mapping.value_map:
        pairs = (f"{quote_text(text)}: {number:g}" for text, number in mapping.value_map.items())
        entry["map"] = f"{{{', '.join(pairs)}}}"
    return f"{objective}: {{{', '.join(f'{name}: {text}' for name, text in entry.items())}}}"


DEFAULT_ENTRIES = {("scale", "1"), ("offset", "0")}


def _yaml_name(name: str) -> str:
    return name if re.fullmatch(r"[A-Za-z_][\w.-]*", name) else quote_text(name)


def boolean_issues(
    mappings: Mapping[str, LabelMapping] | None, statistics: Mapping[str, CellStatistics]
) -> Iterator[str]:
    """Labels that are true or false in some cells, and other numbers than 0 and 1 in others."""
    for _, mapping, cells in _with_mappings(mappings, statistics):
        count, place = cells.booleans
        other = next((number for number in cells.numbers if number not in (0, 1)), None) if count else None
        if other is not None:
            verb = "value is" if count == 1 else "values are"
            problem = f"{count} {verb} true or false, and others are numbers, such as {other:g}"
            fix = "write all of them as numbers on one scale"
            yield format_issue(place, None, None, _column_key(mapping), problem, fix=fix)


def unused_value_issues(
    mappings: Mapping[str, LabelMapping] | None,
    statistics: Mapping[str, CellStatistics],
    missing: tuple[Scalar, ...],
    issue: Issue,
) -> Iterator[str]:
    """Settings about values that no cell has.

    Args:
        mappings: As in `odd_value_issues`.
        statistics: As in `odd_value_issues`.
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
    """What was read as something else than it spells; arguments as in `odd_value_issues`."""
    for _, mapping, cells in _with_mappings(mappings, statistics):
        key = _column_key(mapping)
        for text, (count, first) in cells.assumed_missing.items():
            verb = "cell is" if count == 1 else "cells are"
            problem = f"{count} {verb} {quote_text(text)}, read as not rated; the first is in this line"
            yield format_issue(first, None, None, key, problem)
        count, first, text = cells.decimal_commas
        if count:
            number = text.replace(",", ".")
            has = "number has" if count == 1 else "numbers have"
            problem = f"{count} {has} a decimal comma: {quote_text(text)} is read as {number}"
            yield format_issue(first, None, None, key, problem)


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


def _listed(values: tuple[float, ...]) -> str:
    """The first few values."""
    return ", ".join(f"{value:g}" for value in values[:3]) + (", ..." if len(values) > 3 else "")
