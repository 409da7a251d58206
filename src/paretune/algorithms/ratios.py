"""Critic-free policy gradients that differ from GRPO in how the probability ratio is used.

In all of them the group's z-score is the advantage, and the divergence from the reference is measured and, by
default, not charged.
"""

from collections.abc import Mapping
from typing import Any, Literal

from paretune.algorithms.grpo import grpo
from paretune.algorithms.signature import extends
from paretune.bounds import Count, NotNegative, Positive, Ratio, Share
from paretune.credit.importance import TruncatedImportance
from paretune.credit.penalty import OverlongPenalty
from paretune.credit.select import DropFlatGroups
from paretune.credit.step import chain
from paretune.learn.recipe import Recipe, Weigh
from paretune.loss.policy import Clipped, PolicyLoss
from paretune.loss.term import Term
from paretune.loss.unclipped import CappedRatio, SoftGate
from paretune.models.measure import Behaviour


@extends(grpo)
def dapo(
    weights: Mapping[str, float],
    *,
    max_new: Count = 256,
    clip: Share = 0.2,
    clip_high: NotNegative = 0.28,
    flat: NotNegative = 0.05,
    overlong: Share = 0.2,
    kl: NotNegative = 0.0,
    **more: Any,
) -> Recipe:
    """All tokens alike, more room upwards than downwards, no prompt that teaches nothing, a price on length.

    Args:
        weights: Weight of each objective.
        max_new: Longest response, in tokens.
        clip: How far the probability ratio may fall below 1.
        clip_high: How far the probability ratio may rise above 1.
        flat: Prompts whose responses spread less than this share of the usual spread are left out.
        overlong: Last share of `max_new`, over which a response pays up to 1 unit of the signal; 0: none.
        kl: Coefficient of the divergence from the reference.
        more: As for `grpo`.

    Source: Yu et al. 2025 (arXiv:2503.14476). Differs: groups without spread are left out by a relative
    threshold and not replaced by new ones.
    """
    base = grpo(weights, max_new=max_new, kl=kl, **more)
    price = (OverlongPenalty(max_new, max(round(overlong * max_new), 1)),) if overlong else ()
    worth = chain(base.worth, DropFlatGroups(flat), *price)
    return _judged(base, "dapo", Clipped(clip, clip_high)).but(worth=worth, weigh=Weigh("token"))


@extends(grpo)
def gspo(
    weights: Mapping[str, float],
    *,
    clip: Share = 3e-4,
    clip_high: NotNegative = 4e-4,
    level: Literal["sequence", "sequence_token"] = "sequence",
    kl: NotNegative = 0.0,
    **more: Any,
) -> Recipe:
    """One ratio for a response, the geometric mean of those of its tokens: responses are clipped whole.

    Args:
        weights: Weight of each objective.
        clip: How far the mean ratio may fall below 1; a bound made for tokens would never be reached.
        clip_high: How far the mean ratio may rise above 1.
        level: "sequence_token" lets every token answer for itself in the gradient.
        kl: Coefficient of the divergence from the reference.
        more: As for `grpo`.

    Source: Zheng et al. 2025 (arXiv:2507.18071).
    """
    base = grpo(weights, kl=kl, **more)
    return _judged(base, "gspo", Clipped(clip, clip_high, level=level))


@extends(grpo, "clip")
def cispo(
    weights: Mapping[str, float],
    *,
    most: Ratio = 5.0,
    kl: NotNegative = 0.0,
    **more: Any,
) -> Recipe:
    """Likelihood weighted by a capped ratio: a token that moved far counts less, and never nothing.

    Args:
        weights: Weight of each objective.
        most: Largest ratio a token is weighted with: the ratio itself, not its distance from 1.
        kl: Coefficient of the divergence from the reference.
        more: As for `grpo`.

    Source: MiniMax-M1 2025, eq. 4 (arXiv:2506.13585), with the cap of ScaleRL (arXiv:2510.13786).
    """
    base = grpo(weights, kl=kl, **more)
    return _judged(base, "cispo", CappedRatio(most)).but(weigh=Weigh("token"))


@extends(grpo, "clip")
def sapo(
    weights: Mapping[str, float],
    *,
    up: Positive = 1.0,
    down: Positive = 1.05,
    kl: NotNegative = 0.0,
    **more: Any,
) -> Recipe:
    """A soft gate in place of clip bounds: the gradient fades as the ratio leaves 1.

    Args:
        weights: Weight of each objective.
        up: How soon the gradient of good tokens fades.
        down: How soon the gradient of bad tokens fades.
        kl: Coefficient of the divergence from the reference.
        more: As for `grpo`.

    Source: Gao et al. 2025 (arXiv:2511.20347).
    """
    base = grpo(weights, kl=kl, **more)
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
