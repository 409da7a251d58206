"""Labels of a row: votes of one or several raters, values that mean "not rated", texts that mean a number."""

import json
import math
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from paretune.core.errors import format_issue
from paretune.data.columns import (
    MAX_LABEL,
    ColumnNames,
    FieldError,
    LabelMapping,
    RowValues,
    Scalar,
    check_label_range,
    is_unsubmitted,
    missing_column_error,
    parse_number,
    resolve_column,
    summarize_names,
    truncate_text,
)
from paretune.data.filters import format_cell
from paretune.data.formats import FileInfo, json_type_name
from paretune.data.number_texts import two_readings

USUAL_MISSING = frozenset(
    {"n/a", "na", "n.a.", "#n/a", "none", "null", "nil", "nan", "-", "--", "?", "missing", "not rated"}
)
"""Texts, in lower case, that are read as "not rated" and reported with a count."""
BOOLEAN_TEXTS = ("true", "false")
LIST_TEXT_PATTERN = re.compile(r"(?:array\()?\[(?P<items>[^\[\]{}]*)\](?:, dtype=\w+)?\)?")
"""A list of votes as text: as JSON, Python or numpy write it, which leaves the commas out."""
LIST_ITEM_PATTERN = re.compile(
    r"""\s*(?:"(?P<double>[^"]*)"|'(?P<single>[^']*)'|(?P<bare>[^\s,"']+))\s*(?:,|(?=\s|$)|$)"""
)
NUMBER_PATTERN = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?", re.IGNORECASE)
NUMBER_TYPES = (float, int)
RATER_KEYS = ("rater", "user_id", "annotator", "annotator_id", "worker_id", "completed_by")
VALUE_KEYS = ("value", "rating", "Rating", "number", "score")

Votes = tuple[float, ...]


@dataclass
class CellStatistics:
    """The cells of one objective in a file, as they are before scale and offset."""

    numbers: list[float] = field(default_factory=list)
    locations: list[str] = field(default_factory=list)
    """Location of the row of each number."""
    num_missing: int = 0
    """Cells whose value means "not rated"; empty cells do not count."""
    raters: set[str] = field(default_factory=set)
    """Who voted, as far as the file says."""
    used_values: set[str] = field(default_factory=set)
    """The values of `missing` and `value_map` that occurred."""
    assumed_missing: dict[str, tuple[int, str]] = field(default_factory=dict)
    """Usual spelling of a missing value -> number of cells, location of the first."""
    booleans: tuple[int, str] = (0, "")
    """Number of values that are true or false, location of the first."""
    decimal_commas: tuple[int, str, str] = (0, "", "")
    """Number of cells with a decimal comma, location and text of the first."""
    thousands: tuple[int, str, str] = (0, "", "")
    """Number of cells with dots between thousands, location and text of the first."""


