"""Advantages: who did better than expected, response by response."""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from paretune.batch import Batch
from paretune.credit.step import Step
from paretune.reduce import FLAT, group_count, group_mean, group_std

Form = Literal["sample", "population"]


def group_normalise(
    x: Float[Tensor, "B J"],
    group: Int[Tensor, " B"],
    divide: Literal["std", "batch", "none"],
    form: Form = "sample",
    eps: float = 1e-4,
    floor: float = FLAT,
) -> Float[Tensor, "B J"]:
    """(x - mean) / (std + eps) within each group, or x - mean; exactly 0 in a flat group; NaN stays NaN.

    "batch" divides by the standard deviation of the whole batch, so that a group of small spread stays small.

    Source: Shao et al. 2024, section 4.1.2 (arXiv:2402.03300). Differs: the paper names neither the form of
    the standard deviation nor eps; both are arguments, and rounding noise in a flat group is not blown up.
    """
    std = group_std(x, group, form, floor)
    centred = x - group_mean(x, group)
    scaled = centred / (std + eps) if divide == "std" else centred
    if divide == "batch":
        scaled = centred / (group_std(x, torch.zeros_like(group), form, floor) + eps)
    return torch.where((std == 0) & ~x.isnan(), 0.0, scaled)


def leave_one_out(
    x: Float[Tensor, "B J"], group: Int[Tensor, " B"], divide: Literal["std", "none"] = "none"
) -> Float[Tensor, "B J"]:
    """Subtract the mean of the others of the group; exactly 0 in a flat group and alone; NaN stays NaN.

    "std" divides by the sample standard deviation of the others, where they differ at all.

    Source: Ahmadian et al. 2024, RLOO (arXiv:2402.14740); "std" as in NeMo-RL's GDPO estimator. Differs: two
    passes for the spread of the others, so that a large mean does not cancel it.
    """
    count, mean = group_count(x, group), group_mean(x, group)
    away = (x - mean) * count / (count - 1).clamp(min=1)
    if divide == "std":
        std = _others_std(x, x - away, group)
        away = torch.where(std > FLAT * away.abs(), away / std, away)
    return torch.where((group_std(x, group) == 0) & ~x.isnan(), 0.0, away)


def _others_std(
    x: Float[Tensor, "B J"], others: Float[Tensor, "B J"], group: Int[Tensor, " B"]
) -> Float[Tensor, "B J"]:
    """Sample standard deviation of the others of each row's group about their mean; 0 for fewer than two."""
    std = torch.zeros_like(x)
    for label in group.unique():
        rows = (group == label).nonzero().squeeze(-1)
        squares = (x[rows][None] - others[rows][:, None]).square()
        known = ~squares.isnan() & ~torch.eye(len(rows), dtype=torch.bool, device=x.device)[..., None]
        std[rows] = (torch.where(known, squares, 0.0).sum(1) / (known.sum(1) - 1).clamp(min=1)).sqrt()
    return std


@dataclass(frozen=True)
class GroupNormalise(Step):
    """Compare each response with the others of its prompt, objective by objective.

        A = (s - mean of the group) / (std + eps)

    divide "std": in standard deviations of the group (GRPO); "batch": of the whole batch (Lite-PPO);
    "none": in the units of the signal (Dr. GRPO). A group without spread gets 0. Unscored rows (NaN) stay
    NaN and count in no mean.

    Reads: signal, group. Writes: signal.

    Source: Shao et al. 2024, section 4.1.2 (arXiv:2402.03300); Liu et al. 2025 (arXiv:2503.20783) for
    "none"; Liu et al. 2025, Lite PPO (arXiv:2508.08221) for "batch". Differs: the standard deviation is the
    sample form (n - 1), as in reference implementations; a spread of rounding size is none.
    """

    divide: Literal["std", "batch", "none"] = "std"
    form: Form = "sample"
    eps: float = 1e-4
    """Added to the standard deviation, in the units of the signal."""
    floor: float = FLAT
    """A group whose spread is at most this share of its largest magnitude is flat; 0: only an equal one."""
    alone: Literal["zero", "raw"] = "zero"
    """What a group of one gets: nothing, or its raw signal, as in verl."""

    def apply(self, batch: Batch) -> Batch:
        """Normalise the signal within each group."""
        x, group = batch.signal, batch.group
        signal = group_normalise(x, group, self.divide, self.form, self.eps, self.floor)
        if self.alone == "raw":
            raw = x / (1 + self.eps) if self.divide == "std" else x
            signal = torch.where(group_count(x, group) == 1, raw, signal)
        return batch.set(signal=signal)


@dataclass(frozen=True)
class LeaveOneOut(Step):
    """Compare each response with the mean of the others of its prompt.

        A_i = s_i - mean of s_j over j != i  =  G / (G - 1) * (s_i - mean)

    divide "std" divides by the spread of the others; the advantages of a group then do not add up to 0. A
    group of one, and a flat one, gets 0. Unscored rows (NaN) stay NaN and are nobody's baseline.

    Reads: signal, group. Writes: signal.

    Source: Ahmadian et al. 2024, RLOO (arXiv:2402.14740); "std" as in NeMo-RL's GDPO estimator. Differs:
    verl gives a group of one its raw signal.
    """

    divide: Literal["std", "none"] = "none"

    def apply(self, batch: Batch) -> Batch:
        """Subtract the mean of the others."""
        return batch.set(signal=leave_one_out(batch.signal, batch.group, self.divide))


@dataclass(frozen=True)
class BatchNormalise(Step):
    """One scale for the whole batch, each response counted once, objective by objective.

        A = s / (std of the batch + eps),  or with mean "removed"  (s - mean of the batch) / (std + eps)

    With "kept" a signal of 0 stays 0: a prompt that teaches nothing gets no push from the others. A batch
    without spread gets 0 everywhere. Unscored rows (NaN) stay NaN and count in no statistic.

    Reads: signal. Writes: signal.

    Source: Liu et al. 2026, GDPO, eq. 6 (arXiv:2601.05242), which is "removed". Differs: the default only
    scales, since group means are 0 already unless a score is missing, and then shifting pushes where nothing
    was learnt.
    """

    mean: Literal["kept", "removed"] = "kept"
    form: Form = "sample"
    eps: float = 1e-4
    """Added to the standard deviation, in the units of the signal."""
    floor: float = FLAT
    """A batch whose spread is at most this share of its largest magnitude is flat."""

    def apply(self, batch: Batch) -> Batch:
        """Scale the signal."""
        x, everyone = batch.signal, torch.zeros_like(batch.group)
        std = group_std(x, everyone, self.form, self.floor)
        moved = x - group_mean(x, everyone) if self.mean == "removed" else x
        flat = (std == 0) & ~x.isnan()
        return batch.set(signal=torch.where(flat, 0.0, moved / torch.where(flat, 1.0, std + self.eps)))


@dataclass(frozen=True)
class Spread(Step):
    """Give every response token the signal of its row; an unscored row teaches nothing (0).

    Reads: signal, respond. Writes: advantages.

    Source: Shao et al. 2024, outcome supervision, section 4.1.2 (arXiv:2402.03300).
    """

    def apply(self, batch: Batch) -> Batch:
        """Spread the signal over the response."""
        each = torch.where(batch.signal.isnan(), 0.0, batch.signal)
        return batch.set(advantages=each[:, None, :] * batch.respond[..., None])
