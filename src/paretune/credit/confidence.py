"""What a response claims of itself is held against what it is worth."""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from paretune.batch import Batch
from paretune.credit.penalty import require_scalar
from paretune.credit.step import CreditStep, Metrics
from paretune.errors import WiringError

AdjustmentType = Literal["difference", "threshold", "spread"]


def confidence_adjustment(
    reward: Float[Tensor, "*n"],
    confidence: Float[Tensor, "*n"],
    baseline: Float[Tensor, ""],
    confidence_coef: float,
    adjustment_type: AdjustmentType = "difference",
) -> Float[Tensor, "*n"]:
    """What a stated confidence adds to a reward; 0 at a confidence of 1/2.

        "difference"   w (r - level) (c - 1/2)
        "threshold"    w |r| (c - 1/2) where r >= level, the negative of it elsewhere
        "spread"       the same with r in place of |r|

    Args:
        reward: r, of any scale.
        confidence: c, in [0, 1].
        baseline: What divides good from bad, in the units of the reward.
        confidence_coef: How much confidence matters.
        adjustment_type: Which of the three.

    Source: Leng et al. 2024, PPO-C (arXiv:2410.09724), and its code.
    """
    sure = confidence - 0.5
    if adjustment_type == "difference":
        return confidence_coef * (reward - baseline) * sure
    size = confidence_coef * (reward.abs() if adjustment_type == "threshold" else reward) * sure
    return torch.where(reward >= baseline, size, -size)


@dataclass(frozen=True)
class ConfidenceCalibratedReward(CreditStep):
    """The confident and good earn more, the confident and bad less; good and bad by a moving mean.

    The reward is first cut to +-`reward_clip` and its moving mean updated with this batch, and only then compared.
    Stated confidence is one of the objectives: a score in [0, 1], NaN where a response states none. It needs
    no weight in the aggregator before this step; with one it pays twice. The other objectives should be
    scored on the response without its statement (`without_confidence`). The adjusted reward is not cut again;
    a `Clip` after this step does so, as the published code does.

    Reads: rewards (one score_column), scores of the confidence. Writes: rewards. State: the moving mean, NaN before
    the first reward. Reports: state/reward_level.

    Source: Leng et al. 2024, PPO-C (arXiv:2410.09724). Differs: the mean starts at that of the first batch,
    unless `initial_baseline` says otherwise; an unscored reward stays NaN and is not remembered; a batch with too few
    rewards leaves the state as it is.
    """

    confidence_objective: str = "confidence"
    """Name of the objective."""
    adjustment_type: AdjustmentType = "difference"
    """"spread" is the code's option to compare with the moving standard deviation of the rewards."""
    confidence_coef: float = 2.0
    ema_decay: float = 0.9
    """Share of the old mean that a batch leaves."""
    initial_baseline: float | None = None
    """The mean before the first batch; the published code takes one stored with the reward model."""
    missing_confidence: Literal["unadjusted", "worst", "unscored"] = "unadjusted"
    """A response that states none is left alone, gets the worse of both extremes, or counts as unscored.

    Left alone, a policy that knows itself to be bad escapes by saying nothing.
    """
    reward_clip: float = 10.0

    def __post_init__(self) -> None:
        if not 0 <= self.ema_decay < 1:
            raise WiringError(f"decay is {self.ema_decay}; it must be in [0, 1)")
        if self.confidence_coef < 0 or not self.reward_clip > 0:
            raise WiringError(
                f"w is {self.confidence_coef} and limit {self.reward_clip}; neither may be negative, nor the limit 0"
            )

    def init_state(self) -> Float[Tensor, ""]:
        """The mean before the first batch."""
        return torch.tensor(
            torch.nan if self.initial_baseline is None else self.initial_baseline, dtype=torch.float64
        )

    def update(self, state: Float[Tensor, ""], reward: Float[Tensor, "B 1"]) -> Float[Tensor, ""]:
        """The moving mean after one more batch."""
        known = reward[~reward.isnan()].double()
        old = state.to(known.device)
        if known.numel() < (2 if self.adjustment_type == "spread" else 1):
            return old
        seen = known.std() if self.adjustment_type == "spread" else known.mean()
        return torch.where(old.isnan(), seen, self.ema_decay * old + (1 - self.ema_decay) * seen)

    def apply_stateful(
        self, batch: Batch, state: Float[Tensor, ""], rng: torch.Generator
    ) -> tuple[Batch, Float[Tensor, ""], Metrics]:
        """Remember the rewards, then adjust them."""
        require_scalar(batch, "CalibrateByConfidence")
        stated = batch.score_column(self.confidence_objective)[:, None]
        if ((stated < 0) | (stated > 1)).any():
            raise WiringError(
                f'CalibrateByConfidence reads the objective "{self.confidence_objective}" as confidence and met '
                "a score outside [0, 1]; fix: scale it, or name the objective that is the confidence"
            )
        reward = batch.rewards.clamp(-self.reward_clip, self.reward_clip)
        state = self.update(state, reward)
        # While no spread is known (one reward so far), nothing can be said to be good or bad.
        level = state.nan_to_num(0.0).to(reward.dtype)
        w = self.confidence_coef if not state.isnan() else 0.0
        extra = confidence_adjustment(reward, stated.nan_to_num(0.5), level, w, self.adjustment_type)
        if self.missing_confidence == "worst":
            extreme = confidence_adjustment(reward, torch.ones_like(reward), level, w, self.adjustment_type)
            extra = torch.where(stated.isnan(), -extreme.abs(), extra)
        if self.missing_confidence == "unscored":
            extra = torch.where(stated.isnan(), torch.nan, extra)
        return batch.replace(rewards=reward + extra), state, {"state/reward_level": float(state)}
