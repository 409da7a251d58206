"""What the page of training samples shows: responses of some steps with their training scores."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from paretune.report.formatting import finite_or_none, format_compact
from paretune.view.folders import Folder
from paretune.view.reading import read_last_lines
from paretune.view.samples import page_of, parse_number

ROLLOUTS_FILE = "rollouts.jsonl"
MAX_BYTES = 20_000_000
"""Bytes of rollouts.jsonl that are read: its last ones."""
ORDERS = {
    "new": "last step first",
    "old": "first step first",
    "high": "highest score first",
    "low": "lowest score first",
}
TEXT_KEYS = ("prompt", "response")


@dataclass(frozen=True, slots=True)
class TrainingSample:
    """A response that a training step sampled."""

    step: int
    prompt: str
    response: str
    scores: Mapping[str, float | None]


def rollouts_context(folder: Folder, query: Mapping[str, str]) -> dict[str, Any]:
    """The page of the responses that the training wrote down."""
    samples, num_damaged = _read_samples(folder)
    names = list(dict.fromkeys(name for sample in samples for name in sample.scores))
    objective = query["objective"] if query.get("objective") in names else next(iter(names), "")
    order = query["order"] if query.get("order") in ORDERS else "new"
    problems: list[str] = []
    low, high = (parse_number(query.get(key, ""), problems) for key in ("min_step", "max_step"))
    words = query.get("text", "").strip()
    selected = [
        sample
        for sample in samples
        if (low is None or sample.step >= low)
        and (high is None or sample.step <= high)
        and any(words.casefold() in text.casefold() for text in (sample.prompt, sample.response))
    ]
    selected = _ordered(selected, order, objective)
    shown, place = page_of(selected, query)
    return {
        "title": folder.key,
        "folder": folder,
        "objectives": names,
        "objective": objective,
        "orders": ORDERS.items(),
        "order": order,
        "min_step": low,
        "max_step": high,
        "text": words,
        "problems": problems + ([f"{num_damaged} damaged lines are left out"] if num_damaged else []),
        "num_samples": len(samples),
        "fixed": {"run": folder.key},
        "filter_query": {key: value for key, value in query.items() if key not in ("run", "page") and value},
        **place,
        "rows": [
            (sample, [(name, format_compact(score)) for name, score in sample.scores.items()])
            for sample in shown
        ],
    }


def _read_samples(folder: Folder) -> tuple[list[TrainingSample], int]:
    lines, num_damaged = read_last_lines(folder, ROLLOUTS_FILE, MAX_BYTES)
    samples = []
    for line in lines:
        rows, step = line.get("samples"), line.get("step")
        if not isinstance(rows, list) or not isinstance(step, int):
            num_damaged += 1
            continue
        samples += [_sample(step, row) for row in rows if isinstance(row, dict)]
    return samples, num_damaged


def _sample(step: int, row: Mapping[str, Any]) -> TrainingSample:
    texts = [row.get(key) for key in TEXT_KEYS]
    scores = {str(key): finite_or_none(value) for key, value in row.items() if key not in TEXT_KEYS}
    prompt, response = (text if isinstance(text, str) else "" for text in texts)
    return TrainingSample(step, prompt, response, scores)


def _ordered(samples: Sequence[TrainingSample], order: str, objective: str) -> list[TrainingSample]:
    """Those without the score of the objective come last."""
    if order in ("new", "old"):
        return sorted(samples, key=lambda sample: sample.step, reverse=order == "new")
    sign = -1 if order == "high" else 1

    def key(sample: TrainingSample) -> float:
        score = sample.scores.get(objective)
        return math.inf if score is None else sign * score

    return sorted(samples, key=key)
