"""Samples for the report page, selected by fixed rules so that nobody can cherry-pick them."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import escape

from paretune.core.goals import Goal
from paretune.report.formatting import (
    decimals_for,
    escape_invisible,
    finite_or_none,
    format_number,
    format_signed,
    one_line,
)
from paretune.report.responses import Responses, Vector
from paretune.report.word_diff import Parts, word_differences

NUM_RANDOM = 6
MAX_TEXT_CHARS = 4000
MAX_OTHERS = 600
"""Samples on the page besides the selected ones; more of them make it slow to open."""
MAX_SAMPLE_BYTES = 3_000_000
"""All samples of a page together, so that it stays below 5 MB."""
ROLLOUTS_FILE = "rollouts.jsonl"
MAX_TRAINING_STEPS = 8
"""Steps of the training whose responses are on the page."""
MAX_TRAINING_CHARS = 1000

Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class DisplayedSample:
    """A prompt with the response of either policy, as text."""

    selection_rule: str
    """"" for a sample that no rule selected."""
    category: str
    category_index: int
    expanded: bool
    """The first two samples start expanded, never one with a prompt that should be refused."""
    title: str
    prompt: str
    before: Parts
    after: Parts
    before_truncated: bool
    """It was cut at the length limit."""
    after_truncated: bool
    scores: tuple[tuple[str, str, str, str], ...]
    """(objective, before, after, change)."""
    changes: str
    """Oriented change of each objective, separated by commas; empty where a score is missing."""


@dataclass(frozen=True, slots=True)
class SampleSelection:
    """The samples of a page."""

    selected: tuple[DisplayedSample, ...]
    others: tuple[DisplayedSample, ...]
    """In the order of the evaluation, as many as the page can hold."""
    num_samples: int
    categories: tuple[str, ...]
    """`category_index` counts in these."""

    @property
    def num_left_out(self) -> int:
        """Samples that are only in generations.parquet."""
        return self.num_samples - len(self.selected) - len(self.others)


def select_samples(evaluation_dir: Path, evaluation: Row) -> SampleSelection:
    """The samples of an evaluation folder; without a generations.parquet there are none.

    Raises:
        DataError: generations.parquet is damaged.
    """
    return displayed_samples(Responses.read(evaluation_dir / "generations.parquet"), evaluation)


def displayed_samples(responses: Responses, evaluation: Row) -> SampleSelection:
    """The largest gain and loss of each objective, the widest gap between reward and judge, and others.

    Args:
        responses: The responses of both policies with their scores.
        evaluation: Content of eval.json; its seed draws the random samples.
    """
    objectives, num_samples = evaluation["objectives"], len(responses)
    changes = {name: responses.changes(name, Goal.of(o)) for name, o in objectives.items()}
    selected: dict[int, str] = {}
    if num_samples:
        for rule, index in _extreme_rows(responses, changes, objectives):
            selected.setdefault(index, rule)
    remaining = [index for index in range(num_samples) if index not in selected]
    order = np.random.Generator(np.random.Philox(int(evaluation.get("seed", 0)))).permutation(len(remaining))
    selected |= {remaining[i]: "random" for i in order[:NUM_RANDOM].tolist()}
    harmful = _harmful_categories(evaluation)
    categories = tuple(dict.fromkeys(responses.columns.get("category", ())))
    show = _Display(responses, objectives, changes, harmful, categories)
    expanded = [index for index in selected if responses.columns["category"][index] not in harmful][:2]
    shown = tuple(show(i, rule, expanded=i in expanded) for i, rule in selected.items())
    num_bytes = sum(map(_num_bytes, shown))
    others: list[DisplayedSample] = []
    for index in remaining:
        if index in selected:
            continue
        sample = show(index, "", expanded=False)
        num_bytes += _num_bytes(sample)
        if len(others) == MAX_OTHERS or num_bytes > MAX_SAMPLE_BYTES:
            break
        others.append(sample)
    return SampleSelection(shown, tuple(others), num_samples, categories)


@dataclass(frozen=True, slots=True)
class TrainingSample:
    """A response of the training with its scores."""

    prompt: str
    response: str
    scores: str


def training_samples(lines: Sequence[Row]) -> list[tuple[int, tuple[TrainingSample, ...]]]:
    """(step, samples) of some steps at equal distances, the first and the last among them.

    Args:
        lines: Lines of rollouts.jsonl.
    """
    count = min(MAX_TRAINING_STEPS, len(lines))
    places = [round(i * (len(lines) - 1) / max(count - 1, 1)) for i in range(count)]
    return [(int(lines[i]["step"]), tuple(map(_training_sample, lines[i]["samples"]))) for i in places]


def _training_sample(row: Row) -> TrainingSample:
    scores = {name: value for name, value in row.items() if name not in ("prompt", "response")}
    return TrainingSample(
        prompt=_truncate(str(row["prompt"]), MAX_TRAINING_CHARS, ROLLOUTS_FILE),
        response=_truncate(str(row["response"]), MAX_TRAINING_CHARS, ROLLOUTS_FILE),
        scores=", ".join(f"{name} {format_number(value)}" for name, value in scores.items()),
    )


def _harmful_categories(evaluation: Row) -> set[str]:
    """Categories of prompts that should be refused; a reader should not meet them unasked."""
    return {category for category, direction in evaluation["refusal_categories"].items() if direction == "up"}


def _extreme_rows(
    responses: Responses, changes: Mapping[str, Vector], objectives: Mapping[str, Row]
) -> Iterator[tuple[str, int]]:
    for objective, change in changes.items():
        for rule, sign in (("largest gain", 1.0), ("largest loss", -1.0)):
            best = _argmax(sign * change)
            if best is not None and sign * change[best] > 0:
                yield f"{rule} in {objective}", best
    for objective, change in changes.items():
        gap = _reward_gap(responses, objective, objectives[objective], change)
        best = _argmax(gap)
        if best is not None and gap[best] > 0:
            yield f"reward above judge in {objective}", best
    longest = _argmax(np.array(responses.columns["after_tokens"], np.float64))
    if longest is not None:
        yield "longest response after training", longest


def _reward_gap(responses: Responses, name: str, objective: Row, change: Vector) -> Vector:
    """[rows] rise of the training reward beyond that of the judge, in standard deviations; NaN: unknown."""
    std = finite_or_none(objective.get("std"))
    reward_std = finite_or_none((objective.get("reward") or {}).get("std"))
    if not std or not reward_std:
        return np.full(len(responses), np.nan)
    before, after = (responses.scores(arm, name) for arm in ("reward/before", "reward/after"))
    goal = Goal.of(objective)
    return (goal.orient(after) - goal.orient(before)) / reward_std - change / std


def _argmax(values: Vector) -> int | None:
    return None if np.isnan(values).all() else int(np.nanargmax(values))


@dataclass(frozen=True)
class _Display:
    """Makes the text of a sample from its row."""

    responses: Responses
    objectives: Mapping[str, Row]
    changes: Mapping[str, Vector]
    harmful_categories: Collection[str]
    categories: Sequence[str]

    def __call__(self, index: int, selection_rule: str, *, expanded: bool) -> DisplayedSample:
        row = self.responses.row(index)
        before, after = (_truncate(row[arm]) for arm in ("before", "after"))
        # Of the other samples, there are too many to compare their words.
        parts = word_differences(before, after) if selection_rule else ((("", before),), (("", after),))
        is_harmful = row["category"] in self.harmful_categories
        numbers = (finite_or_none(float(change[index])) for change in self.changes.values())
        return DisplayedSample(
            selection_rule=selection_rule,
            category=row["category"],
            category_index=self.categories.index(row["category"]),
            expanded=expanded,
            title="prompt collapsed" if is_harmful else one_line(row["prompt"], 90),
            prompt=_truncate(row["prompt"]),
            before=parts[0],
            after=parts[1],
            before_truncated=bool(row.get("before_truncated")),
            after_truncated=bool(row.get("after_truncated")),
            scores=tuple(_score_cells(name, o, row) for name, o in self.objectives.items()),
            changes=",".join("" if number is None else f"{number:.6g}" for number in numbers),
        )


def _score_cells(name: str, objective: Row, row: Row) -> tuple[str, str, str, str]:
    before, after = finite_or_none(row.get(f"before/{name}")), finite_or_none(row.get(f"after/{name}"))
    decimals = decimals_for(objective)
    change = None if before is None or after is None else after - before
    numbers = (format_number(before, decimals), format_number(after, decimals))
    return (name, *numbers, format_signed(change, decimals))


def _truncate(text: str, max_chars: int = MAX_TEXT_CHARS, file: str = "generations.parquet") -> str:
    excess = len(text) - max_chars
    return text if excess <= 0 else f"{text[:max_chars]}… [{excess} more characters in {file}]"


def _num_bytes(sample: DisplayedSample) -> int:
    texts = [sample.prompt, *(text for _, text in (*sample.before, *sample.after))]
    return sum(len(escape(escape_invisible(text)).encode()) for text in texts)
