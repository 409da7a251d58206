"""Losses that reward models are fitted by: regression to ratings, and Bradley-Terry on preference pairs.

All of them give one number for each entry, and none divides: `reduce.label_weights` says how much an entry
counts, over a whole data set. Predictions and labels are in standard deviations of the labels.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from paretune.errors import WiringError


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

    Source: Ouyang et al. 2022, eq. 1 (arXiv:2203.02155); Eisenstein et al. 2023, eq. 2 (arXiv:2312.09244) for
    `centre`.
    """

    margin: float = 0.0
    centre: float = 0.0
    """Coefficient of (chosen + rejected)^2."""

    def __call__(self, chosen: Float[Tensor, "*n"], rejected: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
        """Loss of every pair."""
        loss = bradley_terry(chosen, rejected, self.margin)
        return loss + self.centre * (chosen + rejected).square() if self.centre else loss


HeadLoss = Regression | BradleyTerry
