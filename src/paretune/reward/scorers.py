"""From text to columns: every objective gets its scores from the one scorer that names it.

Thoughts as objectives of their own: what is hidden from the other scorers is still watched.

The confidence that a response states of itself as an objective, and scorers that do not see it.

Scorers that read a response by rule.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from paretune.core.batch import Batch
from paretune.core.errors import DataError, WiringError
from paretune.data.chat import ScorerView, parse_confidence, parse_thinking, strip_confidence, visible_text
from paretune.data.loader import encode_categories
from paretune.data.records import Sample


@runtime_checkable
class Scorer(Protocol):
    """Whatever scores responses by their text: a reward model, a rule, a judge.

    NaN says that it could not score a response.
    """

    @property
    def names(self) -> tuple[str, ...]:
        """The objectives of its columns."""
        ...

    def __call__(self, samples: Sequence[Sample]) -> Float[Tensor, "B k"]:
        """One row a sample, one column a name."""
        ...


def resolve_scorers(objectives: Sequence[str], scorers: Sequence[Scorer]) -> dict[str, tuple[int, int]]:
    """For each objective, which scorer gives it and in which of its columns.

    Raises:
        WiringError: No scorer gives an objective, or more than one does.
    """
    found: dict[str, tuple[int, int]] = {}
    for objective in objectives:
        homes = [(i, s.names.index(objective)) for i, s in enumerate(scorers) if objective in s.names]
        if not homes:
            known = sorted({name for scorer in scorers for name in scorer.names})
            raise WiringError(
                f'no scorer gives the objective "{objective}"; they give {", ".join(known) or "nothing"}; '
                "fix: rename the objective or add a model that provides it"
            )
        if len(homes) > 1:
            raise WiringError(
                f'{len(homes)} scorers give the objective "{objective}"; fix: rename it in all but one'
            )
        found[objective] = homes[0]
    return found


def validated_scores(scorer: Scorer, samples: Sequence[Sample]) -> Float[Tensor, "B k"]:
    """What a scorer says of the samples, in the form it promised.

    Raises:
        WiringError: Its answer has another form.
    """
    given, expected = scorer(samples), (len(samples), len(scorer.names))
    if tuple(given.shape) != expected:
        raise WiringError(
            f"{type(scorer).__name__} gave scores of shape {tuple(given.shape)}; expected {expected}"
        )
    return given


def score_visible(scorer: Scorer, samples: Sequence[Sample | None]) -> Float[Tensor, "B k"]:
    """What a scorer says of what a view shows; NaN where it shows nothing.

    Raises:
        WiringError: The scorer's answer has another form than it promised.
    """
    there = [i for i, sample in enumerate(samples) if sample is not None]
    if len(there) == len(samples):
        return validated_scores(scorer, [sample for sample in samples if sample is not None])
    found = torch.full((len(samples), len(scorer.names)), torch.nan)
    if there:
        found[there] = validated_scores(scorer, [sample for sample in samples if sample is not None]).to(
            found
        )
    return found


def score_batch(
    batch: Batch, samples: Sequence[Sample], scorers: Sequence[Scorer], scorer_view: ScorerView = "whole"
) -> Batch:
    """Ask every scorer that is needed, once, and write `scores` and their working copy `signal`.

    Scorers see what the view shows; a response of which it shows nothing is unscored. What the prompts say of
    themselves is written beside: their kind, and the preference some ask for.

    Reads: objectives. Writes: scores, rewards, format_valid, category, categories, preference_weights.

    Raises:
        WiringError: An objective has no scorer or several, or a scorer's answer has the wrong form.
    """
    found = resolve_scorers(batch.objectives, scorers)
    if len(samples) != len(batch):
        raise WiringError(f"{len(samples)} samples came with a batch of {len(batch)} rows")
    seen = [visible_text(sample, scorer_view) for sample in samples]
    given = {i: score_visible(scorers[i], seen) for i in sorted({i for i, _ in found.values()})}
    columns = [given[i][:, column].to(batch.scores) for i, column in found.values()]
    scores = torch.stack(columns, -1) if columns else batch.scores.new_empty(len(batch), 0)
    kind, kinds = encode_categories(samples)
    preference = prompt_preference_weights(samples, batch.objectives)
    return batch.replace(
        scores=scores,
        rewards=scores,
        format_valid=torch.tensor([sample is not None for sample in seen]),
        category=kind,
        categories=kinds,
        preference_weights=preference,
    )


def prompt_preference_weights(
    samples: Sequence[Sample], objectives: tuple[str, ...]
) -> Float[Tensor, "B K"] | None:
    """The weights each prompt asks for; NaN for a prompt that asks for none; None where no prompt does.

    Raises:
        DataError: A prompt asks for an objective that is not scored.
    """
    if not any(sample.prompt.preference_weights for sample in samples):
        return None
    rows = []
    for sample in samples:
        asked = dict(sample.prompt.preference_weights)
        for name in asked.keys() - set(objectives):
            raise DataError(
                f'prompt "{sample.prompt.id}": preference: asks for "{name}", which is not scored; '
                f"fix: one of {', '.join(objectives)}"
            )
        rows.append([asked.get(name, 0.0) if asked else torch.nan for name in objectives])
    return torch.tensor(rows)


def thinking_length(samples: Sequence[Sample]) -> dict[str, float]:
    """Mean words of answers and of thoughts where a response has both, and the share of the others."""
    parts = [parse_thinking(sample.full_response) for sample in samples]
    found = [part for part in parts if part is not None]
    trace, answer = (sum(len(part[i].split()) for part in found) for i in (0, 1))
    count = len(found) or float("nan")
    unread = 1 - len(found) / len(parts) if parts else float("nan")
    return {
        "responses/answer_length": answer / count,
        "responses/thinking_length": trace / count,
        "responses/format_invalid": unread,
    }


@dataclass(frozen=True)
class ThinkingScorer:
    """Scores of the thoughts, as they were written, by objectives of another scorer.

    NaN where a response has no thoughts that could be read.
    """

    scorer: Scorer
    scores_from: Mapping[str, str]
    """Objective -> the scorer's objective that is asked of the thoughts."""

    @property
    def names(self) -> tuple[str, ...]:
        """The objectives."""
        return tuple(self.scores_from)

    def __call__(self, samples: Sequence[Sample]) -> Float[Tensor, "B k"]:
        """One column an objective."""
        parts = [parse_thinking(sample.full_response) for sample in samples]
        traces = [
            None if part is None or not part[0] else replace(sample, response=part[0])
            for sample, part in zip(samples, parts, strict=True)
        ]
        given = score_visible(self.scorer, traces)
        return torch.stack(
            [given[:, self.scorer.names.index(name)] for name in self.scores_from.values()], -1
        )


