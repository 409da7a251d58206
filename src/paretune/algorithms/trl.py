"""GRPO as TRL 1.16 computes it: the advantages, loss and gradients of its `GRPOTrainer`, option by option."""

from collections.abc import Mapping
from typing import Any, Literal

from paretune.algorithms.grpo import Gates, gdpo_credit, grpo
from paretune.algorithms.signature import inherit_arguments
from paretune.core.errors import WiringError
from paretune.core.reductions import LossAggregationMode
from paretune.core.types import NonNegativeFloat, PositiveFloat, PositiveInt, UnitInterval
from paretune.credit.aggregation import Gate, WeightedSum
from paretune.credit.base import Chain, CreditStep, chain
from paretune.credit.importance_sampling import TopEntropyTokens
from paretune.credit.normalization import BroadcastToTokens, GroupNormalize
from paretune.credit.score_transforms import MissingAsZero
from paretune.credit.selection import MaskTruncated
from paretune.loss.auxiliary import EntropyBonus
from paretune.loss.base import WeightedLoss
from paretune.loss.kl import KlToReference
from paretune.loss.policy import (
    ClippedIsWeight,
    ClippedSurrogate,
    GammaWeight,
    OffPolicyMask,
    PolicyLoss,
    SoftClip,
)
from paretune.models.model_passes import OldLogprobs, PolicyEntropy, RefLogprobs
from paretune.rl.algorithm_spec import AlgorithmSpec, LossAggregation

TrlLossType = Literal["dapo", "grpo", "bnpo", "dr_grpo", "cispo", "sapo", "luspo", "vespo"]
"""The loss types of TRL 1.16, its default first."""

CLIPPED_LOSS_TYPES = ("dapo", "grpo", "bnpo", "dr_grpo", "luspo")
"""Loss types with the clipped surrogate."""
AGGREGATION_MODES: Mapping[str, LossAggregationMode] = {
    "grpo": "seq_mean_token_mean",
    "sapo": "seq_mean_token_mean",
    "dr_grpo": "seq_mean_token_sum_norm",
    "luspo": "seq_mean_token_sum",
}
"""Loss type -> average; that of all others is the token mean."""
LOSS_OPTIONS: Mapping[str, tuple[float | None, tuple[str, ...]]] = {
    "epsilon": (0.2, CLIPPED_LOSS_TYPES),
    "epsilon_high": (None, (*CLIPPED_LOSS_TYPES, "cispo")),
    "delta": (None, CLIPPED_LOSS_TYPES),
    "sapo_temperature_pos": (1.0, ("sapo",)),
    "sapo_temperature_neg": (1.05, ("sapo",)),
    "vespo_k_pos": (2.0, ("vespo",)),
    "vespo_lambda_pos": (3.0, ("vespo",)),
    "vespo_k_neg": (3.0, ("vespo",)),
    "vespo_lambda_neg": (2.0, ("vespo",)),
}
"""Option -> its default, and the loss types that read it."""
NOISE_RTOL = 1e-6
"""Equal rewards get exactly 0; their advantages in TRL are the rounding noise of float32 over 1e-4."""


