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

from paretune.chance import numpy_generator
from paretune.data.drawn import Drawn
from paretune.data.frame import CLOSE, OPEN, Frame, framed
from paretune.data.records import Demonstration, Message, Prompt, Rating, Sample
from paretune.data.world_habits import broad, careless, draft, spoil, sure
from paretune.data.world_model import WORDING, policy_config, tokenizer
from paretune.data.world_text import Request, Split, draw_request, write
from paretune.data.world_truth import refuses, truth
from paretune.data.world_words import SURE

__all__ = [
    "MIX",
    "OBJECTIVES",
    "Split",
    "TrueScorer",
    "asked",
    "demonstrations",
    "policy_config",
    "rated",
    "refuses",
    "requests",
    "tokenizer",
    "truth",
]

OBJECTIVES = ("politeness", "meaningfulness", "actionability", "safety")
MIX: Mapping[str, float] = {"ordinary": 0.4, "harmful": 0.3, "lookalike": 0.3}

_LENGTH_TASTE = (1.0, 0.6, 0.3, 0.0)
"""How much the liking for length colours each objective."""
_CONFIDENCE_TASTE = (0.3, 1.0, 0.6, 0.3)
"""How much the liking for confidence colours each objective."""
_USUAL_LENGTH = 32
"""Words of an answer that raters find neither short nor long."""


class TrueScorer:
    """The four true scores, read from the text alone."""

    names: tuple[str, ...] = OBJECTIVES

    def __call__(self, samples: Sequence[Sample]) -> Float[Tensor, "B 4"]:
        """One row of four scores for each sample."""
        rows = [truth(asked(sample.prompt), sample.response) for sample in samples]
        return torch.tensor(rows, dtype=torch.float32).reshape(len(rows), 4)


def asked(prompt: Prompt) -> str:
    """The text of a request."""
    return prompt.messages[-1].content if prompt.messages else ""


def requests(split: Split, count: int, seed: int, mix: Mapping[str, float] = MIX) -> list[Prompt]:
    """Different requests of one split, kinds in the shares of `mix`.

    Combinations of verb, object and context repeat only when the split has no new one to give.
    """
    rng = numpy_generator(seed, 0, "world/requests", split)
    return [
        _prompt(request, split, i) for i, request in enumerate(_requests(split, count, mix, rng, tries=20))
    ]


def demonstrations(count: int, seed: int, frame: Frame = "") -> Sequence[Demonstration]:
    """Answers of a careless help desk, from which the starting policy learns.

    Args:
        count: Number of answers.
        seed: Seed of requests and answers.
        frame: "confidence": every request asks for it, and every answer claims a lot, good or bad. "think":
            every other request asks for thoughts first, and gets them.
    """
    return Drawn(count, lambda: _demonstrations(count, seed, frame))


def _demonstrations(count: int, seed: int, frame: Frame) -> Iterator[Demonstration]:
    rng = numpy_generator(seed, 0, "world/demonstrations")
    beside = numpy_generator(seed, 0, "world/frame", frame)
    for i, request in enumerate(_requests("train", count, MIX, rng)):
        response, prompt = write(careless(request.kind, rng), request, rng), _prompt(request, "train", i)
        if frame == "confidence":
            response = stating(response, sure(beside))
        asks = frame == "confidence" or (frame == "think" and i % 2 == 0)
        if asks and frame == "think":
            response = f"{OPEN} {write(draft(request.kind, beside), request, beside)} {CLOSE} {response}"
        yield Demonstration(prompt=framed(prompt, frame if asks else "", WORDING), response=response)


def stating(response: str, level: int) -> str:
    """An answer that states its confidence, from 0 to 10, in the words of the help desk."""
    return f"{response} {SURE.format(level=level)}"


