"""Baselines and scales: normalization within the group, over the batch, and over all past rewards."""

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
MomentsMode = Literal["exact", "inflated", "ema"]
ShiftMean = Literal["subtract", "restore", "none"]


@dataclass(frozen=True)
class RunningMoments:
    """Count, mean and variance of all values so far, per column."""

    count: Float[Tensor, "*j"]
    mean: Float[Tensor, "*j"]
    var: Float[Tensor, "*j"]


def batch_moments(x: Float[Tensor, "B J"], std_estimator: StdEstimator) -> RunningMoments:
    """Moments of the scored rows of a batch; a single value has variance 0."""
    known = ~x.isnan()
    count = known.sum(0).to(x.dtype)
    mean = torch.where(known, x, 0.0).sum(0) / count.clamp(min=1)
    squares = torch.where(known, (x - mean).square(), 0.0).sum(0)
    divisor = (count - 1 if std_estimator == "sample" else count).clamp(min=1)
    return RunningMoments(count, mean, squares / divisor)


def merge_moments(old: RunningMoments, new: RunningMoments) -> RunningMoments:
    """The moments of both together, exact for population variances.

    Source: Chan et al. 1979, as in `RunningMoments` of MOSS-RLHF and `RunningMeanStd` of Safe RLHF.
    """
    count = old.count + new.count
    fraction, shift = new.count / count.clamp(min=1), new.mean - old.mean
    within = (old.var * old.count + new.var * new.count) / count.clamp(min=1)
    var = within + shift.square() * fraction * (1 - fraction)
    return RunningMoments(count, old.mean + shift * fraction, torch.where(count > 0, var, old.var))


def decay_moments(old: RunningMoments, new: RunningMoments, ema_decay: float) -> RunningMoments:
    """Exponential moving average: `ema_decay` old + (1 - ema_decay) new; an empty batch changes nothing.

    Source: `ExponentialMovingAverage` of Safe RLHF.
    """
    decay = torch.where(new.count > 0, ema_decay, 1.0)
    mean, var = (decay * a + (1 - decay) * b for a, b in ((old.mean, new.mean), (old.var, new.var)))
    return RunningMoments(old.count + new.count, mean, var)


@dataclass(frozen=True)
class RunningNormalize(CreditStep):
    """Normalize rewards by the mean and standard deviation of all rewards so far, this batch included.

        s = (s - mean) / (std + eps),  or with shift_mean "none"  s / (std + eps)

    moments_mode "exact": the statistics of all rewards, with the sample standard deviation. "inflated":
    sample variances merged as if they were population variances, slightly too large. "ema": a moving average
    that starts at mean 0 and variance 1. In "exact" mode the reward is 0 until there are two different
    rewards. Unscored rows (NaN) stay NaN and do not enter the moments. Before a group z-score this step
    changes nothing unless a ClipReward is between them.

    Reads: rewards. Writes: rewards. State: RunningMoments of each column, in float64.
    Logs: state/running_mean and state/running_std, if there is one column.

    Source: Zheng et al. 2023, PPO-max, section 5.3.1 (arXiv:2307.04964); MOSS-RLHF for "exact", Safe RLHF
    (arXiv:2310.12773) for the others. Differs: a batch of one reward, or of equal rewards, gives no NaN.
    """

    shift_mean: Literal["subtract", "none"] = "subtract"
    moments_mode: MomentsMode = "exact"
    ema_decay: float = 0.9
    """Weight of the old average in each update, for moments_mode "ema"."""
    eps: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.ema_decay < 1:
            raise WiringError(f"ema_decay is {self.ema_decay}; it must be in [0, 1)")

    def init_state(self) -> RunningMoments:
        """No rewards yet."""
        zero = torch.zeros((), dtype=torch.float64)
        return RunningMoments(zero, zero, zero if self.moments_mode == "exact" else zero + 1)

    def update(self, state: RunningMoments, x: Float[Tensor, "B J"]) -> RunningMoments:
        """The moments after one more batch."""
        old = RunningMoments(*(v.to(x.device) for v in (state.count, state.mean, state.var)))
        # "exact" merges population variances, for which merging is exact; `std` turns them into sample ones.
        new = batch_moments(x.double(), "population" if self.moments_mode == "exact" else "sample")
        return (
            decay_moments(old, new, self.ema_decay) if self.moments_mode == "ema" else merge_moments(old, new)
        )

    def std(self, state: RunningMoments) -> Float[Tensor, "*j"]:
        """Standard deviation of all rewards so far; infinite in "exact" mode while they are all equal."""
        if self.moments_mode != "exact":
            return state.var.sqrt()
        std = (state.var * state.count / (state.count - 1).clamp(min=1)).sqrt()
        # Infinite, not 0: dividing by it gives 0, where dividing by rounding noise would blow up.
        return torch.where(std > ZERO_STD_RTOL * state.mean.abs(), std, torch.inf)

    def apply_stateful(
        self, batch: Batch, state: RunningMoments, rng: torch.Generator
    ) -> tuple[Batch, RunningMoments, Metrics]:
        """Update the moments with the batch, then normalize it."""
        state = self.update(state, batch.rewards)
        std = self.std(state)
        shifted = batch.rewards - state.mean if self.shift_mean == "subtract" else batch.rewards
        rewards = (shifted / (std + self.eps)).to(batch.rewards.dtype)
        metrics: Metrics = {}
        if std.numel() == 1:
            metrics = {"state/running_mean": float(state.mean), "state/running_std": float(std)}
        return batch.replace(rewards=rewards), state, metrics


