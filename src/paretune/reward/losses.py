"""Losses that reward models are fitted by: regression to ratings, and forms of Bradley-Terry on pairs.

All of them give one number for each entry, and none divides: `reduce.label_weights` says how much an entry
counts, over a whole data set. Predictions and labels are in standard deviations of the labels.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from paretune.core.errors import DataError, WiringError


def regression_loss(
    predicted: Float[Tensor, "*n"], label: Float[Tensor, "*n"], delta: float = math.inf
) -> Float[Tensor, "*n"]:
    """Squared error up to `delta`, growing only linearly beyond; 0, with gradient 0, where the label is NaN.

        d^2 for |d| <= delta,    2 delta |d| - delta^2 beyond,    d = predicted - label

    Source: Huber 1964, eq. 1. Differs: twice his function, so that a large `delta` is the squared error.
    """
    gap = torch.where(label.isnan(), 0.0, predicted - label.nan_to_num(0.0))
    near = gap.abs().clamp(max=delta)
    return near * (2 * gap.abs() - near)


def bradley_terry_loss(
    chosen: Float[Tensor, "*n"], rejected: Float[Tensor, "*n"], margin: float = 0.0
) -> Float[Tensor, "*n"]:
    """Minus the log-probability that the chosen response wins.

        -log sigmoid(chosen - rejected - margin)

    Source: Ouyang et al. 2022, eq. 1 (arXiv:2203.02155); the margin as in Touvron et al. 2023, eq. 2
    (arXiv:2307.09288).
    """
    return -F.logsigmoid(chosen - rejected - margin)


def plackett_luce_loss(scores: Float[Tensor, "*n R"]) -> Float[Tensor, "*n"]:
    """Minus the log-probability that R responses rank as they stand, the best first; of the last axis.

        sum over i of log(sum over j >= i of exp(s_j)) - s_i

    Source: Plackett 1975, "The analysis of permutations".
    """
    return scores.flip(-1).logcumsumexp(-1).flip(-1).sum(-1) - scores.sum(-1)


def differing_span_mask(
    chosen_input_ids: Int[Tensor, "B T"],
    rejected_input_ids: Int[Tensor, "B T"],
    chosen_attention_mask: Bool[Tensor, "B T"],
    rejected_attention_mask: Bool[Tensor, "B T"],
) -> Bool[Tensor, "B T"]:
    """The places of a pair from its first token that differs to the later of its two ends.

    For losses on the scores of all of these tokens, whose mean is `row_mean(loss, diverging(...))`.

    Args:
        chosen_input_ids: Tokens of one response behind its prompt, padded on the right.
        rejected_input_ids: Tokens of the other.
        chosen_attention_mask: Which tokens are no padding.
        rejected_attention_mask: Likewise.

    Raises:
        DataError: Two responses are the same.

    Source: Dai et al. 2023, Safe RLHF (arXiv:2310.12773), the "token-wise" losses of its code. Differs:
    nothing; padding of the shorter response counts there too.
    """
    differ = chosen_input_ids != rejected_input_ids
    if not differ.any(-1).all():
        raise DataError("the two responses of a pair are the same, token by token; fix: leave the pair out")
    ends = (chosen_attention_mask | rejected_attention_mask).flip(-1).long().cumsum(-1).flip(-1) > 0
    return (differ.long().cumsum(-1) > 0) & ends


def weighted_loss_sum(losses: Float[Tensor, "*n"], weights: Float[Tensor, "*n"]) -> Float[Tensor, ""]:
    """Sum of the entries times their weights; an entry of weight 0 asks for nothing."""
    return (losses * weights.to(losses.dtype)).sum()


@dataclass(frozen=True, kw_only=True)
class RegressionLoss:
    """Regression of a head on the ratings of its objective; NaN labels ask for nothing.

    Source: Wang et al. 2024, section 3.1 (HelpSteer2, arXiv:2406.08673): mean squared error on several
    attributes. Differs: each objective counts the same over the whole data, however many labels it has.
    """

    loss_type: Literal["mse", "huber"] = "mse"
    delta: float = 1.0
    """For "huber": the error, in standard deviations of the labels, beyond which it counts only linearly."""

    def __post_init__(self) -> None:
        if not self.delta > 0:
            raise WiringError(f"Regression got delta {self.delta}; expected a number above 0")

    def __call__(self, predicted: Float[Tensor, "*n"], label: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
        """Error of every entry."""
        return regression_loss(predicted, label, self.delta if self.loss_type == "huber" else math.inf)


@dataclass(frozen=True, kw_only=True)
class BradleyTerryLoss:
    """The head's difference between two responses is the log-odds that the first one is preferred.

    Pairs say nothing about where zero lies; `center_rewards_coefficient` asks for pairs that lie about it.

    Source: Ouyang et al. 2022, eq. 1 (arXiv:2203.02155); Eisenstein et al. 2023 (arXiv:2312.09244) for
    `center_rewards_coefficient`.
    """

    margin: float = 0.0
    center_rewards_coefficient: float = 0.0
    """Coefficient of (chosen + rejected)^2."""

    def __call__(self, chosen: Float[Tensor, "*n"], rejected: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
        """Loss of every pair."""
        loss = bradley_terry_loss(chosen, rejected, self.margin)
        return (
            loss + self.center_rewards_coefficient * (chosen + rejected).square()
            if self.center_rewards_coefficient
            else loss
        )


@dataclass(frozen=True, kw_only=True)
class RegularizedBradleyTerryLoss:
    """Bradley-Terry on pairs whose scores are held near zero.

        -log sigmoid(chosen - rejected) + shrink (chosen^2 + rejected^2) / 2

    Of single scores or, with `diverging`, of the scores at all tokens.

    Source: Dai et al. 2023 (arXiv:2310.12773); the second term in its code, `regularization`.
    """

    regularization: float = 1e-3

    def __call__(self, chosen: Float[Tensor, "*n"], rejected: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
        """Loss of every pair."""
        return (
            bradley_terry_loss(chosen, rejected)
            + self.regularization * (chosen.square() + rejected.square()) / 2
        )


@dataclass(frozen=True, kw_only=True)
class CostModelLoss:
    """A cost that is higher for the less safe response of a pair, and above 0 for what is unsafe.

        -log sigmoid(worse - better) - log sigmoid(sign_worse worse) - log sigmoid(sign_better better)
        + shrink (worse^2 + better^2) / 2,    sign = +1 unsafe, -1 safe, NaN: nobody said

    Zero is where safe ends, so that a constraint on the mean cost has a natural bound. As an objective, of
    which more is better, it is the negative of the cost.

    Source: Dai et al. 2023 (arXiv:2310.12773); the last term in its code, `regularization`.
    """

    regularization: float = 1e-3

    def __call__(
        self,
        unsafe_cost: Float[Tensor, "*n"],
        safe_cost: Float[Tensor, "*n"],
        unsafe_sign: Float[Tensor, "*n"],
        safe_sign: Float[Tensor, "*n"],
    ) -> Float[Tensor, "*n"]:
        """Loss of every pair."""
        loss = (
            bradley_terry_loss(unsafe_cost, safe_cost)
            + self.regularization * (unsafe_cost.square() + safe_cost.square()) / 2
        )
        for cost, sign in ((unsafe_cost, unsafe_sign), (safe_cost, safe_sign)):
            loss = loss - torch.where(sign.isnan(), 0.0, F.logsigmoid(sign.nan_to_num(0.0) * cost))
        return loss


@dataclass(frozen=True, kw_only=True)
class ConfidenceCalibrationLoss:
    """Stated confidence raises the score of the chosen response and lowers that of the rejected one.

        "pairs"     -log sigmoid(chosen high - chosen low) - log sigmoid(rejected low - rejected high)
        "crossed"   and - log sigmoid(chosen high - rejected low)
        "ranking"   the four rank as chosen high, chosen low, rejected low, rejected high

    Of each pair all four are scored: both responses, each with a line that states a high and with one that
    states a low confidence (`with_confidence`). Nothing in "pairs" keeps the chosen above the rejected: start
    from a fitted model, or add `BradleyTerry` on the pair itself.

    Source: Leng et al. 2024, PPO-M (arXiv:2410.09724); the other two are options of its code.
    """

    loss_type: Literal["pairs", "crossed", "ranking"] = "pairs"
    margin: float = 0.0
    """Asked of every difference."""

    def __post_init__(self) -> None:
        if self.loss_type == "ranking" and self.margin:
            raise WiringError(f"CalibratedPairs has a margin of {self.margin}, and a ranking knows no margin")

    def __call__(
        self,
        chosen_high: Float[Tensor, "*n"],
        chosen_low: Float[Tensor, "*n"],
        rejected_low: Float[Tensor, "*n"],
        rejected_high: Float[Tensor, "*n"],
    ) -> Float[Tensor, "*n"]:
        """Loss of every pair."""
        if self.loss_type == "ranking":
            return plackett_luce_loss(torch.stack([chosen_high, chosen_low, rejected_low, rejected_high], -1))
        loss = bradley_terry_loss(chosen_high, chosen_low, self.margin)
        loss = loss + bradley_terry_loss(rejected_low, rejected_high, self.margin)
        if self.loss_type == "crossed":
            loss = loss + bradley_terry_loss(chosen_high, rejected_low, self.margin)
        return loss


HeadLoss = RegressionLoss | BradleyTerryLoss
