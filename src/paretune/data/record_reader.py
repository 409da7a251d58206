"""Reading of the records of one kind from a file: rows, filters, limits; one error lists all bad rows."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypedDict, TypeVar

from paretune.core.errors import DataError, format_issue, join_issues
from paretune.core.rng import derive_seed
from paretune.data.columns import ColumnNames, FieldError, RowValues, add_nested_values
from paretune.data.complaints import merge_issues, missing_column_issue
from paretune.data.exports import (
    UNSUPPORTED_KINDS,
    RecordKind,
    expand_row,
    has_empty_response,
    recognize_export,
)
from paretune.data.filters import RowFilter
from paretune.data.formats import HUB_PREFIX, FileInfo, Row, read_rows
from paretune.data.message_cells import MessageCells
from paretune.data.raters import ReadSummary
from paretune.data.records import Demonstration, PreferencePair, Prompt, Rating

R = TypeVar("R", Prompt, Rating, PreferencePair, Demonstration)


class ReaderOptions(TypedDict, total=False):
    """Keyword arguments of all readers."""

    root: str | Path
    """Folder of relative paths; default: the working directory."""
    columns: ColumnNames
    """Column names; default: the usual ones."""
    format: str
    """Key of `EXPORTS`: what tool or data set the rows are of; default: rows of one record each."""
    summary: ReadSummary
    """Filled in with what there is to report besides the records."""
    where: Mapping[str, Any]
    """Column -> required value or list of values; other rows are skipped."""
    max_rows: int | None
    """Maximum number of records (responses, not votes), sampled by `seed`, in file order; larger samples
    contain smaller ones."""
    seed: int
    transform: Callable[[Any], Any]
    """Called with each record; returns the record to keep, or None to skip it. May raise `FieldError`.

    With `max_rows` it is called in sampling order until enough records are kept, and never sees the others.
    """


@dataclass(frozen=True, slots=True)
class LocatedRecord(Generic[R]):
    """A record with the location of its row, and the number of issues of earlier rows."""

    record: R
    location: str
    num_prior_issues: int


@dataclass(kw_only=True)
class RecordBuilder(Generic[R]):
    """Builds the records of one kind from rows."""

    kind: RecordKind
    build: Callable[[RowValues, ColumnNames, str], R | None]
    """From a row, the column names and the location; None skips the row."""
    column_names: Sequence[str] = ()
    """Columns it reads besides those of `columns`."""
    merge: Callable[[list[LocatedRecord[R]]], list[LocatedRecord[R]]] = lambda records: records
    """Joins records of the same response, before limits are counted."""
    file_issues: Callable[[bool], list[str]] = lambda _: []
    """Called after all rows, with True if all rows were valid; returns further issues."""
    summarize: Callable[[list[R], ReadSummary], None] = lambda records, summary: None
    """Called with the records that are returned; fills in the summary."""
    file_info: FileInfo = field(default_factory=FileInfo)


def read_records(source: str | Path, builder: RecordBuilder[R], options: ReaderOptions) -> list[R]:
    """Build the records of all rows that pass the filters; raise one error with all issues of the file.

    Args:
        source: A file, or `hf:owner/name`.
        builder: Builds a record from each row.
        options: See `ReaderOptions`.

    Raises:
        DataError: One line per kind of bad row.
        MissingDependencyError: The name is on the hub, and `datasets` is not installed.
    """
    if unknown := set(options) - set(ReaderOptions.__annotations__):
        raise TypeError(f"unknown reader option: {', '.join(sorted(unknown))}")
    summary = options.get("summary") or ReadSummary()
    _require_kind(source, builder, options)
    issues: list[str] = []
    built: list[LocatedRecord[R]] = []
    field_errors: list[tuple[str, FieldError]] = []
    columns = options.get("columns", ColumnNames())
    num_matching = 0
    row_filter = RowFilter(options.get("where", {}))
    expand = _row_expansion(builder, options)
    cells = MessageCells(columns)
    for file_row in read_rows(source, issues, options.get("root", "."), builder.file_info):
        summary.num_rows += 1
        try:
            for row in (file_row,) if expand is None else expand(file_row):
                if not row_filter.matches(row):
                    continue
                num_matching += 1
                if "format" in options and builder.kind != "prompts" and has_empty_response(row.values):
                    summary.num_empty += 1
                    continue
                cells.decode(row.values)
                record = builder.build(row.values, columns, row.location)
                if record is not None:
                    built.append(LocatedRecord(record, row.location, len(issues)))
        except FieldError as error:
            _suggest_format(error, file_row.values, options)
            issues.extend(error.render_all(file_row.location))
            field_errors.append((file_row.location, error))
    if num_matching == len(field_errors) > 1 and (merged := missing_column_issue(field_errors, row_filter)):
        lines: set[str] = {error.render(location) for location, error in field_errors}
        issues = [file_issue(source, options, *merged), *(line for line in issues if line not in lines)]
    return _finish(source, builder, options, built, issues, summary, row_filter)


def _finish(
    source: str | Path,
    builder: RecordBuilder[R],
    options: ReaderOptions,
    built: list[LocatedRecord[R]],
    issues: list[str],
    summary: ReadSummary,
    row_filter: RowFilter,
) -> list[R]:
    """The records that are kept of all that were built, or one error with all issues."""
    records = _select_records(builder.merge(built), options, issues)
    if summary.num_rows:
        unmatched = [
            file_issue(source, options, f"where.{key}", *parts)
            for key, *parts in row_filter.unmatched_conditions()
        ]
        issues[:0] = unmatched or builder.file_issues(not issues)  # first: only 20 issues are shown
    if not issues and not records:
        num_rows = summary.num_rows
        problem = f"the filters exclude all {num_rows} rows" if num_rows else "has no rows"
        fix = "loosen them" if num_rows else "add rows"
        issues.append(file_issue(source, options, "", problem, fix=fix))
    if issues:
        raise DataError(join_issues(merge_issues(issues, _file_name(source, options))))
    summary.notes += builder.file_info.notes
    if summary.num_empty:
        kind = "pairs" if builder.kind == "pairs" else "responses"
        problem = f"{summary.num_empty} of the {kind} left out, because a response is empty"
        summary.warnings.append(file_issue(source, options, "", problem))
    builder.summarize(records, summary)
    return records


def _require_kind(source: str | Path, builder: RecordBuilder[R], options: ReaderOptions) -> None:
    """Raises: DataError, if the export holds no records of this kind."""
    export = options.get("format", "")
    if builder.kind in UNSUPPORTED_KINDS.get(export, ()):
        problem, fix = f"{export} holds no {builder.kind}", "read it as another kind of record"
        raise DataError(file_issue(source, options, "format", problem, fix=fix))


def _row_expansion(
    builder: RecordBuilder[R], options: ReaderOptions
) -> Callable[[Row], Iterator[Row]] | None:
    """What makes the rows of one record each of a row of the file; None if rows are read as they are."""
    export = options.get("format", "")
    columns = options.get("columns", ColumnNames())
    configured: list[str] = [getattr(columns, name) for name in ColumnNames.__dataclass_fields__]
    names = (*configured, *builder.column_names, *options.get("where", {}))
    paths = [name for name in names if "." in name]
    if not export and not paths:
        return None

    def expand(row: Row) -> Iterator[Row]:
        for values in expand_row(export, row.values, builder.kind) if export else [row.values]:
            add_nested_values(values, paths)
            yield Row(row.location, values)

    return expand


def _suggest_format(error: FieldError, values: RowValues, options: ReaderOptions) -> None:
    """Name the `format` in the fix, if a column is missing and the row looks like that of a tool."""
    if error.column_missing and "format" not in options and (export := recognize_export(values)):
        error.suggestion, error.fix = "", f"write format: {export}"


def _file_name(source: str | Path, options: ReaderOptions) -> str:
    """The file as messages spell it."""
    is_hub = str(source).startswith(HUB_PREFIX)
    return str(source) if is_hub else str(Path(options.get("root", ".")) / source)


def file_issue(
    source: str | Path, options: ReaderOptions, key: str, problem: str, suggestion: str = "", fix: str = ""
) -> str:
    """One line about a whole file."""
    return format_issue(_file_name(source, options), None, None, key, problem, suggestion=suggestion, fix=fix)


def _select_records(
    located_records: Sequence[LocatedRecord[R]], options: ReaderOptions, issues: list[str]
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
