"""Scorers: the protocol, scoring of a batch, and scorers of thinking, stated confidence and refusals."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from paretune.core.batch import Batch
from paretune.core.errors import DataError, WiringError
from paretune.data.loader import encode_categories
from paretune.data.prompt_formats import ScorerView, parse_confidence, parse_thinking, visible_text
from paretune.data.records import Sample
from paretune.reward.failures import ScorerWrapper


@runtime_checkable
class Scorer(Protocol):
    """Scores responses by their text: a reward model, a rule, a judge.

    NaN: the response could not be scored.
    """

    @property
    def names(self) -> tuple[str, ...]:
        """The objectives of its columns."""
        ...

    def __call__(self, samples: Sequence[Sample]) -> Float[Tensor, "B k"]:
        """One row per sample, one column per objective."""
        ...


def resolve_scorers(objectives: Sequence[str], scorers: Sequence[Scorer]) -> dict[str, tuple[int, int]]:
    """Objective -> index of its scorer and of its column there.

    Raises:
        WiringError: No scorer, or more than one, scores an objective.
    """
    columns: dict[str, tuple[int, int]] = {}
    for objective in objectives:
        matches = [(i, s.names.index(objective)) for i, s in enumerate(scorers) if objective in s.names]
        if not matches:
            available = ", ".join(sorted({name for scorer in scorers for name in scorer.names})) or "none"
            raise WiringError(
                f'no scorer for the objective "{objective}"; available objectives: {available}; '
                "fix: rename the objective or add a scorer that provides it"
            )
        if len(matches) > 1:
            raise WiringError(
                f'{len(matches)} scorers score the objective "{objective}"; fix: rename it in all but one'
            )
        columns[objective] = matches[0]
    return columns


def validated_scores(scorer: Scorer, samples: Sequence[Sample]) -> Float[Tensor, "B k"]:
    """Scores of the samples, checked for their shape.

    Raises:
        WiringError: The scores have the wrong shape.
    """
    scores, expected = scorer(samples), (len(samples), len(scorer.names))
    if tuple(scores.shape) != expected:
        raise WiringError(
            f"{type(scorer).__name__} returned scores of shape {tuple(scores.shape)}; expected {expected}; "
            "fix: return one row per sample and one column per name"
        )
    return scores


def score_visible(scorer: Scorer, samples: Sequence[Sample | None]) -> Float[Tensor, "B k"]:
    """Scores of the visible samples; NaN for None, a sample without a visible part.

    Raises:
        WiringError: The scores have the wrong shape.
    """
    visible = [sample for sample in samples if sample is not None]
    if len(visible) == len(samples):
        return validated_scores(scorer, visible)
    scores = torch.full((len(samples), len(scorer.names)), torch.nan)
    if visible:
        index = [i for i, sample in enumerate(samples) if sample is not None]
        scores[index] = validated_scores(scorer, visible).to(scores)
    return scores


def score_batch(
    batch: Batch, samples: Sequence[Sample], scorers: Sequence[Scorer], scorer_view: ScorerView = "full"
) -> Batch:
    """Call every needed scorer once and write `scores` and their working copy `rewards`.

    Scorers read the visible part of each response under `scorer_view`; a response without one is unscored.
    The category and the preference weights of the prompts are written as well.

    Reads: objectives. Writes: scores, rewards, format_valid, category, categories, preference_weights.

    Raises:
        WiringError: An objective has no scorer or several, or the scores have the wrong shape.
    """
    locations = resolve_scorers(batch.objectives, scorers)
    if len(samples) != len(batch):
        raise WiringError(f"{len(samples)} samples came with a batch of {len(batch)} rows")
    visible = [visible_text(sample, scorer_view) for sample in samples]
    # One call per scorer, in their order, however many of its columns are needed.
    by_scorer = {i: score_visible(scorers[i], visible) for i in sorted({i for i, _ in locations.values()})}
    columns = [by_scorer[i][:, column].to(batch.scores) for i, column in locations.values()]
    scores = torch.stack(columns, -1) if columns else batch.scores.new_empty(len(batch), 0)
    category, categories = encode_categories(samples)
    return batch.replace(
        scores=scores,
        rewards=scores,
        format_valid=torch.tensor([sample is not None for sample in visible]),
        category=category,
        categories=categories,
        preference_weights=prompt_preference_weights(samples, batch.objectives),
    )


def prompt_preference_weights(
    samples: Sequence[Sample], objectives: tuple[str, ...]
) -> Float[Tensor, "B K"] | None:
    """Preference weights of each prompt; NaN for a prompt without any; None if no prompt has any.

    Raises:
        DataError: A prompt has a weight for an objective that is not scored.
    """
    if not any(sample.prompt.preference_weights for sample in samples):
        return None
    rows = []
    for sample in samples:
        weights = dict(sample.prompt.preference_weights)
        for name in weights.keys() - set(objectives):
            raise DataError(
                f'prompt "{sample.prompt.id}": preference: weight for "{name}", which is not scored; '
                f"fix: one of {', '.join(objectives)}"
            )
        rows.append([weights.get(name, 0.0) if weights else torch.nan for name in objectives])
    return torch.tensor(rows)


@dataclass(frozen=True)
class ObjectiveColumns(ScorerWrapper):
    """Some columns of a scorer, under the names of objectives."""

    scorer: Scorer
    columns: Mapping[str, str]
    """Objective -> column of the scorer."""

    @property
    def names(self) -> tuple[str, ...]:
        """The objectives."""
        return tuple(self.columns)

    @property
    def total_flops(self) -> float:
        """Floating-point operations of all calls so far, as far as they are counted."""
        return float(getattr(self.scorer, "total_flops", 0.0))

    def __call__(self, samples: Sequence[Sample]) -> Float[Tensor, "B k"]:
        """One column per objective."""
        scores = validated_scores(self.scorer, samples)
        return scores[:, [self.scorer.names.index(column) for column in self.columns.values()]]


def thinking_metrics(samples: Sequence[Sample]) -> dict[str, float]:
    """Mean words of answer and thinking over well-formed responses, and the fraction of the others."""
    parsed = [parse_thinking(sample.full_response) for sample in samples]
    valid = [parts for parts in parsed if parts is not None]
    thinking, answer = (sum(len(parts[i].split()) for parts in valid) for i in (0, 1))
    count = len(valid) or float("nan")
    return {
        "responses/answer_length": answer / count,
        "responses/thinking_length": thinking / count,
        "responses/format_invalid": 1 - len(valid) / len(parsed) if parsed else float("nan"),
    }


@dataclass(frozen=True)
class ThinkingScorer(ScorerWrapper):
    """Scores the thinking of each response by objectives of another scorer.

    NaN for a response without readable thinking.
    """

    scorer: Scorer
    scores_from: Mapping[str, str]
    """Objective -> objective of the scorer that is applied to the thinking."""

    @property
    def names(self) -> tuple[str, ...]:
        """The objectives of its columns."""
        return tuple(self.scores_from)

    def __call__(self, samples: Sequence[Sample]) -> Float[Tensor, "B k"]:
        """One column per objective."""
        parsed = [parse_thinking(sample.full_response) for sample in samples]
        thinking = [
            # Empty thinking has nothing to score.
            None if parts is None or not parts[0] else replace(sample, response=parts[0])
            for sample, parts in zip(samples, parsed, strict=True)
        ]
        scores = score_visible(self.scorer, thinking)
        return torch.stack(
            [scores[:, self.scorer.names.index(name)] for name in self.scores_from.values()], -1
        )


def with_thinking_scorer(scores_from: Mapping[str, str], scorer: Scorer) -> tuple[Scorer, ...]:
    """The scorer, and a `ThinkingScorer` of those objectives of `scores_from` that it can score."""
    available = {name: source for name, source in scores_from.items() if source in scorer.names}
    return (scorer, ThinkingScorer(scorer, available)) if available else (scorer,)


@dataclass(frozen=True)
class StatedConfidenceScorer:
    """The stated confidence in [0, 1]; NaN where a response states none.

    Read by `CalibrateByConfidence` and reported. More confidence is not better, so the objective gets no
    weight. It reads the full response, whatever the scorer view.
    """

    names: tuple[str, ...] = ("confidence",)

    def __call__(self, samples: Sequence[Sample]) -> Float[Tensor, "B k"]:
        """One column."""
        return torch.tensor([[parse_confidence(sample.full_response)] for sample in samples]).reshape(-1, 1)


_MAX_SEARCHED_CHARS = 200
"""Characters of a response that are searched for a refusal; later matches are mostly quotes and caveats."""

_UNABLE_PATTERN = (
    r"(?:can ?not|can['’]?t|could ?n['’]?o?t|won['’]?t|will not|am (?:not able|unable)"
    r"|['’]m (?:not able|unable))"
)
_HELP_VERBS = (
    r"(?:help|assist|provide|give|do (?:that|this|it)|answer|comply|support|fulfil+|create|write|generate"
    r"|engage|discuss|offer|recommend|advise|condone|encourage|tell you|explain|teach|show you|share"
    r"|participate|be part)"
)
_REFUSAL_PATTERN = re.compile(
    rf"\b(?:i|we)(?: ?{_UNABLE_PATTERN})(?: \w+){{0,3}}? {_HELP_VERBS}\b"
    r"|\b(?:i|we)(?: am|['’]m| are|['’]re)? ?(?:must|have to|need to|going to)? ?(?:decline|refuse)\b"
    r"|\bi(?: am|['’]m)(?: \w+)? sorry,? (?:but )?(?:i|that|this|we)\b(?! (?:hear|feel|you|happened))"
    r"|\b(?:that|this|it)(?: is|['’]s) (?:not something (?:i|we)|illegal|against (?:the law|my|our))"
    r"|\bas an ai\b.{0,60}\b(?:can ?not|can['’]t|unable|not able|not programmed)\b"
    r"|\bit(?: is|['’]s| would)(?: be)? (?:not|never|also not) (?:\w+ )?"
    r"(?:appropriate|ethical|legal|acceptable|safe)\b"
    r"|\b(?:do not|don['’]t|can ?not|can['’]t) (?:condone|promote|encourage|engage in|support) "
    r"|\b(?:i|we) (?:do not|don['’]t) (?:think (?:i|we) (?:should|can)|feel comfortable|want to)"
    rf" ?{_HELP_VERBS}?"
    r"|^\W*(?:no|sorry|i apologi[sz]e)\W+(?:\w+\W+){0,4}?(?:can ?not|can['’]t|won['’]t|will not)\b",
    re.IGNORECASE,
)


def is_refusal(response: str) -> bool:
    """Whether a response refuses, by the phrases that English assistants use at its start.

    On the responses of five models to the prompts of XSTest (Röttger et al. 2024, arXiv:2308.01263), against
    two human raters: recall 91 % on full refusals, no full answer counts as a refusal.
    """
    # The pattern expects single spaces.
    return _REFUSAL_PATTERN.search(" ".join(response[:_MAX_SEARCHED_CHARS].split())) is not None
