"""Preference optimization and best-of-n training: DPO, TDPO, MODPO, PRO, SuperHF, SFT."""

from collections.abc import Mapping
from typing import Any, Literal

from paretune.algorithms.grpo import Gates, gated_weighted_sum
from paretune.algorithms.signature import inherit_arguments
from paretune.core.errors import WiringError
from paretune.core.types import NonNegativeFloat, PositiveFloat, PositiveInt
from paretune.credit.aggregation import Gate
from paretune.credit.base import chain, flatten_steps
from paretune.credit.selection import BestOfN
from paretune.loss.auxiliary import BestOfNSft, SftLoss
from paretune.loss.base import WeightedLoss
from paretune.loss.kl import FullKl
from paretune.loss.listwise import PreferenceRanking, Reduction
from paretune.loss.pairwise import Dpo, ModpoMargin, PairLossType, Tdpo
from paretune.models.model_passes import ModelPass, RefLogprobs
from paretune.rl.algorithm_spec import AlgorithmSpec, LossAggregation
from paretune.rollout.sampler import FrozenPolicy, OnPolicy, StoredResponses

ResponseSource = Literal["frozen_policy", "on_policy", "stored"]
"""Responses from the policy before the first update, from the current policy, or from files."""


def make_rollout(
    response_source: ResponseSource, num_generations: int, max_new_tokens: int, temperature: float
) -> OnPolicy | StoredResponses:
    """The rollout of a response source.

    Raises:
        WiringError: Responses are sampled, and only one per prompt, which leaves nothing to compare.
    """
    if response_source == "stored":
        return StoredResponses()
    if num_generations < 2:
        raise WiringError(
            f"algorithm.num_generations is {num_generations}, and the responses to a prompt are compared; "
            "fix: 2 or more"
        )
    rollout = FrozenPolicy if response_source == "frozen_policy" else OnPolicy
    return rollout(num_generations=num_generations, max_new_tokens=max_new_tokens, temperature=temperature)


def dpo(
    weights: Mapping[str, float],
    *,
    gates: Gates = (),
    response_source: ResponseSource = "frozen_policy",
    num_generations: PositiveInt = 4,
    max_new_tokens: PositiveInt = 256,
    temperature: PositiveFloat = 1.0,
    beta: PositiveFloat = 0.1,
    loss_type: PairLossType = "sigmoid",
    label_smoothing: NonNegativeFloat = 0.0,
    reduction: Reduction = "sum",
    reference: Literal["frozen", "none"] = "frozen",
    minibatch_size: PositiveInt | None = None,
    num_iterations: PositiveInt = 1,
) -> AlgorithmSpec:
    """DPO on the best and the worst response of each prompt.

    Args:
        weights: Weight of each objective.
        gates: (objective, condition objective, threshold, fallback): the score is `fallback` below the
            threshold.
        response_source: "frozen_policy" samples from the initial policy, "on_policy" from the current one
            (online DPO); "stored" reads data.stored_responses, whose labels are the scores.
        num_generations: Responses per prompt that are sampled; no effect on stored ones.
        max_new_tokens: Maximum length of a sampled response in tokens.
        temperature: Sampling temperature, also used for all log-probabilities.
        beta: Strength of the implicit KL penalty to the reference.
        loss_type: "sigmoid" (with `label_smoothing` cDPO), "ipo", "robust" and others; see `pair_loss`.
        label_smoothing: Probability that a preference label is flipped.
        reduction: Of the tokens' log-ratios; the mean is TRL's for ipo.
        reference: "none" uses log-probabilities instead of log-ratios to the reference.
        minibatch_size: Rows per optimizer step; None: all of the training step.
        num_iterations: Passes over the responses of a training step.

    Source: Rafailov et al. 2023 (arXiv:2305.18290); Mitchell 2023 for the smoothing; Azar et al. 2023 for
    "ipo" (arXiv:2310.12036); Guo et al. 2024 for "on_policy" (arXiv:2402.04792). Differs: pairs are made by
    the combined objectives, from any number of responses; AdamW instead of RMSprop.
    """
    loss = Dpo(beta, loss_type, label_smoothing, reduction, reference)
    passes: tuple[ModelPass, ...] = (RefLogprobs(),) if reference == "frozen" else ()
    return AlgorithmSpec(
        name="dpo",
        rollout=make_rollout(response_source, num_generations, max_new_tokens, temperature),
        reward_steps=chain(*gated_weighted_sum(weights, gates)),
        model_passes=passes,
        losses=(WeightedLoss(1.0, loss),),
        loss_aggregation=LossAggregation("seq_mean_token_mean"),
        num_iterations=num_iterations,
        minibatch_size=minibatch_size,
    )


@inherit_arguments(dpo, "loss_type", "label_smoothing", "reduction", "reference")
def tdpo(
    weights: Mapping[str, float],
    *,
    variant: Literal[1, 2] = 2,
    alpha: NonNegativeFloat | None = None,
    beta: PositiveFloat = 0.1,
    **kwargs: Any,
) -> AlgorithmSpec:
    """TDPO: DPO with the KL(reference || policy) of both sides, over the full vocabulary.

    Args:
        weights: Weight of each objective.
        variant: 1 or 2; variant 2 has no gradient in the KL of the chosen response.
        alpha: Coefficient of the KL in variant 2; None: 0.5.
        beta: Strength of the implicit KL penalty to the reference.
        kwargs: As for `dpo`.

    Source: Zeng et al. 2024 (arXiv:2404.11999). Differs: variant 2 is the default, as in their function;
    their configuration file, and with it the command of their README, runs variant 1.
    """
    return dpo(weights, beta=beta, **kwargs).replace(
        name="tdpo", losses=(WeightedLoss(1.0, Tdpo(variant, beta, alpha)),)
    )


