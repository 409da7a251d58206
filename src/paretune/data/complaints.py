"""One complaint with a count instead of one per row: issues of one kind in one column are merged."""

import re
from collections.abc import Iterable, Sequence

from paretune.data.columns import FieldError, closest_match, summarize_names, text_value_fix
from paretune.data.filters import RowFilter

LOCATION_PATTERN = re.compile(r"^(?P<place>(?:row )?\d+)(?::\d+)?: (?P<rest>.*)$", re.DOTALL)
VARYING_PATTERN = re.compile(r'"(?:[^"\\]|\\.)*"|-?\d[\d.,e+-]*')
"""The parts of a message in which issues of one kind differ: quoted cells and numbers."""
NOT_A_NUMBER_PATTERN = re.compile(r'^(?P<key>.*?): "(?P<text>.*)" is not a number; fix: ')
MAX_VARIANTS = 5
"""Different cells that a merged complaint shows."""


def merge_issues(issues: Iterable[str], file: str) -> list[str]:
    """The issues with those of one kind and column merged into the first: `(and 6 more rows, to row 40)`.

    Args:
        issues: Lines of the form `file:line: key: problem; fix: ...`, or others, which stay as they are.
        file: The file as the lines spell it.
    """
    groups: dict[object, list[str]] = {}
    for index, line in enumerate(issues):
        _, rest = _split_location(line, file)
        groups.setdefault(_issue_kind(rest) if rest else index, []).append(line)
    return [lines[0] if len(lines) == 1 else _merged(lines, file) for lines in groups.values()]


def _issue_kind(message: str) -> tuple[str, str]:
    """Key and problem of a message without what differs from row to row."""
    message = message.partition("; fix: ")[0]
    key, separator, problem = message.partition(": ")
    if not separator:
        key, problem = "", message
    # Drop list indices from the key, but keep other digits: safety_1 and safety_2 are two columns.
    return re.sub(r"\[\d+\]", "[]", key), VARYING_PATTERN.sub("#", problem)


def _split_location(line: str, file: str) -> tuple[str, str]:
    """Line or row number, and the rest of the line; empty if it does not begin with a row of the file."""
    match = LOCATION_PATTERN.match(line.removeprefix(f"{file}:")) if line.startswith(f"{file}:") else None
    return (match["place"], match["rest"]) if match else ("", "")


def _merged(lines: list[str], file: str) -> str:
    splits = [_split_location(line, file) for line in lines]
    places = list(dict.fromkeys(place for place, _ in splits))
    first, rest = splits[0]
    head, separator, fix = rest.partition("; fix: ")
    texts = _cell_texts([text for _, text in splits])
    if texts:
        fix = text_value_fix(texts)
    others = f", such as {', '.join(texts[1:MAX_VARIANTS])}" if len(texts) > 1 else ""
    if len(places) == 1:
        count = f"and {len(lines) - 1} more in this row"
    else:
        last = places[-1] if places[-1].startswith("row") else f"line {places[-1]}"
        count = f"and {len(places) - 1} more row{'s' * (len(places) > 2)}{others}, to {last}"
    return f"{file}:{first}: {head} ({count}){separator}{fix}"


def _cell_texts(messages: list[str]) -> list[str]:
    """The different cells of messages about cells that are not numbers; empty if there are others."""
    matches = [NOT_A_NUMBER_PATTERN.match(message) for message in messages]
    texts = [match["text"] for match in matches if match]
    return list(dict.fromkeys(texts)) if len(texts) == len(messages) else []


def missing_column_issue(
    errors: Sequence[tuple[str, FieldError]], row_filter: RowFilter
) -> tuple[str, str, str, str] | None:
    """Key, problem, suggestion and fix if all rows lack the same column; None if they do not.

    Args:
        errors: Location and error of each row.
        row_filter: Has seen all rows, and knows their columns.
    """
    first = errors[0][1]
    if not all(error.column_missing and error.key == first.key for _, error in errors):
        return None
    names = list(row_filter.known_columns)
    problem = f"no row has this column; the columns are {summarize_names(names)}"
    suggestion = "" if _names_column(first.fix, names) else closest_match(first.key, names)
    return first.key, problem, suggestion, first.fix


def _names_column(fix: str, names: Iterable[str]) -> bool:
    """True if the fix proposes a column of the file, so that it needs no other guess."""
    return any(f": {name}}}" in fix for name in names)
