"""Files to records: prompts, ratings, preferences and demonstrations; all bad rows of a file in one error."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Generic, TypedDict, TypeVar, Unpack

from paretune.chance import seed_of
from paretune.data.columns import (
    LESS_LIKE,
    UNCOUNTED,
    BadField,
    Columns,
    Label,
    Values,
    counted_kind,
    missing,
    nearest,
    shortened,
    some,
    value_of,
)
from paretune.data.fields import Turns, exchange_of, labels_of, pair_of, preference_of, request_of
from paretune.data.files import HUB, Row, read_rows
from paretune.data.records import Demonstration, Preference, Prompt, Rating
from paretune.errors import DataError, complaint, joined

R = TypeVar("R", Prompt, Rating, Preference, Demonstration)


class Options(TypedDict, total=False):
    """What all readers take besides the file; every key may be left out."""

    root: str | Path
    """The folder that a relative path starts from; default the working folder."""
    columns: Columns
    """Names of the columns; default the usual names."""
    where: Mapping[str, Any]
    """Column to the value, or the list of values, that a row must have to be read."""
    most: int | None
    """At most so many records: drawn by `seed`, in the order of the file; larger draws hold smaller ones."""
    seed: int
    admit: Callable[[Any], Any]
    """The record to take for a record, or None to leave it out; it may raise a `BadField` to complain.

    With `most` it is asked of the records in the order they are drawn in, until there are enough: those that
    it never sees have no say.
    """


def read_prompts(source: str | Path, *, kind: str = "", **options: Unpack[Options]) -> list[Prompt]:
    """Prompts of a file, in its order; `kind` is that of all, or else of `columns.kind`.

    Raises:
        DataError: One line for every bad row.
        MissingExtra: A hub name without the `datasets` package.
    """

    def make(values: Values, columns: Columns, place: str) -> Prompt:
        prompt = _prompt(request_of(values, columns), values, columns, place, kind)
        return replace(prompt, preference=preference_of(values, columns))

    return _records(source, make, options)


def read_ratings(
    source: str | Path, *, labels: Mapping[str, str | Label] | None = None, **options: Unpack[Options]
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
        else {k: Label(aspect=v) if isinstance(v, str) else v for k, v in labels.items()}
    )
    seen: set[str] = set()
    names: dict[str, None] = {}

    def make(values: Values, columns: Columns, place: str) -> Rating | None:
        scores = value_of(columns, "scores", values)
        names.update(dict.fromkeys([*(scores if isinstance(scores, dict) else ()), *values]))
        given = labels_of(values, columns, wanted)
        prompt, response = exchange_of(values, columns)
        seen.update(given)
        rating = Rating(prompt=_prompt(prompt, values, columns, place), response=response, labels=given)
        return rating if given else None

    def unseen(whole: bool) -> list[str]:
        # Where rows were bad, only a name that occurs nowhere is surely wrong: they might have had the label.
        blind = [(name, label.aspect) for name, label in (wanted or {}).items() if name not in seen]
        sure = [(name, aspect) for name, aspect in blind if whole or aspect not in names]
        return [_unlabelled(source, options, name, aspect, names) for name, aspect in sure]

    return _records(source, make, options, unseen)


def read_preferences(
    source: str | Path, *, objective: str = "", **options: Unpack[Options]
) -> list[Preference]:
    """Compared pairs of a file, in its order; `objective` is that of all, or else of a column.

    Raises:
        DataError: One line for every bad row.
        MissingExtra: A hub name without the `datasets` package.
    """

    def make(values: Values, columns: Columns, place: str) -> Preference:
        name = objective or value_of(columns, "objective", values)
        if not isinstance(name, str) or not name.strip():
            raise missing(columns, "objective", values)
        turns, chosen, rejected = pair_of(values, columns)
        prompt = _prompt(turns, values, columns, place)
        return Preference(prompt=prompt, chosen=chosen, rejected=rejected, objective=name)

    return _records(source, make, options)


def read_demonstrations(source: str | Path, **options: Unpack[Options]) -> list[Demonstration]:
    """Prompts and the responses to imitate, in the order of the file.

    Raises:
        DataError: One line for every bad row.
        MissingExtra: A hub name without the `datasets` package.
    """

    def make(values: Values, columns: Columns, place: str) -> Demonstration:
        prompt, response = exchange_of(values, columns)
        return Demonstration(prompt=_prompt(prompt, values, columns, place), response=response)

    return _records(source, make, options)


def _prompt(turns: Turns, values: Values, columns: Columns, place: str, kind: str = "") -> Prompt:
    """The prompt with the name its row has, or else that of its place."""
    name, word = (value_of(columns, field, values) for field in ("id", "kind"))
    id = place.rpartition("/")[2] if name is None or name == "" else str(name)
    if not kind and word is not None and (meant := counted_kind(str(word))):
        fix = LESS_LIKE.format(meant)
        raise BadField(columns.kind, f'"{shortened(str(word))}" {UNCOUNTED}', meant=meant, fix=fix)
    return Prompt(messages=turns, id=id, kind=kind or ("" if word is None else str(word)))


def _records(
    source: str | Path,
    make: Callable[[Values, Columns, str], R | None],
    options: Options,
    further: Callable[[bool], list[str]] = lambda _: [],
) -> list[R]:
    """The records `make` builds of the rows; every complaint about the file in one error."""
    if unknown := set(options) - set(Options.__annotations__):
        raise TypeError(f"readers take no {', '.join(sorted(unknown))}")
    problems: list[str] = []
    found: list[_Found[R]] = []
    bad: dict[str, BadField] = {}
    columns = options.get("columns", Columns())
    rows = asked = 0
    where = _Where(options.get("where", {}))
    for row in read_rows(source, problems, options.get("root", ".")):
        rows += 1
        if not where.holds(row):
            continue
        asked += 1
        try:
            record = make(row.values, columns, row.place)
            if record is not None:
                found.append(_Found(record, row.place, len(problems)))
        except BadField as error:
            problems.extend(error.every(row.place))
            bad[row.place] = error
    if asked == len(bad) > 1:
        problems = _in_one(problems, bad, where.columns, lambda *said: _about(source, options, *said))
    records = _admitted(found, options, problems)
    if rows:
        vain = [_about(source, options, f"where.{key}", *said) for key, *said in where.complaints()]
        problems[:0] = vain or further(not problems)  # first, lest they drown among bad rows
    if not problems and not records:
        wrong = f"none of its {rows} rows is left" if rows else "holds no rows"
        problems.append(_about(source, options, "", wrong, fix="loosen the filters" if rows else "fill it"))
    if problems:
        raise DataError(joined(problems))
    return records


def _in_one(
    problems: list[str], bad: Mapping[str, BadField], names: Mapping[str, None], about: Callable[..., str]
) -> list[str]:
    """The complaints; one for all rows, first, where all that is wrong with them is a column none has."""
    first = next(iter(bad.values()))
    if not all(error.absent and error.key == first.key for error in bad.values()):
        return problems
    wrong = f"no row has such a column; there are {some(names)}"
    told = {error.at(place) for place, error in bad.items()}
    whole = about(first.key, wrong, nearest(first.key, names), first.fix)
    return [whole, *(line for line in problems if line not in told)]


def _about(source: str | Path, options: Options, key: str, wrong: str, meant: str = "", fix: str = "") -> str:
    whole = str(source) if str(source).startswith(HUB) else str(Path(options.get("root", ".")) / source)
    return complaint(whole, None, None, key, wrong, meant=meant, fix=fix)


def _unlabelled(
    source: str | Path, options: Options, objective: str, aspect: str, names: Iterable[str]
) -> str:
    wrong = f'no row has a label "{aspect}"; there are {some(names)}'
    fix = "name an aspect of `scores`, or a column"
    return _about(source, options, f"labels.{objective}", wrong, nearest(aspect, set(names) - {aspect}), fix)


@dataclass(frozen=True, slots=True)
class _Found(Generic[R]):
    """A record, the place of its row, and how many complaints there were before it."""

    record: R
    place: str
    after: int


def _admitted(found: Sequence[_Found[R]], options: Options, problems: list[str]) -> list[R]:
    """Those that are admitted, as many as are asked for; complaints take their place among `problems`."""
    most, seed, admit = options.get("most"), options.get("seed", 0), options.get("admit")
    order = list(range(len(found)))
    if most is not None and most < len(found):
        # Ranked by a hash, not shuffled: the same with every numpy, and a smaller draw lies in a larger one.
        order.sort(key=lambda i: seed_of(seed, 0, "most", i))
    taken: dict[int, R] = {}
    wrong: dict[int, list[str]] = {}
    for i in order:
        if len(taken) == most:
            break
        try:
            record = found[i].record if admit is None else admit(found[i].record)
        except BadField as error:
            wrong[i] = error.every(found[i].place)
            continue
        if record is not None:
            taken[i] = record
    for i in sorted(wrong, reverse=True):
        problems[found[i].after : found[i].after] = wrong[i]
    return [taken[i] for i in sorted(taken)]


class _Where:
    """The rows a recipe asks for, and a complaint about whatever was asked for in vain."""

    def __init__(self, where: Mapping[str, Any]) -> None:
        self.wanted = {
            k: list(v) if isinstance(v, Sequence) and not isinstance(v, str) else [v]
            for k, v in where.items()
        }
        self.columns: dict[str, None] = {}
        self.values: dict[str, dict[str, None]] = {key: {} for key in self.wanted}
        self.met: set[str] = set()

    def holds(self, row: Row) -> bool:
        self.columns.update(dict.fromkeys(row.values))
        met = {k for k, values in self.wanted.items() if any(_equal(row.values.get(k), v) for v in values)}
        self.met |= met
        for key, seen in self.values.items():
            if len(seen) < 100 and key in row.values:
                seen[shortened(_spelt(row.values[key]))] = None
        return len(met) == len(self.wanted)

    def complaints(self) -> Iterable[tuple[str, str, str, str]]:
        """Key, what is wrong, what was meant and what to do, for every condition that no row meets."""
        for key in self.wanted:
            if key not in self.columns:
                wrong = f"no such column; there are {some(self.columns)}"
                yield key, wrong, nearest(key, self.columns), "name a column of the file"
            elif key not in self.met:
                asked, seen = ", ".join(map(_spelt, self.wanted[key])), self.values[key]
                wrong = f"no row has {asked}; there are {some(seen)}"
                yield key, wrong, nearest(asked, seen), "name a value of the column"


def _spelt(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _equal(cell: object, value: object) -> bool:
    """Whether a cell has a value; a CSV cell is text, so there the spelling counts."""
    if isinstance(cell, bool) or isinstance(value, bool):
        return _spelt(cell).lower() == _spelt(value).lower()
    return cell == value or (isinstance(cell, str) and cell == _spelt(value))