@inherit_arguments(grpo, "clip_range", "kl_coef")
def trl_policy_gradient(
    weights: Mapping[str, float],
    *,
    loss_type: TrlLossType = "dapo",
    max_new_tokens: PositiveInt = 512,
    importance_sampling_level: Literal["token", "sequence"] = "token",
    epsilon: UnitInterval = 0.2,
    epsilon_high: NonNegativeFloat | None = None,
    delta: PositiveFloat | None = None,
    off_policy_mask_threshold: PositiveFloat | None = None,
    sapo_temperature_pos: PositiveFloat = 1.0,
    sapo_temperature_neg: PositiveFloat = 1.05,
    vespo_k_pos: NonNegativeFloat = 2.0,
    vespo_lambda_pos: NonNegativeFloat = 3.0,
    vespo_k_neg: NonNegativeFloat = 3.0,
    vespo_lambda_neg: NonNegativeFloat = 2.0,
    **kwargs: Any,
) -> AlgorithmSpec:
    """The policy loss of `trl_grpo`.

    Args:
        weights: Weight of each objective.
        loss_type: The policy loss and its average. "bnpo" averages over the tokens of the optimizer step, as
            TRL does with gradient_accumulation_steps 1.
        max_new_tokens: Maximum response length in tokens: `max_completion_length`.
        importance_sampling_level: One probability ratio per token, or per response (GSPO).
        epsilon: Clip range of the probability ratio below 1, and above unless `epsilon_high` is set.
        epsilon_high: Clip range above 1; with cispo the largest ratio itself, which must be set.
        delta: Largest ratio in the loss of a token with negative advantage (two-sided clipping).
        off_policy_mask_threshold: A response with negative advantage has no policy loss if its mean of
            log p_old - log p exceeds it.
        sapo_temperature_pos: Decay for tokens with positive advantage.
        sapo_temperature_neg: Decay for the others.
        vespo_k_pos: Power for non-negative advantages.
        vespo_lambda_pos: Decay for non-negative advantages.
        vespo_k_neg: Power for negative advantages.
        vespo_lambda_neg: Decay for negative advantages.
        kwargs: As for `grpo`.
    """
    pos, neg = (vespo_k_pos, vespo_lambda_pos), (vespo_k_neg, vespo_lambda_neg)
    values = (epsilon, epsilon_high, delta, sapo_temperature_pos, sapo_temperature_neg, *pos, *neg)
    options = dict(zip(LOSS_OPTIONS, values, strict=True))
    _check_loss_options(loss_type, options)
    loss = _policy_loss(loss_type, options, importance_sampling_level)
    if off_policy_mask_threshold is not None:
        loss = OffPolicyMask(loss, off_policy_mask_threshold)
    return grpo(weights, max_new_tokens=max_new_tokens, kl_coef=0.0, **kwargs).replace(
        losses=(WeightedLoss(1.0, loss),), loss_aggregation=_loss_aggregation(loss_type, max_new_tokens)
    )


@inherit_arguments(trl_policy_gradient)
def trl_grpo(
    weights: Mapping[str, float],
    *,
    gates: Gates = (),
    loss_type: TrlLossType = "dapo",
    importance_sampling_level: Literal["token", "sequence"] = "token",
    multi_objective_aggregation: Literal["sum_then_normalize", "normalize_then_sum"] = "sum_then_normalize",
    scale_rewards: Literal["group", "batch", "none"] = "group",
    beta: NonNegativeFloat = 0.0,
    use_bias_correction_kl: bool = True,
    mask_truncated_completions: bool = False,
    top_entropy_quantile: UnitInterval = 1.0,
    entropy_coef: NonNegativeFloat = 0.0,
    **kwargs: Any,
) -> AlgorithmSpec:
    """GRPO with the numbers, names and defaults of TRL 1.16; a new version of TRL does not change it.

    Args:
        weights: Weight of each objective, as `reward_weights`.
        gates: As for `grpo`.
        loss_type: As for `trl_policy_gradient`.
        importance_sampling_level: As for `trl_policy_gradient`.
        multi_objective_aggregation: The weighted sum before the normalization, or after it (GDPO).
        scale_rewards: For sum_then_normalize: divide by the standard deviation of the group, of the batch, or
            not at all.
        beta: Coefficient of the KL penalty; with 0 there is no reference policy.
        use_bias_correction_kl: Multiply the KL by the probability ratio.
        mask_truncated_completions: A response that reaches `max_new_tokens` has no loss.
        top_entropy_quantile: Share of tokens with a policy loss, those of the highest entropy: of all in the
            training step, before its first update.
        entropy_coef: Coefficient of the entropy bonus, for a loss_type that averages over tokens.
        kwargs: As for `trl_policy_gradient`.

    Raises:
        WiringError: An option has no effect, or is outside the range of its loss.

    Source: GRPOTrainer of TRL 1.16.0. Differs: docs/results/trl-equal.md.
    """
    _check_effects(multi_objective_aggregation, scale_rewards, beta, use_bias_correction_kl)
    _check_entropy(loss_type, top_entropy_quantile, entropy_coef)
    base = trl_policy_gradient(
        weights, loss_type=loss_type, importance_sampling_level=importance_sampling_level, **kwargs
    )
    kl = KlToReference("k3", importance_sampling_level if use_bias_correction_kl else "none")
    penalties = ((beta, kl), (entropy_coef, EntropyBonus()))
    reward_steps, credit = _credit(weights, gates, multi_objective_aggregation, scale_rewards)
    top_tokens = (TopEntropyTokens(top_entropy_quantile),) if top_entropy_quantile < 1 else ()
    truncated = (MaskTruncated(drop_tokens=True),) if mask_truncated_completions else ()
    return base.replace(
        name="trl_grpo",
        reward_steps=reward_steps,
        model_passes=(
            OldLogprobs(),
            *((RefLogprobs(),) if beta else ()),
            *((PolicyEntropy(),) if top_tokens else ()),
        ),
        credit=chain(*credit.steps, *truncated, *top_tokens),
        losses=(*base.losses, *(WeightedLoss(coef, loss) for coef, loss in penalties if coef)),
    )


