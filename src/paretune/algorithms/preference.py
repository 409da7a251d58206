"""Learning from comparisons and from the best: pairs, rankings, imitation; no critic, no group baseline."""

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

ResponseSource = Literal["start", "online", "stored"]
"""Who wrote them: the policy as it was before the first update, as it is now, or whoever filled the files."""


def make_rollout(
    response_source: ResponseSource, num_generations: int, max_new_tokens: int, temperature: float
) -> OnPolicy | StoredResponses:
    """Where responses come from; sampled ones need two of a prompt to compare.

    Raises:
        WiringError: One response has nobody to be compared with.
    """
    if response_source == "stored":
        return StoredResponses()
    if num_generations < 2:
        raise WiringError(
            f"algorithm.num_generations is {num_generations}: responses to a prompt are compared; fix: 2 or more"
        )
    kind = FrozenPolicy if response_source == "start" else OnPolicy
    return kind(num_generations=num_generations, max_new_tokens=max_new_tokens, temperature=temperature)


def dpo(
    weights: Mapping[str, float],
    *,
    gates: Gates = (),
    response_source: ResponseSource = "start",
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
    """The best response of each prompt against the worst, by how much likelier each became.

    Args:
        weights: Weight of each objective.
        gates: (objective, on, at_least, otherwise): the objective's worth is `otherwise` below that.
        response_source: "start" samples them from the policy as it was, "online" from the policy as it is, and
            "stored" reads data.stored_responses, whose labels are then the scores.
        num_generations: Responses to each prompt that are sampled; without effect on stored ones.
        max_new_tokens: Longest sampled response, in tokens.
        temperature: Of sampling, and of every log-probability.
        beta: How dear it is to leave the reference.
        loss_type: "sigmoid" (with `label_smoothing` cDPO), "ipo", "robust" and others.
        label_smoothing: Probability that a comparison is the wrong way round.
        reduction: Of the tokens' log-ratios; the mean is TRL's for ipo.
        reference: "none" compares likelihoods themselves.
        minibatch_size: Rows of one optimiser step; None: all of the step.
        num_iterations: Passes over the responses of a step.

    Source: Rafailov et al. 2023 (arXiv:2305.18290); Mitchell 2023 for the smoothing; Azar et al. 2023 for
    "ipo" (arXiv:2310.12036); Guo et al. 2024 for "online" (arXiv:2402.04792). Differs: pairs are made by the
    combined objectives, of any number of responses; AdamW in the place of RMSprop.
    """
    loss = Dpo(beta, loss_type, label_smoothing, reduction, reference)
    measure: tuple[ModelPass, ...] = (RefLogprobs(),) if reference == "frozen" else ()
    return AlgorithmSpec(
        name="dpo",
        rollout=make_rollout(response_source, num_generations, max_new_tokens, temperature),
        reward_steps=chain(*gated_weighted_sum(weights, gates)),
        model_passes=measure,
        losses=(WeightedLoss(1.0, loss),),
        loss_aggregation=LossAggregation("sequence"),
        num_iterations=num_iterations,
        minibatch_size=minibatch_size,
    )


@inherit_arguments(dpo, "form", "smoothing", "reduction", "reference")
def tdpo(
    weights: Mapping[str, float],
    *,
    variant: Literal[1, 2] = 2,
    alpha: NonNegativeFloat | None = None,
    beta: PositiveFloat = 0.1,
    **kwargs: Any,
) -> AlgorithmSpec:
    """DPO that also weighs how far each side has drifted from the reference, over the whole vocabulary.

    Args:
        weights: Weight of each objective.
        variant: 1 or 2; form 2 leaves the drift of the chosen response alone.
        alpha: Share of the drift that counts in form 2; None: 0.5.
        beta: How dear it is to leave the reference.
        kwargs: As for `dpo`.

    Source: Zeng et al. 2024 (arXiv:2404.11999). Differs: form 2 is the default, as in their function; their
    configuration file, and with it the command of their README, runs form 1.
    """
    return dpo(weights, beta=beta, **kwargs).replace(
        name="tdpo", losses=(WeightedLoss(1.0, Tdpo(variant, beta, alpha)),)
    )


@inherit_arguments(dpo, "form", "smoothing", "reduction", "reference")
def modpo(
    weights: Mapping[str, float],
    *,
    gates: Gates = (),
    pair_objective: str = "",
    beta: PositiveFloat = 0.1,
    **kwargs: Any,
) -> AlgorithmSpec:
    """Pairs made by one objective, with what the others are worth taken off: one loss for all of them.

    Args:
        weights: Weight of each objective.
        gates: (objective, on, at_least, otherwise): the objective's worth is `otherwise` below that.
        pair_objective: The objective that makes the pairs; "": the first that has a weight.
        beta: How dear it is to leave the reference.
        kwargs: As for `dpo`.

    Raises:
        WiringError: `pair_objective` has no weight, or nothing else has one.

    Source: Zhou et al. 2023 (arXiv:2310.03708). Differs: the others are scores, and not the implicit rewards
    of models that were tuned to them; they have to be on the scale of beta times a log-ratio.
    """
    used = {name: weight for name, weight in weights.items() if weight}
    first = pair_objective or next(iter(used), "")
    if first not in used:
        raise WiringError(
            f"algorithm.pair_objective is {first}, which has no weight; fix: one of {', '.join(used)}"
        )
    loss = Dpo(beta, margin=ModpoMargin(first, used))
    worth = chain(*(Gate(*gate) for gate in gates))
    return dpo(weights, beta=beta, **kwargs).replace(
        name="modpo", reward_steps=worth, losses=(WeightedLoss(1.0, loss),)
    )


@inherit_arguments(dpo, "form", "smoothing", "reduction", "reference", "beta")
def pro(
    weights: Mapping[str, float],
    *,
    sft_coef: NonNegativeFloat = 0.05,
    sft_reduction: Reduction = "mean",
    num_generations: PositiveInt = 4,
    **kwargs: Any,
) -> AlgorithmSpec:
    """Every response against all the worse ones, the more the wider the gap; the best is imitated.

    Args:
        weights: Weight of each objective.
        sft_coef: Weight of imitating the best, times (n - 1)^2 as in the paper.
        sft_reduction: Of the best response's tokens; the sum, which is the paper's, grows with its length.
        num_generations: Responses to each prompt that are sampled; for stored ones, how many a list usually has.
        kwargs: As for `dpo`.

    Source: Song et al. 2023 (arXiv:2306.17492). Differs: the gaps are those of the combined objectives.
    """
    own = sft_coef * (num_generations - 1) ** 2
    imitate = (WeightedLoss(own, BestOfNSft(sft_reduction)),) if own else ()
    losses = (WeightedLoss(1.0, PreferenceRanking()), *imitate)
    return dpo(weights, num_generations=num_generations, **kwargs).replace(
        name="pro", model_passes=(RefLogprobs(),), losses=losses
    )


@inherit_arguments(dpo, "form", "smoothing", "reduction", "reference", "beta", "responses")
def superhf(
    weights: Mapping[str, float],
    *,
    num_generations: PositiveInt = 16,
    num_kept: PositiveInt = 1,
    kl_coef: NonNegativeFloat = 0.35,
    **kwargs: Any,
) -> AlgorithmSpec:
    """Sample many, imitate the best, and stay near what the reference would have said.

    Args:
        weights: Weight of each objective.
        num_generations: Responses to each prompt, of which the best are kept.
        num_kept: How many are kept.
        kl_coef: Coefficient of the exact KL(reference || policy).
        kwargs: As for `dpo`; an optimiser step is of responses that were kept.

    Source: Mukobi et al. 2023 (arXiv:2310.16763). Differs: likelihood and divergence are means over the same
    tokens; their code adds up rows in one of them.
    """
    if num_generations <= num_kept:
        raise WiringError(
            f"algorithm.num_generations is {num_generations}, and {num_kept} are kept: nothing is chosen; fix: more than that"
        )
    near = (WeightedLoss(kl_coef, FullKl()),) if kl_coef else ()
    base = dpo(weights, response_source="online", num_generations=num_generations, **kwargs)
    return base.replace(
        name="superhf",
        reward_steps=chain(*flatten_steps(base.reward_steps), BestOfN(num_kept)),
        losses=(WeightedLoss(1.0, SftLoss()), *near),
        loss_aggregation=LossAggregation("token"),
    )


@inherit_arguments(dpo, "form", "smoothing", "reduction", "reference", "beta")
def sft(weights: Mapping[str, float], **kwargs: Any) -> AlgorithmSpec:
    """Imitate the best response of each prompt, by the combined objectives; nothing else.

    Args:
        weights: Weight of each objective.
        kwargs: As for `dpo`; responses "stored" imitates the best of what lies in files, "start" is rejection
            sampling.

    Source: the supervised stage of Ouyang et al. 2022 (arXiv:2203.02155), on the best of n.
    """
    imitate = (WeightedLoss(1.0, BestOfNSft("mean")),)
    return dpo(weights, **kwargs).replace(name="sft", model_passes=(RefLogprobs(),), losses=imitate)
