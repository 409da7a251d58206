"""Files to records: prompts, ratings, preferences and demonstrations; all bad rows of a file in one error."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Generic, TypedDict, TypeVar, Unpack

from paretune.core.errors import DataError, format_issue, join_issues
from paretune.core.rng import derive_seed
from paretune.data.columns import (
    NOT_REFUSAL_CATEGORY,
    RENAME_CATEGORY_FIX,
    ColumnNames,
    FieldError,
    LabelMapping,
    RowValues,
    closest_match,
    column_value,
    missing_column_error,
    misspelled_category,
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
    """What all readers take besides the file; every key may be left out."""

    root: str | Path
    """The folder that a relative path starts from; default the working folder."""
    columns: ColumnNames
    """Names of the columns; default the usual names."""
    where: Mapping[str, Any]
    """Column to the value, or the list of values, that a row must have to be read."""
    max_rows: int | None
    """At most so many records: drawn by `seed`, in the order of the file; larger draws hold smaller ones."""
    seed: int
    transform: Callable[[Any], Any]
    """The record to take for a record, or None to leave it out; it may raise a `BadField` to complain.

    With `max_rows` it is asked of the records in the order they are drawn in, until there are enough: those that
    it never sees have no say.
    """


def read_prompts(source: str | Path, *, category: str = "", **options: Unpack[ReaderOptions]) -> list[Prompt]:
    """Prompts of a file, in its order; `category` is that of all, or else of `columns.kind`.

    Raises:
        DataError: One line for every bad row.
        MissingExtra: A hub name without the `datasets` package.
    """

    def make(values: RowValues, columns: ColumnNames, place: str) -> Prompt:
        prompt = _build_prompt(extract_generation_prompt(values, columns), values, columns, place, category)
        return replace(prompt, preference_weights=extract_preference_weights(values, columns))

    return _read_records(source, make, options)


def read_ratings(
    source: str | Path,
    *,
    labels: Mapping[str, str | LabelMapping] | None = None,
    **options: Unpack[ReaderOptions],
) -> list[Rating]:
    """Rated responses of a file, in its order; a row without any of these labels is left out.

    Args:
        source: A file, or `hf:owner/name`.
        labels: Objective to the aspect of `scores`, or the column, that holds it; default all aspects.
        options: See `Options`.

    Raises:
        DataError: One line for every bad label and bad row, and for every label that no row has.
        MissingExtra: A hub name without the `datasets` package.
    """
    wanted = (
        None
        if labels is None
        else {k: LabelMapping(column=v) if isinstance(v, str) else v for k, v in labels.items()}
    )
    seen: set[str] = set()
    names: dict[str, None] = {}

    def make(values: RowValues, columns: ColumnNames, place: str) -> Rating | None:
        scores = column_value(columns, "scores", values)
        names.update(dict.fromkeys([*(scores if isinstance(scores, dict) else ()), *values]))
        given = extract_labels(values, columns, wanted)
        prompt, response = extract_prompt_and_response(values, columns)
        seen.update(given)
        rating = Rating(prompt=_build_prompt(prompt, values, columns, place), response=response, labels=given)
        return rating if given else None

    def unseen(whole: bool) -> list[str]:
        # Where rows were bad, only a name that occurs nowhere is surely wrong: they might have had the label.
        blind = [(name, label.column) for name, label in (wanted or {}).items() if name not in seen]
        sure = [(name, aspect) for name, aspect in blind if whole or aspect not in names]
        return [_unknown_label_issue(source, options, name, aspect, names) for name, aspect in sure]

    return _read_records(source, make, options, unseen)


def read_preference_pairs(
    source: str | Path, *, objective: str = "", **options: Unpack[ReaderOptions]
) -> list[PreferencePair]:
    """Compared pairs of a file, in its order; `objective` is that of all, or else of a column.

    Raises:
        DataError: One line for every bad row.
        MissingExtra: A hub name without the `datasets` package.
    """

    def make(values: RowValues, columns: ColumnNames, place: str) -> PreferencePair:
        name = objective or column_value(columns, "objective", values)
        if not isinstance(name, str) or not name.strip():
            raise missing_column_error(columns, "objective", values)
        turns, chosen, rejected = extract_preference_pair(values, columns)
        prompt = _build_prompt(turns, values, columns, place)
        return PreferencePair(prompt=prompt, chosen=chosen, rejected=rejected, objective=name)

    return _read_records(source, make, options)


def read_demonstrations(source: str | Path, **options: Unpack[ReaderOptions]) -> list[Demonstration]:
    """Prompts and the responses to imitate, in the order of the file.

    Raises:
        DataError: One line for every bad row.
        MissingExtra: A hub name without the `datasets` package.
    """

    def make(values: RowValues, columns: ColumnNames, place: str) -> Demonstration:
        prompt, response = extract_prompt_and_response(values, columns)
        return Demonstration(prompt=_build_prompt(prompt, values, columns, place), response=response)

    return _read_records(source, make, options)


def _build_prompt(
    messages: Messages, values: RowValues, columns: ColumnNames, location: str, category: str = ""
) -> Prompt:
    """The prompt with the name its row has, or else that of its place."""
    name, word = (column_value(columns, field, values) for field in ("id", "kind"))
    id = location.rpartition("/")[2] if name is None or name == "" else str(name)
    if not category and word is not None and (meant := misspelled_category(str(word))):
        fix = RENAME_CATEGORY_FIX.format(meant)
        raise FieldError(
            columns.category,
            f'"{truncate_text(str(word))}" {NOT_REFUSAL_CATEGORY}',
            suggestion=meant,
            fix=fix,
        )
    return Prompt(messages=messages, id=id, category=category or ("" if word is None else str(word)))


def _read_records(
    source: str | Path,
    build_record: Callable[[RowValues, ColumnNames, str], R | None],
    options: ReaderOptions,
    extra_issues: Callable[[bool], list[str]] = lambda _: [],
) -> list[R]:
    """The records `build_record` builds of the rows; every complaint about the file in one error."""
    if unknown := set(options) - set(ReaderOptions.__annotations__):
        raise TypeError(f"readers take no {', '.join(sorted(unknown))}")
    problems: list[str] = []
    found: list[_LocatedRecord[R]] = []
    bad: dict[str, FieldError] = {}
    columns = options.get("columns", ColumnNames())
    rows = asked = 0
    where = _RowFilter(options.get("where", {}))
    for row in read_rows(source, problems, options.get("root", ".")):
        rows += 1
        if not where.matches(row):
            continue
        asked += 1
        try:
            record = build_record(row.values, columns, row.location)
            if record is not None:
                found.append(_LocatedRecord(record, row.location, len(problems)))
        except FieldError as error:
            problems.extend(error.render_all(row.location))
            bad[row.location] = error
    if asked == len(bad) > 1:
        problems = _merge_missing_column_issues(
            problems, bad, where.known_columns, lambda *said: _file_issue(source, options, *said)
        )
    records = _select_records(found, options, problems)
    if rows:
        vain = [
            _file_issue(source, options, f"where.{key}", *said) for key, *said in where.unmatched_conditions()
        ]
        problems[:0] = vain or extra_issues(not problems)  # first, lest they drown among bad rows
    if not problems and not records:
        wrong = f"none of its {rows} rows is left" if rows else "holds no rows"
        problems.append(
            _file_issue(source, options, "", wrong, fix="loosen the filters" if rows else "fill it")
        )
    if problems:
        raise DataError(join_issues(problems))
    return records


def _merge_missing_column_issues(
    issues: list[str],
    field_errors: Mapping[str, FieldError],
    column_names: Mapping[str, None],
    make_issue: Callable[..., str],
) -> list[str]:
    """The complaints; one for all rows, first, where all that is wrong with them is a column none has."""
    first = next(iter(field_errors.values()))
    if not all(error.column_missing and error.key == first.key for error in field_errors.values()):
        return issues
    wrong = f"no row has such a column; there are {summarize_names(column_names)}"
    told = {error.render(place) for place, error in field_errors.items()}
    whole = make_issue(first.key, wrong, closest_match(first.key, column_names), first.fix)
    return [whole, *(line for line in issues if line not in told)]


def _file_issue(
    source: str | Path, options: ReaderOptions, key: str, problem: str, suggestion: str = "", fix: str = ""
) -> str:
    whole = (
        str(source) if str(source).startswith(HUB_PREFIX) else str(Path(options.get("root", ".")) / source)
    )
    return format_issue(whole, None, None, key, problem, suggestion=suggestion, fix=fix)


def _unknown_label_issue(
    source: str | Path, options: ReaderOptions, objective: str, column: str, column_names: Iterable[str]
) -> str:
    wrong = f'no row has a label "{column}"; there are {summarize_names(column_names)}'
    fix = "name an aspect of `scores`, or a column"
    return _file_issue(
        source,
        options,
        f"labels.{objective}",
        wrong,
        closest_match(column, set(column_names) - {column}),
        fix,
    )


@dataclass(frozen=True, slots=True)
class _LocatedRecord(Generic[R]):
    """A record, the place of its row, and how many complaints there were before it."""

    record: R
    location: str
    num_prior_issues: int


def _select_records(
    located_records: Sequence[_LocatedRecord[R]], options: ReaderOptions, issues: list[str]
) -> list[R]:
    """Those that are admitted, as many as are asked for; complaints take their place among `issues`."""
    most, seed, admit = options.get("max_rows"), options.get("seed", 0), options.get("transform")
    order = list(range(len(located_records)))
    if most is not None and most < len(located_records):
        # Ranked by a hash, not shuffled: the same with every numpy, and a smaller draw lies in a larger one.
        order.sort(key=lambda i: derive_seed(seed, 0, "most", i))
    taken: dict[int, R] = {}
    wrong: dict[int, list[str]] = {}
    for i in order:
        if len(taken) == most:
            break
        try:
            record = located_records[i].record if admit is None else admit(located_records[i].record)
        except FieldError as error:
            wrong[i] = error.render_all(located_records[i].location)
            continue
        if record is not None:
            taken[i] = record
    for i in sorted(wrong, reverse=True):
        issues[located_records[i].num_prior_issues : located_records[i].num_prior_issues] = wrong[i]
    return [taken[i] for i in sorted(taken)]


class _RowFilter:
    """The rows a recipe asks for, and a complaint about whatever was asked for in vain."""

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
        met = {
            k
            for k, values in self.allowed_values.items()
            if any(_cell_equals(row.values.get(k), v) for v in values)
        }
        self.matched_keys |= met
        for key, seen in self.observed_values.items():
            if len(seen) < 100 and key in row.values:
                seen[truncate_text(_format_cell(row.values[key]))] = None
        return len(met) == len(self.allowed_values)

    def unmatched_conditions(self) -> Iterable[tuple[str, str, str, str]]:
        """Key, what is wrong, what was meant and what to do, for every condition that no row meets."""
        for key in self.allowed_values:
            if key not in self.known_columns:
                wrong = f"no such column; there are {summarize_names(self.known_columns)}"
                yield key, wrong, closest_match(key, self.known_columns), "name a column of the file"
            elif key not in self.matched_keys:
                asked, seen = (
                    ", ".join(map(_format_cell, self.allowed_values[key])),
                    self.observed_values[key],
                )
                wrong = f"no row has {asked}; there are {summarize_names(seen)}"
                yield key, wrong, closest_match(asked, seen), "name a value of the column"


def _format_cell(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _cell_equals(cell: object, value: object) -> bool:
    """Whether a cell has a value; a CSV cell is text, so there the spelling counts."""
    if isinstance(cell, bool) or isinstance(value, bool):
        return _format_cell(cell).lower() == _format_cell(value).lower()
    return cell == value or (isinstance(cell, str) and cell == _format_cell(value))
