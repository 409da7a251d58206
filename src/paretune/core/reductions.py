"""Masked and grouped reductions, and token weights of losses.

The only module that divides by a number of rows or tokens.
"""

from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from paretune.core.errors import WiringError

ZERO_STD_RTOL = 1e-5
"""A group whose standard deviation is at most this fraction of its largest absolute value has zero variance.

Float32 rounding alone gives groups of equal rewards a standard deviation of about 1e-7 of their size;
dividing by it would turn rounding errors into advantages of order one.
"""


def masked_mean(x: Float[Tensor, "*n"], mask: Bool[Tensor, "*n"]) -> Float[Tensor, ""]:
    """Mean of `x` over the mask; 0 if the mask is empty."""
    return torch.where(mask, x, 0.0).sum() / mask.sum().clamp(min=1)


def masked_var(
    x: Float[Tensor, "*n"],
    mask: Bool[Tensor, "*n"],
    std_estimator: Literal["sample", "population"] = "sample",
) -> Float[Tensor, ""]:
    """Two-pass variance of `x` over the mask; NaN if there are too few numbers for the estimator."""
    count = mask.sum().to(x.dtype)
    squares = torch.where(mask, (x - masked_mean(x, mask)).square(), 0.0).sum()
    return squares / (count - 1 if std_estimator == "sample" else count)


def row_mean(x: Float[Tensor, "B T"], mask: Bool[Tensor, "B T"]) -> Float[Tensor, " B"]:
    """Mean of each row over the mask; 0 for a row without any True."""
    return torch.where(mask, x, 0.0).sum(-1) / mask.sum(-1).clamp(min=1)


def group_index(group: Int[Tensor, " B"]) -> tuple[Int[Tensor, " B"], int]:
    """Group of each row renumbered from 0, and the number of groups."""
    labels, index = group.unique(return_inverse=True)
    return index, len(labels)


def group_sum(x: Float[Tensor, "B J"], group: Int[Tensor, " B"]) -> Float[Tensor, "B J"]:
    """Sum over each row's group without NaN (unscored) entries."""
    index, n = group_index(group)
    sums = torch.zeros(n, x.shape[1], dtype=x.dtype, device=x.device)
    return sums.index_add_(0, index, torch.where(x.isnan(), 0.0, x))[index]


def group_count(x: Float[Tensor, "B J"], group: Int[Tensor, " B"]) -> Float[Tensor, "B J"]:
    """Number of scored rows in each row's group, per objective."""
    return group_sum(torch.where(x.isnan(), 0.0, 1.0).to(x.dtype), group)


def group_mean(x: Float[Tensor, "B J"], group: Int[Tensor, " B"]) -> Float[Tensor, "B J"]:
    """Mean over the scored rows of each row's group; 0 if none is scored."""
    return group_sum(x, group) / group_count(x, group).clamp(min=1)


def group_std(
    x: Float[Tensor, "B J"],
    group: Int[Tensor, " B"],
    std_estimator: Literal["sample", "population"] = "sample",
    zero_std_rtol: float = ZERO_STD_RTOL,
) -> Float[Tensor, "B J"]:
    """Standard deviation over the scored rows of each row's group; exactly 0 for groups of zero variance.

    Computed in two passes, so that a large mean causes no cancellation.

    Args:
        x: Values [B, J]; NaN = not scored.
        group: Group of each row.
        std_estimator: "sample" divides by n - 1, "population" by n.
        zero_std_rtol: A standard deviation of at most this times the group's largest absolute value counts as
            0. A group of one row always has 0.
    """
    mean = group_mean(x, group)
    count = group_count(x, group)
    divisor = count - 1 if std_estimator == "sample" else count
    std = (group_sum((x - mean).square(), group) / divisor.clamp(min=1)).sqrt()
    return torch.where(std <= zero_std_rtol * group_max_abs(x, group), torch.zeros_like(std), std)


def group_max_abs(x: Float[Tensor, "B J"], group: Int[Tensor, " B"]) -> Float[Tensor, "B J"]:
    """Largest absolute value among the scored rows of each row's group."""
    index, n = group_index(group)
    largest = torch.zeros(n, x.shape[1], dtype=x.dtype, device=x.device)
    rows = index[:, None].expand_as(x)
    return largest.scatter_reduce_(0, rows, x.nan_to_num(0.0).abs(), "amax")[index]


def rank_by_group(rewards: Float[Tensor, "B 1"], group: Int[Tensor, " B"]) -> list[Int[Tensor, " G"]]:
    """Row indices of each group by descending reward; ties keep their order, unscored rows come last.

    Raises:
        WiringError: The rewards are not aggregated yet.
    """
    if rewards.shape[-1] != 1:
        raise WiringError(
            f"rewards still have {rewards.shape[-1]} objectives; fix: add an aggregator before this step"
        )
    value = rewards[:, 0].nan_to_num(nan=-torch.inf)
    rows = [(group == label).nonzero().squeeze(-1) for label in group.unique()]
    return [r[value[r].argsort(descending=True, stable=True)] for r in rows]


LossAggregationMode = Literal[
    "token_mean", "seq_mean_token_mean", "seq_mean_token_sum", "seq_mean_token_sum_norm"
]
"""How token losses are averaged, with the names of verl; see `token_weights`."""


def token_weights(
    response_mask: Bool[Tensor, "B T"],
    mode: LossAggregationMode,
    norm_length: int = 1,
    empty_rows: Literal["include", "exclude"] = "include",
) -> Float[Tensor, "B T"]:
    """Weights for a loss of the form (token loss * weight).sum().

    Computed once over all rows of an optimizer step, so that the gradients of any split into micro-batches
    add up to the same sum.

    Args:
        response_mask: Tokens with loss.
        mode: "token_mean": mean over all tokens of the batch (DAPO). "seq_mean_token_mean": mean over each
            response, then over responses (GRPO). "seq_mean_token_sum": sum over each response, mean over
            responses (RLOO). "seq_mean_token_sum_norm": sum over each response divided by `norm_length`, mean
            over responses (Dr. GRPO).
        norm_length: Divisor of "seq_mean_token_sum_norm", usually the maximum response length.
        empty_rows: "include" counts rows without any token in the number of responses (TRL), "exclude" does
            not (verl).

    Returns:
        Weights [B, T], 0 outside the mask.
    """
    mask = response_mask.to(torch.get_default_dtype())
    if mode == "token_mean":
        return mask / mask.sum().clamp(min=1)
    rows = max(len(mask) if empty_rows == "include" else int(response_mask.any(-1).sum()), 1)
    if mode == "seq_mean_token_mean":
        return mask / mask.sum(-1, keepdim=True).clamp(min=1) / rows
    return mask / (rows if mode == "seq_mean_token_sum" else norm_length * rows)


def label_weights(labels: Float[Tensor, "B K"]) -> Float[Tensor, "B K"]:
    """Weight of each label so that all objectives with labels have equal total weight; 0 for NaN (no label).

    The weights sum to 1. Computed over a whole data set.
    """
    labelled = ~labels.isnan()
    num_labels = labelled.sum(0)
    num_objectives = (num_labels > 0).sum().clamp(min=1)
    return labelled / (num_labels.clamp(min=1) * num_objectives)
