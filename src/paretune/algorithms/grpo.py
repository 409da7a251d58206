"""Critic-free policy gradients: the same parts in different orders.

Objectives normalised apart and then summed: GRPO in another order, in the forms that are in use.

Critic-free policy gradients that differ from GRPO in what a response is compared with.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

from paretune.algorithms.signature import inherit_arguments
from paretune.core.errors import WiringError
from paretune.core.types import NonNegativeFloat, PositiveFloat, PositiveInt, UnitInterval
from paretune.credit.aggregation import Gate, WeightedSum
from paretune.credit.base import Chain, CreditStep, chain
from paretune.credit.normalization import (
    BatchNormalize,
    BroadcastToTokens,
    GroupNormalize,
    LeaveOneOut,
    Whiten,
)
from paretune.credit.returns import ReturnToGo
from paretune.credit.score_transforms import MissingAsZero
from paretune.credit.shaping import KlPenalty, TerminalReward
from paretune.loss.base import WeightedLoss
from paretune.loss.kl import KlToReference
from paretune.loss.policy import ClippedSurrogate
from paretune.models.model_passes import OldLogprobs, RefLogprobs
from paretune.rl.algorithm_spec import AlgorithmSpec, LossAggregation
from paretune.rollout.sampler import OnPolicy

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


GdpoVariant = Literal["scale_only", "trl", "nvlabs", "verl", "nemo"]


@inherit_arguments(grpo)
def gdpo(
    weights: Mapping[str, float],
    *,
    gates: Gates = (),
    variant: GdpoVariant = "scale_only",
    **kwargs: Any,
) -> AlgorithmSpec:
    """Compare within the group objective by objective, aggregate, then one scale for the batch.

    Every objective gets the same influence, also one that is nearly settled: give safety a gate, or an unsafe
    answer can come out on top.

    Args:
        weights: Weight of each objective; only their ratios matter.
        gates: (objective, on, at_least, otherwise): the objective's worth is `otherwise` below that.
        variant: "scale_only" centres in the group and only divides by the batch's spread; the others are those
            of the libraries they are named after (see `gdpo_credit`).
        kwargs: As for `grpo`.

    Source: Liu et al. 2026, eq. 4 to 6 (arXiv:2601.05242). Differs: the batch step does not shift, so a
    prompt without information gets exactly 0; gates.
    """
    base = grpo(weights, gates=gates, **kwargs)
    worth = chain(*(Gate(*gate) for gate in gates))
    return base.replace(name="gdpo", reward_steps=worth, credit=gdpo_credit(weights, variant))


def gdpo_credit(weights: Mapping[str, float], variant: GdpoVariant) -> Chain:
    """The five forms in circulation; in all of them s_k is normalised in the group before the weighted sum.

    "scale_only": a row with a missing score is unscored; the sum is centred in the group again, which
    changes nothing unless a score is missing, and divided by the batch's spread plus 0.01, so that what
    is left where objectives cancel is not blown up, as it is in the others. "trl": a missing score adds 0
    after normalisation; shifted and scaled over the responses of the batch. "nvlabs", the authors' TRL
    fork: a missing score is a reward of 0; a single objective gets no batch step. "verl", and the
    authors' verl fork with weights 1: shifted and scaled over the tokens of the batch, where long
    responses weigh more and prompts without information are pushed; a group of one keeps its raw score.
    "nemo": against mean and spread of the others, so groups do not add up to 0; shifted and scaled over
    the responses.
    """
    total = WeightedSum(weights)
    if variant == "trl":
        batch = BatchNormalize("removed", zero_std_rtol=0.0)
        return chain(
            GroupNormalize(zero_std_rtol=0.0), MissingAsZero("scored"), total, batch, BroadcastToTokens()
        )
    if variant == "nvlabs":
        if len(weights) == 1:
            return chain(MissingAsZero("all"), total, GroupNormalize(zero_std_rtol=0.0), BroadcastToTokens())
        batch = BatchNormalize("removed", zero_std_rtol=0.0)
        return chain(
            MissingAsZero("all"), GroupNormalize(zero_std_rtol=0.0), total, batch, BroadcastToTokens()
        )
    if variant == "verl":
        return chain(
            GroupNormalize(eps=1e-6, zero_std_rtol=0.0, singleton="raw"), total, BroadcastToTokens(), Whiten()
        )
    if variant == "nemo":
        return chain(LeaveOneOut("std"), total, BatchNormalize("removed", eps=0.0), BroadcastToTokens())
    return chain(
        GroupNormalize(), total, GroupNormalize("none"), BatchNormalize(eps=1e-2), BroadcastToTokens()
    )


@inherit_arguments(grpo)
def mo_grpo(
    weights: Mapping[str, float],
    *,
    gates: Gates = (),
    **kwargs: Any,
) -> AlgorithmSpec:
    """Compare within the group objective by objective, then sum; no batch step.

    The size of an advantage grows with the square root of the number of objectives of equal weight, so
    weights that add up to 1 keep it below that of GRPO.

    Args:
        weights: Weight of each objective; the paper's are 1.
        gates: (objective, on, at_least, otherwise): the objective's worth is `otherwise` below that.
        kwargs: As for `grpo`.

    Source: Ichihara et al. 2025, MO-GRPO (arXiv:2509.22047). Differs: weights; gates; a settled objective is
    not blown up.
    """
    base = grpo(weights, gates=gates, **kwargs)
    worth = chain(*(Gate(*gate) for gate in gates))
    credit = chain(GroupNormalize(), WeightedSum(weights), BroadcastToTokens())
    return base.replace(name="mo_grpo", reward_steps=worth, credit=credit)


@inherit_arguments(grpo)
def dr_grpo(
    weights: Mapping[str, float],
    *,
    max_new_tokens: PositiveInt = 256,
    kl_coef: NonNegativeFloat = 0.0,
    **kwargs: Any,
) -> AlgorithmSpec:
    """GRPO without its two biases: no division by the group's spread, nor by the length of the response.

    Args:
        weights: Weight of each objective.
        max_new_tokens: Longest response, in tokens; the constant that token sums are divided by.
        kl_coef: Coefficient of the divergence from the reference.
        kwargs: As for `grpo`.

    Source: Liu et al. 2025, section 3.2 (arXiv:2503.20783).
    """
    base = grpo(weights, max_new_tokens=max_new_tokens, kl_coef=kl_coef, **kwargs)
    credit = chain(GroupNormalize("none"), BroadcastToTokens())
    return base.replace(
        name="dr_grpo", credit=credit, loss_aggregation=LossAggregation("constant", max_new_tokens)
    )


@inherit_arguments(dr_grpo)
def rloo(
    weights: Mapping[str, float],
    *,
    kl_coef: NonNegativeFloat = 0.05,
    **kwargs: Any,
) -> AlgorithmSpec:
    """Each response against the mean of the others; the divergence is paid in the reward.

    Args:
        weights: Weight of each objective.
        kl_coef: Price of one nat of divergence from the reference, in the units of the signal.
        kwargs: As for `dr_grpo`.

    Source: Ahmadian et al. 2024 (arXiv:2402.14740). Differs: ratios and clip by token; sums over a response's
    tokens, mean over responses.
    """
    base = dr_grpo(weights, **kwargs)
    price = (KlPenalty(kl_coef, level="response"),) if kl_coef else ()
    return base.replace(
        name="rloo",
        credit=chain(*price, LeaveOneOut(), BroadcastToTokens()),
        loss_aggregation=LossAggregation("constant", 1),
    )


@inherit_arguments(grpo)
def reinforce_pp(
    weights: Mapping[str, float],
    *,
    num_generations: PositiveInt = 8,
    baseline: Literal["none", "group"] = "none",
    kl_coef: NonNegativeFloat = 0.01,
    **kwargs: Any,
) -> AlgorithmSpec:
    """Returns of tokens, whitened over the whole batch; prompts are not compared apart.

    Args:
        weights: Weight of each objective.
        num_generations: Responses to each prompt; 1 is enough without a baseline.
        baseline: "group" subtracts the mean of the prompt's responses before whitening, and charges the
            divergence in the loss instead of in the reward.
        kl_coef: Price of the divergence from the reference.
        kwargs: As for `grpo`.

    Source: Hu et al. 2025 (arXiv:2501.03262). Differs: with a baseline the KL term has the value of k3; its
    gradient is that of k2, as there.
    """
    alone = baseline == "none"
    base = grpo(
        weights,
        num_generations=max(num_generations, 2) if alone else num_generations,
        kl_coef=0.0 if alone else kl_coef,
        **kwargs,
    )
    assert isinstance(base.rollout, OnPolicy)
    base = base.replace(
        name="reinforce_pp",
        rollout=replace(base.rollout, num_generations=num_generations),
        loss_aggregation=LossAggregation("token"),
    )
    if not alone:
        return base.replace(credit=chain(GroupNormalize("none"), BroadcastToTokens(), Whiten()))
    price = (KlPenalty(kl_coef),) if kl_coef else ()
    return base.replace(credit=chain(TerminalReward(), *price, ReturnToGo(), Whiten()))
