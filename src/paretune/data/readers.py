"""Readers of prompts, ratings, preference pairs and demonstrations; one error lists all bad rows."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Unpack

from paretune.core.errors import DataError
from paretune.data.columns import (
    ColumnNames,
    LabelMapping,
    RowValues,
    Scalar,
    column_value,
    missing_column_error,
    resolve_column,
)
from paretune.data.fields import (
    Messages,
    extract_generation_prompt,
    extract_preference_pair,
    extract_preference_weights,
    extract_prompt_and_response,
)
from paretune.data.missing_texts import MissingTexts
from paretune.data.rated import RatingTable
from paretune.data.raters import RaterRule, ReadSummary
from paretune.data.record_reader import ReaderOptions, RecordBuilder, file_issue, read_records
from paretune.data.records import Demonstration, PreferencePair, Prompt, Rating

__all__ = ["ReaderOptions", "read_demonstrations", "read_preference_pairs", "read_prompts", "read_ratings"]


def read_prompts(
    source: str | Path,
    *,
    category: str = "",
    keep_columns: bool = False,
    **options: Unpack[ReaderOptions],
) -> list[Prompt]:
    """Read the prompts of a file, in its order.

    Args:
        source: A file, or `hf:owner/name`.
        category: Category of all prompts; default: the column `columns.category`.
        keep_columns: Keep the other columns of each row, for scorers that read them.
        options: See `ReaderOptions`.

    Raises:
        DataError: One line per kind of bad row.
        MissingDependencyError: The name is on the hub, and `datasets` is not installed.
    """
    texts = MissingTexts()

    def build_record(values: RowValues, columns: ColumnNames, location: str) -> Prompt:
        messages = extract_generation_prompt(values, columns)
        texts.add(messages, {}, values, columns, location)
        prompt = _build_prompt(messages, values, columns, location, category)
        prompt = replace(prompt, preference_weights=extract_preference_weights(values, columns))
        if not keep_columns:
            return prompt
        used = {resolve_column(columns, field, values) for field in ("prompt", "messages")}
        return replace(prompt, columns={k: v for k, v in values.items() if k not in used})

    builder = RecordBuilder(kind="prompts", build=build_record, file_issues=lambda _: texts.issues())
    return read_records(source, builder, options)


def read_ratings(
    source: str | Path,
    *,
    labels: Mapping[str, str | LabelMapping] | None = None,
    missing: tuple[Scalar, ...] = (),
    raters: RaterRule | None = None,
    group_by: tuple[str, ...] = (),
    **options: Unpack[ReaderOptions],
) -> list[Rating]:
    """Read the rated responses of a file, in its order; rows without any of the labels are skipped.

    Several votes on one response, in a list, in several columns or in a row each, become one rating.

    Args:
        source: A file, or `hf:owner/name`.
        labels: Objective -> key of `scores`, or column; default: all keys of `scores`.
        missing: Values that mean "not rated", in every label column.
        raters: How several votes on one response become its label; None = "mean".
        group_by: Columns that tell responses apart if each row is one rater's; default: prompt and response
            if `columns.rater` is set, else each row is a response of its own.
        options: See `ReaderOptions`.

    Raises:
        DataError: One line per kind of bad label and bad row, and per label that no row has.
        MissingDependencyError: The name is on the hub, and `datasets` is not installed.
    """
    columns = options.get("columns", ColumnNames())
    table = RatingTable(
        mappings=None if labels is None else _label_mappings(labels),
        columns=columns,
        missing=missing,
        rule=raters,
        group_by=group_by or (("prompt", "response") if columns.rater else ()),
        issue=lambda *parts: file_issue(source, options, *parts),
    )
    texts = MissingTexts()

    def build_record(values: RowValues, columns: ColumnNames, location: str) -> Rating | None:
        votes = table.read_votes(values, location)
        prompt, response = extract_prompt_and_response(values, columns)
        if not votes:
            return None
        texts.add(prompt, {"response": response}, values, columns, location)
        return table.add(_build_prompt(prompt, values, columns, location), response, votes, values)

    def summarize(records: list[Rating], summary: ReadSummary) -> None:
        table.summarize(records, summary)
        texts.summarize(records, summary)

    builder = RecordBuilder(
        kind="ratings",
        build=build_record,
        column_names=table.column_names(),
        merge=table.merge,
        file_issues=lambda all_rows_valid: [*texts.issues(), *table.file_issues(all_rows_valid)],
        summarize=summarize,
        file_info=table.file_info,
    )
    return read_records(source, builder, options)


def _label_mappings(labels: Mapping[str, str | LabelMapping]) -> dict[str, LabelMapping]:
    return {name: LabelMapping(column=v) if isinstance(v, str) else v for name, v in labels.items()}


def read_preference_pairs(
    source: str | Path, *, objective: str = "", **options: Unpack[ReaderOptions]
) -> list[PreferencePair]:
    """Read the preference pairs of a file, in its order.

    Args:
        source: A file, or `hf:owner/name`.
        objective: Objective of all pairs; default: the column `columns.objective`.
        options: See `ReaderOptions`.

    Raises:
        DataError: One line per kind of bad row.
        MissingDependencyError: The name is on the hub, and `datasets` is not installed.
    """
    texts = MissingTexts()

    def build_record(values: RowValues, columns: ColumnNames, location: str) -> PreferencePair:
        name = objective or column_value(columns, "objective", values)
        if not isinstance(name, str) or not name.strip():
            raise missing_column_error(columns, "objective", values)
        messages, chosen, rejected = extract_preference_pair(values, columns)
        texts.add(messages, {"chosen": chosen, "rejected": rejected}, values, columns, location)
        prompt = _build_prompt(messages, values, columns, location)
        return PreferencePair(prompt=prompt, chosen=chosen, rejected=rejected, objective=name)

    if options.get("format") == "pku_saferlhf" and objective and "comparison" not in options.get("where", {}):
        problem = "each row compares by two criteria, better and safer"
        fix = "choose one, where: {comparison: safer}, or name an objective per criterion"
        raise DataError(file_issue(source, options, "format", problem, fix=fix))
    builder = RecordBuilder(
        kind="pairs", build=build_record, file_issues=lambda _: texts.issues(), summarize=texts.summarize
    )
    return read_records(source, builder, options)


def read_demonstrations(source: str | Path, **options: Unpack[ReaderOptions]) -> list[Demonstration]:
    """Read the demonstrations of a file, in its order.

    Args:
        source: A file, or `hf:owner/name`.
        options: See `ReaderOptions`.

    Raises:
        DataError: One line per kind of bad row.
        MissingDependencyError: The name is on the hub, and `datasets` is not installed.
    """
    texts = MissingTexts()

    def build_record(values: RowValues, columns: ColumnNames, location: str) -> Demonstration:
        prompt, response = extract_prompt_and_response(values, columns)
        texts.add(prompt, {"response": response}, values, columns, location)
        return Demonstration(prompt=_build_prompt(prompt, values, columns, location), response=response)

    builder = RecordBuilder(
        kind="demonstrations",
        build=build_record,
        file_issues=lambda _: texts.issues(),
        summarize=texts.summarize,
    )
    return read_records(source, builder, options)


def _build_prompt(
    messages: Messages, values: RowValues, columns: ColumnNames, location: str, category: str = ""
) -> Prompt:
    """The prompt with id and category of its row; the default id is the location, as `file:line`."""
    row_id, row_category = (column_value(columns, field, values) for field in ("id", "category"))
    prompt_id = location.rpartition("/")[2] if row_id is None or row_id == "" else str(row_id)
    if not category and row_category is not None:
        category = str(row_category)
    return Prompt(messages=messages, id=prompt_id, category=category)
