"""Prompts and responses that are missing values written as text, as `astype(str)` of pandas does."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from paretune.core.errors import format_issue
from paretune.data.columns import ColumnNames, RowValues, resolve_column
from paretune.data.fields import Messages
from paretune.data.raters import ReadSummary

MISSING_TEXTS = frozenset({"nan", "NaN", "NAN", "None", "null", "NULL", "<NA>", "NaT"})


@dataclass
class _Column:
    """The cells of one column that are such a word."""

    name: str
    place: str
    """Location of the first."""
    words: Counter[str] = field(default_factory=Counter)
    prompts: set[Messages] = field(default_factory=set)
    """Different prompts of these rows."""


@dataclass
class MissingTexts:
    """Counts prompts and responses whose whole text is the name of a missing value.

    No prompt is such a word. One response may be, as the answer to a question; those of several prompts are
    not.
    """

    columns: dict[str, _Column] = field(default_factory=dict)

    def add(
        self,
        prompt: Messages,
        responses: Mapping[str, str],
        values: RowValues,
        names: ColumnNames,
        location: str,
    ) -> None:
        """Count the texts of a row.

        Args:
            prompt: Its prompt.
            responses: Field of `ColumnNames` -> text of the response.
            values: The row.
            names: Column names.
            location: Of the row, as `file:line`.
        """
        texts = {"prompt": prompt[-1].content if prompt else "", **responses}
        for part, text in texts.items():
            word = text if len(text) > 20 else text.strip()
            if word not in MISSING_TEXTS:
                continue
            if part not in self.columns:
                name = resolve_column(names, part, values) or resolve_column(names, "messages", values)
                self.columns[part] = _Column(name or part, location)
            self.columns[part].words[word] += 1
            self.columns[part].prompts.add(prompt)

    def issues(self) -> list[str]:
        """A line per column whose cells cannot be meant."""
        lines = []
        for part, column in self.columns.items():
            if self._may_be_meant(part):
                continue
            count, words = column.words.total(), " or ".join(f'"{word}"' for word in column.words)
            kind = "prompt" if part == "prompt" else "response"
            noun = f"{kind} is" if count == 1 else f"{kind}s are"
            problem = f"{count} {noun} {words}, a missing value written as text; the first is in this line"
            fix = "delete these rows, in pandas with dropna() before astype(str)"
            if part != "prompt" and "None" in column.words:
                fix += ', or write "None." where it is the answer'
            lines.append(format_issue(column.place, None, None, column.name, problem, fix=fix))
        return lines

    def summarize(self, records: Sequence[object], summary: ReadSummary) -> None:
        """Warn of a single response that may be a missing value."""
        for part, column in self.columns.items():
            if self._may_be_meant(part):
                problem = (
                    f'the response is "{next(iter(column.words))}", maybe a missing value written as text'
                )
                fix = "delete the row if it is"
                summary.warnings.append(format_issue(column.place, None, None, column.name, problem, fix=fix))

    def _may_be_meant(self, part: str) -> bool:
        return part != "prompt" and len(self.columns[part].prompts) == 1
