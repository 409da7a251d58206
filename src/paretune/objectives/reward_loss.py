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

from paretune.errors import DataError, WiringError


def regression_error(
    predicted: Float[Tensor, "*n"], label: Float[Tensor, "*n"], delta: float = math.inf
) -> Float[Tensor, "*n"]:
    """Squared error up to `delta`, growing only linearly beyond; 0, with gradient 0, where the label is NaN.

        d^2 for |d| <= delta,    2 delta |d| - delta^2 beyond,    d = predicted - label

    Source: Huber 1964, eq. 1. Differs: twice his function, so that a large `delta` is the squared error.
    """
    gap = torch.where(label.isnan(), 0.0, predicted - label.nan_to_num(0.0))
    near = gap.abs().clamp(max=delta)
    return near * (2 * gap.abs() - near)


def bradley_terry(
    chosen: Float[Tensor, "*n"], rejected: Float[Tensor, "*n"], margin: float = 0.0
) -> Float[Tensor, "*n"]:
    """Minus the log-probability that the chosen response wins.

        -log sigmoid(chosen - rejected - margin)

    Source: Ouyang et al. 2022, eq. 1 (arXiv:2203.02155); the margin as in Touvron et al. 2023, eq. 2
    (arXiv:2307.09288).
    """
    return -F.logsigmoid(chosen - rejected - margin)


def ranking(scores: Float[Tensor, "*n R"]) -> Float[Tensor, "*n"]:
    """Minus the log-probability that R responses rank as they stand, the best first; of the last axis.

        sum over i of log(sum over j >= i of exp(s_j)) - s_i

    Source: Plackett 1975, "The analysis of permutations".
    """
    return scores.flip(-1).logcumsumexp(-1).flip(-1).sum(-1) - scores.sum(-1)


def diverging(
    chosen: Int[Tensor, "B T"],
    rejected: Int[Tensor, "B T"],
    chosen_attend: Bool[Tensor, "B T"],
    rejected_attend: Bool[Tensor, "B T"],
) -> Bool[Tensor, "B T"]:
    """The places of a pair from its first token that differs to the later of its two ends.

    For losses on the scores of all of these tokens, whose mean is `row_mean(loss, diverging(...))`.

    Args:
        chosen: Tokens of one response behind its prompt, padded on the right.
        rejected: Tokens of the other.
        chosen_attend: Which tokens are no padding.
        rejected_attend: Likewise.

    Raises:
        DataError: Two responses are the same.

    Source: Dai et al. 2023, Safe RLHF (arXiv:2310.12773), the "token-wise" losses of its code. Differs:
    nothing; padding of the shorter response counts there too.
    """
    differ = chosen != rejected
    if not differ.any(-1).all():
        raise DataError("the two responses of a pair are the same, token by token; fix: leave the pair out")
    ends = (chosen_attend | rejected_attend).flip(-1).long().cumsum(-1).flip(-1) > 0
    return (differ.long().cumsum(-1) > 0) & ends


def labelled_loss(error: Float[Tensor, "*n"], weight: Float[Tensor, "*n"]) -> Float[Tensor, ""]:
    """Sum of the entries times their weights; an entry of weight 0 asks for nothing."""
    return (error * weight.to(error.dtype)).sum()