class LabelReader:
    """Reads the votes of each row and keeps statistics of the cells of each objective.

    Args:
        mappings: Objective -> where its labels come from; None = all entries of `scores` unchanged.
        columns: Column names.
        missing: Values that mean "not rated" in every column.
        file_info: What the file turned out to be.
    """

    def __init__(
        self,
        mappings: Mapping[str, LabelMapping] | None,
        columns: ColumnNames,
        missing: tuple[Scalar, ...],
        file_info: FileInfo,
    ) -> None:
        self.mappings = mappings
        self.columns = columns
        self.missing = missing
        self.file_info = file_info
        self.statistics: dict[str, CellStatistics] = {}
        self._missing_values: dict[str, frozenset[str]] = {}
        self._is_plain: dict[str, bool] = {}

    def read(self, values: RowValues, location: str) -> dict[str, Votes]:
        """Votes of a row by objective, in label units; objectives without a vote are left out.

        Raises:
            FieldError: Bad labels; the error holds those of all objectives.
        """
        name, scores, mappings = self._sources(values)
        votes: dict[str, Votes] = {}
        errors = [] if self.mappings is None else _disagreements(name, scores, values, mappings)
        for objective, mapping in mappings.items():
            statistics = self.statistics.get(objective) or self._add_objective(objective, mapping)
            numbers: list[float] = []
            several, is_plain = not isinstance(mapping.column, str), self._is_plain[objective]
            for column in mapping.columns:
                in_scores = column in scores
                raw = scores[column] if in_scores else values.get(column)
                if raw is None:
                    continue
                # The usual cell; all others take the way below, with the same result for these.
                if is_plain and type(raw) is str and raw.replace(".", "", 1).isdecimal():
                    raw = float(raw)  # a number of a CSV file
                if (
                    is_plain
                    and type(raw) in NUMBER_TYPES
                    and -MAX_LABEL <= raw <= MAX_LABEL
                    and -MAX_LABEL <= (label := mapping.scale * raw + mapping.offset) <= MAX_LABEL
                ):
                    numbers.append(label)
                    statistics.numbers.append(raw)
                    statistics.locations.append(location)
                    if several:
                        statistics.raters.add(column)
                    continue
                key = f"{name}.{column}" if in_scores else column
                try:
                    numbers += self._read_cell(raw, key, objective, mapping, statistics, location)
                except FieldError as error:
                    errors.append(error)
            if numbers:
                votes[objective] = tuple(numbers)
        if errors:
            errors[0].other_errors = tuple(errors[1:])
            raise errors[0]
        return votes

    def _add_objective(self, objective: str, mapping: LabelMapping) -> CellStatistics:
        known = map(value_spelling, (*mapping.missing, *self.missing))
        self._missing_values[objective] = frozenset(known)
        # With decimal commas a dot may separate thousands: 1.250 is 1250.
        self._is_plain[objective] = not (
            mapping.value_map or mapping.missing or self.missing or self.file_info.decimal_comma
        )
        return self.statistics.setdefault(objective, CellStatistics())

    def _sources(self, values: RowValues) -> tuple[str, Mapping[str, Any], Mapping[str, LabelMapping]]:
        """Column and content of the scores object, and the label mappings."""
        name = resolve_column(self.columns, "scores", values)
        scores = values[name] if name else {}
        if not isinstance(scores, dict) and self.mappings is not None and not self.columns.scores:
            scores = {}  # a column that is called scores by chance; the labels are elsewhere
        if not isinstance(scores, dict):
            raise FieldError(
                name, f"{json_type_name(scores)}, not an object", fix='write {"politeness": 0.7}'
            )
        if self.mappings is not None:
            return name, scores, self.mappings
        if not name:
            raise missing_column_error(self.columns, "scores", values)
        return name, scores, {key: LabelMapping(column=key) for key in scores}

    def _read_cell(
        self,
        raw: Any,
        key: str,
        objective: str,
        mapping: LabelMapping,
        statistics: CellStatistics,
        location: str,
    ) -> Votes:
        """The votes of a cell."""
        several = not isinstance(mapping.column, str)
        votes = []
        for rater, vote in _cell_votes(raw, key):
            number = self._read_vote(vote, key, objective, mapping, statistics, location)
            if math.isnan(number):
                continue
            statistics.numbers.append(number)
            statistics.locations.append(location)
            if several or rater is not None:
                statistics.raters.add(key if rater is None else str(rater))
            label = mapping.scale * number + mapping.offset
            votes.append(label if -MAX_LABEL <= label <= MAX_LABEL else check_label_range(label, key))
        return tuple(votes)

    def _read_vote(
        self,
        vote: Any,
        key: str,
        objective: str,
        mapping: LabelMapping,
        statistics: CellStatistics,
        location: str,
    ) -> float:
        """A vote as a number before scale and offset; NaN = not rated."""
        missing_values = self._missing_values[objective]
        if type(vote) is str:
            vote = vote.strip()
            is_doubtful = self.file_info.decimal_comma and not vote.isdecimal()
            # A text that `map` or `missing` names means what they say.
            if is_doubtful and value_spelling(vote) not in (missing_values | mapping.value_map.keys()):
                vote = self._python_spelling(vote, key, statistics, location)
        if mapping.value_map or missing_values:
            spelling = value_spelling(vote)
            if spelling in mapping.value_map:
                statistics.used_values.add(spelling)
                return mapping.value_map[spelling]
            if spelling in missing_values:
                statistics.used_values.add(spelling)
                statistics.num_missing += 1
                return math.nan
        if type(vote) is str and vote.lower() in USUAL_MISSING:
            count, first = statistics.assumed_missing.get(vote, (0, location))
            statistics.assumed_missing[vote] = (count + 1, first)
            statistics.num_missing += 1
            return math.nan
        number = parse_number(vote, key)
        if isinstance(vote, bool) or (isinstance(vote, str) and vote.lower() in BOOLEAN_TEXTS):
            count, first = statistics.booleans
            statistics.booleans = (count + 1, first or location)
        return number

    def _python_spelling(self, text: str, key: str, statistics: CellStatistics, location: str) -> str:
        """A number of a file that may have decimal commas, as Python spells it; other texts unchanged.

        Raises:
            FieldError: It can be read in two ways.
        """
        number = self.file_info.number_styles.python_spelling(text, key)
        if number is None:
            problem, fix = two_readings(text)
            raise FieldError(key, problem, fix=fix)
        if number != text:
            kind = "thousands" if "." in text else "decimal_commas"
            count, first, first_text = getattr(statistics, kind)
            setattr(statistics, kind, (count + 1, first or location, first_text or text))
        return number


