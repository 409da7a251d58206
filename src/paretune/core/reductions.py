"""Reductions over masks and groups, and token weights. The only file that divides by a count."""

from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from paretune.core.errors import WiringError

ZERO_STD_RTOL = 1e-5
"""A group whose spread is below this share of its largest magnitude counts as flat.

Float32 rounding alone gives groups of equal rewards a spread of about 1e-7 of their size, which a
division by the spread would blow up to advantages of order one.
"""


def masked_mean(x: Float[Tensor, "*n"], mask: Bool[Tensor, "*n"]) -> Float[Tensor, ""]:
    """Mean of `x` where `mask`; 0 where the mask is empty."""
    return torch.where(mask, x, 0.0).sum() / mask.sum().clamp(min=1)


def masked_var(
    x: Float[Tensor, "*n"],
    mask: Bool[Tensor, "*n"],
    std_estimator: Literal["sample", "population"] = "sample",
) -> Float[Tensor, ""]:
    """Variance of `x` where `mask`, in two passes; NaN where there are too few numbers for the form."""
    count = mask.sum().to(x.dtype)
    squares = torch.where(mask, (x - masked_mean(x, mask)).square(), 0.0).sum()
    return squares / (count - 1 if std_estimator == "sample" else count)


def row_mean(x: Float[Tensor, "B T"], mask: Bool[Tensor, "B T"]) -> Float[Tensor, " B"]:
    """Mean over the masked places of each row; 0 in a row that has none."""
    return torch.where(mask, x, 0.0).sum(-1) / mask.sum(-1).clamp(min=1)


def group_index(group: Int[Tensor, " B"]) -> tuple[Int[Tensor, " B"], int]:
    """Each row's group renumbered from 0, and the number of groups."""
    labels, index = group.unique(return_inverse=True)
    return index, len(labels)


def group_sum(x: Float[Tensor, "B J"], group: Int[Tensor, " B"]) -> Float[Tensor, "B J"]:
    """Sum over the rows of each row's group, NaN (unscored) rows left out."""
    index, n = group_index(group)
    sums = torch.zeros(n, x.shape[1], dtype=x.dtype, device=x.device)
    return sums.index_add_(0, index, torch.where(x.isnan(), 0.0, x))[index]


def group_count(x: Float[Tensor, "B J"], group: Int[Tensor, " B"]) -> Float[Tensor, "B J"]:
    """How many rows of each row's group are scored, objective by objective."""
    return group_sum(torch.where(x.isnan(), 0.0, 1.0).to(x.dtype), group)


def group_mean(x: Float[Tensor, "B J"], group: Int[Tensor, " B"]) -> Float[Tensor, "B J"]:
    """Mean over the scored rows of each row's group; 0 where none is scored."""
    return group_sum(x, group) / group_count(x, group).clamp(min=1)


def group_std(
    x: Float[Tensor, "B J"],
    group: Int[Tensor, " B"],
    std_estimator: Literal["sample", "population"] = "sample",
    zero_std_rtol: float = ZERO_STD_RTOL,
) -> Float[Tensor, "B J"]:
    """Standard deviation over each row's group, NaN rows left out; exactly 0 where the group is flat.

    Two passes, so that a large mean cancels nothing. A group of one is flat, and so is one whose spread is at
    most `zero_std_rtol` times its largest magnitude.
    """
    mean = group_mean(x, group)
    count = group_count(x, group)
    divisor = count - 1 if std_estimator == "sample" else count
    std = (group_sum((x - mean).square(), group) / divisor.clamp(min=1)).sqrt()
    return torch.where(std <= zero_std_rtol * group_max_abs(x, group), torch.zeros_like(std), std)


def group_max_abs(x: Float[Tensor, "B J"], group: Int[Tensor, " B"]) -> Float[Tensor, "B J"]:
    """Largest magnitude among the scored rows of each row's group."""
    index, n = group_index(group)
    most = torch.zeros(n, x.shape[1], dtype=x.dtype, device=x.device)
    where = index[:, None].expand_as(x)
    return most.scatter_reduce_(0, where, x.nan_to_num(0.0).abs(), "amax")[index]


def rank_by_group(rewards: Float[Tensor, "B 1"], group: Int[Tensor, " B"]) -> list[Int[Tensor, " G"]]:
    """Row indices of every group, best signal first; ties keep their order; unscored rows last."""
    if rewards.shape[-1] != 1:
        raise WiringError(f"signal still holds {rewards.shape[-1]} objectives: add an aggregator")
    value = rewards[:, 0].nan_to_num(nan=-torch.inf)
    rows = [(group == label).nonzero().squeeze(-1) for label in group.unique()]
    return [r[value[r].argsort(descending=True, stable=True)] for r in rows]


LossAggregationMode = Literal["token", "sequence", "sequence_sum", "constant"]
"""What is counted alike; see `token_weights`."""


def token_weights(
    response_mask: Bool[Tensor, "B T"],
    mode: LossAggregationMode,
    norm_length: int = 1,
    empty_rows: Literal["count", "skip"] = "count",
) -> Float[Tensor, "B T"]:
    """How much each response token counts in a loss of the form (per-token loss * weight).sum().

    "token": all tokens of the batch alike (DAPO). "sequence": all responses alike, and all tokens of a
    response (GRPO). "sequence_sum": the sum over a response, averaged over responses (RLOO). "constant":
    every token 1 / (length * rows) (Dr. GRPO). Computed once over all the rows of an optimiser step, so that
    any cut into micro-batches adds up to the same gradient.

    Args:
        response_mask: Tokens that are counted.
        mode: The mean that is taken.
        norm_length: For "constant", the length that stands for all responses.
        empty_rows: Is a row without any counted token one of the rows (TRL), or not (verl)?
    """
    mask = response_mask.to(torch.get_default_dtype())
    if mode == "token":
        return mask / mask.sum().clamp(min=1)
    rows = max(len(mask) if empty_rows == "count" else int(response_mask.any(-1).sum()), 1)
    if mode == "sequence":
        return mask / mask.sum(-1, keepdim=True).clamp(min=1) / rows
    return mask / (rows if mode == "sequence_sum" else norm_length * rows)


def label_weights(labels: Float[Tensor, "B K"]) -> Float[Tensor, "B K"]:
    """Weight of every label that exists so that each objective with labels counts the same; 0 where NaN.

    The weights of the labels that exist sum to 1. Computed over a whole data set.
    """
    known = ~labels.isnan()
    seen = known.sum(0)
    objectives = (seen > 0).sum().clamp(min=1)
    return known / (seen.clamp(min=1) * objectives)
