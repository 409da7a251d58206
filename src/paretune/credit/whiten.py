"""One scale for all response tokens, each token counted once."""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from paretune.batch import Batch
from paretune.credit.step import Step
from paretune.reduce import FLAT, masked_mean, masked_var

Mean = Literal["removed", "restored", "kept"]


def whiten(
    x: Float[Tensor, "*n"],
    mask: Bool[Tensor, "*n"],
    form: Literal["sample", "population"] = "sample",
    mean: Mean = "removed",
    eps: float = 1e-8,
    inside: bool = True,
) -> Float[Tensor, "*n"]:
    """(x - mean) / sqrt(var + eps), the statistics over `mask`, the result everywhere.

    mean "restored" adds the mean back after the division, "kept" never takes it away. With `inside` false
    eps is added to the standard deviation instead of the variance. NaN where there are too few numbers for
    the form.

    Source: `masked_whiten` of TRL and verl ("sample", 1e-8), of summarize_from_feedback_details
    ("population", 1e-8), `whiten` of MOSS-RLHF ("population", 1e-6). Differs: MOSS-RLHF sums its mean over
    unmasked positions too, which must be 0 there; here they may hold anything.
    """
    centre, var = masked_mean(x, mask), masked_var(x, mask, form)
    scale = (var + eps).rsqrt() if inside else 1 / (var.sqrt() + eps)
    if mean == "kept":
        return x * scale
    moved = (x - centre) * scale
    return moved + centre if mean == "restored" else moved


@dataclass(frozen=True)
class Whiten(Step):
    """Zero mean and unit variance over the response tokens of the batch, each objective apart.

        A = (A - mean) / sqrt(var + eps),   eps outside: (A - mean) / (std + eps)

    Long responses weigh more in the statistics, and with mean "removed" the tokens of a prompt that teaches
    nothing are pushed by what the others learnt: prefer BatchNormalise after a group baseline, and "kept"
    where the sign of an advantage must not change. Tokens of unscored responses count in no statistic and
    get 0; advantages without spread become 0.

    Reads: advantages or token_reward (`on`), respond, signal. Writes: the same field; 0 outside the response.

    Source: `masked_whiten` of TRL, verl ("sample") and summarize_from_feedback_details ("population");
    "restored" is their shift_mean=False, for rewards. Differs: a single token, or equal ones, give 0 and
    not NaN.
    """

    form: Literal["sample", "population"] = "sample"
    mean: Mean = "removed"
    eps: float = 1e-8
    at: Literal["inside", "outside"] = "inside"
    """Is eps added to the variance, or to the standard deviation?"""
    on: Literal["advantages", "token_reward"] = "advantages"
    floor: float = FLAT
    """A spread of at most this share of the largest magnitude is none."""

    def apply(self, batch: Batch) -> Batch:
        """Whiten the field."""
        x = batch.need(self.on)
        mask = batch.respond & ~batch.signal.isnan().any(-1, keepdim=True)
        each = [self._column(x[..., k], mask) for k in range(x.shape[-1])]
        return batch.set(**{self.on: torch.stack(each, -1)})

    def _column(self, x: Float[Tensor, "B T"], mask: Bool[Tensor, "B T"]) -> Float[Tensor, "B T"]:
        if not mask.any():
            return torch.zeros_like(x)
        std = masked_var(x, mask, self.form).sqrt()
        if not std > self.floor * x[mask].abs().max():
            return torch.where(mask, x, 0.0) if self.mean == "restored" else torch.zeros_like(x)
        white = whiten(x, mask, self.form, self.mean, self.eps, self.at == "inside")
        return torch.where(mask, white, 0.0)