def rated(
    count: int,
    seed: int,
    raters: int = 4,
    noise: float = 0.08,
    length_bias: float = 0.1,
    missing: float = 0.3,
    split: Split = "rated",
    frame: Frame = "",
    confidence_bias: float = 0.1,
) -> Sequence[Rating]:
    """Answers of all qualities with the mean label of noisy raters; a label nobody was asked for is absent.

    Args:
        count: Number of rated answers.
        seed: Seed of requests, answers and raters.
        raters: Number of raters; each has a severity of its own for each objective.
        noise: Standard deviation of one rater's error.
        length_bias: What a rater adds to the politeness of an answer twice as long as usual; 0.6 of it to
            meaningfulness, 0.3 to actionability, nothing to safety.
        missing: Chance that a label was not asked for; of those asked, a rater answers three of four.
        split: Where the requests come from; "test" gives unseen ones.
        frame: "confidence": two answers of three state one, from 0 to 10, whatever they are worth.
        confidence_bias: What a rater adds to the meaningfulness of an answer that is certain of itself,
            beside one that guesses; 0.6 of it to actionability, 0.3 to the others.
    """
    desk = _Raters(raters, noise, length_bias, missing, frame, confidence_bias)
    return Drawn(count, lambda: _rated(count, seed, split, desk))


@dataclass(frozen=True, slots=True)
class _Raters:
    """How many they are, and how they err: see `rated`."""

    count: int
    noise: float
    length_bias: float
    missing: float
    frame: Frame
    confidence_bias: float


def _rated(count: int, seed: int, split: Split, by: _Raters) -> Iterator[Rating]:
    beside = numpy_generator(seed, 0, "world/rated/frame", split)
    rng = numpy_generator(seed, 0, "world/rated", split)
    severity = rng.normal(0.0, by.noise / 2, size=(by.count, 4))
    for i, request in enumerate(_requests(split, count, MIX, rng)):
        response = _any_answer(request, rng)
        scores = np.array(truth(request.text, response))
        liking = by.length_bias * (len(response.split()) / _USUAL_LENGTH - 1.0) * np.array(_LENGTH_TASTE)
        if by.frame == "confidence" and beside.random() < 2 / 3:
            level = int(beside.integers(11))
            response = stating(response, level)
            liking += by.confidence_bias * (level / 10 - 0.5) * np.array(_CONFIDENCE_TASTE)
        seen = scores + liking + severity + rng.normal(0.0, by.noise, size=(by.count, 4))
        labels = _labels(np.clip(seen, 0.0, 1.0), by.missing, rng)
        yield Rating(prompt=_prompt(request, split, i), response=response, labels=labels)


def _any_answer(request: Request, rng: Generator) -> str:
    """Two in five answers as the starting policy gives them, the others broad; one in fifteen is spoilt."""
    plan = careless(request.kind, rng) if rng.random() < 0.4 else broad(rng)
    response = write(plan, request, rng)
    return spoil(response, rng) if rng.random() < 1 / 15 else response


def _labels(seen: np.ndarray, missing: float, rng: Generator) -> dict[str, float]:
    asked_for = rng.random(4) >= missing
    answered = rng.random(seen.shape) < 0.75
    answered[int(rng.integers(len(seen)))] = True
    return {name: float(seen[answered[:, k], k].mean()) for k, name in enumerate(OBJECTIVES) if asked_for[k]}


def _requests(
    split: Split, count: int, mix: Mapping[str, float], rng: Generator, tries: int = 0
) -> Iterator[Request]:
    total = sum(mix.values())
    edges = np.round(np.cumsum([share / total for share in mix.values()]) * count).astype(int)
    kinds = [kind for kind, most in zip(mix, np.diff(edges, prepend=0), strict=True) for _ in range(most)]
    used: set[tuple[str, str, str]] = set()
    for kind in rng.permutation(kinds).tolist():
        request = draw_request(kind, split, rng)
        for _ in range(tries):
            if request.combination not in used:
                break
            request = draw_request(kind, split, rng)
        used.add(request.combination)
        yield request


def _prompt(request: Request, split: str, index: int) -> Prompt:
    messages = (Message(role="user", content=request.text),)
    return Prompt(messages=messages, id=f"{split}-{index:05d}", kind=request.kind)
