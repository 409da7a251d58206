"""Readers of prompts, ratings, preference pairs and demonstrations; one error lists all bad rows."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Generic, TypedDict, TypeVar, Unpack

from paretune.core.errors import DataError, format_issue, join_issues
from paretune.core.rng import derive_seed
from paretune.data.columns import (
    ColumnNames,
    FieldError,
    LabelMapping,
    RowValues,
    closest_match,
    column_value,
    missing_column_error,
    summarize_names,
    truncate_text,
)
from paretune.data.fields import (
    Messages,
    extract_generation_prompt,
    extract_labels,
    extract_preference_pair,
    extract_preference_weights,
    extract_prompt_and_response,
)
from paretune.data.formats import HUB_PREFIX, Row, read_rows
from paretune.data.records import Demonstration, PreferencePair, Prompt, Rating

R = TypeVar("R", Prompt, Rating, PreferencePair, Demonstration)


class ReaderOptions(TypedDict, total=False):
    """Keyword arguments of all readers."""

    root: str | Path
    """Folder of relative paths; default: the working directory."""
    columns: ColumnNames
    """Column names; default: the usual ones."""
    where: Mapping[str, Any]
    """Column -> required value or list of values; other rows are skipped."""
    max_rows: int | None
    """Maximum number of records, sampled by `seed`, in file order; larger samples contain smaller ones."""
    seed: int
    transform: Callable[[Any], Any]
    """Called with each record; returns the record to keep, or None to skip it. May raise `FieldError`.

    With `max_rows` it is called in sampling order until enough records are kept, and never sees the others.
    """


def read_prompts(source: str | Path, *, category: str = "", **options: Unpack[ReaderOptions]) -> list[Prompt]:
    """Read the prompts of a file, in its order.

    Args:
        source: A file, or `hf:owner/name`.
        category: Category of all prompts; default: the column `columns.category`.
        options: See `ReaderOptions`.

    Raises:
        DataError: One line per bad row.
        MissingDependencyError: The name is on the hub, and `datasets` is not installed.
    """

    def build_record(values: RowValues, columns: ColumnNames, location: str) -> Prompt:
        prompt = _build_prompt(
            extract_generation_prompt(values, columns), values, columns, location, category
        )
        return replace(prompt, preference_weights=extract_preference_weights(values, columns))

    return _read_records(source, build_record, options)


def read_ratings(
    source: str | Path,
    *,
    labels: Mapping[str, str | LabelMapping] | None = None,
    **options: Unpack[ReaderOptions],
) -> list[Rating]:
    """Read the rated responses of a file, in its order; rows without any of the labels are skipped.

    Args:
        source: A file, or `hf:owner/name`.
        labels: Objective -> key of `scores`, or column; default: all keys of `scores`.
        options: See `ReaderOptions`.

    Raises:
        DataError: One line per bad label and bad row, and per label that no row has.
        MissingDependencyError: The name is on the hub, and `datasets` is not installed.
    """
    mappings = (
        None
        if labels is None
        else {k: LabelMapping(column=v) if isinstance(v, str) else v for k, v in labels.items()}
    )
    found_labels: set[str] = set()
    names: dict[str, None] = {}

    def build_record(values: RowValues, columns: ColumnNames, location: str) -> Rating | None:
        scores = column_value(columns, "scores", values)
        names.update(dict.fromkeys([*(scores if isinstance(scores, dict) else ()), *values]))
        row_labels = extract_labels(values, columns, mappings)
        prompt, response = extract_prompt_and_response(values, columns)
        found_labels.update(row_labels)
        built = _build_prompt(prompt, values, columns, location)
        return Rating(prompt=built, response=response, labels=row_labels) if row_labels else None

    def missing_label_issues(all_rows_valid: bool) -> list[str]:
        missing = [(k, label.column) for k, label in (mappings or {}).items() if k not in found_labels]
        # If rows were bad, only report names that occur nowhere: the bad rows might have had the label.
        certain = [(name, column) for name, column in missing if all_rows_valid or column not in names]
        return [_unknown_label_issue(source, options, name, column, names) for name, column in certain]

    return _read_records(source, build_record, options, missing_label_issues)


def read_preference_pairs(
    source: str | Path, *, objective: str = "", **options: Unpack[ReaderOptions]
) -> list[PreferencePair]:
    """Read the preference pairs of a file, in its order.

    Args:
        source: A file, or `hf:owner/name`.
        objective: Objective of all pairs; default: the column `columns.objective`.
        options: See `ReaderOptions`.

    Raises:
        DataError: One line per bad row.
        MissingDependencyError: The name is on the hub, and `datasets` is not installed.
    """

    def build_record(values: RowValues, columns: ColumnNames, location: str) -> PreferencePair:
        name = objective or column_value(columns, "objective", values)
        if not isinstance(name, str) or not name.strip():
            raise missing_column_error(columns, "objective", values)
        messages, chosen, rejected = extract_preference_pair(values, columns)
        prompt = _build_prompt(messages, values, columns, location)
        return PreferencePair(prompt=prompt, chosen=chosen, rejected=rejected, objective=name)

    return _read_records(source, build_record, options)


def read_demonstrations(source: str | Path, **options: Unpack[ReaderOptions]) -> list[Demonstration]:
    """Read the demonstrations of a file, in its order.

    Args:
        source: A file, or `hf:owner/name`.
        options: See `ReaderOptions`.

    Raises:
        DataError: One line per bad row.
        MissingDependencyError: The name is on the hub, and `datasets` is not installed.
    """

    def build_record(values: RowValues, columns: ColumnNames, location: str) -> Demonstration:
        prompt, response = extract_prompt_and_response(values, columns)
        return Demonstration(prompt=_build_prompt(prompt, values, columns, location), response=response)

    return _read_records(source, build_record, options)


def _build_prompt(
    messages: Messages, values: RowValues, columns: ColumnNames, location: str, category: str = ""
) -> Prompt:
    """The prompt with id and category of its row; the default id is the location, as `file:line`."""
    row_id, row_category = (column_value(columns, field, values) for field in ("id", "category"))
    prompt_id = location.rpartition("/")[2] if row_id is None or row_id == "" else str(row_id)
    if not category and row_category is not None:
        category = str(row_category)
    return Prompt(messages=messages, id=prompt_id, category=category)


def _read_records(
    source: str | Path,
    build_record: Callable[[RowValues, ColumnNames, str], R | None],
    options: ReaderOptions,
    extra_issues: Callable[[bool], list[str]] = lambda _: [],
) -> list[R]:
    """Build the records of all rows that pass the filters; raise one error with all issues of the file.

    Args:
        source: A file, or `hf:owner/name`.
        build_record: Builds a record from a row, the column names and the location; None skips the row.
        options: See `ReaderOptions`.
        extra_issues: Called after all rows, with True if all rows were valid; returns further issues.
    """
    if unknown := set(options) - set(ReaderOptions.__annotations__):
        raise TypeError(f"unknown reader option: {', '.join(sorted(unknown))}")
    issues: list[str] = []
    built: list[_LocatedRecord[R]] = []
    field_errors: dict[str, FieldError] = {}
    columns = options.get("columns", ColumnNames())
    num_rows = num_matching = 0
    row_filter = _RowFilter(options.get("where", {}))
    for row in read_rows(source, issues, options.get("root", ".")):
        num_rows += 1
        if not row_filter.matches(row):
            continue
        num_matching += 1
        try:
            record = build_record(row.values, columns, row.location)
            if record is not None:
                built.append(_LocatedRecord(record, row.location, len(issues)))
        except FieldError as error:
            issues.extend(error.render_all(row.location))
            field_errors[row.location] = error
    if num_matching == len(field_errors) > 1:
        issues = _merge_missing_column_issues(
            issues,
            field_errors,
            row_filter.known_columns,
            lambda *parts: _file_issue(source, options, *parts),
        )
    records = _select_records(built, options, issues)
    if num_rows:
        unmatched = [
            _file_issue(source, options, f"where.{key}", *parts)
            for key, *parts in row_filter.unmatched_conditions()
        ]
        issues[:0] = unmatched or extra_issues(not issues)  # first: only the first 20 issues are shown
    if not issues and not records:
        problem = f"the filters exclude all {num_rows} rows" if num_rows else "has no rows"
        issues.append(
            _file_issue(source, options, "", problem, fix="loosen them" if num_rows else "add rows")
        )
    if issues:
        raise DataError(join_issues(issues))
    return records


def _merge_missing_column_issues(
    issues: list[str],
    field_errors: Mapping[str, FieldError],
    column_names: Mapping[str, None],
    make_issue: Callable[..., str],
) -> list[str]:
    """Replace the errors of all rows by one, if they all lack the same column."""
    first = next(iter(field_errors.values()))
    if not all(error.column_missing and error.key == first.key for error in field_errors.values()):
        return issues
    problem = f"no row has this column; the columns are {summarize_names(column_names)}"
    merged = {error.render(location) for location, error in field_errors.items()}
    issue = make_issue(first.key, problem, closest_match(first.key, column_names), first.fix)
    return [issue, *(line for line in issues if line not in merged)]


def _file_issue(
    source: str | Path, options: ReaderOptions, key: str, problem: str, suggestion: str = "", fix: str = ""
) -> str:
    is_hub = str(source).startswith(HUB_PREFIX)
    path = str(source) if is_hub else str(Path(options.get("root", ".")) / source)
    return format_issue(path, None, None, key, problem, suggestion=suggestion, fix=fix)


def _unknown_label_issue(
    source: str | Path, options: ReaderOptions, objective: str, column: str, column_names: Iterable[str]
) -> str:
    problem = f'no row has a label "{column}"; found {summarize_names(column_names)}'
    fix = "name a key of `scores`, or a column"
    return _file_issue(
        source,
        options,
        f"labels.{objective}",
        problem,
        closest_match(column, set(column_names) - {column}),
        fix,
    )


@dataclass(frozen=True, slots=True)
class _LocatedRecord(Generic[R]):
    """A record with the location of its row, and the number of issues of earlier rows."""

    record: R
    location: str
    num_prior_issues: int


def _select_records(
    located_records: Sequence[_LocatedRecord[R]], options: ReaderOptions, issues: list[str]
) -> list[R]:
    """At most `max_rows` of the records that `transform` keeps; its errors go into `issues` in row order."""
    max_rows, seed, transform = options.get("max_rows"), options.get("seed", 0), options.get("transform")
    order = list(range(len(located_records)))
    if max_rows is not None and max_rows < len(located_records):
        # Ranked by a hash rather than shuffled: independent of the numpy version, and samples are nested.
        order.sort(key=lambda i: derive_seed(seed, 0, "most", i))
    selected: dict[int, R] = {}
    row_issues: dict[int, list[str]] = {}
    for i in order:
        if len(selected) == max_rows:
            break
        try:
            record = located_records[i].record
            if transform is not None:
                record = transform(record)
        except FieldError as error:
            row_issues[i] = error.render_all(located_records[i].location)
            continue
        if record is not None:
            selected[i] = record
    for i in sorted(row_issues, reverse=True):  # from the end, so that earlier positions stay valid
        position = located_records[i].num_prior_issues
        issues[position:position] = row_issues[i]
    return [selected[i] for i in sorted(selected)]


class _RowFilter:
    """The `where` filter of a reader; reports conditions that no row meets."""

    def __init__(self, where: Mapping[str, Any]) -> None:
        self.allowed_values = {
            k: list(v) if isinstance(v, Sequence) and not isinstance(v, str) else [v]
            for k, v in where.items()
        }
        self.known_columns: dict[str, None] = {}
        self.observed_values: dict[str, dict[str, None]] = {key: {} for key in self.allowed_values}
        self.matched_keys: set[str] = set()

    def matches(self, row: Row) -> bool:
        self.known_columns.update(dict.fromkeys(row.values))
        met_keys = {
            k
            for k, values in self.allowed_values.items()
            if any(_cell_equals(row.values.get(k), v) for v in values)
        }
        self.matched_keys |= met_keys
        for key, observed in self.observed_values.items():
            # 100 are enough for the error message
            if len(observed) < 100 and key in row.values:
                observed[truncate_text(_format_cell(row.values[key]))] = None
        return len(met_keys) == len(self.allowed_values)

    def unmatched_conditions(self) -> Iterable[tuple[str, str, str, str]]:
        """Key, problem, suggestion and fix of every condition that no row meets."""
        for key in self.allowed_values:
            if key not in self.known_columns:
                problem = f"no such column; the columns are {summarize_names(self.known_columns)}"
                yield key, problem, closest_match(key, self.known_columns), "name a column of the file"
            elif key not in self.matched_keys:
                allowed = ", ".join(map(_format_cell, self.allowed_values[key]))
                observed = self.observed_values[key]
                problem = f"no row has {allowed}; the values are {summarize_names(observed)}"
                yield key, problem, closest_match(allowed, observed), "name a value of the column"


def _format_cell(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _cell_equals(cell: object, value: object) -> bool:
    """True if a cell equals a value of a recipe; cells of CSV are text and compare by spelling."""
    if isinstance(cell, bool) or isinstance(value, bool):
        return _format_cell(cell).lower() == _format_cell(value).lower()
    return cell == value or (isinstance(cell, str) and cell == _format_cell(value))
