"""Critic-free policy gradients that differ from GRPO in what a response is compared with."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

from paretune.algorithms.grpo import grpo
from paretune.algorithms.signature import inherit_arguments
from paretune.bounds import NonNegativeFloat, PositiveInt
from paretune.credit.advantage import BroadcastToTokens, GroupNormalize, LeaveOneOut
from paretune.credit.gae import ReturnToGo
from paretune.credit.penalty import KlPenalty, TerminalReward
from paretune.credit.step import chain
from paretune.credit.whiten import Whiten
from paretune.learn.recipe import AlgorithmSpec, LossAggregation
from paretune.rollout.sample import OnPolicy


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
