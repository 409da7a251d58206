"""Ratings by an LLM judge, as rows of a data file, and the agreement of its repeats."""

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from paretune.data.raters import krippendorff_alpha
from paretune.data.records import Message, Sample
from paretune.reward.llm_judge import LlmJudgeScorer

ROWS_PER_CALL = 256
"""Responses that are rated before their rows are given out; a kill loses none of their replies."""

Row = dict[str, Any]


def rate_rows(judge: LlmJudgeScorer, samples: Sequence[Sample], *, repeats: int = 1) -> Iterator[Row]:
    """Rows of a data file with the judge's labels, in the order of the samples.

    A row has id, category if there is one, prompt, response, `scores` {objective: label} and `criteria`
    {criterion: points}. With several repeats each label is the list of its votes. What could not be rated is
    left out, so the labels of such a response are fewer or none; `judge.failures` counts them.

    Args:
        judge: The judge.
        samples: The responses.
        repeats: Number of independent ratings of each response.

    Raises:
        DataError: A prompt has criteria that are not valid.
        ResourceError: The cache cannot be written.
    """
    for start in range(0, len(samples), ROWS_PER_CALL):
        chunk = samples[start : start + ROWS_PER_CALL]
        ratings = [judge.rate(chunk, repeat=repeat) for repeat in range(repeats)]
        for sample, *rated in zip(chunk, *ratings, strict=True):
            scores: dict[str, list[float]] = {}
            points: dict[str, list[float]] = {}
            for criteria, answers in rated:
                values = judge.rubric.scores(criteria, answers)
                for name, score in zip(judge.names, values, strict=True):
                    if not math.isnan(score):
                        scores.setdefault(name, []).append(score)
                for name, answer in answers.items():
                    points.setdefault(name, []).append(criteria[name].points_of(answer))
            yield _row(sample, _labels(scores, repeats), _labels(points, repeats))


def repeat_agreement(rows: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """Objective -> Krippendorff's alpha of the repeats, from rows of `rate_rows` with several repeats.

    NaN where no response has two ratings, or all ratings are equal.
    """
    votes: dict[str, list[Sequence[float]]] = {}
    for row in rows:
        for name, labels in row["scores"].items():
            votes.setdefault(name, []).append(labels if isinstance(labels, list) else [labels])
    return {name: krippendorff_alpha(units) for name, units in votes.items()}


def _labels(votes: Mapping[str, list[float]], repeats: int) -> dict[str, Any]:
    return {name: values if repeats > 1 else values[0] for name, values in votes.items()}


def _row(sample: Sample, scores: dict[str, Any], criteria: dict[str, Any]) -> Row:
    prompt = sample.prompt
    row: Row = {"id": prompt.id} if prompt.id else {}
    if prompt.category:
        row["category"] = prompt.category
    row["prompt"] = [_message(message) for message in prompt.messages] or ""
    return {**row, "response": sample.response, "scores": scores, "criteria": criteria}


def _message(message: Message) -> Row:
    extra = {key: json.loads(value) for key, value in message.extra}
    return {"role": message.role, "content": message.content, **extra}
