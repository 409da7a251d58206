"""Which responses the page shows: chosen by rule, so that nobody can pick the pretty ones."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from paretune.core.errors import DataError
from paretune.report.formatting import decimals_for, finite_or_none, format_number, format_signed, one_line

NUM_RANDOM = 6
MAX_TEXT_CHARS = 4000

Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class DisplayedSample:
    """One prompt with both responses, as text."""

    selection_rule: str
    category: str
    expanded: bool
    """Two are; never one with a harmful request, lest a reader meet it unasked."""
    title: str
    prompt: str
    before: str
    after: str
    scores: tuple[tuple[str, str, str, str], ...]
    """objective, before, after, change."""


def select_samples(evaluation_dir: Path, evaluation: Row) -> list[DisplayedSample]:
    """The biggest gain and loss of each objective, the longest response, and six drawn by the seed.

    Args:
        evaluation_dir: Of one evaluation, with generations.parquet; without it nothing is shown.
        evaluation: Of its eval.json.

    Raises:
        DataError: The file is damaged.
    """
    rows = read_parquet_rows(evaluation_dir / "generations.parquet")
    objectives = evaluation["objectives"]
    chosen: dict[int, str] = {}
    for rule, index in _extreme_rows(rows, tuple(objectives)):
        chosen.setdefault(index, rule)
    rest = [index for index in range(len(rows)) if index not in chosen]
    order = np.random.Generator(np.random.Philox(int(evaluation.get("seed", 0)))).permutation(len(rest))
    chosen |= {rest[i]: "drawn at random" for i in order[:NUM_RANDOM].tolist()}
    harmless = [index for index in chosen if rows[index]["kind"] != "harmful"]
    return [_displayed_sample(rule, rows[i], objectives, i in harmless[:2]) for i, rule in chosen.items()]


def read_parquet_rows(path: Path) -> list[dict[str, Any]]:
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


def _extreme_rows(rows: Sequence[Row], objectives: Sequence[str]) -> Iterator[tuple[str, int]]:
    for objective in objectives:
        change = _score_changes(rows, objective)
        for rule, sign in (("biggest gain", 1.0), ("biggest loss", -1.0)):
            best = _argmax([sign * value for value in change])
            if best is not None and sign * change[best] > 0:
                yield f"{rule} in {objective}", best
    longest = _argmax([float(row["after_tokens"]) for row in rows])
    if longest is not None:
        yield "longest response after", longest


def _score_changes(rows: Sequence[Row], objective: str) -> list[float]:
    pairs = (
        (finite_or_none(row.get(f"before/{objective}")), finite_or_none(row.get(f"after/{objective}")))
        for row in rows
    )
    return [math.nan if one is None or two is None else two - one for one, two in pairs]


def _argmax(values: Sequence[float]) -> int | None:
    there = [i for i, value in enumerate(values) if not math.isnan(value)]
    return max(there, key=lambda i: values[i], default=None)


def _displayed_sample(
    selection_rule: str, row: Row, objectives: Mapping[str, Row], expanded: bool
) -> DisplayedSample:
    scores = []
    for name, objective in objectives.items():
        one, two = finite_or_none(row.get(f"before/{name}")), finite_or_none(row.get(f"after/{name}"))
        digits = decimals_for(objective)
        change = None if one is None or two is None else two - one
        scores.append(
            (name, format_number(one, digits), format_number(two, digits), format_signed(change, digits))
        )
    harmful = row["kind"] == "harmful"
    return DisplayedSample(
        selection_rule=selection_rule,
        category=row["kind"],
        expanded=expanded,
        title="a harmful request, folded" if harmful else one_line(row["prompt"], 90),
        prompt=_truncate(row["prompt"]),
        before=_response_text(row, "before"),
        after=_response_text(row, "after"),
        scores=tuple(scores),
    )


def _response_text(row: Row, arm: str) -> str:
    text = _truncate(row[arm])
    return f"{text} […ran into the length limit]" if row.get(f"{arm}_truncated") else text


def _truncate(text: str) -> str:
    more = len(text) - MAX_TEXT_CHARS
    return text if more <= 0 else f"{text[:MAX_TEXT_CHARS]}… [{more} more characters in generations.parquet]"
