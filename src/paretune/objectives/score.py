"""From text to columns: every objective gets its scores from the one scorer that names it."""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from paretune.batch import Batch
from paretune.data.collate import encode_categories
from paretune.data.frame import ScorerView, visible_text
from paretune.data.records import Sample
from paretune.errors import DataError, WiringError


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
