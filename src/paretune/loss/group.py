"""What the losses on groups share: one number a response, who is compared with whom, what a group counts."""

from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from paretune.batch import Batch
from paretune.errors import WiringError
from paretune.reduce import group_std, group_sum, rank_by_group, row_mean

Reduction = Literal["sum", "mean"]
"""How the tokens of a response become one number."""


def per_response(
    x: Float[Tensor, "B T"], response_mask: Bool[Tensor, "B T"], reduction: Reduction
) -> Float[Tensor, " B"]:
    """Sum or mean over the tokens of each response; 0 for a response that has none."""
    if reduction == "mean":
        return row_mean(x, response_mask)
    return torch.where(response_mask, x, 0.0).sum(-1)


def scalar_rewards(batch: Batch) -> Float[Tensor, "B 1"]:
    """What the responses are worth, when that is one number each.

    Raises:
        WiringError: The signal is of several objectives.
    """
    if batch.rewards.shape[-1] != 1:
        raise WiringError(
            f"a loss compares responses by their signal, which is of {batch.rewards.shape[-1]} objectives and "
            "must be of 1: add an aggregator (WeightedSum) to the recipe's worth"
        )
    return batch.rewards


def ranked_scored_rows(rewards: Float[Tensor, "B 1"], group: Int[Tensor, " B"]) -> list[Int[Tensor, " G"]]:
    """The scored rows of every group, best first, ties in their order; empty where nothing is scored."""
    return [rows[~rewards[rows, 0].isnan()] for rows in rank_by_group(rewards, group)]


class Pairs(NamedTuple):
    """One pair for every group that has one."""

    chosen: Int[Tensor, " P"]
    """Row of the better response."""
    rejected: Int[Tensor, " P"]
    """Row of the worse response."""
    missing: Bool[Tensor, " L"]
    """Of each of all L groups: it has no pair."""


def best_worst_pairs(rewards: Float[Tensor, "B 1"], group: Int[Tensor, " B"]) -> Pairs:
    """The best and the worst scored response of every group, where they differ.

    Of equally good best ones the first row is taken, of equally bad worst ones the last. A group without two
    scored responses, or with signals that are all alike up to rounding (`reduce.FLAT`), has no pair: which
    of its responses is better is not known, and the order of the rows does not decide it.
    """
    lists = ranked_scored_rows(rewards, group)
    differ = group_std(rewards, group)[:, 0] > 0
    paired = [bool(differ[rows[:1]].any()) for rows in lists]
    both = [rows[[0, -1]] for rows, has in zip(lists, paired, strict=True) if has]
    ends = torch.stack(both) if both else group.new_zeros(0, 2, dtype=torch.long)
    return Pairs(ends[:, 0], ends[:, 1], torch.tensor([not has for has in paired], dtype=torch.bool))


def group_weight(batch: Batch) -> Float[Tensor, " B"]:
    """What the group of each row counts: the weights of all its tokens, added up.

    Under Weigh("sequence") that is its share of the rows, whatever the lengths of its responses. A group that
    teaches nothing keeps its share, so that the losses of micro-batches add up to that of the whole.
    """
    return group_sum(batch.require("loss_weights").sum(-1, keepdim=True), batch.group)[:, 0]


def indicator(x: Bool[Tensor, "*n"]) -> Float[Tensor, "*n"]:
    """0 and 1, of which the mean is a share."""
    return x.to(torch.get_default_dtype())