def _credit(
    weights: Mapping[str, float],
    gates: Gates,
    aggregation: str,
    scale_rewards: Literal["group", "batch", "none"],
) -> tuple[Chain, Chain]:
    """The reward steps and the credit steps, up to the advantages of all tokens."""
    gate_steps: tuple[CreditStep, ...] = tuple(Gate(*gate) for gate in gates)
    if aggregation == "normalize_then_sum":
        return chain(*gate_steps), gdpo_credit(weights, "trl")
    normalize = GroupNormalize(scale_rewards, zero_std_rtol=NOISE_RTOL)
    return chain(*gate_steps, MissingAsZero(), WeightedSum(weights)), chain(normalize, BroadcastToTokens())


def _policy_loss(
    loss_type: str, options: Mapping[str, Any], level: Literal["token", "sequence"]
) -> PolicyLoss:
    if loss_type == "sapo":
        return SoftClip(options["sapo_temperature_pos"], options["sapo_temperature_neg"], level)
    if loss_type == "vespo":
        return GammaWeight(
            (options["vespo_k_pos"], options["vespo_lambda_pos"]),
            (options["vespo_k_neg"], options["vespo_lambda_neg"]),
        )
    epsilon, high = options["epsilon"], options["epsilon_high"]
    if loss_type == "cispo":
        if high is None or high < 1:
            value = "not set" if high is None else f"{high:g}"
            raise WiringError(
                f"algorithm.epsilon_high is {value}, and with cispo it is the largest probability ratio "
                "itself, at least 1; fix: 5.0"
            )
        return ClippedIsWeight(max_ratio=high, level=level)
    high = epsilon if high is None else high
    if options["delta"] is not None and options["delta"] < 1 + high:
        raise WiringError(
            f"algorithm.delta is {options['delta']:g}, below the clip bound 1 + epsilon_high = {1 + high:g}; "
            "fix: set it to that or more"
        )
    return ClippedSurrogate(epsilon, high, options["delta"], level)


def _loss_aggregation(loss_type: str, max_new_tokens: int) -> LossAggregation:
    norm_length = max_new_tokens if loss_type == "dr_grpo" else 1
    return LossAggregation(AGGREGATION_MODES.get(loss_type, "token_mean"), norm_length)


def _check_loss_options(loss_type: str, options: Mapping[str, Any]) -> None:
    """Refuse options that the loss type does not read, unless they have their default."""
    for name, value in options.items():
        default, readers = LOSS_OPTIONS[name]
        if loss_type not in readers and value != default:
            raise _no_effect(name, f"{value:g}", f"loss_type: {loss_type}")


def _check_effects(aggregation: str, scale_rewards: str, beta: float, use_bias_correction_kl: bool) -> None:
    if aggregation == "normalize_then_sum" and scale_rewards != "group":
        raise _no_effect("scale_rewards", scale_rewards, "multi_objective_aggregation: normalize_then_sum")
    if not use_bias_correction_kl and not beta:
        raise _no_effect("use_bias_correction_kl", "false", "beta: 0")


def _check_entropy(loss_type: str, top_entropy_quantile: float, entropy_coef: float) -> None:
    if not top_entropy_quantile:
        raise WiringError(
            "algorithm.top_entropy_quantile is 0, so no token has a loss; fix: above 0, up to 1"
        )
    if entropy_coef and (loss_type in AGGREGATION_MODES or top_entropy_quantile < 1):
        other = loss_type if loss_type in AGGREGATION_MODES else "a top_entropy_quantile below 1"
        raise WiringError(
            f"algorithm.entropy_coef is {entropy_coef:g}: TRL's bonus is a mean over tokens, unlike that of "
            f"{other}; fix: loss_type dapo, bnpo, cispo or vespo with top_entropy_quantile 1, or remove it"
        )


def _no_effect(name: str, value: str, condition: str) -> WiringError:
    return WiringError(f"algorithm.{name} is {value} and has no effect with {condition}; fix: remove it")
