"""One scale for all response tokens, each token counted once."""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from paretune.batch import Batch
from paretune.credit.step import CreditStep
from paretune.reduce import ZERO_STD_RTOL, masked_mean, masked_var

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
