"""Critic-free policy gradients: the same parts in different orders."""

from collections.abc import Mapping, Sequence

from paretune.bounds import NonNegativeFloat, PositiveFloat, PositiveInt, UnitInterval
from paretune.credit.advantage import BroadcastToTokens, GroupNormalize
from paretune.credit.aggregate import Gate, WeightedSum
from paretune.credit.step import CreditStep, chain
from paretune.errors import WiringError
from paretune.learn.recipe import AlgorithmSpec, LossAggregation
from paretune.loss.kl import KlToReference
from paretune.loss.policy import ClippedSurrogate
from paretune.loss.term import WeightedLoss
from paretune.models.measure import OldLogprobs, RefLogprobs
from paretune.rollout.sample import OnPolicy

Gates = Sequence[tuple[str, str, float, float]]
"""(objective, on, at_least, otherwise): below `at_least` of `on`, `otherwise` stands for the score."""


def grpo(
    weights: Mapping[str, float],
    *,
    gates: Gates = (),
    num_generations: int = 8,
    max_new_tokens: PositiveInt = 256,
    temperature: PositiveFloat = 1.0,
    clip_range: UnitInterval = 0.2,
    kl_coef: NonNegativeFloat = 0.04,
    minibatch_size: PositiveInt | None = None,
    num_iterations: PositiveInt = 1,
) -> AlgorithmSpec:
    """Gate, aggregate, then compare within the group.

    Args:
        weights: Weight of each objective; an objective without one is scored and logged only.
        gates: (objective, on, at_least, otherwise): below `at_least` of `on`, the score is `otherwise`.
        num_generations: Responses to each prompt.
        max_new_tokens: Longest response, in tokens.
        temperature: Of sampling, and of every log-probability.
        clip_range: How far the probability ratio may go from 1 before its gradient is cut off.
        kl_coef: Coefficient of the divergence from the reference; with 0 it is measured and not charged.
        minibatch_size: Rows of one optimiser step; None: all that were sampled.
        num_iterations: Passes over the sampled responses.

    Raises:
        WiringError: `num_generations` is 1: a response without others has nobody to be compared with.

    Source: Shao et al. 2024, eq. 3 (arXiv:2402.03300), on the combined reward of Li et al. 2025
    (arXiv:2503.21819). Differs: the gates; the KL term has the value of k3 and the gradient of k2; the old
    log-probabilities are those the sampler recorded.
    """
    if num_generations < 2:
        raise WiringError(
            f"algorithm.num_generations is {num_generations}: grpo compares the responses to a prompt; fix: 2 or more"
        )
    penalty = (WeightedLoss(kl_coef, KlToReference()),) if kl_coef else ()
    return AlgorithmSpec(
        name="grpo",
        rollout=OnPolicy(
            num_generations=num_generations, max_new_tokens=max_new_tokens, temperature=temperature
        ),
        reward_steps=chain(*gated_weighted_sum(weights, gates)),
        model_passes=(OldLogprobs(source="sampler"), RefLogprobs()),
        credit=chain(GroupNormalize("std"), BroadcastToTokens()),
        losses=(WeightedLoss(1.0, ClippedSurrogate(clip_range, clip_range)), *penalty),
        loss_aggregation=LossAggregation("sequence"),
        num_iterations=num_iterations,
        minibatch_size=minibatch_size,
    )


def gated_weighted_sum(weights: Mapping[str, float], gates: Gates) -> tuple[CreditStep, ...]:
    """The gates, and then the weighted sum."""
    return (*(Gate(*gate) for gate in gates), WeightedSum(weights))