@inherit_arguments(dpo, "loss_type", "label_smoothing", "reduction", "reference")
def modpo(
    weights: Mapping[str, float],
    *,
    gates: Gates = (),
    pair_objective: str = "",
    beta: PositiveFloat = 0.1,
    **kwargs: Any,
) -> AlgorithmSpec:
    """MODPO: pairs made by one objective, with the rewards of the others as a margin in the loss.

    Args:
        weights: Weight of each objective.
        gates: (objective, condition objective, threshold, fallback): the score is `fallback` below the
            threshold.
        pair_objective: The objective that makes the pairs; "": the first that has a weight.
        beta: Strength of the implicit KL penalty to the reference.
        kwargs: As for `dpo`.

    Raises:
        WiringError: `pair_objective` has no weight, or no other objective has one.

    Source: Zhou et al. 2023 (arXiv:2310.03708). Differs: the others are scores, not the implicit rewards of
    models that were trained on them; they must be on the scale of beta times a log-ratio.
    """
    weighted = {name: weight for name, weight in weights.items() if weight}
    pair_objective = pair_objective or next(iter(weighted), "")
    if pair_objective not in weighted:
        raise WiringError(
            f"algorithm.pair_objective is {pair_objective}, which has no weight; fix: one of "
            f"{', '.join(weighted)}"
        )
    loss = Dpo(beta, margin=ModpoMargin(pair_objective, weighted))
    gate_steps = chain(*(Gate(*gate) for gate in gates))
    return dpo(weights, beta=beta, **kwargs).replace(
        name="modpo", reward_steps=gate_steps, losses=(WeightedLoss(1.0, loss),)
    )


@inherit_arguments(dpo, "loss_type", "label_smoothing", "reduction", "reference", "beta")
def pro(
    weights: Mapping[str, float],
    *,
    sft_coef: NonNegativeFloat = 0.05,
    sft_reduction: Reduction = "mean",
    num_generations: PositiveInt = 4,
    **kwargs: Any,
) -> AlgorithmSpec:
    """PRO: rank every response against all worse ones, scaled by the reward difference, plus SFT on the best.

    Args:
        weights: Weight of each objective.
        sft_coef: Coefficient of SFT on the best response, times (num_generations - 1)^2 as in the paper.
        sft_reduction: Of the best response's tokens; the sum, as in the paper, grows with its length.
        num_generations: Responses per prompt that are sampled; for stored ones, the usual length of a list.
        kwargs: As for `dpo`.

    Source: Song et al. 2023 (arXiv:2306.17492). Differs: the reward differences are those of the combined
    objectives.
    """
    coefficient = sft_coef * (num_generations - 1) ** 2
    sft_loss = (WeightedLoss(coefficient, BestOfNSft(sft_reduction)),) if coefficient else ()
    losses = (WeightedLoss(1.0, PreferenceRanking()), *sft_loss)
    return dpo(weights, num_generations=num_generations, **kwargs).replace(
        name="pro", model_passes=(RefLogprobs(),), losses=losses
    )


@inherit_arguments(dpo, "loss_type", "label_smoothing", "reduction", "reference", "beta", "response_source")
def superhf(
    weights: Mapping[str, float],
    *,
    num_generations: PositiveInt = 16,
    num_kept: PositiveInt = 1,
    kl_coef: NonNegativeFloat = 0.35,
    **kwargs: Any,
) -> AlgorithmSpec:
    """SuperHF: sample many responses, SFT on the best, with a full KL to the reference.

    Args:
        weights: Weight of each objective.
        num_generations: Responses per prompt, of which the best are kept.
        num_kept: Number of kept responses.
        kl_coef: Coefficient of the full KL(reference || policy).
        kwargs: As for `dpo`; `minibatch_size` counts kept responses.

    Raises:
        WiringError: All responses would be kept.

    Source: Mukobi et al. 2023 (arXiv:2310.16763). Differs: likelihood and KL are means over the same tokens;
    their code sums rows in one of them.
    """
    if num_generations <= num_kept:
        raise WiringError(
            f"algorithm.num_generations is {num_generations}, and all {num_kept} are kept; "
            f"fix: num_generations of more than {num_kept}"
        )
    penalty = (WeightedLoss(kl_coef, FullKl()),) if kl_coef else ()
    base = dpo(weights, response_source="on_policy", num_generations=num_generations, **kwargs)
    return base.replace(
        name="superhf",
        reward_steps=chain(*flatten_steps(base.reward_steps), BestOfN(num_kept)),
        losses=(WeightedLoss(1.0, SftLoss()), *penalty),
        loss_aggregation=LossAggregation("token_mean"),
    )


@inherit_arguments(dpo, "loss_type", "label_smoothing", "reduction", "reference", "beta")
def sft(weights: Mapping[str, float], **kwargs: Any) -> AlgorithmSpec:
    """Supervised fine-tuning on the best response of each prompt, by the combined objectives.

    Args:
        weights: Weight of each objective.
        kwargs: As for `dpo`; response_source "stored" uses the best stored responses, "frozen_policy" is
            rejection sampling.

    Source: the supervised stage of Ouyang et al. 2022 (arXiv:2203.02155), on the best of n.
    """
    losses = (WeightedLoss(1.0, BestOfNSft("mean")),)
    return dpo(weights, **kwargs).replace(name="sft", model_passes=(RefLogprobs(),), losses=losses)
