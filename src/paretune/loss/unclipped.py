"""Policy losses that let go of far-off tokens gradually, or keep them with a bounded weight."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from paretune.batch import Batch, Outputs
from paretune.divergence import LIMIT
from paretune.errors import WiringError
from paretune.loss.policy import PolicyLoss, one_objective
from paretune.loss.ratio import Level, beyond, ratio_of


@dataclass(frozen=True)
class CappedRatio(PolicyLoss):
    """The likelihood of each token, weighted by its ratio as a constant: no token loses its gradient.

        loss_t = -sg[clip(r_t, least, most)] A_t log p(y_t)

    Reads: advantages, behaviour_logp, importance, respond, weight. Writes: nothing.
    Logs: the share of tokens whose weight was cut, and the extreme ratios.

    Source: MiniMax-M1 2025, eq. 4 and 5 (arXiv:2506.13585). Differs: the bounds are ratios, not distances
    from 1 ("1 + epsilon_high" there; TRL's `epsilon_high` is `most`).
    """

    most: float = 5.0
    least: float = 0.0
    level: Level = "token"

    def __post_init__(self) -> None:
        if not 0 <= self.least <= 1 <= self.most:
            raise WiringError(f"bounds of a ratio are {self.least} and {self.most}; 1 must lie between them")

    def per_token(self, out: Outputs, batch: Batch) -> Float[Tensor, "B T"]:
        """The loss of each token."""
        ratio = self._ratio(out, batch).clamp(self.least, self.most)
        return -ratio * one_objective(batch.need("advantages")) * out.logp

    def watch(self, out: Outputs, batch: Batch) -> Mapping[str, Float[Tensor, "B T"]]:
        """Whose weight was cut."""
        ratio = self._ratio(out, batch)
        return {
            "clip/low": (ratio < self.least).to(ratio.dtype),
            "clip/high": (ratio > self.most).to(ratio.dtype),
            **extremes(ratio, out, batch),
        }

    def _ratio(self, out: Outputs, batch: Batch) -> Tensor:
        return ratio_of(out.logp.detach(), batch.need("behaviour_logp"), batch.respond, self.level)


def soft_gate(
    ratio: Float[Tensor, "*n"], advantage: Float[Tensor, "*n"], up: float, down: float
) -> Float[Tensor, "*n"]:
    """-(4 / tau) sigmoid(tau (r - 1)) A, where tau is `up` for A > 0 and `down` elsewhere.

    At r = 1 its slope is that of -r A; it fades on both sides, sooner where tau is larger.

    Source: Gao et al. 2025, SAPO (arXiv:2511.20347).
    """
    tau = torch.where(advantage > 0, up, down).to(ratio.dtype)
    return -(4 / tau) * torch.sigmoid(tau * (ratio - 1)) * advantage


@dataclass(frozen=True)
class SoftGate(PolicyLoss):
    """A policy gradient that fades out smoothly as the ratio leaves 1, in place of clip bounds.

    Reads: advantages, behaviour_logp, importance, respond, weight. Writes: nothing.
    Logs: the extreme ratios.

    Source: Gao et al. 2025, SAPO (arXiv:2511.20347).
    """

    up: float = 1.0
    """Steepness for good tokens."""
    down: float = 1.05
    """Steepness for bad tokens: pushing one down lifts all others, so it fades sooner."""
    level: Level = "token"

    def __post_init__(self) -> None:
        if not (self.up > 0 and self.down > 0):
            raise WiringError(f"the steepness of a soft gate is {self.up} and {self.down}; both must be > 0")

    def per_token(self, out: Outputs, batch: Batch) -> Float[Tensor, "B T"]:
        """The loss of each token."""
        ratio = ratio_of(out.logp, batch.need("behaviour_logp"), batch.respond, self.level)
        return soft_gate(ratio, one_objective(batch.need("advantages")), self.up, self.down)

    def watch(self, out: Outputs, batch: Batch) -> Mapping[str, Float[Tensor, "B T"]]:
        """How far the ratios went."""
        ratio = ratio_of(out.logp.detach(), batch.need("behaviour_logp"), batch.respond, self.level)
        return extremes(ratio, out, batch)


def gamma_weight(
    gap: Float[Tensor, "B T"],
    advantage: Float[Tensor, "B T"],
    respond: Bool[Tensor, "B T"],
    up: tuple[float, float],
    down: tuple[float, float],
) -> Float[Tensor, "B T"]:
    """phi(w) = w^k exp(lambda (1 - w)), w the ratio of a whole response: 1 at w = 1, and 0 far from it.

    (k, lambda) is `up` where A >= 0 and `down` elsewhere. log w is the sum of the log-ratios, each cut to
    +-20, and is itself cut to [log 1e-8, 20].

    Source: VESPO 2026 (arXiv:2602.10693).
    """
    log_w = torch.where(respond, gap.clamp(-LIMIT, LIMIT), 0.0).sum(-1, keepdim=True)
    log_w = log_w.clamp(math.log(1e-8), LIMIT).expand_as(gap)
    k = torch.where(advantage >= 0, up[0], down[0]).to(gap.dtype)
    slope = torch.where(advantage >= 0, up[1], down[1]).to(gap.dtype)
    return (slope + k * log_w - slope * log_w.exp()).exp()


@dataclass(frozen=True)
class GammaWeighted(PolicyLoss):
    """The likelihood of each token, weighted by a smooth bump over the ratio of its whole response.

        loss_t = -sg[phi(w)] A_t log p(y_t)

    Reads: advantages, behaviour_logp, importance, respond, weight. Writes: nothing.
    Logs: the weights, and the extreme ratios of tokens.

    Source: VESPO 2026 (arXiv:2602.10693), with the constants of TRL 1.16.
    """

    up: tuple[float, float] = (2.0, 3.0)
    """Power and decay for good responses."""
    down: tuple[float, float] = (3.0, 2.0)
    """Power and decay for bad responses."""

    def per_token(self, out: Outputs, batch: Batch) -> Float[Tensor, "B T"]:
        """The loss of each token."""
        return -self._weight(out, batch) * one_objective(batch.need("advantages")) * out.logp

    def watch(self, out: Outputs, batch: Batch) -> Mapping[str, Float[Tensor, "B T"]]:
        """The weights."""
        ratio = ratio_of(out.logp.detach(), batch.need("behaviour_logp"), batch.respond, "token")
        return {"ratio/weight": self._weight(out, batch), **extremes(ratio, out, batch)}

    def _weight(self, out: Outputs, batch: Batch) -> Tensor:
        gap = out.logp.detach() - batch.need("behaviour_logp")
        return gamma_weight(gap, one_objective(batch.need("advantages")), batch.respond, self.up, self.down)


def extremes(ratio: Float[Tensor, "B T"], out: Outputs, batch: Batch) -> Mapping[str, Float[Tensor, "B T"]]:
    """What every loss on ratios logs of them."""
    cut = beyond(out.logp - batch.need("behaviour_logp"))
    return {"ratio/max": ratio, "ratio/min": ratio, "ratio/clamped": cut}