def group_normalize(
    x: Float[Tensor, "B J"],
    group: Int[Tensor, " B"],
    scale_rewards: Literal["group", "batch", "none"],
    std_estimator: StdEstimator = "sample",
    eps: float = 1e-4,
    zero_std_rtol: float = ZERO_STD_RTOL,
) -> Float[Tensor, "B J"]:
    """(x - mean) / (std + eps) within each group, or x - mean; exactly 0 in a zero-variance group.

    NaN stays NaN. scale_rewards "batch" divides by the standard deviation of the whole batch, so that a group
    of low variance keeps small values.

    Source: Shao et al. 2024, section 4.1.2 (arXiv:2402.03300). Differs: the paper gives neither the form of
    the standard deviation nor eps; both are arguments. Rounding noise in a zero-variance group is not scaled
    up.
    """
    std = group_std(x, group, std_estimator, zero_std_rtol)
    centered = x - group_mean(x, group)
    scaled = centered / (std + eps) if scale_rewards == "group" else centered
    if scale_rewards == "batch":
        scaled = centered / (group_std(x, torch.zeros_like(group), std_estimator, zero_std_rtol) + eps)
    return torch.where((std == 0) & ~x.isnan(), 0.0, scaled)


def leave_one_out(
    x: Float[Tensor, "B J"], group: Int[Tensor, " B"], scale_rewards: Literal["group", "none"] = "none"
) -> Float[Tensor, "B J"]:
    """Subtract the mean of the others of the group; exactly 0 in a group of one or of zero variance.

    NaN stays NaN. scale_rewards "group" divides by the sample standard deviation of the others, unless it is
    0.

    Source: Ahmadian et al. 2024, RLOO (arXiv:2402.14740); "group" as in NeMo-RL's GDPO estimator. Differs:
    two passes for the standard deviation of the others, so that a large mean does not cancel it.
    """
    count, mean = group_count(x, group), group_mean(x, group)
    difference = (x - mean) * count / (count - 1).clamp(min=1)
    if scale_rewards == "group":
        std = _leave_one_out_std(x, x - difference, group)
        difference = torch.where(std > ZERO_STD_RTOL * difference.abs(), difference / std, difference)
    return torch.where((group_std(x, group) == 0) & ~x.isnan(), 0.0, difference)


def _leave_one_out_std(
    x: Float[Tensor, "B J"], others_mean: Float[Tensor, "B J"], group: Int[Tensor, " B"]
) -> Float[Tensor, "B J"]:
    """Sample standard deviation of the others of each row's group; 0 for fewer than two others."""
    std = torch.zeros_like(x)
    for label in group.unique():
        rows = (group == label).nonzero().squeeze(-1)
        squares = (x[rows][None] - others_mean[rows][:, None]).square()
        others = ~squares.isnan() & ~torch.eye(len(rows), dtype=torch.bool, device=x.device)[..., None]
        std[rows] = (torch.where(others, squares, 0.0).sum(1) / (others.sum(1) - 1).clamp(min=1)).sqrt()
    return std


