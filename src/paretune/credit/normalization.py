"""A scale that remembers: signals measured against all that was seen before.

Advantages: who did better than expected, response by response.

One scale for all response tokens, each token counted once.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from paretune.core.batch import Batch
from paretune.core.errors import WiringError
from paretune.core.reductions import (
    ZERO_STD_RTOL,
    group_count,
    group_mean,
    group_std,
    masked_mean,
    masked_var,
)
from paretune.credit.base import CreditStep, Metrics

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


def group_normalize(
    x: Float[Tensor, "B J"],
    group: Int[Tensor, " B"],
    scale_rewards: Literal["std", "batch", "none"],
    std_estimator: StdEstimator = "sample",
    eps: float = 1e-4,
    zero_std_rtol: float = ZERO_STD_RTOL,
) -> Float[Tensor, "B J"]:
    """(x - mean) / (std + eps) within each group, or x - mean; exactly 0 in a flat group; NaN stays NaN.

    "batch" divides by the standard deviation of the whole batch, so that a group of small spread stays small.

    Source: Shao et al. 2024, section 4.1.2 (arXiv:2402.03300). Differs: the paper names neither the form of
    the standard deviation nor eps; both are arguments, and rounding noise in a flat group is not blown up.
    """
    std = group_std(x, group, std_estimator, zero_std_rtol)
    centred = x - group_mean(x, group)
    scaled = centred / (std + eps) if scale_rewards == "std" else centred
    if scale_rewards == "batch":
        scaled = centred / (group_std(x, torch.zeros_like(group), std_estimator, zero_std_rtol) + eps)
    return torch.where((std == 0) & ~x.isnan(), 0.0, scaled)


def leave_one_out(
    x: Float[Tensor, "B J"], group: Int[Tensor, " B"], scale_rewards: Literal["std", "none"] = "none"
) -> Float[Tensor, "B J"]:
    """Subtract the mean of the others of the group; exactly 0 in a flat group and alone; NaN stays NaN.

    "std" divides by the sample standard deviation of the others, where they differ at all.

    Source: Ahmadian et al. 2024, RLOO (arXiv:2402.14740); "std" as in NeMo-RL's GDPO estimator. Differs: two
    passes for the spread of the others, so that a large mean does not cancel it.
    """
    count, mean = group_count(x, group), group_mean(x, group)
    away = (x - mean) * count / (count - 1).clamp(min=1)
    if scale_rewards == "std":
        std = _leave_one_out_std(x, x - away, group)
        away = torch.where(std > ZERO_STD_RTOL * away.abs(), away / std, away)
    return torch.where((group_std(x, group) == 0) & ~x.isnan(), 0.0, away)


def _leave_one_out_std(
    x: Float[Tensor, "B J"], others_mean: Float[Tensor, "B J"], group: Int[Tensor, " B"]
) -> Float[Tensor, "B J"]:
    """Sample standard deviation of the others of each row's group about their mean; 0 for fewer than two."""
    std = torch.zeros_like(x)
    for label in group.unique():
        rows = (group == label).nonzero().squeeze(-1)
        squares = (x[rows][None] - others_mean[rows][:, None]).square()
        known = ~squares.isnan() & ~torch.eye(len(rows), dtype=torch.bool, device=x.device)[..., None]
        std[rows] = (torch.where(known, squares, 0.0).sum(1) / (known.sum(1) - 1).clamp(min=1)).sqrt()
    return std


