"""Generators of the help desk: requests, demonstrations, ratings, and the ground-truth scorer.

Requests are ordinary, harmful, or look-alikes, which sound harmful but are not. On harmful requests
actionability and safety conflict. Raters report the true scores with noise, a severity of their own and a
bias towards long answers, and leave some labels out.

The purposes of the random generators, such as "world/frame", are part of the seeds and must not change.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from numpy.random import Generator
from torch import Tensor

from paretune.core.rng import numpy_generator
from paretune.data.chat_template import THINK_END_TAG, THINK_START_TAG
from paretune.data.prompt_formats import PromptFormat, add_format_instruction
from paretune.data.records import Demonstration, LazySequence, Message, Prompt, Rating, Sample
from paretune.worlds.helpdesk.model import HELPDESK_INSTRUCTIONS, helpdesk_tokenizer, policy_config
from paretune.worlds.helpdesk.text import (
    Request,
    Split,
    careless_plan,
    corrupt_text,
    diverse_plan,
    render_answer,
    sample_claimed_confidence,
    sample_request,
    thinking_plan,
)
from paretune.worlds.helpdesk.truth import ground_truth_scores, is_helpdesk_refusal
from paretune.worlds.helpdesk.words import CATEGORY_MIX, CONFIDENCE_TEMPLATE, OBJECTIVES

__all__ = [
    "CATEGORY_MIX",
    "OBJECTIVES",
    "GroundTruthScorer",
    "Split",
    "generate_demonstrations",
    "generate_ratings",
    "generate_requests",
    "ground_truth_scores",
    "helpdesk_tokenizer",
    "is_helpdesk_refusal",
    "policy_config",
    "request_text",
]

_LENGTH_BIAS_SCALES = (1.0, 0.6, 0.3, 0.0)
"""Length bias of each objective, relative to politeness."""
_CONFIDENCE_BIAS_SCALES = (0.3, 1.0, 0.6, 0.3)
"""Confidence bias of each objective, relative to meaningfulness."""
_TYPICAL_LENGTH = 32
"""Length in words at which the length bias is 0."""


class GroundTruthScorer:
    """Scorer of the four true scores, computed from the text."""

    names: tuple[str, ...] = OBJECTIVES

    def __call__(self, samples: Sequence[Sample]) -> Float[Tensor, "B 4"]:
        """Scores [B, 4] in [0, 1], in the order of `names`."""
        rows = [ground_truth_scores(request_text(sample.prompt), sample.response) for sample in samples]
        return torch.tensor(rows, dtype=torch.float32).reshape(len(rows), 4)


def request_text(prompt: Prompt) -> str:
    """Text of the last message of a prompt; "" without messages."""
    return prompt.messages[-1].content if prompt.messages else ""


def generate_requests(
    split: Split, count: int, seed: int, category_mix: Mapping[str, float] = CATEGORY_MIX
) -> list[Prompt]:
    """Requests of one split, with the categories in the proportions of `category_mix`.

    Combinations of verb, object and context are redrawn up to 20 times to avoid repetition.
    """
    rng = numpy_generator(seed, 0, "world/requests", split)
    return [
        _to_prompt(request, split, i)
        for i, request in enumerate(_iter_requests(split, count, category_mix, rng, max_retries=20))
    ]


def generate_demonstrations(
    count: int, seed: int, prompt_format: PromptFormat = ""
) -> Sequence[Demonstration]:
    """Answers of a careless help desk, for the supervised fine-tuning of the initial policy.

    Args:
        count: Number of answers.
        seed: Seed of requests and answers.
        prompt_format: "confidence": every answer states a confidence, mostly high whatever its quality.
            "think": every other answer starts with thinking.
    """
    return LazySequence(count, lambda: _iter_demonstrations(count, seed, prompt_format))


def _iter_demonstrations(count: int, seed: int, prompt_format: PromptFormat) -> Iterator[Demonstration]:
    rng = numpy_generator(seed, 0, "world/demonstrations")
    # A generator of its own, so that the answers are the same with and without a format.
    format_rng = numpy_generator(seed, 0, "world/frame", prompt_format)
    for i, request in enumerate(_iter_requests("train", count, CATEGORY_MIX, rng)):
        response = render_answer(careless_plan(request.category, rng), request, rng)
        prompt = _to_prompt(request, "train", i)
        if prompt_format == "confidence":
            response = append_helpdesk_confidence(response, sample_claimed_confidence(format_rng))
        has_format = prompt_format == "confidence" or (prompt_format == "think" and i % 2 == 0)
        if has_format and prompt_format == "think":
            thinking = render_answer(thinking_plan(request.category, format_rng), request, format_rng)
            response = f"{THINK_START_TAG} {thinking} {THINK_END_TAG} {response}"
        yield Demonstration(
            prompt=add_format_instruction(prompt, prompt_format if has_format else "", HELPDESK_INSTRUCTIONS),
            response=response,
        )


def append_helpdesk_confidence(response: str, level: int) -> str:
    """The answer followed by a confidence from 0 to 10, in words of the vocabulary."""
    return f"{response} {CONFIDENCE_TEMPLATE.format(level=level)}"


def generate_ratings(
    count: int,
    seed: int,
    num_raters: int = 4,
    rater_noise: float = 0.08,
    length_bias: float = 0.1,
    missing_rate: float = 0.3,
    split: Split = "rated",
    prompt_format: PromptFormat = "",
    confidence_bias: float = 0.1,
) -> Sequence[Rating]:
    """Answers of all qualities with the mean labels of noisy raters; missing labels are absent.

    Args:
        count: Number of rated answers.
        seed: Seed of requests, answers and raters.
        num_raters: Number of raters; each has a severity of its own per objective.
        rater_noise: Standard deviation of one rater's error.
        length_bias: Added to the politeness of an answer twice as long as usual; 0.6 of it to meaningfulness,
            0.3 to actionability, nothing to safety.
        missing_rate: Probability that a label is missing; each present label is the mean over about three
            quarters of the raters.
        split: Split of the requests; "test" has unseen ones.
        prompt_format: "confidence": two thirds of the answers state a random confidence from 0 to 10.
        confidence_bias: Difference in meaningfulness between a stated confidence of 10 and of 0; 0.6 of it in
            actionability, 0.3 in the others.
    """
    raters = _RaterModel(num_raters, rater_noise, length_bias, missing_rate, prompt_format, confidence_bias)
    return LazySequence(count, lambda: _iter_ratings(count, seed, split, raters))


@dataclass(frozen=True, slots=True)
class _RaterModel:
    """Number and errors of the raters: see `generate_ratings`."""

    num_raters: int
    rater_noise: float
    length_bias: float
    missing_rate: float
    prompt_format: PromptFormat
    confidence_bias: float


def _iter_ratings(count: int, seed: int, split: Split, raters: _RaterModel) -> Iterator[Rating]:
    format_rng = numpy_generator(seed, 0, "world/rated/frame", split)
    rng = numpy_generator(seed, 0, "world/rated", split)
    severity = rng.normal(0.0, raters.rater_noise / 2, size=(raters.num_raters, 4))
    for i, request in enumerate(_iter_requests(split, count, CATEGORY_MIX, rng)):
        response = _sample_answer(request, rng)
        scores = np.array(ground_truth_scores(request.text, response))
        bias = (
            raters.length_bias
            * (len(response.split()) / _TYPICAL_LENGTH - 1.0)
            * np.array(_LENGTH_BIAS_SCALES)
        )
        if raters.prompt_format == "confidence" and format_rng.random() < 2 / 3:
            level = int(format_rng.integers(11))
            response = append_helpdesk_confidence(response, level)
            bias += raters.confidence_bias * (level / 10 - 0.5) * np.array(_CONFIDENCE_BIAS_SCALES)
        rater_scores = (
            scores + bias + severity + rng.normal(0.0, raters.rater_noise, size=(raters.num_raters, 4))
        )
        labels = _sample_labels(np.clip(rater_scores, 0.0, 1.0), raters.missing_rate, rng)
        yield Rating(prompt=_to_prompt(request, split, i), response=response, labels=labels)


def _sample_answer(request: Request, rng: Generator) -> str:
    """40 % of the answers follow `careless_plan`, the others `diverse_plan`; 1 in 15 is corrupted."""
    plan = careless_plan(request.category, rng) if rng.random() < 0.4 else diverse_plan(rng)
    response = render_answer(plan, request, rng)
    return corrupt_text(response, rng) if rng.random() < 1 / 15 else response


def _sample_labels(rater_scores: np.ndarray, missing_rate: float, rng: Generator) -> dict[str, float]:
    is_present = rng.random(4) >= missing_rate
    answered = rng.random(rater_scores.shape) < 0.75
    answered[int(rng.integers(len(rater_scores)))] = True  # at least one rater answers
    return {
        name: float(rater_scores[answered[:, k], k].mean())
        for k, name in enumerate(OBJECTIVES)
        if is_present[k]
    }


def _iter_requests(
    split: Split, count: int, category_mix: Mapping[str, float], rng: Generator, max_retries: int = 0
) -> Iterator[Request]:
    total = sum(category_mix.values())
    # Rounding the cumulative sums keeps the total exact.
    edges = np.round(np.cumsum([weight / total for weight in category_mix.values()]) * count).astype(int)
    counts = np.diff(edges, prepend=0)
    categories = [c for c, number in zip(category_mix, counts, strict=True) for _ in range(number)]
    used: set[tuple[str, str, str]] = set()
    for category in rng.permutation(categories).tolist():
        request = sample_request(category, split, rng)
        for _ in range(max_retries):
            if request.split_key not in used:
                break
            request = sample_request(category, split, rng)
        used.add(request.split_key)
        yield request


def _to_prompt(request: Request, split: str, index: int) -> Prompt:
    messages = (Message(role="user", content=request.text),)
    return Prompt(messages=messages, id=f"{split}-{index:05d}", category=request.category)
