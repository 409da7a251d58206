"""Critic-free policy gradients: GRPO; GDPO and MO-GRPO, which normalize first; other baselines."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from paretune.algorithms.signature import GroupSizeError, inherit_arguments
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

Gates = Sequence[tuple[str, str, float, float] | tuple[str, str, float, float, Literal[">=", "<="]]]
"""(objective, condition objective, threshold, fallback): below the threshold the score is `fallback`;
above it, with a fifth value "<="."""


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
    """GRPO: gate, aggregate, then normalize within the group.

    Args:
        weights: Weight of each objective; an objective without one is scored and logged only.
        gates: (objective, condition objective, threshold, fallback): the score is `fallback` below the
            threshold.
        num_generations: Responses per prompt.
        max_new_tokens: Maximum response length in tokens.
        temperature: Sampling temperature, also used for all log-probabilities.
        clip_range: Clip range of the probability ratio around 1.
        kl_coef: Coefficient of the KL penalty to the reference; with 0 the KL is only logged.
        minibatch_size: Rows per optimizer step; None: all sampled responses.
        num_iterations: Passes over the sampled responses.

    Raises:
        WiringError: `num_generations` is 1: a group baseline needs several responses.

    Source: Shao et al. 2024, eq. 3 (arXiv:2402.03300), on the combined reward of Li et al. 2025
    (arXiv:2503.21819). Differs: the gates; the KL term has the value of k3 and the gradient of k2; the old
    log-probabilities are those the sampler recorded.
    """
    if num_generations < 2:
        raise GroupSizeError("grpo", num_generations)
    penalty = (WeightedLoss(kl_coef, KlToReference()),) if kl_coef else ()
    return AlgorithmSpec(
        name="grpo",
        rollout=OnPolicy(
            num_generations=num_generations, max_new_tokens=max_new_tokens, temperature=temperature
        ),
        reward_steps=chain(*gated_weighted_sum(weights, gates)),
        model_passes=(OldLogprobs(source="rollout"), RefLogprobs()),
        credit=chain(GroupNormalize("group"), BroadcastToTokens()),
        losses=(WeightedLoss(1.0, ClippedSurrogate(clip_range, clip_range)), *penalty),
        loss_aggregation=LossAggregation("seq_mean_token_mean"),
        num_iterations=num_iterations,
        minibatch_size=minibatch_size,
    )


def gated_weighted_sum(weights: Mapping[str, float], gates: Gates) -> tuple[CreditStep, ...]:
    """The gates, then the weighted sum."""
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
    """GDPO: normalize within the group per objective, aggregate, then scale by the batch.

    Every objective gets the same variance share, also one that hardly varies: give safety a gate, or an
    unsafe response can get the largest advantage.

    Args:
        weights: Weight of each objective; only their ratios matter.
        gates: (objective, condition objective, threshold, fallback): the score is `fallback` below the
            threshold.
        variant: "scale_only" centers in the group and only divides by the standard deviation of the batch;
            the others are those of the libraries they are named after (see `gdpo_credit`).
        kwargs: As for `grpo`.

    Source: Liu et al. 2026, eq. 4 to 6 (arXiv:2601.05242). Differs: the batch step does not subtract the
    mean, so a prompt without information gets exactly 0; gates.
    """
    base = grpo(weights, gates=gates, **kwargs)
    gate_steps = chain(*(Gate(*gate) for gate in gates))
    return base.replace(name="gdpo", reward_steps=gate_steps, credit=gdpo_credit(weights, variant))


def gdpo_credit(weights: Mapping[str, float], variant: GdpoVariant) -> Chain:
    """The credit steps of the five published variants.

    All of them normalize each objective in the group before the weighted sum.

    "scale_only": a row with a missing score is unscored; the sum is centered in the group again, which
    changes nothing unless a score is missing, and divided by the standard deviation of the batch plus 0.01,
    so that the rest where objectives cancel is not scaled up, as it is in the others. "trl": a missing score
    adds 0 after normalization; mean and standard deviation over the responses of the batch. "nvlabs", the
    authors' TRL fork: a missing score is a reward of 0; a single objective gets no batch step. "verl", and
    the authors' verl fork with weights 1: mean and standard deviation over the tokens of the batch, where
    long responses have more weight and prompts without information are pushed; a group of one keeps its raw
    score. "nemo": mean and standard deviation of the others of the group, so groups do not add up to 0; then
    mean and standard deviation over the responses.
    """
    total = WeightedSum(weights)
    # The published variants have no tolerance for rounding noise, hence zero_std_rtol=0.
    if variant == "trl":
        batch_step = BatchNormalize("subtract", zero_std_rtol=0.0)
        return chain(
            GroupNormalize(zero_std_rtol=0.0), MissingAsZero("scored"), total, batch_step, BroadcastToTokens()
        )
    if variant == "nvlabs":
        if len(weights) == 1:
            return chain(MissingAsZero("all"), total, GroupNormalize(zero_std_rtol=0.0), BroadcastToTokens())
        batch_step = BatchNormalize("subtract", zero_std_rtol=0.0)
        return chain(
            MissingAsZero("all"), GroupNormalize(zero_std_rtol=0.0), total, batch_step, BroadcastToTokens()
        )
    if variant == "verl":
        return chain(
            GroupNormalize(eps=1e-6, zero_std_rtol=0.0, singleton="raw"), total, BroadcastToTokens(), Whiten()
        )
    if variant == "nemo":
        return chain(LeaveOneOut("group"), total, BatchNormalize("subtract", eps=0.0), BroadcastToTokens())
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
    """MO-GRPO: normalize within the group per objective, then sum; no batch step.

    The size of an advantage grows with the square root of the number of objectives of equal weight, so
    weights that add up to 1 keep it below that of GRPO.

    Args:
        weights: Weight of each objective; the paper's are 1.
        gates: (objective, condition objective, threshold, fallback): the score is `fallback` below the
            threshold.
        kwargs: As for `grpo`.

    Source: Ichihara et al. 2025, MO-GRPO (arXiv:2509.22047). Differs: weights; gates; an objective that
    hardly varies is not scaled up.
    """
    base = grpo(weights, gates=gates, **kwargs)
    gate_steps = chain(*(Gate(*gate) for gate in gates))
    credit = chain(GroupNormalize(), WeightedSum(weights), BroadcastToTokens())
    return base.replace(name="mo_grpo", reward_steps=gate_steps, credit=credit)


@inherit_arguments(grpo)
def dr_grpo(
    weights: Mapping[str, float],
    *,
    max_new_tokens: PositiveInt = 256,
    kl_coef: NonNegativeFloat = 0.0,
    **kwargs: Any,
) -> AlgorithmSpec:
    """Dr. GRPO: GRPO without division by the group's standard deviation and by the response length.

    Args:
        weights: Weight of each objective.
        max_new_tokens: Maximum response length in tokens; also the constant divisor of token sums.
        kl_coef: Coefficient of the KL penalty to the reference.
        kwargs: As for `grpo`.

    Source: Liu et al. 2025, section 3.2 (arXiv:2503.20783).
    """
    base = grpo(weights, max_new_tokens=max_new_tokens, kl_coef=kl_coef, **kwargs)
    credit = chain(GroupNormalize("none"), BroadcastToTokens())
    return base.replace(
        name="dr_grpo",
        credit=credit,
        loss_aggregation=LossAggregation("seq_mean_token_sum_norm", max_new_tokens),
    )


@inherit_arguments(dr_grpo)
def rloo(
    weights: Mapping[str, float],
    *,
    kl_coef: NonNegativeFloat = 0.05,
    **kwargs: Any,
) -> AlgorithmSpec:
    """RLOO: leave-one-out baselines, with the KL penalty in the reward.

    Args:
        weights: Weight of each objective.
        kl_coef: KL penalty per nat, in the units of the reward.
        kwargs: As for `dr_grpo`.

    Source: Ahmadian et al. 2024 (arXiv:2402.14740). Differs: probability ratios and clipping per token; sums
    over a response's tokens, mean over responses.
    """
    base = dr_grpo(weights, **kwargs)
    penalty = (KlPenalty(kl_coef, level="sequence"),) if kl_coef else ()
    return base.replace(
        name="rloo",
        credit=chain(*penalty, LeaveOneOut(), BroadcastToTokens()),
        loss_aggregation=LossAggregation("seq_mean_token_sum_norm", 1),
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
    """REINFORCE++: returns per token, whitened over the whole batch instead of within groups.

    Args:
        weights: Weight of each objective.
        num_generations: Responses per prompt; 1 is enough without a baseline.
        baseline: "group" subtracts the mean of the prompt's responses before whitening, and has the KL
            penalty in the loss instead of in the reward.
        kl_coef: Coefficient of the KL penalty to the reference.
        kwargs: As for `grpo`.

    Source: Hu et al. 2025 (arXiv:2501.03262). Differs: with a baseline the KL term has the value of k3; its
    gradient is that of k2, as there.
    """
    no_baseline = baseline == "none"
    # grpo refuses a single response per prompt, which only a baseline rules out; replaced right below.
    base = grpo(
        weights,
        num_generations=max(num_generations, 2) if no_baseline else num_generations,
        kl_coef=0.0 if no_baseline else kl_coef,
        **kwargs,
    )
    base = base.replace(
        name="reinforce_pp",
        rollout=base.rollout.replace(num_generations=num_generations),
        loss_aggregation=LossAggregation("token_mean"),
    )
    if not no_baseline:
        return base.replace(credit=chain(GroupNormalize("none"), BroadcastToTokens(), Whiten()))
    penalty = (KlPenalty(kl_coef),) if kl_coef else ()
    return base.replace(credit=chain(TerminalReward(), *penalty, ReturnToGo(), Whiten()))
