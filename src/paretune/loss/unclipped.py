"""Policy losses that let go of far-off tokens gradually, or keep them with a bounded weight."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from paretune.batch import Batch, Outputs
from paretune.divergence import MAX_LOG_RATIO
from paretune.errors import WiringError
from paretune.loss.policy import PolicyLoss, scalar_advantages
from paretune.loss.ratio import RatioLevel, outside_clip, policy_ratio


@dataclass(frozen=True)
class ClippedIsWeight(PolicyLoss):
    """The likelihood of each token, weighted by its ratio as a constant: no token loses its gradient.

        loss_t = -sg[clip(r_t, least, most)] A_t log p(y_t)

    Reads: advantages, old_logprobs, importance_weights, response_mask, loss_weights. Writes: nothing.
    Logs: the share of tokens whose weight was cut, and the extreme ratios.

    Source: MiniMax-M1 2025, eq. 4 and 5 (arXiv:2506.13585). Differs: the bounds are ratios, not distances
    from 1 ("1 + epsilon_high" there; TRL's `epsilon_high` is `max_ratio`).
    """

    max_ratio: float = 5.0
    min_ratio: float = 0.0
    level: RatioLevel = "token"

    def __post_init__(self) -> None:
        if not 0 <= self.min_ratio <= 1 <= self.max_ratio:
            raise WiringError(
                f"bounds of a ratio are {self.min_ratio} and {self.max_ratio}; 1 must lie between them"
            )

    def per_token_loss(self, out: Outputs, batch: Batch) -> Float[Tensor, "B T"]:
        """The loss of each token."""
        ratio = self._ratio(out, batch).clamp(self.min_ratio, self.max_ratio)
        return -ratio * scalar_advantages(batch.require("advantages")) * out.logprobs

    def metrics(self, out: Outputs, batch: Batch) -> Mapping[str, Float[Tensor, "B T"]]:
        """Whose weight was cut."""
        ratio = self._ratio(out, batch)
        return {
            "clip_fraction/low": (ratio < self.min_ratio).to(ratio.dtype),
            "clip_fraction/high": (ratio > self.max_ratio).to(ratio.dtype),
            **ratio_metrics(ratio, out, batch),
        }

    def _ratio(self, out: Outputs, batch: Batch) -> Tensor:
        return policy_ratio(
            out.logprobs.detach(), batch.require("old_logprobs"), batch.response_mask, self.level
        )


def soft_clip(
    ratio: Float[Tensor, "*n"], advantage: Float[Tensor, "*n"], tau_pos: float, tau_neg: float
) -> Float[Tensor, "*n"]:
    """-(4 / tau) sigmoid(tau (r - 1)) A, where tau is `tau_pos` for A > 0 and `tau_neg` elsewhere.

    At r = 1 its slope is that of -r A; it fades on both sides, sooner where tau is larger.

    Source: Gao et al. 2025, SAPO (arXiv:2511.20347).
    """
    tau = torch.where(advantage > 0, tau_pos, tau_neg).to(ratio.dtype)
    return -(4 / tau) * torch.sigmoid(tau * (ratio - 1)) * advantage


@dataclass(frozen=True)
class SoftClip(PolicyLoss):
    """A policy gradient that fades out smoothly as the ratio leaves 1, in place of clip bounds.

    Reads: advantages, old_logprobs, importance_weights, response_mask, loss_weights. Writes: nothing.
    Logs: the extreme ratios.

    Source: Gao et al. 2025, SAPO (arXiv:2511.20347).
    """

    tau_pos: float = 1.0
    """Steepness for good tokens."""
    tau_neg: float = 1.05
    """Steepness for bad tokens: pushing one down lifts all others, so it fades sooner."""
    level: RatioLevel = "token"

    def __post_init__(self) -> None:
        if not (self.tau_pos > 0 and self.tau_neg > 0):
            raise WiringError(
                f"the steepness of a soft gate is {self.tau_pos} and {self.tau_neg}; both must be > 0"
            )

    def per_token_loss(self, out: Outputs, batch: Batch) -> Float[Tensor, "B T"]:
        """The loss of each token."""
        ratio = policy_ratio(out.logprobs, batch.require("old_logprobs"), batch.response_mask, self.level)
        return soft_clip(ratio, scalar_advantages(batch.require("advantages")), self.tau_pos, self.tau_neg)

    def metrics(self, out: Outputs, batch: Batch) -> Mapping[str, Float[Tensor, "B T"]]:
        """How far the ratios went."""
        ratio = policy_ratio(
            out.logprobs.detach(), batch.require("old_logprobs"), batch.response_mask, self.level
        )
        return ratio_metrics(ratio, out, batch)


def gamma_weight(
    log_ratio: Float[Tensor, "B T"],
    advantage: Float[Tensor, "B T"],
    response_mask: Bool[Tensor, "B T"],
    k_lambda_pos: tuple[float, float],
    k_lambda_neg: tuple[float, float],
) -> Float[Tensor, "B T"]:
    """phi(w) = w^k exp(lambda (1 - w)), w the ratio of a whole response: 1 at w = 1, and 0 far from it.

    (k, lambda) is `k_lambda_pos` where A >= 0 and `k_lambda_neg` elsewhere. log w is the sum of the log-ratios, each cut to
    +-20, and is itself cut to [log 1e-8, 20].

    Source: VESPO 2026 (arXiv:2602.10693).
    """
    log_w = torch.where(response_mask, log_ratio.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO), 0.0).sum(
        -1, keepdim=True
    )
    log_w = log_w.clamp(math.log(1e-8), MAX_LOG_RATIO).expand_as(log_ratio)
    k = torch.where(advantage >= 0, k_lambda_pos[0], k_lambda_neg[0]).to(log_ratio.dtype)
    slope = torch.where(advantage >= 0, k_lambda_pos[1], k_lambda_neg[1]).to(log_ratio.dtype)
    return (slope + k * log_w - slope * log_w.exp()).exp()


@dataclass(frozen=True)
class GammaWeight(PolicyLoss):
    """The likelihood of each token, weighted by a smooth bump over the ratio of its whole response.

        loss_t = -sg[phi(w)] A_t log p(y_t)

    Reads: advantages, old_logprobs, importance_weights, response_mask, loss_weights. Writes: nothing.
    Logs: the weights, and the extreme ratios of tokens.

    Source: VESPO 2026 (arXiv:2602.10693), with the constants of TRL 1.16.
    """

    k_lambda_pos: tuple[float, float] = (2.0, 3.0)
    """Power and decay for good responses."""
    k_lambda_neg: tuple[float, float] = (3.0, 2.0)
    """Power and decay for bad responses."""

    def per_token_loss(self, out: Outputs, batch: Batch) -> Float[Tensor, "B T"]:
        """The loss of each token."""
        return -self._weight(out, batch) * scalar_advantages(batch.require("advantages")) * out.logprobs

    def metrics(self, out: Outputs, batch: Batch) -> Mapping[str, Float[Tensor, "B T"]]:
        """The weights."""
        ratio = policy_ratio(
            out.logprobs.detach(), batch.require("old_logprobs"), batch.response_mask, "token"
        )
        return {"ratio/mean_loss_weight": self._weight(out, batch), **ratio_metrics(ratio, out, batch)}

    def _weight(self, out: Outputs, batch: Batch) -> Tensor:
        gap = out.logprobs.detach() - batch.require("old_logprobs")
        return gamma_weight(
            gap,
            scalar_advantages(batch.require("advantages")),
            batch.response_mask,
            self.k_lambda_pos,
            self.k_lambda_neg,
        )


def ratio_metrics(
    ratio: Float[Tensor, "B T"], out: Outputs, batch: Batch
) -> Mapping[str, Float[Tensor, "B T"]]:
    """What every loss on ratios logs of them."""
    cut = outside_clip(out.logprobs - batch.require("old_logprobs"))
    return {"ratio/max": ratio, "ratio/min": ratio, "ratio/clamped": cut}
