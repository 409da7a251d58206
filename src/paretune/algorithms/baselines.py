"""Critic-free policy gradients that differ from GRPO in what a response is compared with."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

from paretune.algorithms.grpo import grpo
from paretune.algorithms.signature import extends
from paretune.bounds import Count, NotNegative
from paretune.credit.advantage import GroupNormalise, LeaveOneOut, Spread
from paretune.credit.gae import ReturnToGo
from paretune.credit.penalty import EndReward, KlPenalty
from paretune.credit.step import chain
from paretune.credit.whiten import Whiten
from paretune.learn.recipe import Recipe, Weigh
from paretune.rollout.sample import Online


@extends(grpo)
def dr_grpo(
    weights: Mapping[str, float],
    *,
    max_new: Count = 256,
    kl: NotNegative = 0.0,
    **more: Any,
) -> Recipe:
    """GRPO without its two biases: no division by the group's spread, nor by the length of the response.

    Args:
        weights: Weight of each objective.
        max_new: Longest response, in tokens; the constant that token sums are divided by.
        kl: Coefficient of the divergence from the reference.
        more: As for `grpo`.

    Source: Liu et al. 2025, section 3.2 (arXiv:2503.20783).
    """
    base = grpo(weights, max_new=max_new, kl=kl, **more)
    credit = chain(GroupNormalise("none"), Spread())
    return base.but(name="dr_grpo", credit=credit, weigh=Weigh("constant", max_new))


@extends(dr_grpo)
def rloo(
    weights: Mapping[str, float],
    *,
    kl: NotNegative = 0.05,
    **more: Any,
) -> Recipe:
    """Each response against the mean of the others; the divergence is paid in the reward.

    Args:
        weights: Weight of each objective.
        kl: Price of one nat of divergence from the reference, in the units of the signal.
        more: As for `dr_grpo`.

    Source: Ahmadian et al. 2024 (arXiv:2402.14740). Differs: ratios and clip by token; sums over a response's
    tokens, mean over responses.
    """
    base = dr_grpo(weights, **more)
    price = (KlPenalty(kl, on="response"),) if kl else ()
    return base.but(name="rloo", credit=chain(*price, LeaveOneOut(), Spread()), weigh=Weigh("constant", 1))


@extends(grpo)
def reinforce_pp(
    weights: Mapping[str, float],
    *,
    n: Count = 8,
    baseline: Literal["none", "group"] = "none",
    kl: NotNegative = 0.01,
    **more: Any,
) -> Recipe:
    """Returns of tokens, whitened over the whole batch; prompts are not compared apart.

    Args:
        weights: Weight of each objective.
        n: Responses to each prompt; 1 is enough without a baseline.
        baseline: "group" subtracts the mean of the prompt's responses before whitening, and charges the
            divergence in the loss instead of in the reward.
        kl: Price of the divergence from the reference.
        more: As for `grpo`.

    Source: Hu et al. 2025 (arXiv:2501.03262). Differs: with a baseline the KL term has the value of k3; its
    gradient is that of k2, as there.
    """
    alone = baseline == "none"
    base = grpo(weights, n=max(n, 2) if alone else n, kl=0.0 if alone else kl, **more)
    assert isinstance(base.source, Online)
    base = base.but(name="reinforce_pp", source=replace(base.source, n=n), weigh=Weigh("token"))
    if not alone:
        return base.but(credit=chain(GroupNormalise("none"), Spread(), Whiten()))
    price = (KlPenalty(kl),) if kl else ()
    return base.but(credit=chain(EndReward(), *price, ReturnToGo(), Whiten()))