@dataclass(frozen=True)
class GroupNormalize(CreditStep):
    """Compare each response with the others of its prompt, objective by objective.

        A = (s - mean of the group) / (std + eps)

    divide "std": in standard deviations of the group (GRPO); "batch": of the whole batch (Lite-PPO);
    "none": in the units of the signal (Dr. GRPO). A group without spread gets 0. Unscored rows (NaN) stay
    NaN and count in no mean.

    Reads: rewards, group. Writes: rewards.

    Source: Shao et al. 2024, section 4.1.2 (arXiv:2402.03300); Liu et al. 2025 (arXiv:2503.20783) for
    "none"; Liu et al. 2025, Lite PPO (arXiv:2508.08221) for "batch". Differs: the standard deviation is the
    sample form (n - 1), as in reference implementations; a spread of rounding size is none.
    """

    scale_rewards: Literal["std", "batch", "none"] = "std"
    std_estimator: StdEstimator = "sample"
    eps: float = 1e-4
    """Added to the standard deviation, in the units of the signal."""
    zero_std_rtol: float = ZERO_STD_RTOL
    """A group whose spread is at most this share of its largest magnitude is flat; 0: only an equal one."""
    singleton: Literal["zero", "raw"] = "zero"
    """What a group of one gets: nothing, or its raw signal, as in verl."""

    def apply(self, batch: Batch) -> Batch:
        """Normalise the signal within each group."""
        x, group = batch.rewards, batch.group
        signal = group_normalize(
            x, group, self.scale_rewards, self.std_estimator, self.eps, self.zero_std_rtol
        )
        if self.singleton == "raw":
            raw = x / (1 + self.eps) if self.scale_rewards == "std" else x
            signal = torch.where(group_count(x, group) == 1, raw, signal)
        return batch.replace(rewards=signal)


@dataclass(frozen=True)
class LeaveOneOut(CreditStep):
    """Compare each response with the mean of the others of its prompt.

        A_i = s_i - mean of s_j over j != i  =  G / (G - 1) * (s_i - mean)

    divide "std" divides by the spread of the others; the advantages of a group then do not add up to 0. A
    group of one, and a flat one, gets 0. Unscored rows (NaN) stay NaN and are nobody's baseline.

    Reads: rewards, group. Writes: rewards.

    Source: Ahmadian et al. 2024, RLOO (arXiv:2402.14740); "std" as in NeMo-RL's GDPO estimator. Differs:
    verl gives a group of one its raw signal.
    """

    scale_rewards: Literal["std", "none"] = "none"

    def apply(self, batch: Batch) -> Batch:
        """Subtract the mean of the others."""
        return batch.replace(rewards=leave_one_out(batch.rewards, batch.group, self.scale_rewards))


@dataclass(frozen=True)
class BatchNormalize(CreditStep):
    """One scale for the whole batch, each response counted once, objective by objective.

        A = s / (std of the batch + eps),  or with mean "removed"  (s - mean of the batch) / (std + eps)

    With "kept" a signal of 0 stays 0: a prompt that teaches nothing gets no push from the others. A batch
    without spread gets 0 everywhere. Unscored rows (NaN) stay NaN and count in no statistic.

    Reads: rewards. Writes: rewards.

    Source: Liu et al. 2026, GDPO, eq. 6 (arXiv:2601.05242), which is "removed". Differs: the default only
    scales, since group means are 0 already unless a score is missing, and then shifting pushes where nothing
    was learnt.
    """

    shift_mean: Literal["kept", "removed"] = "kept"
    std_estimator: StdEstimator = "sample"
    eps: float = 1e-4
    """Added to the standard deviation, in the units of the signal."""
    zero_std_rtol: float = ZERO_STD_RTOL
    """A batch whose spread is at most this share of its largest magnitude is flat."""

    def apply(self, batch: Batch) -> Batch:
        """Scale the signal."""
        x, everyone = batch.rewards, torch.zeros_like(batch.group)
        std = group_std(x, everyone, self.std_estimator, self.zero_std_rtol)
        moved = x - group_mean(x, everyone) if self.shift_mean == "removed" else x
        flat = (std == 0) & ~x.isnan()
        return batch.replace(rewards=torch.where(flat, 0.0, moved / torch.where(flat, 1.0, std + self.eps)))


@dataclass(frozen=True)
class BroadcastToTokens(CreditStep):
    """Give every response token the signal of its row; an unscored row teaches nothing (0).

    Reads: rewards, response_mask. Writes: advantages.

    Source: Shao et al. 2024, outcome supervision, section 4.1.2 (arXiv:2402.03300).
    """

    def apply(self, batch: Batch) -> Batch:
        """Spread the signal over the response."""
        each = torch.where(batch.rewards.isnan(), 0.0, batch.rewards)
        return batch.replace(advantages=each[:, None, :] * batch.response_mask[..., None])