@dataclass(frozen=True, kw_only=True)
class Regression:
    """Regression of a head on the ratings of its objective; NaN labels ask for nothing.

    Source: Wang et al. 2024, section 3.1 (HelpSteer2, arXiv:2406.08673): mean squared error on several
    attributes. Differs: each objective counts the same over the whole data, however many labels it has.
    """

    kind: Literal["mse", "huber"] = "mse"
    delta: float = 1.0
    """For "huber": the error, in standard deviations of the labels, beyond which it counts only linearly."""

    def __post_init__(self) -> None:
        if not self.delta > 0:
            raise WiringError(f"Regression got delta {self.delta}; expected a number above 0")

    def __call__(self, predicted: Float[Tensor, "*n"], label: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
        """Error of every entry."""
        return regression_error(predicted, label, self.delta if self.kind == "huber" else math.inf)


@dataclass(frozen=True, kw_only=True)
class BradleyTerry:
    """The head's difference between two responses is the log-odds that the first one is preferred.

    Pairs say nothing about where zero lies; `centre` asks for pairs that lie about it.

    Source: Ouyang et al. 2022, eq. 1 (arXiv:2203.02155); Eisenstein et al. 2023 (arXiv:2312.09244) for
    `centre`.
    """

    margin: float = 0.0
    centre: float = 0.0
    """Coefficient of (chosen + rejected)^2."""

    def __call__(self, chosen: Float[Tensor, "*n"], rejected: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
        """Loss of every pair."""
        loss = bradley_terry(chosen, rejected, self.margin)
        return loss + self.centre * (chosen + rejected).square() if self.centre else loss


@dataclass(frozen=True, kw_only=True)
class BoundedPairs:
    """Bradley-Terry on pairs whose scores are held near zero.

        -log sigmoid(chosen - rejected) + shrink (chosen^2 + rejected^2) / 2

    Of single scores or, with `diverging`, of the scores at all tokens.

    Source: Dai et al. 2023 (arXiv:2310.12773); the second term in its code, `regularization`.
    """

    shrink: float = 1e-3

    def __call__(self, chosen: Float[Tensor, "*n"], rejected: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
        """Loss of every pair."""
        return bradley_terry(chosen, rejected) + self.shrink * (chosen.square() + rejected.square()) / 2


@dataclass(frozen=True, kw_only=True)
class CostPairs:
    """A cost that is higher for the less safe response of a pair, and above 0 for what is unsafe.

        -log sigmoid(worse - better) - log sigmoid(sign_worse worse) - log sigmoid(sign_better better)
        + shrink (worse^2 + better^2) / 2,    sign = +1 unsafe, -1 safe, NaN: nobody said

    Zero is where safe ends, so that a constraint on the mean cost has a natural bound. As an objective, of
    which more is better, it is the negative of the cost.

    Source: Dai et al. 2023 (arXiv:2310.12773); the last term in its code, `regularization`.
    """

    shrink: float = 1e-3

    def __call__(
        self,
        worse: Float[Tensor, "*n"],
        better: Float[Tensor, "*n"],
        worse_sign: Float[Tensor, "*n"],
        better_sign: Float[Tensor, "*n"],
    ) -> Float[Tensor, "*n"]:
        """Loss of every pair."""
        loss = bradley_terry(worse, better) + self.shrink * (worse.square() + better.square()) / 2
        for cost, sign in ((worse, worse_sign), (better, better_sign)):
            loss = loss - torch.where(sign.isnan(), 0.0, F.logsigmoid(sign.nan_to_num(0.0) * cost))
        return loss


@dataclass(frozen=True, kw_only=True)
class CalibratedPairs:
    """Stated confidence raises the score of the chosen response and lowers that of the rejected one.

        "pairs"     -log sigmoid(chosen high - chosen low) - log sigmoid(rejected low - rejected high)
        "crossed"   and - log sigmoid(chosen high - rejected low)
        "ranking"   the four rank as chosen high, chosen low, rejected low, rejected high

    Of each pair all four are scored: both responses, each with a line that states a high and with one that
    states a low confidence (`with_confidence`). Nothing in "pairs" keeps the chosen above the rejected: start
    from a fitted model, or add `BradleyTerry` on the pair itself.

    Source: Leng et al. 2024, PPO-M (arXiv:2410.09724); the other two are options of its code.
    """

    kind: Literal["pairs", "crossed", "ranking"] = "pairs"
    margin: float = 0.0
    """Asked of every difference."""

    def __post_init__(self) -> None:
        if self.kind == "ranking" and self.margin:
            raise WiringError(f"CalibratedPairs has a margin of {self.margin}, and a ranking knows no margin")

    def __call__(
        self,
        chosen_high: Float[Tensor, "*n"],
        chosen_low: Float[Tensor, "*n"],
        rejected_low: Float[Tensor, "*n"],
        rejected_high: Float[Tensor, "*n"],
    ) -> Float[Tensor, "*n"]:
        """Loss of every pair."""
        if self.kind == "ranking":
            return ranking(torch.stack([chosen_high, chosen_low, rejected_low, rejected_high], -1))
        loss = bradley_terry(chosen_high, chosen_low, self.margin)
        loss = loss + bradley_terry(rejected_low, rejected_high, self.margin)
        if self.kind == "crossed":
            loss = loss + bradley_terry(chosen_high, rejected_low, self.margin)
        return loss


HeadLoss = Regression | BradleyTerry
