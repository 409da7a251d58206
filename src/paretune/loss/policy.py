"""Policy-gradient losses with a clipped probability ratio, and what all policy losses share."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from paretune.batch import Batch, Outputs
from paretune.errors import WiringError
from paretune.loss.ratio import Level, beyond, bounded, log_ratio
from paretune.loss.term import Loss
from paretune.reduce import row_mean


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


class PolicyLoss(Loss):
    """One number for each response token, multiplied by its importance where a part wrote one.

    The importance acts here and on no other loss, so that what is left out of the policy's gradient is still
    held to the reference.
    """

    def per_token(self, out: Outputs, batch: Batch) -> Float[Tensor, "B T"]:
        """The loss of each token, before importance and weight.

        Raises:
            WiringError: The subclass does not override this.
        """
        raise WiringError(f"{type(self).__name__} does not say what the loss of a token is")

    def __call__(self, out: Outputs, batch: Batch) -> Float[Tensor, ""]:
        """The loss of these rows."""
        each = self.per_token(out, batch)
        if batch.importance is not None:
            each = each * batch.importance
        return (each * batch.need("weight")).sum()


def surrogate(
    ratio: Float[Tensor, "*n"],
    advantage: Float[Tensor, "*n"],
    low: float,
    high: float,
    most: float | None = None,
) -> Float[Tensor, "*n"]:
    """The clipped surrogate as a loss: -min(min(r, most) A, clip(r, 1 - low, 1 + high) A).

    `most` bounds what a token of negative advantage can cost, and is without effect on the others.

    Source: Schulman et al. 2017, eq. 7 (arXiv:1707.06347); two bounds as in Yu et al. 2025, DAPO, eq. 10
    (arXiv:2503.14476); `most` as in Ye et al. 2020, dual clip (arXiv:1912.09729), and INTELLECT-2 2025,
    two-sided clip (arXiv:2505.07291): for most >= 1 + high these two are one function.
    """
    free = ratio if most is None else ratio.clamp(max=most)
    return -torch.minimum(free * advantage, ratio.clamp(1 - low, 1 + high) * advantage)


def stale(
    logp: Float[Tensor, "B T"],
    old: Float[Tensor, "B T"],
    advantage: Float[Tensor, "B T"],
    respond: Bool[Tensor, "B T"],
    most: float,
) -> Bool[Tensor, "B T"]:
    """Tokens of negative advantage in responses that the policy has left behind.

    That is where the mean over the response of log p_old - log p exceeds `most`, in nats.

    Source: DeepSeek-V3.2 2025, off-policy sequence masking (arXiv:2512.02556).
    """
    left = row_mean((old - logp).detach(), respond) > most
    return left[:, None] & (advantage < 0)


@dataclass(frozen=True)
class Clipped(PolicyLoss):
    """The clipped policy-gradient surrogate.

    Reads: advantages, behaviour_logp, importance, respond, weight. Writes: nothing.
    Logs: the share of tokens held back at each bound, and the extreme ratios.

    Source: Schulman et al. 2017, eq. 7 (arXiv:1707.06347); Zheng et al. 2025 (arXiv:2507.18071) for the
    levels of whole responses, whose bounds have to be much smaller; Ye et al. 2020 (arXiv:1912.09729) for
    `most`.
    """

    low: float = 0.2
    high: float = 0.2
    most: float | None = None
    """Largest ratio that still counts against a token of negative advantage; None: any."""
    level: Level = "token"

    def __post_init__(self) -> None:
        if not (0 <= self.low <= 1 and self.high >= 0):
            raise WiringError(
                f"clip bounds are {self.low} and {self.high}; the lower is in [0, 1], both are >= 0"
            )
        if self.most is not None and not self.most >= 1 + self.high:
            raise WiringError(
                f"the largest ratio, {self.most}, lies inside the clip bound 1 + {self.high}, which would "
                "then mean nothing; fix: make it larger than that"
            )

    def per_token(self, out: Outputs, batch: Batch) -> Float[Tensor, "B T"]:
        """The loss of each token."""
        advantage = one_objective(batch.need("advantages"))
        return surrogate(self._ratio(out.logp, batch), advantage, self.low, self.high, self.most)

    def watch(self, out: Outputs, batch: Batch) -> Mapping[str, Float[Tensor, "B T"]]:
        """Which tokens the bounds held back."""
        ratio = self._ratio(out.logp.detach(), batch)
        advantage = one_objective(batch.need("advantages"))
        seen = {
            "clip/low": ((ratio < 1 - self.low) & (advantage < 0)).to(ratio.dtype),
            "clip/high": ((ratio > 1 + self.high) & (advantage > 0)).to(ratio.dtype),
            "ratio/max": ratio,
            "ratio/min": ratio,
            "ratio/clamped": beyond(out.logp - batch.need("behaviour_logp")),
        }
        if self.most is not None:
            seen["clip/most"] = ((ratio > self.most) & (advantage < 0)).to(ratio.dtype)
        return seen

    def _ratio(self, logp: Tensor, batch: Batch) -> Tensor:
        return bounded(log_ratio(logp, batch.need("behaviour_logp"), batch.respond, self.level)).exp()


@dataclass(frozen=True)
class DropStale(PolicyLoss):
    """A policy loss without the bad responses that the policy would no longer write.

    They stay in every denominator, and other losses still see them.

    Reads: advantages, behaviour_logp, importance, respond, weight. Writes: nothing.
    Logs: the share of tokens that were left out.

    Source: DeepSeek-V3.2 2025, off-policy sequence masking (arXiv:2512.02556). Differs: what is
    judged is the policy at the time of the update against the one that wrote the response.
    """

    loss: PolicyLoss
    most: float = 0.5
    """Nats per token."""

    def per_token(self, out: Outputs, batch: Batch) -> Float[Tensor, "B T"]:
        """The loss of each token, 0 where it was left out."""
        return torch.where(self._stale(out, batch), 0.0, self.loss.per_token(out, batch))

    def watch(self, out: Outputs, batch: Batch) -> Mapping[str, Float[Tensor, "B T"]]:
        """What the loss inside shows, and which tokens were left out."""
        return {**self.loss.watch(out, batch), "clip/stale": self._stale(out, batch).to(out.logp.dtype)}

    def _stale(self, out: Outputs, batch: Batch) -> Tensor:
        advantage = one_objective(batch.need("advantages"))
        return stale(out.logp, batch.need("behaviour_logp"), advantage, batch.respond, self.most)