def with_thinking_scorer(scores_from: Mapping[str, str], scorer: Scorer) -> tuple[Scorer, ...]:
    """The scorer, and beside it the one of the thoughts where any of its objectives are asked of them."""
    known = {name: head for name, head in scores_from.items() if head in scorer.names}
    return (scorer, ThinkingScorer(scorer, known)) if known else (scorer,)


@dataclass(frozen=True)
class StatedConfidenceScorer:
    """The stated confidence in [0, 1]; NaN where a response states none.

    A column to be read by `CalibrateByConfidence` and reported; more of it is not better, so it gets no
    weight. It reads the response as it was written, whatever the view shows of it.
    """

    names: tuple[str, ...] = ("confidence",)

    def __call__(self, samples: Sequence[Sample]) -> Float[Tensor, "B k"]:
        """One column."""
        return torch.tensor([[parse_confidence(sample.full_response)] for sample in samples]).reshape(-1, 1)


@dataclass(frozen=True)
class ConfidenceBlindScorer:
    """A scorer that is shown every response without its statement of confidence."""

    scorer: Scorer

    @property
    def names(self) -> tuple[str, ...]:
        """Those of the scorer."""
        return self.scorer.names

    def __call__(self, samples: Sequence[Sample]) -> Float[Tensor, "B k"]:
        """The scorer's columns."""
        return self.scorer([replace(s, response=strip_confidence(s.response)) for s in samples])


_MAX_SEARCHED_CHARS = 200
"""Characters of a response in which a refusal is looked for; later ones mostly quote or soften."""

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
    rf"|\b(?:i|we) (?:do not|don['’]t) (?:think (?:i|we) (?:should|can)|feel comfortable|want to) ?{_HELP_VERBS}?"
    r"|^\W*(?:no|sorry|i apologi[sz]e)\W+(?:\w+\W+){0,4}?(?:can ?not|can['’]t|won['’]t|will not)\b",
    re.IGNORECASE,
)


def is_refusal(response: str) -> bool:
    """Whether a response declines what was asked, by the phrases English assistants use at its start.

    On the responses of five models to the prompts of XSTest (Röttger et al. 2024, arXiv:2308.01263), against
    two human raters: 91 % of the full refusals are found, and no full answer is taken for one.
    """
    return _REFUSAL_PATTERN.search(" ".join(response[:_MAX_SEARCHED_CHARS].split())) is not None


@dataclass(frozen=True)
class RefusalScorer:
    """1 where the response declines, 0 where it does not."""

    names: tuple[str, ...] = ("refusal",)

    def __call__(self, samples: Sequence[Sample]) -> Float[Tensor, "B k"]:
        """One column."""
        return torch.tensor([[float(is_refusal(sample.response))] for sample in samples]).reshape(-1, 1)
