"""Losses of reward models: regression on ratings and Bradley-Terry on pairs.

Each returns one number per entry without a mean: `core.reductions.label_weights` gives the weights of the
entries over a whole data set. Predictions and labels are in standard deviations of the labels.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from paretune.core.errors import WiringError


def regression_loss(
    predicted: Float[Tensor, "*n"], label: Float[Tensor, "*n"], delta: float = math.inf
) -> Float[Tensor, "*n"]:
    """Squared error up to `delta`, linear beyond; 0 with gradient 0 where the label is NaN.

        d^2 for |d| <= delta,    2 delta |d| - delta^2 beyond,    d = predicted - label

    Source: Huber 1964, eq. 1. Differs: twice his function, so that a large `delta` is the squared error.
    """
    # nan_to_num: a NaN in the branch that `where` discards would still make the gradient NaN.
    error = torch.where(label.isnan(), 0.0, predicted - label.nan_to_num(0.0))
    clipped = error.abs().clamp(max=delta)
    return clipped * (2 * error.abs() - clipped)


def bradley_terry_loss(
    chosen: Float[Tensor, "*n"], rejected: Float[Tensor, "*n"], margin: float = 0.0
) -> Float[Tensor, "*n"]:
    """Negative log-probability that the chosen response wins.

        -log sigmoid(chosen - rejected - margin)

    Source: Ouyang et al. 2022, eq. 1 (arXiv:2203.02155); the margin as in Touvron et al. 2023, eq. 2
    (arXiv:2307.09288).
    """
    return -F.logsigmoid(chosen - rejected - margin)


def weighted_loss_sum(losses: Float[Tensor, "*n"], weights: Float[Tensor, "*n"]) -> Float[Tensor, ""]:
    """Sum of the losses times their weights; an entry of weight 0 has no gradient."""
    return (losses * weights.to(losses.dtype)).sum()


@dataclass(frozen=True, kw_only=True)
class RegressionLoss:
    """Regression of a head on the ratings of its objective; NaN labels have no loss.

    Source: Wang et al. 2024, section 3.1 (HelpSteer2, arXiv:2406.08673): mean squared error on several
    attributes. Differs: all objectives have equal weight over the whole data, however many labels they have.
    """

    loss_type: Literal["mse", "huber"] = "mse"
    delta: float = 1.0
    """For "huber": the error, in standard deviations of the labels, beyond which the loss is linear."""

    def __post_init__(self) -> None:
        if not self.delta > 0:
            raise WiringError(f"RegressionLoss: delta is {self.delta}; fix: set a number above 0")

    def __call__(self, predicted: Float[Tensor, "*n"], label: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
        """Loss per entry."""
        return regression_loss(predicted, label, self.delta if self.loss_type == "huber" else math.inf)


@dataclass(frozen=True, kw_only=True)
class BradleyTerryLoss:
    """Bradley-Terry: the difference of two rewards is the log-odds that the first response is preferred.

    Pairs do not determine the mean reward; `center_rewards_coefficient` pulls it to 0.

    Source: Ouyang et al. 2022, eq. 1 (arXiv:2203.02155); Eisenstein et al. 2023 (arXiv:2312.09244) for
    `center_rewards_coefficient`.
    """

    margin: float = 0.0
    center_rewards_coefficient: float = 0.0
    """Coefficient of (chosen + rejected)^2."""

    def __call__(self, chosen: Float[Tensor, "*n"], rejected: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
        """Loss per pair."""
        loss = bradley_terry_loss(chosen, rejected, self.margin)
        if not self.center_rewards_coefficient:
            return loss
        return loss + self.center_rewards_coefficient * (chosen + rejected).square()