@dataclass(frozen=True)
class GroupNormalize(CreditStep):
    """Normalize rewards within each prompt's group, per objective.

        A = (s - mean of the group) / (std + eps)

    scale_rewards "group": divide by the standard deviation of the group (GRPO); "batch": of the whole batch
    (Lite-PPO); "none": do not divide (Dr. GRPO). A zero-variance group gets 0. Unscored rows (NaN) stay NaN
    and count in no mean.

    Reads: rewards, group. Writes: rewards.

    Source: Shao et al. 2024, section 4.1.2 (arXiv:2402.03300); Liu et al. 2025 (arXiv:2503.20783) for
    "none"; Liu et al. 2025, Lite PPO (arXiv:2508.08221) for "batch". Differs: the standard deviation is the
    sample form (n - 1), as in reference implementations; a standard deviation of rounding size counts as 0.
    """

    scale_rewards: Literal["group", "batch", "none"] = "group"
    std_estimator: StdEstimator = "sample"
    eps: float = 1e-4
    """Added to the standard deviation, in the units of the reward."""
    zero_std_rtol: float = ZERO_STD_RTOL
    """A group has zero variance if its std is at most this times its largest magnitude; 0: if all equal."""
    singleton: Literal["zero", "raw"] = "zero"
    """Value of a group of one: 0, or its raw reward, as in verl."""

    def apply(self, batch: Batch) -> Batch:
        """Normalize the rewards within each group."""
        x, group = batch.rewards, batch.group
        rewards = group_normalize(
            x, group, self.scale_rewards, self.std_estimator, self.eps, self.zero_std_rtol
        )
        if self.singleton == "raw":
            # verl takes mean 0 and std 1 for a group of one, and divides by 1 + eps.
            raw = x / (1 + self.eps) if self.scale_rewards == "group" else x
            rewards = torch.where(group_count(x, group) == 1, raw, rewards)
        return batch.replace(rewards=rewards)


@dataclass(frozen=True)
class LeaveOneOut(CreditStep):
    """Baseline of each response: the mean reward of the others of its prompt.

        A_i = s_i - mean of s_j over j != i  =  G / (G - 1) * (s_i - mean)

    scale_rewards "group" divides by the standard deviation of the others; the advantages of a group then do
    not add up to 0. A group of one, and a zero-variance group, gets 0. Unscored rows (NaN) stay NaN and enter
    no baseline.

    Reads: rewards, group. Writes: rewards.

    Source: Ahmadian et al. 2024, RLOO (arXiv:2402.14740); "group" as in NeMo-RL's GDPO estimator. Differs:
    verl gives a group of one its raw reward.
    """

    scale_rewards: Literal["group", "none"] = "none"

    def apply(self, batch: Batch) -> Batch:
        """Subtract the baseline."""
        return batch.replace(rewards=leave_one_out(batch.rewards, batch.group, self.scale_rewards))


@dataclass(frozen=True)
class BatchNormalize(CreditStep):
    """Divide by the standard deviation of the batch, each response counted once, per objective.

        A = s / (std + eps),  or with shift_mean "subtract"  (s - mean) / (std + eps)

    Mean and std are those of the batch. With "none" a reward of 0 stays 0: a prompt without information is
    not pushed by the others. A batch of zero variance gets 0 everywhere. Unscored rows (NaN) stay NaN and
    count in no statistic.

    Reads: rewards. Writes: rewards.

    Source: Liu et al. 2026, GDPO, eq. 6 (arXiv:2601.05242), which is "subtract". Differs: the default only
    scales. Group means are 0 already unless a score is missing, and then subtracting the batch mean pushes
    prompts without information.
    """

    shift_mean: Literal["none", "subtract"] = "none"
    std_estimator: StdEstimator = "sample"
    eps: float = 1e-4
    """Added to the standard deviation, in the units of the reward."""
    zero_std_rtol: float = ZERO_STD_RTOL
    """A batch has zero variance if its std is at most this times its largest magnitude."""

    def apply(self, batch: Batch) -> Batch:
        """Scale the rewards."""
        x, one_group = batch.rewards, torch.zeros_like(batch.group)
        std = group_std(x, one_group, self.std_estimator, self.zero_std_rtol)
        shifted = x - group_mean(x, one_group) if self.shift_mean == "subtract" else x
        zero = (std == 0) & ~x.isnan()
        scaled = shifted / torch.where(zero, 1.0, std + self.eps)
        return batch.replace(rewards=torch.where(zero, 0.0, scaled))


