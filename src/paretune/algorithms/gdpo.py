"""Objectives normalised apart and then summed: GRPO in another order, in the forms that are in use."""

from collections.abc import Mapping
from typing import Any, Literal

from paretune.algorithms.grpo import Gates, grpo
from paretune.algorithms.signature import inherit_arguments
from paretune.credit.advantage import BatchNormalize, BroadcastToTokens, GroupNormalize, LeaveOneOut
from paretune.credit.aggregate import Gate, WeightedSum
from paretune.credit.published import MissingAsZero
from paretune.credit.step import Chain, chain
from paretune.credit.whiten import Whiten
from paretune.learn.recipe import AlgorithmSpec

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
