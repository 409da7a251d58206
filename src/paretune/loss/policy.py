"""Losses on advantages, and the penalty for leaving the reference."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from paretune.batch import Batch, Outputs
from paretune.errors import WiringError
from paretune.loss.term import Loss

LIMIT = 20.0
"""Log-ratios beyond this are cut; exp(20) is still a number that float32 can add to others."""


def bounded(gap: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
    """The log-ratio cut to +-LIMIT in value only: the gradient still flows where a clamp would kill it."""
    return gap + (gap.clamp(-LIMIT, LIMIT) - gap).detach()


def clipped(
    logp: Float[Tensor, "*n"],
    old: Float[Tensor, "*n"],
    advantage: Float[Tensor, "*n"],
    low: float,
    high: float,
) -> Float[Tensor, "*n"]:
    """The clipped surrogate as a loss: -min(r A, clip(r, 1 - low, 1 + high) A), r = exp(logp - old).

    Source: Schulman et al. 2017, eq. 7 (arXiv:1707.06347); two bounds as in Yu et al. 2025, DAPO, eq. 10
    (arXiv:2503.14476).
    """
    ratio = bounded(logp - old).exp()
    return -torch.minimum(ratio * advantage, ratio.clamp(1 - low, 1 + high) * advantage)


def k1(gap: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
    """KL(policy || reference) from `gap` = logp - reference: unbiased, of either sign, gradient of mean 0.

    Source: Schulman 2020, "Approximating KL divergence".
    """
    return gap


def k2(gap: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
    """gap^2 / 2: biased in value; on the policy's own samples it has the gradient of KL(policy || reference).

    Source: Schulman 2020, "Approximating KL divergence".
    """
    return gap.square() / 2


def k3(gap: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
    """exp(-gap) + gap - 1: unbiased in value, never negative, with the gradient of KL(reference || policy).

    Source: Schulman 2020, "Approximating KL divergence"; Shao et al. 2024, eq. 4 (arXiv:2402.03300).
    """
    return (-gap).exp() + gap - 1


def k3_k2(gap: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
    """The value of k3, the gradient of k2: unbiased and not negative, and pushing the way the KL points.

    Source: the straight-through estimator "k3+" of the verl library.
    """
    return k2(gap) + (k3(gap) - k2(gap)).detach()


ESTIMATORS = {"k1": k1, "k2": k2, "k3": k3, "k3_k2": k3_k2}


def one_objective(advantages: Float[Tensor, "B T A"]) -> Float[Tensor, "B T"]:
    """The advantages, when they are of one objective.

    Raises:
        WiringError: They are of several.
    """
    if advantages.shape[-1] != 1:
        raise WiringError(
            f"the advantages are of {advantages.shape[-1]} objectives and must be of 1: add an aggregator "
            "(WeightedSum) to the recipe's worth or credit"
        )
    return advantages.squeeze(-1)


@dataclass(frozen=True)
class Clipped(Loss):
    """The clipped policy-gradient surrogate.

    Reads: advantages, behaviour_logp, weight. Writes: nothing.
    Logs: the share of tokens held back at the lower and at the upper bound, and the largest ratio.

    Source: Schulman et al. 2017, eq. 7 (arXiv:1707.06347).
    """

    low: float = 0.2
    high: float = 0.2

    def __post_init__(self) -> None:
        if not (0 <= self.low <= 1 and self.high >= 0):
            raise WiringError(
                f"clip bounds are {self.low} and {self.high}; the lower is in [0, 1], both are >= 0"
            )

    def __call__(self, out: Outputs, batch: Batch) -> Float[Tensor, ""]:
        """The loss of these rows."""
        advantage = one_objective(batch.need("advantages"))
        per_token = clipped(out.logp, batch.need("behaviour_logp"), advantage, self.low, self.high)
        return (per_token * batch.need("weight")).sum()

    def watch(self, out: Outputs, batch: Batch) -> Mapping[str, Float[Tensor, "B T"]]:
        """Which tokens the bounds held back."""
        ratio = bounded(out.logp.detach() - batch.need("behaviour_logp")).exp()
        advantage = one_objective(batch.need("advantages"))
        return {
            "clip/low": ((ratio < 1 - self.low) & (advantage < 0)).to(ratio.dtype),
            "clip/high": ((ratio > 1 + self.high) & (advantage > 0)).to(ratio.dtype),
            "ratio/max": ratio,
            "ratio/clamped": _beyond(out.logp - batch.need("behaviour_logp")),
        }


@dataclass(frozen=True)
class KlToReference(Loss):
    """The price of leaving the reference, from the sampled tokens.

    The default has the value of k3 and the gradient of k2, because the gradient of k3 itself is that of the
    other direction, KL(reference || policy).

    Reads: reference_logp, weight. Writes: nothing. Logs: how many tokens had their log-ratio cut.

    Source: Shao et al. 2024, eq. 4 (arXiv:2402.03300), which is "k3".
    """

    estimator: Literal["k3_k2", "k1", "k2", "k3"] = "k3_k2"

    def __call__(self, out: Outputs, batch: Batch) -> Float[Tensor, ""]:
        """The loss of these rows."""
        gap = bounded(out.logp - batch.need("reference_logp"))
        return (ESTIMATORS[self.estimator](gap) * batch.need("weight")).sum()

    def watch(self, out: Outputs, batch: Batch) -> Mapping[str, Float[Tensor, "B T"]]:
        """Which tokens were cut."""
        return {"ratio/clamped": _beyond(out.logp - batch.need("reference_logp"))}


def _beyond(gap: Float[Tensor, "B T"]) -> Float[Tensor, "B T"]:
    return (gap.detach().abs() > LIMIT).to(gap.dtype)
