"""Policy-gradient losses with a clipped probability ratio, and what all policy losses share."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from paretune.batch import Batch, Outputs
from paretune.errors import WiringError
from paretune.loss.ratio import RatioLevel, clamp_log_ratio, outside_clip, policy_log_ratio
from paretune.loss.term import Loss
from paretune.reduce import row_mean


def scalar_advantages(advantages: Float[Tensor, "B T A"]) -> Float[Tensor, "B T"]:
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

    def per_token_loss(self, out: Outputs, batch: Batch) -> Float[Tensor, "B T"]:
        """The loss of each token, before importance and weight.

        Raises:
            WiringError: The subclass does not override this.
        """
        raise WiringError(f"{type(self).__name__} does not say what the loss of a token is")

    def __call__(self, out: Outputs, batch: Batch) -> Float[Tensor, ""]:
        """The loss of these rows."""
        each = self.per_token_loss(out, batch)
        if batch.importance_weights is not None:
            each = each * batch.importance_weights
        return (each * batch.require("loss_weights")).sum()


def clipped_surrogate(
    ratio: Float[Tensor, "*n"],
    advantage: Float[Tensor, "*n"],
    clip_low: float,
    clip_high: float,
    dual_clip: float | None = None,
) -> Float[Tensor, "*n"]:
    """The clipped surrogate as a loss: -min(min(r, most) A, clip(r, 1 - low, 1 + high) A).

    `dual_clip` bounds what a token of negative advantage can cost, and is without effect on the others.

    Source: Schulman et al. 2017, eq. 7 (arXiv:1707.06347); two bounds as in Yu et al. 2025, DAPO, eq. 10
    (arXiv:2503.14476); `dual_clip` as in Ye et al. 2020, dual clip (arXiv:1912.09729), and INTELLECT-2 2025,
    two-sided clip (arXiv:2505.07291): for most >= 1 + high these two are one function.
    """
    free = ratio if dual_clip is None else ratio.clamp(max=dual_clip)
    return -torch.minimum(free * advantage, ratio.clamp(1 - clip_low, 1 + clip_high) * advantage)


def off_policy_mask(
    logprobs: Float[Tensor, "B T"],
    old_logprobs: Float[Tensor, "B T"],
    advantage: Float[Tensor, "B T"],
    response_mask: Bool[Tensor, "B T"],
    threshold: float,
) -> Bool[Tensor, "B T"]:
    """Tokens of negative advantage in responses that the policy has left behind.

    That is where the mean over the response of log p_old - log p exceeds `threshold`, in nats.

    Source: DeepSeek-V3.2 2025, off-policy sequence masking (arXiv:2512.02556).
    """
    left = row_mean((old_logprobs - logprobs).detach(), response_mask) > threshold
    return left[:, None] & (advantage < 0)


@dataclass(frozen=True)
class ClippedSurrogate(PolicyLoss):
    """The clipped policy-gradient surrogate.

    Reads: advantages, old_logprobs, importance_weights, response_mask, loss_weights. Writes: nothing.
    Logs: the share of tokens held back at each bound, and the extreme ratios.

    Source: Schulman et al. 2017, eq. 7 (arXiv:1707.06347); Zheng et al. 2025 (arXiv:2507.18071) for the
    levels of whole responses, whose bounds have to be much smaller; Ye et al. 2020 (arXiv:1912.09729) for
    `dual_clip`.
    """

    clip_low: float = 0.2
    clip_high: float = 0.2
    dual_clip: float | None = None
    """Largest ratio that still counts against a token of negative advantage; None: any."""
    level: RatioLevel = "token"

    def __post_init__(self) -> None:
        if not (0 <= self.clip_low <= 1 and self.clip_high >= 0):
            raise WiringError(
                f"clip bounds are {self.clip_low} and {self.clip_high}; the lower is in [0, 1], both are >= 0"
            )
        if self.dual_clip is not None and not self.dual_clip >= 1 + self.clip_high:
            raise WiringError(
                f"the largest ratio, {self.dual_clip}, lies inside the clip bound 1 + {self.clip_high}, which would "
                "then mean nothing; fix: make it larger than that"
            )

    def per_token_loss(self, out: Outputs, batch: Batch) -> Float[Tensor, "B T"]:
        """The loss of each token."""
        advantage = scalar_advantages(batch.require("advantages"))
        return clipped_surrogate(
            self._ratio(out.logprobs, batch), advantage, self.clip_low, self.clip_high, self.dual_clip
        )

    def metrics(self, out: Outputs, batch: Batch) -> Mapping[str, Float[Tensor, "B T"]]:
        """Which tokens the bounds held back."""
        ratio = self._ratio(out.logprobs.detach(), batch)
        advantage = scalar_advantages(batch.require("advantages"))
        seen = {
            "clip_fraction/low": ((ratio < 1 - self.clip_low) & (advantage < 0)).to(ratio.dtype),
            "clip_fraction/high": ((ratio > 1 + self.clip_high) & (advantage > 0)).to(ratio.dtype),
            "ratio/max": ratio,
            "ratio/min": ratio,
            "ratio/clamped": outside_clip(out.logprobs - batch.require("old_logprobs")),
        }
        if self.dual_clip is not None:
            seen["clip_fraction/dual"] = ((ratio > self.dual_clip) & (advantage < 0)).to(ratio.dtype)
        return seen

    def _ratio(self, logprobs: Tensor, batch: Batch) -> Tensor:
        return clamp_log_ratio(
            policy_log_ratio(logprobs, batch.require("old_logprobs"), batch.response_mask, self.level)
        ).exp()


@dataclass(frozen=True)
class OffPolicyMask(PolicyLoss):
    """A policy loss without the bad responses that the policy would no longer write.

    They stay in every denominator, and other losses still see them.

    Reads: advantages, old_logprobs, importance_weights, response_mask, loss_weights. Writes: nothing.
    Logs: the share of tokens that were left out.

    Source: DeepSeek-V3.2 2025, off-policy sequence masking (arXiv:2512.02556). Differs: what is
    judged is the policy at the time of the update against the one that wrote the response.
    """

    loss: PolicyLoss
    threshold: float = 0.5
    """Nats per token."""

    def per_token_loss(self, out: Outputs, batch: Batch) -> Float[Tensor, "B T"]:
        """The loss of each token, 0 where it was left out."""
        return torch.where(self._off_policy_mask(out, batch), 0.0, self.loss.per_token_loss(out, batch))

    def metrics(self, out: Outputs, batch: Batch) -> Mapping[str, Float[Tensor, "B T"]]:
        """What the loss inside shows, and which tokens were left out."""
        return {
            **self.loss.metrics(out, batch),
            "clip_fraction/off_policy_mask": self._off_policy_mask(out, batch).to(out.logprobs.dtype),
        }

    def _off_policy_mask(self, out: Outputs, batch: Batch) -> Tensor:
        advantage = scalar_advantages(batch.require("advantages"))
        return off_policy_mask(
            out.logprobs, batch.require("old_logprobs"), advantage, batch.response_mask, self.threshold
        )
