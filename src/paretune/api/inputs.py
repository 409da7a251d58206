"""Prompts and rated or unrated responses, from files or in the forms that people have them in memory."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import pyarrow as pa

from paretune.core.errors import DataError, format_issue, join_issues
from paretune.data.columns import (
    ColumnNames,
    FieldError,
    RowValues,
    check_label_range,
    column_value,
    parse_number,
    resolve_column,
)
from paretune.data.complaints import merge_issues
from paretune.data.fields import (
    extract_generation_prompt,
    extract_preference_pair,
    extract_prompt_and_response,
)
from paretune.data.formats import Row, read_rows
from paretune.data.message_cells import MessageCells
from paretune.data.records import PreferencePair, Prompt, Rating, Sample

PromptLike: TypeAlias = str | Sequence[Mapping[str, Any]] | Mapping[str, Any] | Prompt
"""A user message as text; a conversation as a list of messages; or a row with the column `prompt` or
`messages`, whose other columns reach the scorers."""
Prompts: TypeAlias = Path | Iterable[PromptLike] | pa.Table
"""A file of prompts, or the prompts themselves: a list, a table or a `datasets.Dataset`."""
Rows: TypeAlias = str | Path | Iterable[Mapping[str, Any]] | pa.Table
"""A file, or rows with a prompt and a response: dicts, a table or a `datasets.Dataset`."""

_NAMES = ColumnNames()
_TEXT_FIELDS = ("prompt", "messages", "response")
_OWN_COLUMNS = ("id", "category", "scores")
_MEMORY = "rows"
"""What messages call rows that come from no file."""


@dataclass(frozen=True)
class _Source:
    """Rows with their locations, and what messages call them."""

    name: str
    rows: Iterator[Row]
    issues: list[str]
    """Bad rows of the file, filled in while it is read."""
    is_file: bool = False

    def add(self, error: FieldError, location: str) -> None:
        """Add the complaints of a row."""
        if error.column_missing:
            error.fix = f"add it, or rename the column that holds it to {error.key}"
        self.issues.extend(error.render_all(location))


def read_prompts(prompts: Prompts) -> tuple[Prompt, ...]:
    """The prompts as records.

    Raises:
        DataError: There are none, an entry is no prompt, or the file cannot be read.
    """
    if isinstance(prompts, str):
        problem = f"prompts are one string ({prompts[:40]!r})"
        raise DataError(f"{problem}; fix: pass a list of prompts, or pathlib.Path(...) for a file")
    records = []
    source = _source_of(prompts if isinstance(prompts, Path) else _prompt_rows(prompts), "prompts")
    for values, location in _decoded(source):
        record = values.get(_RECORD)
        if record is None:
            try:
                record = _prompt(extract_generation_prompt(values, _NAMES), values, location)
            except FieldError as error:
                source.add(error, location)
                continue
        records.append(record)
    return _complete(records, source, "prompts")


def read_samples(rows: Rows) -> tuple[Sample, ...]:
    """Rows of prompt and response, to be scored.

    Raises:
        DataError: There are none, a row has no prompt or no response, or the file cannot be read.
    """
    source = _source_of(rows, _MEMORY)
    samples = []
    for values, location in _decoded(source):
        try:
            messages, response = extract_prompt_and_response(values, _NAMES)
        except FieldError as error:
            source.add(error, location)
            continue
        samples.append(Sample(prompt=_prompt(messages, values, location), response=response))
    return _complete(samples, source, "rows")


def read_ratings(rows: Rows, labels: Mapping[str, str]) -> tuple[Rating, ...]:
    """Rows of prompt, response and labels; those without any label are left out.

    Args:
        rows: The rows.
        labels: Objective -> its column; empty: all keys of the column `scores`.

    Raises:
        DataError: There are none, a row is malformed, or the file cannot be read.
    """
    source = _source_of(rows, _MEMORY)
    ratings = []
    for values, location in _decoded(source):
        try:
            messages, response = extract_prompt_and_response(values, _NAMES)
            numbers = _labels(values, labels)
        except FieldError as error:
            source.add(error, location)
            continue
        known = {name: number for name, number in numbers.items() if not math.isnan(number)}
        if known:
            prompt = _prompt(messages, values, location)
            ratings.append(Rating(prompt=prompt, response=response, labels=known))
    return _complete(ratings, source, "rated rows")


def read_pairs(rows: Rows, objective: str = "") -> tuple[PreferencePair, ...]:
    """Rows of a prompt, a chosen and a rejected response.

    Args:
        rows: The rows.
        objective: Objective of all pairs; "": the column `objective` names it.

    Raises:
        DataError: There are none, a row is malformed, or the file cannot be read.
    """
    source = _source_of(rows, "pairs")
    pairs = []
    for values, location in _decoded(source):
        try:
            messages, chosen, rejected = extract_preference_pair(values, _NAMES)
            name = objective or column_value(_NAMES, "objective", values)
            if not isinstance(name, str) or not name.strip():
                raise FieldError("objective", "no name", fix='add it, or pass pairs={"polite": rows}')
        except FieldError as error:
            source.add(error, location)
            continue
        prompt = _prompt(messages, values, location)
        pairs.append(PreferencePair(prompt=prompt, chosen=chosen, rejected=rejected, objective=name))
    return _complete(pairs, source, "pairs")


_RECORD = "\0record"
"""Key of a prompt that is a record already; no column has this name."""


def _prompt_rows(prompts: Any) -> Any:
    if isinstance(prompts, pa.Table):
        return prompts
    return (_prompt_row(entry) for entry in _iterable(prompts, "prompts"))


def _prompt_row(entry: Any) -> Any:
    if isinstance(entry, Prompt):
        return {_RECORD: entry}
    return entry if isinstance(entry, Mapping) else {"prompt": entry}


def _iterable(values: Any, what: str) -> Iterable[Any]:
    if isinstance(values, Mapping) or not isinstance(values, Iterable):
        problem = f"{what} are one {type(values).__name__}"
        raise DataError(f"{problem}; fix: pass a list, or pathlib.Path(...) for a file")
    return values


def _source_of(rows: Any, name: str) -> _Source:
    issues: list[str] = []
    if isinstance(rows, str | Path):
        return _Source(str(rows), read_rows(str(rows), issues), issues, is_file=True)
    entries = rows.to_pylist() if isinstance(rows, pa.Table) else _iterable(rows, name)
    return _Source(name, _memory_rows(entries, name), issues)


def _memory_rows(entries: Iterable[Any], name: str) -> Iterator[Row]:
    for index, entry in enumerate(entries):
        if not isinstance(entry, Mapping):
            problem = f"a {type(entry).__name__}, not a row of columns"
            fix = 'write {"prompt": "...", "response": "..."}'
            raise DataError(format_issue(f"{name}:{index}", None, None, "", problem, fix=fix))
        yield Row(f"{name}:{index}", dict(entry))


def _decoded(source: _Source) -> Iterator[tuple[dict[str, Any], str]]:
    cells = MessageCells(_NAMES)
    for row in source.rows:
        try:
            # Only files write messages as text: in memory a text is what a user wrote.
            if source.is_file:
                cells.decode(row.values)
        except FieldError as error:
            source.add(error, row.location)
            continue
        yield row.values, row.location


def _prompt(messages: Any, values: RowValues, location: str) -> Prompt:
    used = {resolve_column(_NAMES, field, values) for field in _TEXT_FIELDS} | set(_OWN_COLUMNS)
    row_id = values.get("id")
    return Prompt(
        messages=messages,
        id=location.rpartition("/")[2] if row_id is None or row_id == "" else str(row_id),
        category=str(values.get("category") or ""),
        columns={name: value for name, value in values.items() if name not in used},
    )


def _labels(values: RowValues, labels: Mapping[str, str]) -> dict[str, float]:
    scores = column_value(_NAMES, "scores", values)
    nested = scores if isinstance(scores, Mapping) else {}
    if not labels:
        if not isinstance(scores, Mapping):
            fix = "add it, such as scores: {polite: 0.7}, or name the columns in labels"
            raise FieldError("scores", "no object of labels", fix=fix)
        return {name: _label(value, f"scores.{name}") for name, value in nested.items()}
    cells = {objective: nested.get(column, values.get(column)) for objective, column in labels.items()}
    return {objective: _label(cell, labels[objective]) for objective, cell in cells.items()}


def _label(value: object, key: str) -> float:
    return check_label_range(parse_number(value, key), key)


def _complete(records: list[Any], source: _Source, what: str) -> tuple[Any, ...]:
    if not records and not source.issues:
        raise DataError(f"{source.name}: there are no {what}; fix: pass at least one")
    if source.issues:
        raise DataError(join_issues(merge_issues(source.issues, source.name)))
    return tuple(records)
