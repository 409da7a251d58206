"""Reads what a reward function returns: one score per objective and row, or a reason why there is none."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from numbers import Real
from typing import Any

import torch

BATCH_KEYS = ("rewards", "scores")
"""Keys of the scores of a batch, in the dicts of functions with a single objective."""
ROW_KEYS = ("score", "reward")
"""Keys of the score of one response, in the dicts of functions with a single objective."""
_MAX_SCORE = torch.finfo(torch.float32).max


@dataclass(frozen=True, slots=True)
class RowScores:
    """The scores of one response."""

    scores: tuple[float, ...]
    """One per objective; NaN: not scored."""
    failure: str = ""
    """Why a score is missing that should be there; None in its place means "not applicable"."""


def failed_rows(reason: str, num_rows: int, num_objectives: int) -> list[RowScores]:
    """Rows without scores."""
    return [RowScores((math.nan,) * num_objectives, reason)] * num_rows


def read_batch(value: Any, objectives: Sequence[str], num_rows: int) -> list[RowScores]:
    """The scores in what a function returned for a batch.

    Args:
        value: A list, tuple, tensor or array with one entry per response; or a dict, or an object with
            `reward_components`, of objective -> such a list.
        objectives: The objectives to read.
        num_rows: Responses that were to be scored.
    """
    components = _components(value)
    if components is not None:
        columns: list[Sequence[Any]] = []
        for objective in objectives:
            keys = (objective, *BATCH_KEYS) if len(objectives) == 1 else (objective,)
            found = next((key for key in keys if key in components), None)
            if found is None:
                return failed_rows(_missing(objective, components), num_rows, len(objectives))
            column = _as_list(components[found])
            if isinstance(column, str):
                return failed_rows(f'"{found}": {column}', num_rows, len(objectives))
            columns.append(column)
        for column in columns:
            if len(column) != num_rows:
                return failed_rows(_wrong_length(column, num_rows), num_rows, len(objectives))
        return [_row(values) for values in zip(*columns, strict=True)]
    rows = _as_list(value)
    if isinstance(rows, str):
        return failed_rows(rows, num_rows, len(objectives))
    if len(rows) != num_rows:
        return failed_rows(_wrong_length(rows, num_rows), num_rows, len(objectives))
    return [read_row(row, objectives) for row in rows]


def read_row(value: Any, objectives: Sequence[str]) -> RowScores:
    """The scores in what a function returned for one response.

    Args:
        value: A number; None if the response is not to be scored; or a dict, or an object with
            `reward_components`, of objective -> number or None.
        objectives: The objectives to read.
    """
    if value is None:
        return RowScores((math.nan,) * len(objectives))
    components = _components(value)
    if components is None:
        if len(objectives) == 1:
            return _row([value])
        reason = f"returned {_kind(value)} for a response; expected a dict of {', '.join(objectives)}"
        return failed_rows(reason, 1, len(objectives))[0]
    values, missing = [], ""
    for objective in objectives:
        keys = (objective, *ROW_KEYS) if len(objectives) == 1 else (objective,)
        found = next((key for key in keys if key in components), None)
        values.append(None if found is None else components[found])
        missing = missing or (_missing(objective, components) if found is None else "")
    row = _row(values)
    return RowScores(row.scores, missing or row.failure)


def read_number(value: Any) -> tuple[float, str]:
    """A finite number and "", or NaN and the reason; NaN and "" for None.

    Booleans are 0 and 1; arrays and tensors with one entry are numbers.
    """
    if value is None:
        return math.nan, ""
    if not isinstance(value, Real) and getattr(value, "ndim", None) == 0 and hasattr(value, "item"):
        value = value.item()
    if not isinstance(value, Real | Decimal):
        return math.nan, f"returned {_kind(value)} as a score; expected a number or None"
    try:
        number = float(value)
    except OverflowError:  # a huge integer
        number = math.inf
    except ValueError:  # a signalling NaN of decimal
        number = math.nan
    if math.isnan(number):
        return math.nan, "returned NaN; None means that a response has no score"
    # Scores are 32-bit numbers.
    return (number, "") if abs(number) <= _MAX_SCORE else (math.nan, "returned an infinite score")


def _row(values: Sequence[Any]) -> RowScores:
    numbers = [read_number(value) for value in values]
    failure = next((reason for _, reason in numbers if reason), "")
    return RowScores(tuple(number for number, _ in numbers), failure)


def _components(value: Any) -> Mapping[str, Any] | None:
    """The components of a dict or of an object with `reward_components`; None for anything else."""
    nested = value.get("reward_components") if isinstance(value, Mapping) else None
    nested = nested or getattr(value, "reward_components", None)
    if not isinstance(nested, Mapping):
        return value if isinstance(value, Mapping) else None
    total = value.get("reward") if isinstance(value, Mapping) else getattr(value, "reward", None)
    return nested if total is None else {"reward": total, **nested}


def _as_list(value: Any) -> Sequence[Any] | str:
    """The entries of a list, tuple, tensor or array; a reason if it is none of them."""
    if isinstance(value, list | tuple):
        return value
    if getattr(value, "ndim", 0) and hasattr(value, "tolist"):
        entries = value.tolist()
        return entries if isinstance(entries, list) else [entries]
    return f"returned {_kind(value)}; expected a list with one score per response"


def _kind(value: Any) -> str:
    return "None" if value is None else f"a value of type {type(value).__name__}"


def _missing(objective: str, components: Mapping[str, Any]) -> str:
    present = ", ".join(str(key) for key in list(components)[:5]) or "nothing"
    return f'returned no "{objective}", but {present}; None means that a response has no score'


def _wrong_length(values: Sequence[Any], num_rows: int) -> str:
    return f"returned {len(values)} scores for {num_rows} responses"
