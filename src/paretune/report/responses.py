"""The scored responses of an evaluation, by column, as the pictures and the samples of a page read them."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from paretune.core.errors import DataError
from paretune.core.goals import Goal

Vector = NDArray[np.float64]


@dataclass(frozen=True)
class Responses:
    """Content of generations.parquet: one row per prompt and sample."""

    columns: dict[str, list[Any]] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> "Responses":
        """The rows of the file; none if there is no file.

        Raises:
            DataError: The file is damaged.
        """
        if not path.exists():
            return cls()
        try:
            table = pq.read_table(path)
        except (pa.ArrowInvalid, OSError) as error:
            raise DataError(f"{path}: not a parquet file: {error}; fix: evaluate the run again") from error
        return cls({name: table[name].to_pylist() for name in table.column_names})

    def __len__(self) -> int:
        return len(next(iter(self.columns.values()), ()))

    def row(self, index: int) -> dict[str, Any]:
        """Column -> value of one row."""
        return {name: column[index] for name, column in self.columns.items()}

    def scores(self, arm: str, objective: str) -> Vector:
        """[rows] scores of the judge; NaN = not scored, or no such column.

        Args:
            arm: "before" or "after"; of the training reward "reward/before" or "reward/after".
            objective: Name of the objective.
        """
        column = self.columns.get(f"{arm}/{objective}")
        if column is None:
            return np.full(len(self), np.nan)
        values = np.array([np.nan if value is None else value for value in column], np.float64)
        return np.where(np.isfinite(values), values, np.nan)

    def changes(self, objective: str, goal: Goal) -> Vector:
        """[rows] oriented score after minus before: above 0 is better; NaN where either is missing."""
        return goal.orient(self.scores("after", objective)) - goal.orient(self.scores("before", objective))

    def prompt_numbers(self) -> NDArray[np.int64]:
        """[rows] number of the prompt; equal texts are one prompt."""
        numbers: dict[str, int] = {}
        texts = self.columns.get("prompt", ())
        return np.array([numbers.setdefault(text, len(numbers)) for text in texts], int)
