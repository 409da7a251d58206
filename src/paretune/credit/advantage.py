"""Advantages: who did better than expected, response by response."""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from paretune.batch import Batch
from paretune.credit.step import CreditStep
from paretune.reduce import ZERO_STD_RTOL, group_count, group_mean, group_std

StdEstimator = Literal["sample", "population"]


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
