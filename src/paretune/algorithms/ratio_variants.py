"""Critic-free policy gradients that differ from GRPO in how the probability ratio is used.

In all of them the group's z-score is the advantage, and the divergence from the reference is measured and, by
default, not charged.
"""

from collections.abc import Mapping
from typing import Any, Literal

from paretune.algorithms.grpo import grpo
from paretune.algorithms.signature import inherit_arguments
from paretune.core.types import FloatAtLeastOne, NonNegativeFloat, PositiveFloat, PositiveInt, UnitInterval
from paretune.credit.base import chain
from paretune.credit.importance_sampling import TruncatedImportanceSampling
from paretune.credit.selection import DropZeroVarianceGroups
from paretune.credit.shaping import OverlongPenalty
from paretune.loss.base import WeightedLoss
from paretune.loss.policy import ClippedIsWeight, ClippedSurrogate, PolicyLoss, SoftClip
from paretune.models.model_passes import OldLogprobs
from paretune.rl.algorithm_spec import AlgorithmSpec, LossAggregation


@inherit_arguments(grpo)
def dapo(
    weights: Mapping[str, float],
    *,
    max_new_tokens: PositiveInt = 256,
    clip_low: UnitInterval = 0.2,
    clip_high: NonNegativeFloat = 0.28,
    min_std_ratio: NonNegativeFloat = 0.05,
    overlong_buffer_fraction: UnitInterval = 0.2,
    kl_coef: NonNegativeFloat = 0.0,
    **kwargs: Any,
) -> AlgorithmSpec:
    """All tokens alike, more room upwards than downwards, no prompt that teaches nothing, a price on length.

    Args:
        weights: Weight of each objective.
        max_new_tokens: Longest response, in tokens.
        clip_low: How far the probability ratio may fall below 1.
        clip_high: How far the probability ratio may rise above 1.
        min_std_ratio: Prompts whose responses spread less than this share of the usual spread are left out.
        overlong_buffer_fraction: Last share of `max_new_tokens`, over which a response pays up to 1 unit of the signal; 0: none.
        kl_coef: Coefficient of the divergence from the reference.
        kwargs: As for `grpo`.

    Source: Yu et al. 2025 (arXiv:2503.14476). Differs: groups without spread are left out by a relative
    threshold and not replaced by new ones.
    """
    base = grpo(weights, max_new_tokens=max_new_tokens, kl_coef=kl_coef, **kwargs)
    price = (
        (OverlongPenalty(max_new_tokens, max(round(overlong_buffer_fraction * max_new_tokens), 1)),)
        if overlong_buffer_fraction
        else ()
    )
    worth = chain(base.reward_steps, DropZeroVarianceGroups(min_std_ratio), *price)
    return _replace_policy_loss(base, "dapo", ClippedSurrogate(clip_low, clip_high)).replace(
        reward_steps=worth, loss_aggregation=LossAggregation("token")
    )


@inherit_arguments(grpo)
def gspo(
    weights: Mapping[str, float],
    *,
    clip_low: UnitInterval = 3e-4,
    clip_high: NonNegativeFloat = 4e-4,
    importance_sampling_level: Literal["sequence", "sequence_token"] = "sequence",
    kl_coef: NonNegativeFloat = 0.0,
    **kwargs: Any,
) -> AlgorithmSpec:
    """One ratio for a response, the geometric mean of those of its tokens: responses are clipped whole.

    Args:
        weights: Weight of each objective.
        clip_low: How far the mean ratio may fall below 1; a bound made for tokens would never be reached.
        clip_high: How far the mean ratio may rise above 1.
        importance_sampling_level: "sequence_token" lets every token answer for itself in the gradient.
        kl_coef: Coefficient of the divergence from the reference.
        kwargs: As for `grpo`.

    Source: Zheng et al. 2025 (arXiv:2507.18071).
    """
    base = grpo(weights, kl_coef=kl_coef, **kwargs)
    return _replace_policy_loss(
        base, "gspo", ClippedSurrogate(clip_low, clip_high, level=importance_sampling_level)
    )


@inherit_arguments(grpo, "clip")
def cispo(
    weights: Mapping[str, float],
    *,
    max_is_weight: FloatAtLeastOne = 5.0,
    kl_coef: NonNegativeFloat = 0.0,
    **kwargs: Any,
) -> AlgorithmSpec:
    """Likelihood weighted by a capped ratio: a token that moved far counts less, and never nothing.

    Args:
        weights: Weight of each objective.
        max_is_weight: Largest ratio a token is weighted with: the ratio itself, not its distance from 1.
        kl_coef: Coefficient of the divergence from the reference.
        kwargs: As for `grpo`.

    Source: MiniMax-M1 2025, eq. 4 (arXiv:2506.13585), with the cap of ScaleRL (arXiv:2510.13786).
    """
    base = grpo(weights, kl_coef=kl_coef, **kwargs)
    return _replace_policy_loss(base, "cispo", ClippedIsWeight(max_is_weight)).replace(
        loss_aggregation=LossAggregation("token")
    )


@inherit_arguments(grpo, "clip")
def sapo(
    weights: Mapping[str, float],
    *,
    tau_pos: PositiveFloat = 1.0,
    tau_neg: PositiveFloat = 1.05,
    kl_coef: NonNegativeFloat = 0.0,
    **kwargs: Any,
) -> AlgorithmSpec:
    """A soft gate in place of clip bounds: the gradient fades as the ratio leaves 1.

    Args:
        weights: Weight of each objective.
        tau_pos: How soon the gradient of good tokens fades.
        tau_neg: How soon the gradient of bad tokens fades.
        kl_coef: Coefficient of the divergence from the reference.
        kwargs: As for `grpo`.

    Source: Gao et al. 2025 (arXiv:2511.20347).
    """
    base = grpo(weights, kl_coef=kl_coef, **kwargs)
    return _replace_policy_loss(base, "sapo", SoftClip(tau_pos, tau_neg))


def with_importance_correction(spec: AlgorithmSpec, correction: TruncatedImportanceSampling) -> AlgorithmSpec:
    """A recipe whose responses come from an engine that is not quite the trainer.

    The trainer is asked for the log-probabilities of the responses before its first update, and what the
    engine drew too often counts for less.

    Source: as `TruncatedImportance`.
    """
    measure = tuple(
        OldLogprobs(source="trainer") if isinstance(m, OldLogprobs) else m for m in spec.model_passes
    )
    return spec.replace(model_passes=measure, credit=chain(correction, spec.credit))


def _replace_policy_loss(spec: AlgorithmSpec, name: str, loss: PolicyLoss) -> AlgorithmSpec:
    """The recipe with another policy loss in the place of its first."""
    return spec.replace(name=name, losses=(WeightedLoss(1.0, loss), *spec.losses[1:]))
