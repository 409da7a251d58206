"""What a response claims of itself is held against what it is worth."""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from paretune.batch import Batch
from paretune.credit.penalty import one_signal
from paretune.credit.step import Metrics, Step
from paretune.errors import WiringError

Form = Literal["difference", "threshold", "spread"]


def confidence_adjustment(
    reward: Float[Tensor, "*n"],
    confidence: Float[Tensor, "*n"],
    level: Float[Tensor, ""],
    w: float,
    form: Form = "difference",
) -> Float[Tensor, "*n"]:
    """What a stated confidence adds to a reward; 0 at a confidence of 1/2.

        "difference"   w (r - level) (c - 1/2)
        "threshold"    w |r| (c - 1/2) where r >= level, the negative of it elsewhere
        "spread"       the same with r in place of |r|

    Args:
        reward: r, of any scale.
        confidence: c, in [0, 1].
        level: What divides good from bad, in the units of the reward.
        w: How much confidence matters.
        form: Which of the three.

    Source: Leng et al. 2024, PPO-C (arXiv:2410.09724), and its code.
    """
    sure = confidence - 0.5
    if form == "difference":
        return w * (reward - level) * sure
    size = w * (reward.abs() if form == "threshold" else reward) * sure
    return torch.where(reward >= level, size, -size)


@dataclass(frozen=True)
class CalibrateByConfidence(Step):
    """The confident and good earn more, the confident and bad less; good and bad by a moving mean.

    The reward is first cut to +-`limit` and its moving mean updated with this batch, and only then compared.
    Stated confidence is one of the objectives: a score in [0, 1], NaN where a response states none. It needs
    no weight in the aggregator before this step; with one it pays twice. The other objectives should be
    scored on the response without its statement (`without_confidence`). The adjusted reward is not cut again;
    a `Clip` after this step does so, as the published code does.

    Reads: signal (one column), scores of the confidence. Writes: signal. State: the moving mean, NaN before
    the first reward. Reports: state/reward_level.

    Source: Leng et al. 2024, PPO-C (arXiv:2410.09724). Differs: the mean starts at that of the first batch,
    unless `start_at` says otherwise; an unscored reward stays NaN and is not remembered; a batch with too few
    rewards leaves the state as it is.
    """

    confidence: str = "confidence"
    """Name of the objective."""
    form: Form = "difference"
    """"spread" is the code's option to compare with the moving standard deviation of the rewards."""
    w: float = 2.0
    decay: float = 0.9
    """Share of the old mean that a batch leaves."""
    start_at: float | None = None
    """The mean before the first batch; the published code takes one stored with the reward model."""
    unstated: Literal["unadjusted", "worst", "unscored"] = "unadjusted"
    """A response that states none is left alone, gets the worse of both extremes, or counts as unscored.

    Left alone, a policy that knows itself to be bad escapes by saying nothing.
    """
    limit: float = 10.0

    def __post_init__(self) -> None:
        if not 0 <= self.decay < 1:
            raise WiringError(f"decay is {self.decay}; it must be in [0, 1)")
        if self.w < 0 or not self.limit > 0:
            raise WiringError(
                f"w is {self.w} and limit {self.limit}; neither may be negative, nor the limit 0"
            )

    def start(self) -> Float[Tensor, ""]:
        """The mean before the first batch."""
        return torch.tensor(torch.nan if self.start_at is None else self.start_at, dtype=torch.float64)

    def update(self, state: Float[Tensor, ""], reward: Float[Tensor, "B 1"]) -> Float[Tensor, ""]:
        """The moving mean after one more batch."""
        known = reward[~reward.isnan()].double()
        old = state.to(known.device)
        if known.numel() < (2 if self.form == "spread" else 1):
            return old
        seen = known.std() if self.form == "spread" else known.mean()
        return torch.where(old.isnan(), seen, self.decay * old + (1 - self.decay) * seen)

    def advance(
        self, batch: Batch, state: Float[Tensor, ""], rng: torch.Generator
    ) -> tuple[Batch, Float[Tensor, ""], Metrics]:
        """Remember the rewards, then adjust them."""
        one_signal(batch, "CalibrateByConfidence")
        stated = batch.column(self.confidence)[:, None]
        if ((stated < 0) | (stated > 1)).any():
            raise WiringError(
                f'CalibrateByConfidence reads the objective "{self.confidence}" as confidence and met '
                "a score outside [0, 1]; fix: scale it, or name the objective that is the confidence"
            )
        reward = batch.signal.clamp(-self.limit, self.limit)
        state = self.update(state, reward)
        # While no spread is known (one reward so far), nothing can be said to be good or bad.
        level = state.nan_to_num(0.0).to(reward.dtype)
        w = self.w if not state.isnan() else 0.0
        extra = confidence_adjustment(reward, stated.nan_to_num(0.5), level, w, self.form)
        if self.unstated == "worst":
            extreme = confidence_adjustment(reward, torch.ones_like(reward), level, w, self.form)
            extra = torch.where(stated.isnan(), -extreme.abs(), extra)
        if self.unstated == "unscored":
            extra = torch.where(stated.isnan(), torch.nan, extra)
        return batch.set(signal=reward + extra), state, {"state/reward_level": float(state)}
