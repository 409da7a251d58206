"""Advantages: who did better than expected."""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from paretune.batch import Batch
from paretune.credit.step import Step
from paretune.reduce import group_mean, group_std

Form = Literal["sample", "population"]


def group_normalise(
    x: Float[Tensor, "B J"],
    group: Int[Tensor, " B"],
    divide: Literal["std", "none"],
    form: Form = "sample",
    eps: float = 1e-4,
) -> Float[Tensor, "B J"]:
    """(x - mean) / (std + eps) within each group, or x - mean; exactly 0 in a flat group; NaN stays NaN.

    Source: Shao et al. 2024, section 4.1.2 (arXiv:2402.03300). Differs: the paper names neither the form of
    the standard deviation nor eps; both are arguments, and rounding noise in a flat group is not blown up.
    """
    std = group_std(x, group, form)
    centred = x - group_mean(x, group)
    scaled = centred / (std + eps) if divide == "std" else centred
    return torch.where((std == 0) & ~x.isnan(), 0.0, scaled)


@dataclass(frozen=True)
class GroupNormalise(Step):
    """Compare each response with the others of its prompt, objective by objective.

    divide "std": in standard deviations of the group (GRPO); "none": in the units of the signal (Dr. GRPO). A
    group of one, and a group without spread, gets 0. Unscored rows (NaN) stay NaN and count in no mean.

    Reads: signal, group. Writes: signal.

    Source: Shao et al. 2024, section 4.1.2 (arXiv:2402.03300); Liu et al. 2025 (arXiv:2503.20783) for "none".
    Differs: the standard deviation is the sample form (n - 1), as in reference implementations.
    """

    divide: Literal["std", "none"] = "std"
    form: Form = "sample"
    eps: float = 1e-4
    """Added to the standard deviation, in the units of the signal."""

    def apply(self, batch: Batch) -> Batch:
        """Normalise the signal within each group."""
        return batch.set(
            signal=group_normalise(batch.signal, batch.group, self.divide, self.form, self.eps),
        )


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
