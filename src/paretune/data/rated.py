"""Ratings of a file as a table: rows, columns and lists of several raters become one rating per response."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from paretune.core.errors import format_issue
from paretune.data.columns import (
    ColumnNames,
    FieldError,
    LabelMapping,
    RowValues,
    Scalar,
    closest_match,
    column_value,
    summarize_names,
    truncate_text,
)
from paretune.data.formats import FileInfo
from paretune.data.label_checks import boolean_issues, label_notes, odd_value_issues, unused_value_issues
from paretune.data.labels import LabelReader, Votes, thousands_notes
from paretune.data.raters import (
    RaterRule,
    ReadSummary,
    has_repeats,
    joined_rating,
    merge_raters,
    rater_column,
    summarize_labels,
)
from paretune.data.record_reader import LocatedRecord
from paretune.data.records import Prompt, Rating

Issue = Callable[..., str]


@dataclass(kw_only=True)
class RatingTable:
    """Collects the ratings of a file, and joins those of one response."""

    mappings: Mapping[str, LabelMapping] | None
    """Objective -> where its labels come from; None = all entries of `scores`."""
    columns: ColumnNames
    missing: tuple[Scalar, ...]
    rule: RaterRule | None
    group_by: tuple[str, ...]
    """Columns that tell responses apart; empty = each row is a response of its own."""
    issue: Issue
    """Makes a line about the file from key, problem, suggestion and fix."""
    file_info: FileInfo = field(default_factory=FileInfo)
    keys: list[tuple[object, ...]] = field(default_factory=list)
    """What tells the response of each rating apart, if rows are grouped."""
    raters: list[str] = field(default_factory=list)
    known_columns: dict[str, None] = field(default_factory=dict)
    labelled: set[str] = field(default_factory=set)
    """Objectives that some row has."""
    conflicts: list[str] = field(default_factory=list)
    num_votes: int = 0
    num_repeated_raters: int = 0
    has_several_votes: bool = False

    @cached_property
    def reader(self) -> LabelReader:
        """Reads the labels of each row."""
        return LabelReader(self.mappings, self.columns, self.missing, self.file_info)

    def column_names(self) -> tuple[str, ...]:
        """The columns that are named for labels and groups."""
        labels = (name for mapping in (self.mappings or {}).values() for name in mapping.columns)
        return (*labels, *self.group_by)

    def read_votes(self, values: RowValues, location: str) -> dict[str, Votes]:
        """Votes of a row by objective.

        Raises:
            FieldError: Bad labels.
        """
        scores = column_value(self.columns, "scores", values)
        for names in (scores, values) if isinstance(scores, dict) else (values,):
            if not names.keys() <= self.known_columns.keys():
                self.known_columns.update(dict.fromkeys(names))
        return self.reader.read(values, location)

    def add(self, prompt: Prompt, response: str, votes: Mapping[str, Votes], values: RowValues) -> Rating:
        """A rating with its labels; remembers what tells its response apart.

        Raises:
            FieldError: The row lacks a column of `group_by`, or the rater.
        """
        self.labelled.update(votes)
        if self.group_by:
            parts: dict[str, object] = {"prompt": prompt.messages, "response": response}
            key = tuple(parts[n] if n in parts else _group_value(values, n) for n in self.group_by)
            rater = ""
            if self.columns.rater:
                rater = str(_group_value(values, self.columns.rater))
                for objective in votes:
                    self.reader.statistics[objective].raters.add(rater)
            self.keys.append(key)
            self.raters.append(rater)
        return joined_rating(prompt, response, votes, self.rule or "mean")

    def merge(self, records: list[LocatedRecord[Rating]]) -> list[LocatedRecord[Rating]]:
        """One record per response, in the order of their first rows."""
        if self.group_by:
            groups: dict[tuple[object, ...], list[int]] = {}
            for i, key in enumerate(self.keys):
                groups.setdefault(key, []).append(i)
            self.conflicts = list(filter(None, (self._conflict(records, rows) for rows in groups.values())))
            self.num_votes = len(records)
            for rows in groups.values():
                known = [self.raters[i] for i in rows if self.raters[i]]
                self.num_repeated_raters += len(known) - len(set(known))
            records = [
                LocatedRecord(
                    merge_raters([records[i].record for i in rows], self.rule or "mean"),
                    records[rows[0]].location,
                    records[rows[0]].num_prior_issues,
                )
                for rows in groups.values()
            ]
        self.has_several_votes = any(located.record.votes for located in records)
        return records

    def _conflict(self, records: Sequence[LocatedRecord[Rating]], rows: Sequence[int]) -> str:
        """A line if rows of one group are of different responses; "" if not."""
        first = records[rows[0]]
        for i in rows[1:]:
            other = records[i]
            for name, same in (
                ("response", first.record.response == other.record.response),
                ("prompt", first.record.prompt.messages == other.record.prompt.messages),
            ):
                if not same:
                    names = ", ".join(self.group_by)
                    line = first.location.rpartition(":")[2]
                    problem = f"same {names} as line {line}, but another {name}"
                    return format_issue(
                        other.location, None, None, "group_by", problem, fix=f"write [{names}, {name}]"
                    )
        return ""

    def file_issues(self, all_rows_valid: bool) -> list[str]:
        """Labels that no row has, values that may be no labels, settings without effect."""
        missing = [(k, m) for k, m in (self.mappings or {}).items() if k not in self.labelled]
        # If rows were bad, only report names that occur nowhere: the bad rows might have had the label.
        known = self.known_columns.keys()
        issues = [
            self._unknown_label_issue(name, mapping.columns[0])
            for name, mapping in missing
            if all_rows_valid or (known and known.isdisjoint(mapping.columns))
        ]
        # A rater's column that no row has would be a rater lost in silence.
        issues += [
            self._unknown_label_issue(name, column)
            for name, mapping in (self.mappings or {}).items()
            for column in mapping.columns
            if len(mapping.columns) > 1 and all_rows_valid and column not in self.known_columns
        ]
        for name, mapping in (self.mappings or {}).items():
            if twice := [column for column in mapping.columns if mapping.columns.count(column) > 1]:
                problem = f"names {twice[0]} {len(twice)} times: one rater would count as several"
                issues.append(self.issue(f"labels.{name}.from", problem, "", "name each column once"))
        statistics = self.reader.statistics
        issues += [*boolean_issues(self.mappings, statistics), *odd_value_issues(self.mappings, statistics)]
        issues += self.conflicts
        if all_rows_valid and not issues:
            issues += unused_value_issues(self.mappings, statistics, self.missing, self.issue)
            if self.rule is not None and not self.has_several_votes:
                fix = "remove it, or name the raters: columns: {rater: COLUMN}, or a list under `from`"
                issues.append(self.issue("raters", "has no effect: no response has two votes", "", fix))
        return issues

    def _unknown_label_issue(self, objective: str, column: str) -> str:
        if column in self.known_columns:
            cells = self.reader.statistics.get(objective)
            num_missing = cells.num_missing if cells else 0
            means = f', or "not rated" ({num_missing} of them)' if num_missing else ""
            problem = f"every cell of {column} is empty{means}"
            return self.issue(f"labels.{objective}", problem, "", "name another column, or remove the label")
        problem = f'no row has a label "{column}"; found {summarize_names(self.known_columns)}'
        suggestion = closest_match(column, set(self.known_columns) - {column})
        return self.issue(f"labels.{objective}", problem, suggestion, "name a key of `scores`, or a column")

    def summarize(self, ratings: list[Rating], summary: ReadSummary) -> None:
        """Counts, agreement and notes."""
        statistics = self.reader.statistics
        summary.labels = summarize_labels(
            ratings,
            {name: cells.raters for name, cells in statistics.items()},
            {name: cells.num_missing for name, cells in statistics.items()},
        )
        summary.notes += label_notes(self.mappings, statistics)
        summary.notes += thousands_notes(statistics)
        if self.num_repeated_raters:
            problem = (
                f"{self.num_repeated_raters} votes are a rater's second one on the same response; all count"
            )
            summary.notes.append(self.issue("raters", problem))
        if not self.group_by and has_repeats(ratings):
            summary.warnings.append(self._repeat_warning(ratings))

    def _repeat_warning(self, ratings: Sequence[Rating]) -> str:
        num_responses = len({(rating.prompt.messages, rating.response) for rating in ratings})
        rater = rater_column(self.known_columns)
        problem = (
            f"{len(ratings)} rows rate {num_responses} responses; each row counts as a response of its own"
        )
        if rater:
            return self.issue(
                "", f'{problem}, and "{rater}" looks like the rater', "", f"columns: {{rater: {rater}}}"
            )
        return self.issue("", problem, "", "group_by: [prompt, response] if they are votes of several raters")


def _group_value(values: RowValues, name: str) -> object:
    value = values.get(name)
    # NaN is how pandas writes an empty cell.
    if value is None or value == "" or str(value).lower() == "nan":
        absent = name not in values
        problem = f"no such column; this row has {summarize_names(values)}" if absent else "empty"
        fix = "name a column of the file" if absent else "fill it in"
        raise FieldError(name, problem, fix=fix, column_missing=absent)
    return value if isinstance(value, str | int | float) else truncate_text(str(value), 1000)
