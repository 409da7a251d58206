"""What a response is worth that nobody scored on some objective. Without this step it is unscored."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from paretune.batch import Batch
from paretune.credit.aggregate import weight_vector
from paretune.credit.step import CreditStep, Metrics, State
from paretune.reduce import group_count, group_mean


def fill_with_row_mean(x: Float[Tensor, "B J"], weights: Float[Tensor, " J"]) -> Float[Tensor, "B J"]:
    """Missing entries filled with the row's weighted mean of the others; NaN stays where none is known.

    A weighted sum of the result is sum_known(w x) * sum(w) / sum_known(w): the weights of what is known,
    stretched to the whole. Entries without a weight stay as they are.
    """
    known = ~x.isnan() & (weights != 0)
    given = (known * weights).sum(-1, keepdim=True)
    mean = torch.where(known, x * weights, 0.0).sum(-1, keepdim=True) / given
    return torch.where(x.isnan() & (weights != 0), mean, x)


def fill_with_group_mean(x: Float[Tensor, "B J"], group: Int[Tensor, " B"]) -> Float[Tensor, "B J"]:
    """Missing entries filled with the objective's mean over the group; NaN stays where nobody is scored."""
    fill = torch.where(group_count(x, group) > 0, group_mean(x, group), torch.nan)
    return torch.where(x.isnan(), fill, x)


@dataclass(frozen=True)
class HandleMissingScores(CreditStep):
    """Says what a missing score means, for the objectives that have a weight.

    "drop": the response leaves the batch, also the denominators of the losses. "renormalise": the others
    count for it, as if their weights added up to all of the weight. "group_mean": it is taken to be as good
    as the scored responses to the same prompt. What cannot be filled stays unscored.

    Reads: rewards, group. Writes: rewards; "drop" removes select.
    Reports: the share of rows dropped, or of entries filled.

    Source: ours. Published code turns a missing reward into 0 (GDPO), which is a reward like any other.
    """

    strategy: Literal["drop", "renormalise", "group_mean"]
    weights: Mapping[str, float]
    """Of the aggregator that follows."""

    def apply_stateful(
        self, batch: Batch, state: State, rng: torch.Generator
    ) -> tuple[Batch, State, Metrics]:
        """Drop, or fill in."""
        weights = weight_vector(self.weights, batch, "Missing")
        used, signal = weights != 0, batch.rewards
        missing = signal.isnan() & used
        if self.strategy == "drop":
            keep = ~missing.any(-1)
            dropped = 1 - float(keep.double().mean())
            return batch.select(keep.nonzero().squeeze(-1)), state, {"missing_scores/dropped": dropped}
        if self.strategy == "renormalise":
            filled = fill_with_row_mean(signal, weights)
        else:
            filled = torch.where(used, fill_with_group_mean(signal, batch.group), signal)
        share = float((missing & ~filled.isnan()).sum() / (used.sum() * len(batch)))
        return batch.replace(rewards=filled), state, {"missing_scores/filled": share}
