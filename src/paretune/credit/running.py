"""A scale that remembers: signals measured against all that was seen before."""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from paretune.batch import Batch
from paretune.credit.step import CreditStep, Metrics
from paretune.errors import WiringError
from paretune.reduce import ZERO_STD_RTOL

StdEstimator = Literal["sample", "population"]
MomentsMode = Literal["exact", "inflated", "fading"]


@dataclass(frozen=True)
class RunningMoments:
    """How many numbers were seen, their mean and their variance, each for every column."""

    count: Float[Tensor, "*j"]
    mean: Float[Tensor, "*j"]
    var: Float[Tensor, "*j"]


def batch_moments(x: Float[Tensor, "B J"], std_estimator: StdEstimator) -> RunningMoments:
    """Moments of the scored rows of a batch; a single number has variance 0."""
    known = ~x.isnan()
    num = known.sum(0).to(x.dtype)
    mean = torch.where(known, x, 0.0).sum(0) / num.clamp(min=1)
    squares = torch.where(known, (x - mean).square(), 0.0).sum(0)
    return RunningMoments(num, mean, squares / (num - 1 if std_estimator == "sample" else num).clamp(min=1))


def merge_moments(old: RunningMoments, new: RunningMoments) -> RunningMoments:
    """The moments of both together, exact for population variances.

    Source: Chan et al. 1979, as in `RunningMoments` of MOSS-RLHF and `RunningMeanStd` of Safe RLHF.
    """
    num = old.count + new.count
    share, gap = new.count / num.clamp(min=1), new.mean - old.mean
    var = (old.var * old.count + new.var * new.count) / num.clamp(min=1) + gap.square() * share * (1 - share)
    return RunningMoments(num, old.mean + gap * share, torch.where(num > 0, var, old.var))


def decay_moments(old: RunningMoments, new: RunningMoments, ema_decay: float) -> RunningMoments:
    """Old moments fade by `ema_decay` a batch; a batch without numbers changes nothing.

    Source: `ExponentialMovingAverage` of Safe RLHF.
    """
    keep = torch.where(new.count > 0, ema_decay, 1.0)
    mean, var = (keep * a + (1 - keep) * b for a, b in ((old.mean, new.mean), (old.var, new.var)))
    return RunningMoments(old.count + new.count, mean, var)


@dataclass(frozen=True)
class RunningNormalize(CreditStep):
    """Measure the signal in standard deviations of everything seen up to now, this batch included.

        s = (s - mean) / (std + eps),  or with mean "kept"  s / (std + eps)

    memory "exact": the statistics of all signals, with the sample form of the standard deviation.
    "inflated": sample variances merged as if they were population variances, slightly too large. "fading":
    a moving average that starts at mean 0 and variance 1. While no spread is known (one number, or equal
    ones) the signal is 0 in the exact form. Unscored rows (NaN) stay NaN and are not remembered. Before a
    group z-score it changes nothing unless a Clip comes between.

    Reads: rewards. Writes: rewards. State: Moments of each score_column, in float64.
    Reports: state/running_mean and state/running_std, when there is one column.

    Source: Zheng et al. 2023, PPO-max, section 5.3.1 (arXiv:2307.04964); MOSS-RLHF for "exact", Safe RLHF
    (arXiv:2310.12773) for the others. Differs: a batch of one, or of equal signals, poisons nothing.
    """

    shift_mean: Literal["removed", "kept"] = "removed"
    moments_mode: MomentsMode = "exact"
    ema_decay: float = 0.9
    """Share of the old average that a batch leaves, for memory "fading"."""
    eps: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.ema_decay < 1:
            raise WiringError(f"momentum is {self.ema_decay}; it must be in [0, 1)")

    def init_state(self) -> RunningMoments:
        """Nothing seen."""
        zero = torch.zeros((), dtype=torch.float64)
        return RunningMoments(zero, zero, zero if self.moments_mode == "exact" else zero + 1)

    def update(self, state: RunningMoments, x: Float[Tensor, "B J"]) -> RunningMoments:
        """The moments after one more batch."""
        old = RunningMoments(*(v.to(x.device) for v in (state.count, state.mean, state.var)))
        new = batch_moments(x.double(), "population" if self.moments_mode == "exact" else "sample")
        return (
            decay_moments(old, new, self.ema_decay)
            if self.moments_mode == "fading"
            else merge_moments(old, new)
        )

    def std(self, state: RunningMoments) -> Float[Tensor, "*j"]:
        """The standard deviation of what was seen; infinite while no spread is known."""
        if self.moments_mode != "exact":
            return state.var.sqrt()
        std = (state.var * state.count / (state.count - 1).clamp(min=1)).sqrt()
        return torch.where(std > ZERO_STD_RTOL * state.mean.abs(), std, torch.inf)

    def apply_stateful(
        self, batch: Batch, state: RunningMoments, rng: torch.Generator
    ) -> tuple[Batch, RunningMoments, Metrics]:
        """Remember the batch, then scale it."""
        state = self.update(state, batch.rewards)
        std = self.std(state)
        moved = batch.rewards - state.mean if self.shift_mean == "removed" else batch.rewards
        signal = (moved / (std + self.eps)).to(batch.rewards.dtype)
        metrics: Metrics = {}
        if std.numel() == 1:
            metrics = {"state/running_mean": float(state.mean), "state/running_std": float(std)}
        return batch.replace(rewards=signal), state, metrics
