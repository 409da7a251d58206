"""Scores of given responses, and the Pareto front of points."""

import json
import math
import reprlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import ArrayLike, NDArray
from pyarrow.csv import write_csv
from pyarrow.parquet import write_table

from paretune.api.arguments import check_arguments
from paretune.api.inputs import Rows, read_samples
from paretune.api.loading import LoadingContext, ScorersLike, load_scorers
from paretune.core.errors import DataError
from paretune.core.pareto import nondominated
from paretune.data.records import Sample
from paretune.report.formatting import one_line
from paretune.report.tables import align_columns
from paretune.reward.scorers import Scorer, validated_scores
from paretune.run.io import write_atomic, write_error

ROWS_PER_CALL = 256
"""Responses per call of a scorer: what failed is noticed before all are paid for."""


@check_arguments
def score(scorers: ScorersLike, rows: Rows, *, device: str = "auto") -> pa.Table:
    """Score responses: one row per response, in their order, one column per objective; null: not scored.

    Args:
        scorers: Functions, reward models, classifiers, rules or judges, as in `paretune.align`.
        rows: A file, or rows with a prompt and a response; further columns reach the scorers.
        device: Device of scorers with weights: auto, cpu or cuda.

    Raises:
        DataError: A row has no prompt or no response, or there are none.
        WiringError: There is no scorer, or two score the same objective.
        ConfigError: A setting of a scorer is wrong, or its model cannot be read.
        ScoringError: A scorer failed on too many responses.
    """
    samples = read_samples(rows)
    prompts = tuple(sample.prompt for sample in samples)
    return score_table(load_scorers(scorers, LoadingContext(prompts=prompts, device=device)), samples)


def score_table(scorers: Sequence[Scorer], samples: Sequence[Sample]) -> pa.Table:
    """One column of scores per objective; null: not scored.

    Raises:
        ScoringError: A scorer failed on too many responses.
    """
    columns: dict[str, list[float | None]] = {name: [] for scorer in scorers for name in scorer.names}
    for start in range(0, len(samples), ROWS_PER_CALL):
        chunk = samples[start : start + ROWS_PER_CALL]
        for scorer in scorers:
            for name, values in zip(scorer.names, validated_scores(scorer, chunk).T.tolist(), strict=True):
                columns[name] += [value if math.isfinite(value) else None for value in values]
    return pa.table({name: pa.array(values, pa.float64()) for name, values in columns.items()})


def score_summary(scores: pa.Table) -> str:
    """A table for the terminal: mean, smallest and largest score and the number of unscored rows."""
    rows: list[tuple[str, ...]] = [("objective", "mean", "min", "max", "scored")]
    for name in scores.column_names:
        values = [value for value in scores[name].to_pylist() if value is not None]
        numbers = (sum(values) / len(values), min(values), max(values)) if values else ()
        cells = [f"{number:.4g}" for number in numbers] or ["-"] * 3
        rows.append((one_line(name), *cells, f"{len(values):,} of {len(scores):,}"))
    return "\n".join(align_columns(rows, right_aligned=(1, 2, 3)))


def save_scores(scores: pa.Table, samples: Sequence[Sample], path: Path) -> None:
    """Write ids, responses and scores as Parquet, CSV or JSON Lines, by the name of the file.

    Raises:
        ResourceError: The file cannot be written.
    """
    texts = {"id": [s.prompt.id for s in samples], "response": [s.response for s in samples]}
    # Files hold UTF-8 only: lone surrogates are escaped.
    columns = {
        name: pa.array([text.encode("utf-8", "backslashreplace").decode() for text in column])
        for name, column in texts.items()
    }
    columns |= {name: scores[name] for name in scores.column_names}  # an objective may be named id
    sink = pa.BufferOutputStream()
    if path.suffix == ".jsonl":
        rows = pa.table(columns).to_pylist()
        sink.write("".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows).encode())
    elif path.suffix == ".csv":
        write_csv(pa.table(columns), sink)
    else:
        write_table(pa.table(columns), sink, compression="zstd")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise write_error(path, error) from error
    write_atomic(path, sink.getvalue().to_pybytes())


@check_arguments
def pareto_front(points: ArrayLike) -> NDArray[np.bool_]:
    """Boolean mask [N] of the points [N, K] that no other point dominates; larger is better.

    Raises:
        DataError: The points are no table of finite numbers.
    """
    try:
        table = np.asarray(points, np.float64)
    except (TypeError, ValueError) as error:
        problem = f"points: {reprlib.repr(points)} is no table of numbers"
        raise DataError(f"{problem}; fix: one list of numbers per point, all of the same length") from error
    return nondominated(table)
