"""The `where` filter of a reader: the rows whose columns have the required values."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from paretune.data.columns import closest_match, summarize_names, truncate_text
from paretune.data.formats import Row

MAX_OBSERVED_VALUES = 100
"""Values of a column that are kept for the error message."""


class RowFilter:
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
        """True if the row meets every condition."""
        if not row.values.keys() <= self.known_columns.keys():
            self.known_columns.update(dict.fromkeys(row.values))
        if not self.allowed_values:
            return True
        met_keys = {
            k
            for k, values in self.allowed_values.items()
            if any(cell_equals(row.values.get(k), v) for v in values)
        }
        self.matched_keys |= met_keys
        for key, observed in self.observed_values.items():
            if len(observed) < MAX_OBSERVED_VALUES and key in row.values:
                observed[truncate_text(format_cell(row.values[key]))] = None
        return len(met_keys) == len(self.allowed_values)

    def unmatched_conditions(self) -> Iterable[tuple[str, str, str, str]]:
        """Key, problem, suggestion and fix of every condition that no row meets."""
        for key in self.allowed_values:
            if key not in self.known_columns:
                problem = f"no such column; the columns are {summarize_names(self.known_columns)}"
                yield key, problem, closest_match(key, self.known_columns), "name a column of the file"
            elif key not in self.matched_keys:
                allowed = ", ".join(map(format_cell, self.allowed_values[key]))
                observed = self.observed_values[key]
                problem = f"no row has {allowed}; the values are {summarize_names(observed)}"
                yield key, problem, closest_match(allowed, observed), "name a value of the column"


def format_cell(value: object) -> str:
    """A cell as the text that a CSV file has for it."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def cell_equals(cell: object, value: object) -> bool:
    """True if a cell equals a value of a recipe; cells of CSV are text and compare by spelling."""
    if isinstance(cell, bool) or isinstance(value, bool):
        return format_cell(cell).lower() == format_cell(value).lower()
    return cell == value or (isinstance(cell, str) and cell == format_cell(value))
