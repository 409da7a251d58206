"""Samples for the report page, selected by fixed rules so that nobody can cherry-pick them."""

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
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
    """A prompt with the response of either policy, as text."""

    selection_rule: str
    category: str
    expanded: bool
    """The first two samples start expanded, never one with a prompt that should be refused."""
    title: str
    prompt: str
    before: str
    after: str
    before_truncated: bool
    """It was cut at the length limit."""
    after_truncated: bool
    scores: tuple[tuple[str, str, str, str], ...]
    """(objective, before, after, change)."""


def select_samples(evaluation_dir: Path, evaluation: Row) -> list[DisplayedSample]:
    """The largest gain and loss of each objective, the longest response, and six random samples.

    Args:
        evaluation_dir: Folder of the evaluation; without a generations.parquet there are no samples.
        evaluation: Content of its eval.json; its seed draws the random samples.

    Raises:
        DataError: generations.parquet is damaged.
    """
    rows = read_parquet_rows(evaluation_dir / "generations.parquet")
    objectives = evaluation["objectives"]
    selected: dict[int, str] = {}
    for rule, index in _extreme_rows(rows, tuple(objectives)):
        selected.setdefault(index, rule)
    remaining = [index for index in range(len(rows)) if index not in selected]
    order = np.random.Generator(np.random.Philox(int(evaluation.get("seed", 0)))).permutation(len(remaining))
    selected |= {remaining[i]: "random" for i in order[:NUM_RANDOM].tolist()}
    harmful = _harmful_categories(evaluation)
    expanded = [index for index in selected if rows[index]["category"] not in harmful][:2]
    return [
        _displayed_sample(rule, rows[i], objectives, i in expanded, harmful) for i, rule in selected.items()
    ]


def _harmful_categories(evaluation: Row) -> set[str]:
    """Categories of prompts that should be refused; a reader should not meet them unasked."""
    return {category for category, direction in evaluation["refusal_categories"].items() if direction == "up"}


def read_parquet_rows(path: Path) -> list[dict[str, Any]]:
    """All rows of a parquet file; empty if there is no file.

    Raises:
        DataError: The file is damaged.
    """
    if not path.exists():
        return []
    try:
        rows: list[dict[str, Any]] = pq.read_table(path).to_pylist()
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(f"{path}: not a parquet file: {error}; fix: evaluate the run again") from error
    return rows


def _extreme_rows(rows: Sequence[Row], objectives: Sequence[str]) -> Iterator[tuple[str, int]]:
    for objective in objectives:
        changes = _score_changes(rows, objective)
        for rule, sign in (("largest gain", 1.0), ("largest loss", -1.0)):
            best = _argmax([sign * value for value in changes])
            if best is not None and sign * changes[best] > 0:
                yield f"{rule} in {objective}", best
    longest = _argmax([float(row["after_tokens"]) for row in rows])
    if longest is not None:
        yield "longest response after training", longest


def _score_changes(rows: Sequence[Row], objective: str) -> list[float]:
    pairs = (
        (finite_or_none(row.get(f"before/{objective}")), finite_or_none(row.get(f"after/{objective}")))
        for row in rows
    )
    return [math.nan if before is None or after is None else after - before for before, after in pairs]


def _argmax(values: Sequence[float]) -> int | None:
    known = [i for i, value in enumerate(values) if not math.isnan(value)]
    return max(known, key=lambda i: values[i], default=None)


def _displayed_sample(
    selection_rule: str,
    row: Row,
    objectives: Mapping[str, Row],
    expanded: bool,
    harmful_categories: Collection[str],
) -> DisplayedSample:
    scores = []
    for name, objective in objectives.items():
        before, after = finite_or_none(row.get(f"before/{name}")), finite_or_none(row.get(f"after/{name}"))
        decimals = decimals_for(objective)
        change = None if before is None or after is None else after - before
        scores.append(
            (
                name,
                format_number(before, decimals),
                format_number(after, decimals),
                format_signed(change, decimals),
            )
        )
    return DisplayedSample(
        selection_rule=selection_rule,
        category=row["category"],
        expanded=expanded,
        title="prompt collapsed" if row["category"] in harmful_categories else one_line(row["prompt"], 90),
        prompt=_truncate(row["prompt"]),
        before=_truncate(row["before"]),
        after=_truncate(row["after"]),
        before_truncated=bool(row.get("before_truncated")),
        after_truncated=bool(row.get("after_truncated")),
        scores=tuple(scores),
    )


def _truncate(text: str) -> str:
    excess = len(text) - MAX_TEXT_CHARS
    return (
        text if excess <= 0 else f"{text[:MAX_TEXT_CHARS]}… [{excess} more characters in generations.parquet]"
    )
