"""A scale that remembers: signals measured against all that was seen before."""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from paretune.batch import Batch
from paretune.credit.step import Metrics, Step
from paretune.errors import WiringError
from paretune.reduce import FLAT

Form = Literal["sample", "population"]
Memory = Literal["exact", "inflated", "fading"]


@dataclass(frozen=True)
class Moments:
    """How many numbers were seen, their mean and their variance, each for every column."""

    num: Float[Tensor, "*j"]
    mean: Float[Tensor, "*j"]
    var: Float[Tensor, "*j"]


def batch_moments(x: Float[Tensor, "B J"], form: Form) -> Moments:
    """Moments of the scored rows of a batch; a single number has variance 0."""
    known = ~x.isnan()
    num = known.sum(0).to(x.dtype)
    mean = torch.where(known, x, 0.0).sum(0) / num.clamp(min=1)
    squares = torch.where(known, (x - mean).square(), 0.0).sum(0)
    return Moments(num, mean, squares / (num - 1 if form == "sample" else num).clamp(min=1))


def merged(old: Moments, new: Moments) -> Moments:
    """The moments of both together, exact for population variances.

    Source: Chan et al. 1979, as in `RunningMoments` of MOSS-RLHF and `RunningMeanStd` of Safe RLHF.
    """
    num = old.num + new.num
    share, gap = new.num / num.clamp(min=1), new.mean - old.mean
    var = (old.var * old.num + new.var * new.num) / num.clamp(min=1) + gap.square() * share * (1 - share)
    return Moments(num, old.mean + gap * share, torch.where(num > 0, var, old.var))


def faded(old: Moments, new: Moments, momentum: float) -> Moments:
    """Old moments fade by `momentum` a batch; a batch without numbers changes nothing.

    Source: `ExponentialMovingAverage` of Safe RLHF.
    """
    keep = torch.where(new.num > 0, momentum, 1.0)
    mean, var = (keep * a + (1 - keep) * b for a, b in ((old.mean, new.mean), (old.var, new.var)))
    return Moments(old.num + new.num, mean, var)


@dataclass(frozen=True)
class RunningScale(Step):
    """Measure the signal in standard deviations of everything seen up to now, this batch included.

        s = (s - mean) / (std + eps),  or with mean "kept"  s / (std + eps)

    memory "exact": the statistics of all signals, with the sample form of the standard deviation.
    "inflated": sample variances merged as if they were population variances, slightly too large. "fading":
    a moving average that starts at mean 0 and variance 1. While no spread is known (one number, or equal
    ones) the signal is 0 in the exact form. Unscored rows (NaN) stay NaN and are not remembered. Before a
    group z-score it changes nothing unless a Clip comes between.

    Reads: signal. Writes: signal. State: Moments of each column, in float64.
    Reports: state/running_mean and state/running_std, when there is one column.

    Source: Zheng et al. 2023, PPO-max, section 5.3.1 (arXiv:2307.04964); MOSS-RLHF for "exact", Safe RLHF
    (arXiv:2310.12773) for the others. Differs: a batch of one, or of equal signals, poisons nothing.
    """

    mean: Literal["removed", "kept"] = "removed"
    memory: Memory = "exact"
    momentum: float = 0.9
    """Share of the old average that a batch leaves, for memory "fading"."""
    eps: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.momentum < 1:
            raise WiringError(f"momentum is {self.momentum}; it must be in [0, 1)")

    def start(self) -> Moments:
        """Nothing seen."""
        zero = torch.zeros((), dtype=torch.float64)
        return Moments(zero, zero, zero if self.memory == "exact" else zero + 1)

    def update(self, state: Moments, x: Float[Tensor, "B J"]) -> Moments:
        """The moments after one more batch."""
        old = Moments(*(v.to(x.device) for v in (state.num, state.mean, state.var)))
        new = batch_moments(x.double(), "population" if self.memory == "exact" else "sample")
        return faded(old, new, self.momentum) if self.memory == "fading" else merged(old, new)

    def std(self, state: Moments) -> Float[Tensor, "*j"]:
        """The standard deviation of what was seen; infinite while no spread is known."""
        if self.memory != "exact":
            return state.var.sqrt()
        std = (state.var * state.num / (state.num - 1).clamp(min=1)).sqrt()
        return torch.where(std > FLAT * state.mean.abs(), std, torch.inf)

    def advance(self, batch: Batch, state: Moments, rng: torch.Generator) -> tuple[Batch, Moments, Metrics]:
        """Remember the batch, then scale it."""
        state = self.update(state, batch.signal)
        std = self.std(state)
        moved = batch.signal - state.mean if self.mean == "removed" else batch.signal
        signal = (moved / (std + self.eps)).to(batch.signal.dtype)
        metrics: Metrics = {}
        if std.numel() == 1:
            metrics = {"state/running_mean": float(state.mean), "state/running_std": float(std)}
        return batch.set(signal=signal), state, metrics
