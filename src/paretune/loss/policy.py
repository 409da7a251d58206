"""Policy-gradient losses on the probability ratio: clipped surrogate, CISPO, SAPO, VESPO, off-policy mask."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from paretune.core.batch import Batch, Outputs
from paretune.core.errors import WiringError
from paretune.core.kl import MAX_LOG_RATIO
from paretune.core.reductions import row_mean
from paretune.loss.base import Loss

RatioLevel = Literal["token", "sequence", "sequence_token"]
"""One ratio per token; one per response; or that of the response in value, of the token in gradient."""


def clamp_log_ratio(log_ratio: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
    """Clamp the value of the log-ratio to +-MAX_LOG_RATIO, with the gradient of the unclamped one."""
    # Straight-through: beyond the bound exp would overflow, but the gradient must still pull the policy back.
    return log_ratio + (log_ratio.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO) - log_ratio).detach()


def outside_clip(log_ratio: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
    """1 where `clamp_log_ratio` clamps, else 0."""
    return (log_ratio.detach().abs() > MAX_LOG_RATIO).to(log_ratio.dtype)


def policy_log_ratio(
    logprobs: Float[Tensor, "B T"],
    old_logprobs: Float[Tensor, "B T"],
    response_mask: Bool[Tensor, "B T"],
    level: RatioLevel,
) -> Float[Tensor, "B T"]:
    """Log of the probability ratio at each token.

        token           d_t = log p(y_t) - log p_old(y_t)
        sequence        s = mean over the response of d_t, at each of its tokens
        sequence_token  the value of s with the gradient of d_t

    Source: Schulman et al. 2017, eq. 6 (arXiv:1707.06347); Zheng et al. 2025, GSPO, eq. 7 and 14
    (arXiv:2507.18071) for the two others.
    """
    log_ratio = logprobs - old_logprobs
    if level == "token":
        return log_ratio
    sequence = row_mean(log_ratio, response_mask)[:, None].expand_as(log_ratio)
    return sequence if level == "sequence" else sequence.detach() + (log_ratio - log_ratio.detach())


def policy_ratio(
    logprobs: Float[Tensor, "B T"],
    old_logprobs: Float[Tensor, "B T"],
    response_mask: Bool[Tensor, "B T"],
    level: RatioLevel,
) -> Float[Tensor, "B T"]:
    """The probability ratio at each token, from the clamped log-ratio."""
    return torch.exp(clamp_log_ratio(policy_log_ratio(logprobs, old_logprobs, response_mask, level)))


def scalar_advantages(advantages: Float[Tensor, "B T A"]) -> Float[Tensor, "B T"]:
    """The advantages, checked to be of one objective.

    Raises:
        WiringError: They are of several.
    """
    if advantages.shape[-1] != 1:
        raise WiringError(
            f"the advantages are of {advantages.shape[-1]} objectives and must be of 1; fix: add an "
            "aggregator (WeightedSum) to reward_steps or credit"
        )
    return advantages.squeeze(-1)


class PolicyLoss(Loss):
    """Base of policy losses: a loss per response token, multiplied by the importance weights, if any.

    Importance weights apply to policy losses only, so that masked tokens still have a KL penalty.
    """

    def per_token_loss(self, out: Outputs, batch: Batch) -> Float[Tensor, "B T"]:
        """The loss of each token, before importance weights and loss weights.

        Raises:
            WiringError: The subclass does not override this.
        """
        raise WiringError(f"{type(self).__name__} does not implement per_token_loss")

    def __call__(self, out: Outputs, batch: Batch) -> Float[Tensor, ""]:
        """The loss of these rows."""
        loss = self.per_token_loss(out, batch)
        if batch.importance_weights is not None:
            loss = loss * batch.importance_weights
        return (loss * batch.require("loss_weights")).sum()


def clipped_surrogate(
    ratio: Float[Tensor, "*n"],
    advantage: Float[Tensor, "*n"],
    clip_low: float,
    clip_high: float,
    dual_clip: float | None = None,
) -> Float[Tensor, "*n"]:
    """The clipped surrogate as a loss: -min(min(r, dual_clip) A, clip(r, 1 - clip_low, 1 + clip_high) A).

    `dual_clip` bounds the loss of a token with negative advantage, and has no effect on the others.

    Source: Schulman et al. 2017, eq. 7 (arXiv:1707.06347); two bounds as in Yu et al. 2025, DAPO, eq. 10
    (arXiv:2503.14476); `dual_clip` as in Ye et al. 2020, dual clip (arXiv:1912.09729), and INTELLECT-2 2025,
    two-sided clip (arXiv:2505.07291): for dual_clip >= 1 + clip_high both are the same function.
    """
    bounded = ratio if dual_clip is None else ratio.clamp(max=dual_clip)
    return -torch.minimum(bounded * advantage, ratio.clamp(1 - clip_low, 1 + clip_high) * advantage)


def off_policy_mask(
    logprobs: Float[Tensor, "B T"],
    old_logprobs: Float[Tensor, "B T"],
    advantage: Float[Tensor, "B T"],
    response_mask: Bool[Tensor, "B T"],
    threshold: float,
) -> Bool[Tensor, "B T"]:
    """Tokens with negative advantage in responses that have become off-policy.

    Those are responses whose mean of log p_old - log p exceeds `threshold`, in nats per token.

    Source: DeepSeek-V3.2 2025, off-policy sequence masking (arXiv:2512.02556).
    """
    off_policy = row_mean((old_logprobs - logprobs).detach(), response_mask) > threshold
    return off_policy[:, None] & (advantage < 0)


@dataclass(frozen=True)
class ClippedSurrogate(PolicyLoss):
    """The clipped policy-gradient surrogate.

    Reads: advantages, old_logprobs, importance_weights, response_mask, loss_weights. Writes: nothing.
    Logs: the share of tokens clipped at each bound, and the extreme ratios.

    Source: Schulman et al. 2017, eq. 7 (arXiv:1707.06347); Zheng et al. 2025 (arXiv:2507.18071) for the
    sequence levels, whose clip range must be much smaller; Ye et al. 2020 (arXiv:1912.09729) for
    `dual_clip`.
    """

    clip_low: float = 0.2
    clip_high: float = 0.2
    dual_clip: float | None = None
    """Largest ratio in the loss of a token with negative advantage; None: no bound."""
    level: RatioLevel = "token"

    def __post_init__(self) -> None:
        if not (0 <= self.clip_low <= 1 and self.clip_high >= 0):
            raise WiringError(
                f"clip_low is {self.clip_low} and clip_high {self.clip_high}; clip bounds must be >= 0, and "
                "clip_low at most 1"
            )
        if self.dual_clip is not None and not self.dual_clip >= 1 + self.clip_high:
            raise WiringError(
                f"dual_clip is {self.dual_clip}, below the clip bound 1 + clip_high = {1 + self.clip_high}; "
                "fix: set dual_clip to that or more"
            )

    def per_token_loss(self, out: Outputs, batch: Batch) -> Float[Tensor, "B T"]:
        """The loss of each token."""
        advantage = scalar_advantages(batch.require("advantages"))
        return clipped_surrogate(
            self._ratio(out.logprobs, batch), advantage, self.clip_low, self.clip_high, self.dual_clip
        )

    def metrics(self, out: Outputs, batch: Batch) -> Mapping[str, Float[Tensor, "B T"]]:
        """Clipped tokens and ratios."""
        ratio = self._ratio(out.logprobs.detach(), batch)
        advantage = scalar_advantages(batch.require("advantages"))
        metrics = {
            "clip_fraction/low": ((ratio < 1 - self.clip_low) & (advantage < 0)).to(ratio.dtype),
            "clip_fraction/high": ((ratio > 1 + self.clip_high) & (advantage > 0)).to(ratio.dtype),
            "ratio/max": ratio,
            "ratio/min": ratio,
            "ratio/clamped": outside_clip(out.logprobs - batch.require("old_logprobs")),
        }
        if self.dual_clip is not None:
            metrics["clip_fraction/dual"] = ((ratio > self.dual_clip) & (advantage < 0)).to(ratio.dtype)
        return metrics

    def _ratio(self, logprobs: Tensor, batch: Batch) -> Tensor:
        return clamp_log_ratio(
            policy_log_ratio(logprobs, batch.require("old_logprobs"), batch.response_mask, self.level)
        ).exp()


@dataclass(frozen=True)
class OffPolicyMask(PolicyLoss):
    """A policy loss that masks off-policy responses with negative advantage.

    They stay in every denominator, and in other losses.

    Reads: advantages, old_logprobs, importance_weights, response_mask, loss_weights. Writes: nothing.
    Logs: the share of masked tokens.

    Source: DeepSeek-V3.2 2025, off-policy sequence masking (arXiv:2512.02556). Differs: compares the policy
    at the time of the update with the one that sampled the response.
    """

    loss: PolicyLoss
    threshold: float = 0.5
    """Nats per token."""

    def per_token_loss(self, out: Outputs, batch: Batch) -> Float[Tensor, "B T"]:
        """The loss of each token, 0 where masked."""
        return torch.where(self._off_policy_mask(out, batch), 0.0, self.loss.per_token_loss(out, batch))

    def metrics(self, out: Outputs, batch: Batch) -> Mapping[str, Float[Tensor, "B T"]]:
        """The metrics of the wrapped loss, and the masked tokens."""
        return {
            **self.loss.metrics(out, batch),
            "clip_fraction/off_policy_mask": self._off_policy_mask(out, batch).to(out.logprobs.dtype),
        }

    def _off_policy_mask(self, out: Outputs, batch: Batch) -> Tensor:
        advantage = scalar_advantages(batch.require("advantages"))
        return off_policy_mask(
            out.logprobs, batch.require("old_logprobs"), advantage, batch.response_mask, self.threshold
        )


@dataclass(frozen=True)
class ClippedIsWeight(PolicyLoss):
    """CISPO: the log-likelihood of each token, weighted by its clipped ratio; no token loses its gradient.

        loss_t = -sg[clip(r_t, min_ratio, max_ratio)] A_t log p(y_t)

    Reads: advantages, old_logprobs, importance_weights, response_mask, loss_weights. Writes: nothing.
    Logs: the share of tokens whose weight was clipped, and the extreme ratios.

    Source: MiniMax-M1 2025, eq. 4 and 5 (arXiv:2506.13585). Differs: the bounds are ratios, not distances
    from 1 ("1 + epsilon_high" there; TRL's `epsilon_high` is `max_ratio`).
    """

    max_ratio: float = 5.0
    min_ratio: float = 0.0
    level: RatioLevel = "token"

    def __post_init__(self) -> None:
        if not 0 <= self.min_ratio <= 1 <= self.max_ratio:
            raise WiringError(
                f"min_ratio is {self.min_ratio} and max_ratio {self.max_ratio}; 1 must lie between them"
            )

    def per_token_loss(self, out: Outputs, batch: Batch) -> Float[Tensor, "B T"]:
        """The loss of each token."""
        ratio = self._ratio(out, batch).clamp(self.min_ratio, self.max_ratio)
        return -ratio * scalar_advantages(batch.require("advantages")) * out.logprobs

    def metrics(self, out: Outputs, batch: Batch) -> Mapping[str, Float[Tensor, "B T"]]:
        """Clipped weights and ratios."""
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

    At r = 1 its gradient is that of -r A; it decays on both sides, faster for larger tau.

    Source: Gao et al. 2025, SAPO (arXiv:2511.20347).
    """
    tau = torch.where(advantage > 0, tau_pos, tau_neg).to(ratio.dtype)
    return -(4 / tau) * torch.sigmoid(tau * (ratio - 1)) * advantage


@dataclass(frozen=True)
class SoftClip(PolicyLoss):
    """SAPO: a policy gradient that decays smoothly as the ratio moves away from 1, instead of clipping.

    Reads: advantages, old_logprobs, importance_weights, response_mask, loss_weights. Writes: nothing.
    Logs: the extreme ratios.

    Source: Gao et al. 2025, SAPO (arXiv:2511.20347).
    """

    tau_pos: float = 1.0
    """Temperature for tokens with positive advantage; larger decays faster."""
    tau_neg: float = 1.05
    """The same for other tokens: lowering one token raises all others, so it decays faster."""
    level: RatioLevel = "token"

    def __post_init__(self) -> None:
        if not (self.tau_pos > 0 and self.tau_neg > 0):
            raise WiringError(
                f"SoftClip has tau_pos {self.tau_pos} and tau_neg {self.tau_neg}; both must be > 0"
            )

    def per_token_loss(self, out: Outputs, batch: Batch) -> Float[Tensor, "B T"]:
        """The loss of each token."""
        ratio = policy_ratio(out.logprobs, batch.require("old_logprobs"), batch.response_mask, self.level)
        return soft_clip(ratio, scalar_advantages(batch.require("advantages")), self.tau_pos, self.tau_neg)

    def metrics(self, out: Outputs, batch: Batch) -> Mapping[str, Float[Tensor, "B T"]]:
        """The ratios."""
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
    """phi(w) = w^k exp(lambda (1 - w)), w the ratio of a whole response: 1 at w = 1, 0 far from it.

    (k, lambda) is `k_lambda_pos` where A >= 0 and `k_lambda_neg` elsewhere. log w is the sum of the
    log-ratios, each clamped to +-20, and is itself clamped to [log 1e-8, 20].

    Source: VESPO 2026 (arXiv:2602.10693).
    """
    log_w = torch.where(response_mask, log_ratio.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO), 0.0).sum(
        -1, keepdim=True
    )
    # The bound of TRL 1.16.
    log_w = log_w.clamp(math.log(1e-8), MAX_LOG_RATIO).expand_as(log_ratio)
    k = torch.where(advantage >= 0, k_lambda_pos[0], k_lambda_neg[0]).to(log_ratio.dtype)
    decay = torch.where(advantage >= 0, k_lambda_pos[1], k_lambda_neg[1]).to(log_ratio.dtype)
    return (decay + k * log_w - decay * log_w.exp()).exp()


