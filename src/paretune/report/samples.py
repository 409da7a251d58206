"""Which responses the page shows: chosen by rule, so that nobody can pick the pretty ones."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from paretune.errors import DataError
from paretune.report.sanitize import one_line
from paretune.report.words import digits_for, known, number, signed

RANDOM = 6
LONGEST_TEXT = 4000

Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Shown:
    """One prompt with both responses, as text."""

    rule: str
    kind: str
    opened: bool
    """Two are; never one with a harmful request, lest a reader meet it unasked."""
    title: str
    prompt: str
    before: str
    after: str
    scores: tuple[tuple[str, str, str, str], ...]
    """objective, before, after, change."""


def samples(folder: Path, numbers: Row) -> list[Shown]:
    """The biggest gain and loss of each objective, the longest response, and six drawn by the seed.

    Args:
        folder: Of one evaluation, with generations.parquet; without it nothing is shown.
        numbers: Of its eval.json.

    Raises:
        DataError: The file is damaged.
    """
    rows = read_rows(folder / "generations.parquet")
    objectives = numbers["objectives"]
    chosen: dict[int, str] = {}
    for rule, index in _extremes(rows, tuple(objectives)):
        chosen.setdefault(index, rule)
    rest = [index for index in range(len(rows)) if index not in chosen]
    order = np.random.Generator(np.random.Philox(int(numbers.get("seed", 0)))).permutation(len(rest))
    chosen |= {rest[i]: "drawn at random" for i in order[:RANDOM].tolist()}
    harmless = [index for index in chosen if rows[index]["kind"] != "harmful"]
    return [_shown(rule, rows[i], objectives, i in harmless[:2]) for i, rule in chosen.items()]


def read_rows(path: Path) -> list[dict[str, Any]]:
    """All rows of a parquet file; none where there is no file.

    Raises:
        DataError: The file is damaged.
    """
    if not path.exists():
        return []
    try:
        rows: list[dict[str, Any]] = pq.read_table(path).to_pylist()
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(f"{path}: not a parquet file: {error}; fix: run the evaluation again") from error
    return rows


def _extremes(rows: Sequence[Row], objectives: Sequence[str]) -> Iterator[tuple[str, int]]:
    for objective in objectives:
        change = _changes(rows, objective)
        for rule, sign in (("biggest gain", 1.0), ("biggest loss", -1.0)):
            best = _most([sign * value for value in change])
            if best is not None and sign * change[best] > 0:
                yield f"{rule} in {objective}", best
    longest = _most([float(row["after_tokens"]) for row in rows])
    if longest is not None:
        yield "longest response after", longest


def _changes(rows: Sequence[Row], objective: str) -> list[float]:
    pairs = ((known(row.get(f"before/{objective}")), known(row.get(f"after/{objective}"))) for row in rows)
    return [math.nan if one is None or two is None else two - one for one, two in pairs]


def _most(values: Sequence[float]) -> int | None:
    there = [i for i, value in enumerate(values) if not math.isnan(value)]
    return max(there, key=lambda i: values[i], default=None)


def _shown(rule: str, row: Row, objectives: Mapping[str, Row], opened: bool) -> Shown:
    scores = []
    for name, objective in objectives.items():
        one, two = known(row.get(f"before/{name}")), known(row.get(f"after/{name}"))
        digits = digits_for(objective)
        change = None if one is None or two is None else two - one
        scores.append((name, number(one, digits), number(two, digits), signed(change, digits)))
    harmful = row["kind"] == "harmful"
    return Shown(
        rule=rule,
        kind=row["kind"],
        opened=opened,
        title="a harmful request, folded" if harmful else one_line(row["prompt"], 90),
        prompt=_cut(row["prompt"]),
        before=_ended(row, "before"),
        after=_ended(row, "after"),
        scores=tuple(scores),
    )


def _ended(row: Row, arm: str) -> str:
    text = _cut(row[arm])
    return f"{text} […ran into the length limit]" if row.get(f"{arm}_truncated") else text


def _cut(text: str) -> str:
    more = len(text) - LONGEST_TEXT
    return text if more <= 0 else f"{text[:LONGEST_TEXT]}… [{more} more characters in generations.parquet]"
