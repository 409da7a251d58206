"""Critic-free policy gradients that differ from GRPO in how the probability ratio is used.

In all of them the group's z-score is the advantage, and the divergence from the reference is measured and, by
default, not charged.
"""

from collections.abc import Mapping
from typing import Literal

from paretune.algorithms.grpo import Gates, grpo
from paretune.credit.importance import TruncatedImportance
from paretune.credit.penalty import OverlongPenalty
from paretune.credit.select import DropFlatGroups
from paretune.credit.step import chain
from paretune.learn.recipe import Recipe, Weigh
from paretune.loss.policy import Clipped, PolicyLoss
from paretune.loss.term import Term
from paretune.loss.unclipped import CappedRatio, SoftGate
from paretune.models.measure import Behaviour


def dapo(
    weights: Mapping[str, float],
    *,
    gates: Gates = (),
    n: int = 8,
    max_new: int = 256,
    temperature: float = 1.0,
    clip: float = 0.2,
    clip_high: float = 0.28,
    flat: float = 0.05,
    overlong: float = 0.2,
    kl: float = 0.0,
    minibatch: int | None = None,
    epochs: int = 1,
) -> Recipe:
    """All tokens alike, more room upwards than downwards, no prompt that teaches nothing, a price on length.

    Args:
        weights: Weight of each objective.
        gates: (objective, on, at_least, otherwise): the objective's worth is `otherwise` below that.
        n: Responses to each prompt.
        max_new: Longest response, in tokens.
        temperature: Of sampling, and of every log-probability.
        clip: How far the probability ratio may fall below 1.
        clip_high: How far the probability ratio may rise above 1.
        flat: Prompts whose responses spread less than this share of the usual spread are left out.
        overlong: Last share of `max_new`, over which a response pays up to 1 unit of the signal; 0: none.
        kl: Coefficient of the divergence from the reference.
        minibatch: Rows of one optimiser step; None: all that were sampled.
        epochs: Passes over the sampled responses.

    Source: Yu et al. 2025 (arXiv:2503.14476). Differs: groups without spread are left out by a relative
    threshold and not replaced by new ones.
    """
    base = grpo(
        weights,
        gates=gates,
        n=n,
        max_new=max_new,
        temperature=temperature,
        kl=kl,
        minibatch=minibatch,
        epochs=epochs,
    )
    price = (OverlongPenalty(max_new, max(round(overlong * max_new), 1)),) if overlong else ()
    worth = chain(base.worth, DropFlatGroups(flat), *price)
    return _judged(base, "dapo", Clipped(clip, clip_high)).but(worth=worth, weigh=Weigh("token"))


def gspo(
    weights: Mapping[str, float],
    *,
    gates: Gates = (),
    n: int = 8,
    max_new: int = 256,
    temperature: float = 1.0,
    clip: float = 3e-4,
    clip_high: float = 4e-4,
    level: Literal["sequence", "sequence_token"] = "sequence",
    kl: float = 0.0,
    minibatch: int | None = None,
    epochs: int = 1,
) -> Recipe:
    """One ratio for a response, the geometric mean of those of its tokens: responses are clipped whole.

    Args:
        weights: Weight of each objective.
        gates: (objective, on, at_least, otherwise): the objective's worth is `otherwise` below that.
        n: Responses to each prompt.
        max_new: Longest response, in tokens.
        temperature: Of sampling, and of every log-probability.
        clip: How far the mean ratio may fall below 1; a bound made for tokens would never be reached.
        clip_high: How far the mean ratio may rise above 1.
        level: "sequence_token" lets every token answer for itself in the gradient.
        kl: Coefficient of the divergence from the reference.
        minibatch: Rows of one optimiser step; None: all, and then nothing is ever clipped.
        epochs: Passes over the sampled responses.

    Source: Zheng et al. 2025 (arXiv:2507.18071).
    """
    base = grpo(
        weights,
        gates=gates,
        n=n,
        max_new=max_new,
        temperature=temperature,
        kl=kl,
        minibatch=minibatch,
        epochs=epochs,
    )
    return _judged(base, "gspo", Clipped(clip, clip_high, level=level))


def cispo(
    weights: Mapping[str, float],
    *,
    gates: Gates = (),
    n: int = 8,
    max_new: int = 256,
    temperature: float = 1.0,
    most: float = 5.0,
    kl: float = 0.0,
    minibatch: int | None = None,
    epochs: int = 1,
) -> Recipe:
    """Likelihood weighted by a capped ratio: a token that moved far counts less, and never nothing.

    Args:
        weights: Weight of each objective.
        gates: (objective, on, at_least, otherwise): the objective's worth is `otherwise` below that.
        n: Responses to each prompt.
        max_new: Longest response, in tokens.
        temperature: Of sampling, and of every log-probability.
        most: Largest ratio a token is weighted with: the ratio itself, not its distance from 1.
        kl: Coefficient of the divergence from the reference.
        minibatch: Rows of one optimiser step; None: all that were sampled.
        epochs: Passes over the sampled responses.

    Source: MiniMax-M1 2025, eq. 4 (arXiv:2506.13585), with the cap of ScaleRL (arXiv:2510.13786).
    """
    base = grpo(
        weights,
        gates=gates,
        n=n,
        max_new=max_new,
        temperature=temperature,
        kl=kl,
        minibatch=minibatch,
        epochs=epochs,
    )
    return _judged(base, "cispo", CappedRatio(most)).but(weigh=Weigh("token"))


def sapo(
    weights: Mapping[str, float],
    *,
    gates: Gates = (),
    n: int = 8,
    max_new: int = 256,
    temperature: float = 1.0,
    up: float = 1.0,
    down: float = 1.05,
    kl: float = 0.0,
    minibatch: int | None = None,
    epochs: int = 1,
) -> Recipe:
    """A soft gate in place of clip bounds: the gradient fades as the ratio leaves 1.

    Args:
        weights: Weight of each objective.
        gates: (objective, on, at_least, otherwise): the objective's worth is `otherwise` below that.
        n: Responses to each prompt.
        max_new: Longest response, in tokens.
        temperature: Of sampling, and of every log-probability.
        up: How soon the gradient of good tokens fades.
        down: How soon the gradient of bad tokens fades.
        kl: Coefficient of the divergence from the reference.
        minibatch: Rows of one optimiser step; None: all that were sampled.
        epochs: Passes over the sampled responses.

    Source: Gao et al. 2025 (arXiv:2511.20347).
    """
    base = grpo(
        weights,
        gates=gates,
        n=n,
        max_new=max_new,
        temperature=temperature,
        kl=kl,
        minibatch=minibatch,
        epochs=epochs,
    )
    return _judged(base, "sapo", SoftGate(up, down))


def corrected(recipe: Recipe, weights: TruncatedImportance) -> Recipe:
    """A recipe whose responses come from an engine that is not quite the trainer.

    The trainer is asked for the log-probabilities of the responses before its first update, and what the
    engine drew too often counts for less.

    Source: as `TruncatedImportance`.
    """
    measure = tuple(Behaviour(by="trainer") if isinstance(m, Behaviour) else m for m in recipe.measure)
    return recipe.but(measure=measure, credit=chain(weights, recipe.credit))


def _judged(recipe: Recipe, name: str, loss: PolicyLoss) -> Recipe:
    """The recipe with another policy loss in the place of its first."""
    return recipe.but(name=name, losses=(Term(1.0, loss), *recipe.losses[1:]))