@dataclass(frozen=True)
class GammaWeight(PolicyLoss):
    """VESPO: the log-likelihood of each token, weighted by a gamma-shaped function of its response's ratio.

        loss_t = -sg[phi(w)] A_t log p(y_t)

    Reads: advantages, old_logprobs, importance_weights, response_mask, loss_weights. Writes: nothing.
    Logs: the weights, and the extreme ratios of tokens.

    Source: VESPO 2026 (arXiv:2602.10693), with the constants of TRL 1.16.
    """

    k_lambda_pos: tuple[float, float] = (2.0, 3.0)
    """Power k and decay lambda for non-negative advantages."""
    k_lambda_neg: tuple[float, float] = (3.0, 2.0)
    """Power k and decay lambda for negative advantages."""

    def per_token_loss(self, out: Outputs, batch: Batch) -> Float[Tensor, "B T"]:
        """The loss of each token."""
        return -self._weight(out, batch) * scalar_advantages(batch.require("advantages")) * out.logprobs

    def metrics(self, out: Outputs, batch: Batch) -> Mapping[str, Float[Tensor, "B T"]]:
        """The weights and ratios."""
        ratio = policy_ratio(
            out.logprobs.detach(), batch.require("old_logprobs"), batch.response_mask, "token"
        )
        return {"ratio/mean_loss_weight": self._weight(out, batch), **ratio_metrics(ratio, out, batch)}

    def _weight(self, out: Outputs, batch: Batch) -> Tensor:
        log_ratio = out.logprobs.detach() - batch.require("old_logprobs")
        return gamma_weight(
            log_ratio,
            scalar_advantages(batch.require("advantages")),
            batch.response_mask,
            self.k_lambda_pos,
            self.k_lambda_neg,
        )


def ratio_metrics(
    ratio: Float[Tensor, "B T"], out: Outputs, batch: Batch
) -> Mapping[str, Float[Tensor, "B T"]]:
    """Extremes of the ratios, and clamped log-ratios."""
    clamped = outside_clip(out.logprobs - batch.require("old_logprobs"))
    return {"ratio/max": ratio, "ratio/min": ratio, "ratio/clamped": clamped}