def thousands_notes(statistics: Mapping[str, CellStatistics]) -> Iterator[str]:
    """How numbers with dots between thousands were read, a line per objective."""
    for objective, cells in statistics.items():
        count, first, text = cells.thousands
        if count:
            number = text.replace(".", "").replace(",", ".")
            has = "number has" if count == 1 else "numbers have"
            problem = f'{count} {has} dots between thousands: "{text}" is read as {number}'
            yield format_issue(first, None, None, objective, problem)


def value_spelling(value: object) -> str:
    """One spelling of each value: -1, -1.0 and "-1" are the same."""
    text = format_cell(value).strip()
    try:
        return text if isinstance(value, bool) else f"{float(text):.17g}"
    except ValueError:
        return text


def _disagreements(
    scores_name: str, scores: RowValues, values: RowValues, mappings: Mapping[str, LabelMapping]
) -> list[FieldError]:
    """An error per column that is a key of the scores object too, with another value."""
    if not scores:
        return []
    errors = []
    for column in dict.fromkeys(column for mapping in mappings.values() for column in mapping.columns):
        here, there = values.get(column), scores.get(column)
        if here is None or there is None or here == there or value_spelling(here) == value_spelling(there):
            continue
        texts = [format_cell(v) if isinstance(v, Scalar) else json_type_name(v) for v in (here, there)]
        key = f"{scores_name}.{column}"
        problem = f'"{truncate_text(texts[0])}" here, and "{truncate_text(texts[1])}" in {key}'
        fix = f'write from: {key}, or columns: {{scores: "-"}} for the columns of this row'
        errors.append(FieldError(column, problem, fix=fix))
    return errors


def _cell_votes(raw: Any, key: str) -> Iterator[tuple[Any, Any]]:
    """Rater (None if unknown) and value of each vote of a cell."""
    if type(raw) is str and raw.lstrip().startswith(("[", "array([")):
        raw = _parse_list_text(raw.strip())
    if type(raw) is not list:
        yield _unwrap(raw, key)
        return
    for i, vote in enumerate(raw):
        if not is_unsubmitted(vote):
            yield _unwrap(vote, f"{key}[{i}]")


def _parse_list_text(text: str) -> Any:
    """The list that a spreadsheet or a data frame wrote as text; the text itself if it is none of numbers."""
    with suppress(ValueError, RecursionError):
        return json.loads(text)
    match = LIST_TEXT_PATTERN.fullmatch(text)
    items, position = [], 0
    body = match["items"].strip() if match else "?"
    while position < len(body):
        item = LIST_ITEM_PATTERN.match(body, position)
        if item is None:
            return text
        value = next(part for part in item.groups() if part is not None)
        if not (NUMBER_PATTERN.fullmatch(value) or value.lower() in {"", *USUAL_MISSING, *BOOLEAN_TEXTS}):
            return text
        items.append(value)
        position = item.end()
    return items


def _unwrap(vote: Any, key: str) -> tuple[Any, Any]:
    if type(vote) is not dict:
        return None, vote
    value_key = next((name for name in VALUE_KEYS if name in vote), None)
    if value_key is None:
        problem = f"an object with {summarize_names(map(str, vote))}, not a number"
        raise FieldError(key, problem, fix=f"name the part with the number, such as {key}.value")
    return next((vote[name] for name in RATER_KEYS if name in vote), None), vote[value_key]
