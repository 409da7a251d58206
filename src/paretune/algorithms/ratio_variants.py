"""Variants of GRPO in the use of the probability ratio: DAPO, GSPO, CISPO, SAPO.

All have group-normalized advantages and, by default, no KL penalty; the KL to the reference is logged.
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


@inherit_arguments(grpo, "clip_range")
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
    """DAPO: token mean, clip-higher, no zero-variance groups, soft overlong penalty.

    Args:
        weights: Weight of each objective.
        max_new_tokens: Maximum response length in tokens.
        clip_low: Clip range of the probability ratio below 1.
        clip_high: Clip range of the probability ratio above 1.
        min_std_ratio: Groups whose standard deviation is at most this times that of all rewards are dropped.
        overlong_buffer_fraction: Last share of `max_new_tokens`, over which the penalty grows to 1 unit of
            the reward; 0: no penalty.
        kl_coef: Coefficient of the KL penalty to the reference.
        kwargs: As for `grpo`.

    Source: Yu et al. 2025 (arXiv:2503.14476). Differs: zero-variance groups are dropped by a relative
    threshold and not replaced by new ones.
    """
    base = grpo(weights, max_new_tokens=max_new_tokens, kl_coef=kl_coef, **kwargs)
    penalty = (
        (OverlongPenalty(max_new_tokens, max(round(overlong_buffer_fraction * max_new_tokens), 1)),)
        if overlong_buffer_fraction
        else ()
    )
    # Groups are dropped before the penalty, which would give variance to groups of equal rewards.
    steps = chain(base.reward_steps, DropZeroVarianceGroups(min_std_ratio), *penalty)
    return _replace_policy_loss(base, "dapo", ClippedSurrogate(clip_low, clip_high)).replace(
        reward_steps=steps, loss_aggregation=LossAggregation("token_mean")
    )


@inherit_arguments(grpo, "clip_range")
def gspo(
    weights: Mapping[str, float],
    *,
    clip_low: UnitInterval = 3e-4,
    clip_high: NonNegativeFloat = 4e-4,
    importance_sampling_level: Literal["sequence", "sequence_token"] = "sequence",
    kl_coef: NonNegativeFloat = 0.0,
    **kwargs: Any,
) -> AlgorithmSpec:
    """GSPO: one ratio per response, the geometric mean of its tokens', so responses are clipped whole.

    Args:
        weights: Weight of each objective.
        clip_low: Clip range of the mean ratio below 1; a clip range for tokens would never be reached.
        clip_high: Clip range of the mean ratio above 1.
        importance_sampling_level: "sequence_token" has the gradient of each token's own ratio.
        kl_coef: Coefficient of the KL penalty to the reference.
        kwargs: As for `grpo`.

    Source: Zheng et al. 2025 (arXiv:2507.18071).
    """
    base = grpo(weights, kl_coef=kl_coef, **kwargs)
    return _replace_policy_loss(
        base, "gspo", ClippedSurrogate(clip_low, clip_high, level=importance_sampling_level)
    )


@inherit_arguments(grpo, "clip_range")
def cispo(
    weights: Mapping[str, float],
    *,
    max_is_weight: FloatAtLeastOne = 5.0,
    kl_coef: NonNegativeFloat = 0.0,
    **kwargs: Any,
) -> AlgorithmSpec:
    """CISPO: log-likelihood weighted by a clipped ratio, so that every token keeps its gradient.

    Args:
        weights: Weight of each objective.
        max_is_weight: Largest importance weight of a token: the ratio itself, not its distance from 1.
        kl_coef: Coefficient of the KL penalty to the reference.
        kwargs: As for `grpo`.

    Source: MiniMax-M1 2025, eq. 4 (arXiv:2506.13585), with the cap of ScaleRL (arXiv:2510.13786).
    """
    base = grpo(weights, kl_coef=kl_coef, **kwargs)
    return _replace_policy_loss(base, "cispo", ClippedIsWeight(max_is_weight)).replace(
        loss_aggregation=LossAggregation("token_mean")
    )


@inherit_arguments(grpo, "clip_range")
def sapo(
    weights: Mapping[str, float],
    *,
    tau_pos: PositiveFloat = 1.0,
    tau_neg: PositiveFloat = 1.05,
    kl_coef: NonNegativeFloat = 0.0,
    **kwargs: Any,
) -> AlgorithmSpec:
    """SAPO: instead of clipping, the gradient decays smoothly as the ratio moves away from 1.

    Args:
        weights: Weight of each objective.
        tau_pos: Decay for tokens with positive advantage; larger decays faster.
        tau_neg: Decay for the other tokens.
        kl_coef: Coefficient of the KL penalty to the reference.
        kwargs: As for `grpo`.

    Source: Gao et al. 2025 (arXiv:2511.20347).
    """
    base = grpo(weights, kl_coef=kl_coef, **kwargs)
    return _replace_policy_loss(base, "sapo", SoftClip(tau_pos, tau_neg))


def with_importance_correction(spec: AlgorithmSpec, correction: TruncatedImportanceSampling) -> AlgorithmSpec:
    """A spec with importance correction, for a sampling engine whose probabilities differ from the trainer's.

    The old log-probabilities are computed by the trainer before its first update, and tokens that the engine
    oversamples get smaller weights.

    Source: as `TruncatedImportanceSampling`.
    """
    passes = tuple(
        OldLogprobs(source="policy") if isinstance(m, OldLogprobs) else m for m in spec.model_passes
    )
    return spec.replace(model_passes=passes, credit=chain(correction, spec.credit))


def _replace_policy_loss(spec: AlgorithmSpec, name: str, loss: PolicyLoss) -> AlgorithmSpec:
    """Replace the first loss of the spec, its policy loss."""
    return spec.replace(name=name, losses=(WeightedLoss(1.0, loss), *spec.losses[1:]))
