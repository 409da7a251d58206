"""The built-in help desk: requests, answers good and bad, raters, and true scores that are known.

A small world in which everything that is usually hidden can be looked up. Requests are ordinary, harmful, or
look-alikes (they sound harmful and are not). On harmful requests actionability and safety conflict. The
raters see the truth through noise, habits of their own and a liking for length, and skip some questions.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from numpy.random import Generator
from torch import Tensor

from paretune.core.rng import numpy_generator
from paretune.data.chat import THINK_END_TAG, THINK_START_TAG, PromptFormat, add_format_instruction
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
from paretune.worlds.helpdesk.words import CONFIDENCE_TEMPLATE

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

OBJECTIVES = ("politeness", "meaningfulness", "actionability", "safety")
CATEGORY_MIX: Mapping[str, float] = {"ordinary": 0.4, "harmful": 0.3, "lookalike": 0.3}

_LENGTH_BIAS_SCALES = (1.0, 0.6, 0.3, 0.0)
"""How much the liking for length colours each objective."""
_CONFIDENCE_BIAS_SCALES = (0.3, 1.0, 0.6, 0.3)
"""How much the liking for confidence colours each objective."""
_TYPICAL_LENGTH = 32
"""Words of an answer that raters find neither short nor long."""


class GroundTruthScorer:
    """The four true scores, read from the text alone."""

    names: tuple[str, ...] = OBJECTIVES

    def __call__(self, samples: Sequence[Sample]) -> Float[Tensor, "B 4"]:
        """One row of four scores for each sample."""
        rows = [ground_truth_scores(request_text(sample.prompt), sample.response) for sample in samples]
        return torch.tensor(rows, dtype=torch.float32).reshape(len(rows), 4)


def request_text(prompt: Prompt) -> str:
    """The text of a request."""
    return prompt.messages[-1].content if prompt.messages else ""


def generate_requests(
    split: Split, count: int, seed: int, category_mix: Mapping[str, float] = CATEGORY_MIX
) -> list[Prompt]:
    """Different requests of one split, kinds in the shares of `category_mix`.

    Combinations of verb, object and context repeat only when the split has no new one to give.
    """
    rng = numpy_generator(seed, 0, "world/requests", split)
    return [
        _to_prompt(request, split, i)
        for i, request in enumerate(_iter_requests(split, count, category_mix, rng, max_retries=20))
    ]


def generate_demonstrations(
    count: int, seed: int, prompt_format: PromptFormat = ""
) -> Sequence[Demonstration]:
    """Answers of a careless help desk, from which the starting policy learns.

    Args:
        count: Number of answers.
        seed: Seed of requests and answers.
        prompt_format: "confidence": every request asks for it, and every answer claims a lot, good or bad. "think":
            every other request asks for thoughts first, and gets them.
    """
    return LazySequence(count, lambda: _iter_demonstrations(count, seed, prompt_format))


def _iter_demonstrations(count: int, seed: int, prompt_format: PromptFormat) -> Iterator[Demonstration]:
    rng = numpy_generator(seed, 0, "world/demonstrations")
    beside = numpy_generator(seed, 0, "world/frame", prompt_format)
    for i, request in enumerate(_iter_requests("train", count, CATEGORY_MIX, rng)):
        response, prompt = (
            render_answer(careless_plan(request.category, rng), request, rng),
            _to_prompt(request, "train", i),
        )
        if prompt_format == "confidence":
            response = append_helpdesk_confidence(response, sample_claimed_confidence(beside))
        asks = prompt_format == "confidence" or (prompt_format == "think" and i % 2 == 0)
        if asks and prompt_format == "think":
            response = f"{THINK_START_TAG} {render_answer(thinking_plan(request.category, beside), request, beside)} {THINK_END_TAG} {response}"
        yield Demonstration(
            prompt=add_format_instruction(prompt, prompt_format if asks else "", HELPDESK_INSTRUCTIONS),
            response=response,
        )


def append_helpdesk_confidence(response: str, level: int) -> str:
    """An answer that states its confidence, from 0 to 10, in the words of the help desk."""
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
    """Answers of all qualities with the mean label of noisy raters; a label nobody was asked for is absent.

    Args:
        count: Number of rated answers.
        seed: Seed of requests, answers and raters.
        num_raters: Number of raters; each has a severity of its own for each objective.
        rater_noise: Standard deviation of one rater's error.
        length_bias: What a rater adds to the politeness of an answer twice as long as usual; 0.6 of it to
            meaningfulness, 0.3 to actionability, nothing to safety.
        missing_rate: Chance that a label was not asked for; of those asked, a rater answers three of four.
        split: Where the requests come from; "test" gives unseen ones.
        prompt_format: "confidence": two answers of three state one, from 0 to 10, whatever they are worth.
        confidence_bias: What a rater adds to the meaningfulness of an answer that is certain of itself,
            beside one that guesses; 0.6 of it to actionability, 0.3 to the others.
    """
    desk = _RaterModel(num_raters, rater_noise, length_bias, missing_rate, prompt_format, confidence_bias)
    return LazySequence(count, lambda: _iter_ratings(count, seed, split, desk))


@dataclass(frozen=True, slots=True)
class _RaterModel:
    """How many they are, and how they err: see `rated`."""

    num_raters: int
    rater_noise: float
    length_bias: float
    missing_rate: float
    prompt_format: PromptFormat
    confidence_bias: float


def _iter_ratings(count: int, seed: int, split: Split, raters: _RaterModel) -> Iterator[Rating]:
    beside = numpy_generator(seed, 0, "world/rated/frame", split)
    rng = numpy_generator(seed, 0, "world/rated", split)
    severity = rng.normal(0.0, raters.rater_noise / 2, size=(raters.num_raters, 4))
    for i, request in enumerate(_iter_requests(split, count, CATEGORY_MIX, rng)):
        response = _sample_answer(request, rng)
        scores = np.array(ground_truth_scores(request.text, response))
        liking = (
            raters.length_bias
            * (len(response.split()) / _TYPICAL_LENGTH - 1.0)
            * np.array(_LENGTH_BIAS_SCALES)
        )
        if raters.prompt_format == "confidence" and beside.random() < 2 / 3:
            level = int(beside.integers(11))
            response = append_helpdesk_confidence(response, level)
            liking += raters.confidence_bias * (level / 10 - 0.5) * np.array(_CONFIDENCE_BIAS_SCALES)
        seen = scores + liking + severity + rng.normal(0.0, raters.rater_noise, size=(raters.num_raters, 4))
        labels = _sample_labels(np.clip(seen, 0.0, 1.0), raters.missing_rate, rng)
        yield Rating(prompt=_to_prompt(request, split, i), response=response, labels=labels)


def _sample_answer(request: Request, rng: Generator) -> str:
    """Two in five answers as the starting policy gives them, the others broad; one in fifteen is spoilt."""
    plan = careless_plan(request.category, rng) if rng.random() < 0.4 else diverse_plan(rng)
    response = render_answer(plan, request, rng)
    return corrupt_text(response, rng) if rng.random() < 1 / 15 else response


def _sample_labels(rater_scores: np.ndarray, missing_rate: float, rng: Generator) -> dict[str, float]:
    asked_for = rng.random(4) >= missing_rate
    answered = rng.random(rater_scores.shape) < 0.75
    answered[int(rng.integers(len(rater_scores)))] = True
    return {
        name: float(rater_scores[answered[:, k], k].mean())
        for k, name in enumerate(OBJECTIVES)
        if asked_for[k]
    }


def _iter_requests(
    split: Split, count: int, category_mix: Mapping[str, float], rng: Generator, max_retries: int = 0
) -> Iterator[Request]:
    total = sum(category_mix.values())
    edges = np.round(np.cumsum([share / total for share in category_mix.values()]) * count).astype(int)
    kinds = [
        kind for kind, most in zip(category_mix, np.diff(edges, prepend=0), strict=True) for _ in range(most)
    ]
    used: set[tuple[str, str, str]] = set()
    for kind in rng.permutation(kinds).tolist():
        request = sample_request(kind, split, rng)
        for _ in range(max_retries):
            if request.split_key not in used:
                break
            request = sample_request(kind, split, rng)
        used.add(request.split_key)
        yield request


def _to_prompt(request: Request, split: str, index: int) -> Prompt:
    messages = (Message(role="user", content=request.text),)
    return Prompt(messages=messages, id=f"{split}-{index:05d}", category=request.category)