@dataclass(frozen=True)
class BroadcastToTokens(CreditStep):
    """Advantage of every response token: the reward of its row; 0 in an unscored row.

    Reads: rewards, response_mask. Writes: advantages.

    Source: Shao et al. 2024, outcome supervision, section 4.1.2 (arXiv:2402.03300).
    """

    def apply(self, batch: Batch) -> Batch:
        """Broadcast the rewards over the response tokens."""
        rewards = torch.where(batch.rewards.isnan(), 0.0, batch.rewards)
        return batch.replace(advantages=rewards[:, None, :] * batch.response_mask[..., None])


def whiten(
    x: Float[Tensor, "*n"],
    mask: Bool[Tensor, "*n"],
    std_estimator: StdEstimator = "sample",
    shift_mean: ShiftMean = "subtract",
    eps: float = 1e-8,
    eps_inside_sqrt: bool = True,
) -> Float[Tensor, "*n"]:
    """(x - mean) / sqrt(var + eps), the statistics over `mask`, the result everywhere.

    shift_mean "restore" adds the mean back after the division, "none" never subtracts it. With
    `eps_inside_sqrt=False` eps is added to the standard deviation instead of the variance. NaN if there are
    too few values for the estimator.

    Source: `masked_whiten` of TRL and verl ("sample", 1e-8), of summarize_from_feedback_details
    ("population", 1e-8), `whiten` of MOSS-RLHF ("population", 1e-6). Differs: MOSS-RLHF sums its mean over
    unmasked positions too, which must be 0 there; here they may have any value.
    """
    mean, var = masked_mean(x, mask), masked_var(x, mask, std_estimator)
    scale = (var + eps).rsqrt() if eps_inside_sqrt else 1 / (var.sqrt() + eps)
    if shift_mean == "none":
        return x * scale
    whitened = (x - mean) * scale
    return whitened + mean if shift_mean == "restore" else whitened


@dataclass(frozen=True)
class Whiten(CreditStep):
    """Zero mean and unit variance over the response tokens of the batch, per objective.

        A = (A - mean) / sqrt(var + eps),   eps_position "outside": (A - mean) / (std + eps)

    Long responses have more weight in the statistics, and with shift_mean "subtract" the tokens of a prompt
    without information are pushed by the other prompts: prefer BatchNormalize after a group baseline, and
    "none" if the sign of an advantage must not change. Tokens of unscored responses count in no statistic and
    get 0; advantages of zero variance become 0.

    Reads: advantages or token_rewards (`apply_to`), response_mask, rewards. Writes: the same field; 0 outside
    the response.

    Source: `masked_whiten` of TRL, verl ("sample") and summarize_from_feedback_details ("population");
    "restore" is their shift_mean=False, for rewards. Differs: a single token, or equal ones, give 0 and not
    NaN.
    """

    std_estimator: StdEstimator = "sample"
    shift_mean: ShiftMean = "subtract"
    eps: float = 1e-8
    eps_position: Literal["inside", "outside"] = "inside"
    """Whether eps is added to the variance, inside the square root, or to the standard deviation."""
    apply_to: Literal["advantages", "token_rewards"] = "advantages"
    zero_std_rtol: float = ZERO_STD_RTOL
    """The variance counts as zero if the std is at most this times the largest magnitude."""

    def apply(self, batch: Batch) -> Batch:
        """Whiten the field."""
        x = batch.require(self.apply_to)
        mask = batch.response_mask & ~batch.rewards.isnan().any(-1, keepdim=True)
        heads = [self._whiten_head(x[..., k], mask) for k in range(x.shape[-1])]
        return batch.replace(**{self.apply_to: torch.stack(heads, -1)})

    def _whiten_head(self, x: Float[Tensor, "B T"], mask: Bool[Tensor, "B T"]) -> Float[Tensor, "B T"]:
        if not mask.any():
            return torch.zeros_like(x)
        std = masked_var(x, mask, self.std_estimator).sqrt()
        # "not >" rather than "<=": the std of a single token is NaN and takes this branch too.
        if not std > self.zero_std_rtol * x[mask].abs().max():
            return torch.where(mask, x, 0.0) if self.shift_mean == "restore" else torch.zeros_like(x)
        whitened = whiten(
            x, mask, self.std_estimator, self.shift_mean, self.eps, self.eps_position == "inside"
        )
        return torch.where(mask, whitened, 0.0)