ShiftMean = Literal["removed", "restored", "kept"]


def whiten(
    x: Float[Tensor, "*n"],
    mask: Bool[Tensor, "*n"],
    std_estimator: Literal["sample", "population"] = "sample",
    shift_mean: ShiftMean = "removed",
    eps: float = 1e-8,
    eps_inside_sqrt: bool = True,
) -> Float[Tensor, "*n"]:
    """(x - mean) / sqrt(var + eps), the statistics over `mask`, the result everywhere.

    mean "restored" adds the mean back after the division, "kept" never takes it away. With `eps_inside_sqrt` false
    eps is added to the standard deviation instead of the variance. NaN where there are too few numbers for
    the form.

    Source: `masked_whiten` of TRL and verl ("sample", 1e-8), of summarize_from_feedback_details
    ("population", 1e-8), `whiten` of MOSS-RLHF ("population", 1e-6). Differs: MOSS-RLHF sums its mean over
    unmasked positions too, which must be 0 there; here they may hold anything.
    """
    centre, var = masked_mean(x, mask), masked_var(x, mask, std_estimator)
    scale = (var + eps).rsqrt() if eps_inside_sqrt else 1 / (var.sqrt() + eps)
    if shift_mean == "kept":
        return x * scale
    moved = (x - centre) * scale
    return moved + centre if shift_mean == "restored" else moved


@dataclass(frozen=True)
class Whiten(CreditStep):
    """Zero mean and unit variance over the response tokens of the batch, each objective apart.

        A = (A - mean) / sqrt(var + eps),   eps outside: (A - mean) / (std + eps)

    Long responses weigh more in the statistics, and with mean "removed" the tokens of a prompt that teaches
    nothing are pushed by what the others learnt: prefer BatchNormalise after a group baseline, and "kept"
    where the sign of an advantage must not change. Tokens of unscored responses count in no statistic and
    get 0; advantages without spread become 0.

    Reads: advantages or token_rewards (`apply_to`), response_mask, rewards. Writes: the same field; 0 outside the response.

    Source: `masked_whiten` of TRL, verl ("sample") and summarize_from_feedback_details ("population");
    "restored" is their shift_mean=False, for rewards. Differs: a single token, or equal ones, give 0 and
    not NaN.
    """

    std_estimator: Literal["sample", "population"] = "sample"
    shift_mean: ShiftMean = "removed"
    eps: float = 1e-8
    eps_position: Literal["inside", "outside"] = "inside"
    """Is eps added to the variance, or to the standard deviation?"""
    apply_to: Literal["advantages", "token_reward"] = "advantages"
    zero_std_rtol: float = ZERO_STD_RTOL
    """A spread of at most this share of the largest magnitude is none."""

    def apply(self, batch: Batch) -> Batch:
        """Whiten the field."""
        x = batch.require(self.apply_to)
        mask = batch.response_mask & ~batch.rewards.isnan().any(-1, keepdim=True)
        each = [self._whiten_head(x[..., k], mask) for k in range(x.shape[-1])]
        return batch.replace(**{self.apply_to: torch.stack(each, -1)})

    def _whiten_head(self, x: Float[Tensor, "B T"], mask: Bool[Tensor, "B T"]) -> Float[Tensor, "B T"]:
        if not mask.any():
            return torch.zeros_like(x)
        std = masked_var(x, mask, self.std_estimator).sqrt()
        if not std > self.zero_std_rtol * x[mask].abs().max():
            return torch.where(mask, x, 0.0) if self.shift_mean == "restored" else torch.zeros_like(x)
        white = whiten(x, mask, self.std_estimator, self.shift_mean, self.eps, self.eps_position == "inside")
        return torch.where(mask, white, 0.0)
