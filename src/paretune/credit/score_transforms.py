"""What a response is worth that nobody scored on some objective. Without this step it is unscored.

What a score is worth before objectives meet: good enough is enough, or nearer to a target is better.

What a response is worth that has not the form in which it could be judged.

What other libraries do and we do not by default, by name, so that their numbers can be had.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from paretune.core.batch import Batch
from paretune.core.reductions import group_count, group_mean
from paretune.credit.aggregation import objective_index, weight_vector
from paretune.credit.base import CreditStep, Metrics, State


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


@dataclass(frozen=True)
class Threshold(CreditStep):
    """A level that is good enough.

        cap: min(s, level)      pass: 1 where s >= level, else 0

    With "cap" more than enough counts no more; with "pass" nothing else counts. NaN stays NaN.

    Reads: rewards. Writes: rewards (the score_column of `objective`).

    Source: Gabor et al. 1998, thresholded values ("cap"); the rule rewards of Lambert et al. 2024
    (arXiv:2411.15124) ("pass").
    """

    objective: str
    threshold: float
    mode: Literal["cap", "pass"] = "cap"

    def apply(self, batch: Batch) -> Batch:
        """Cap the column, or turn it to passed or not."""
        k = objective_index(batch, self.objective, "Threshold")
        score, signal = batch.rewards[:, k], batch.rewards.clone()
        passed = (score >= self.threshold).to(score.dtype)
        worth = score.clamp(max=self.threshold) if self.mode == "cap" else passed
        signal[:, k] = torch.where(score.isnan(), torch.nan, worth)
        return batch.replace(rewards=signal)


@dataclass(frozen=True)
class DistanceToTarget(CreditStep):
    """Nearer to the target is better: -|s - at|. NaN stays NaN.

    Reads: rewards. Writes: rewards (the score_column of `objective`).

    Source: goal programming, Charnes and Cooper 1961; here for objectives, such as length, of which there can
    be too much.
    """

    objective: str
    target: float

    def apply(self, batch: Batch) -> Batch:
        """Minus the distance."""
        k = objective_index(batch, self.objective, "Target")
        signal = batch.rewards.clone()
        signal[:, k] = -(signal[:, k] - self.target).abs()
        return batch.replace(rewards=signal)


@dataclass(frozen=True)
class InvalidFormatPenalty(CreditStep):
    """A response that cannot be read is worth what the worst one so far was worth.

    Without this step it is unscored, and nobody learns to keep the form. The worst is of every column of the
    signal apart, over all training steps, this one included; before anything was scored it stays unscored.
    A response that could be read and got no score stays unscored too.

    Reads: format_valid, rewards. Writes: rewards. State: the worst of each score_column, infinite before the first.

    Source: the strict mode of Bhaskar et al. 2025 (arXiv:2509.20357). Differs: their code lets the reward
    model score a fixed text in the place of such a response.
    """

    def init_state(self) -> Float[Tensor, ""]:
        """Nothing was seen."""
        return torch.tensor(torch.inf, dtype=torch.float64)

    def apply_stateful(
        self, batch: Batch, state: Float[Tensor, "*j"], rng: torch.Generator
    ) -> tuple[Batch, Float[Tensor, " J"], Metrics]:
        """Remember the worst, then give it."""
        unread = ~batch.require("format_valid")[:, None]
        known = batch.rewards.nan_to_num(torch.inf, torch.inf, -torch.inf)
        seen = known.amin(0).double() if len(batch) else known.new_full((known.shape[1],), torch.inf).double()
        worst = torch.minimum(state.to(seen), seen)
        fill = torch.where(worst.isinf(), torch.nan, worst).to(batch.rewards)
        signal = torch.where(unread & batch.rewards.isnan(), fill, batch.rewards)
        return batch.replace(rewards=signal), worst, {}


@dataclass(frozen=True)
class MissingAsZero(CreditStep):
    """A score nobody gave counts as 0: a reward like any other, and not "unknown".

    rows "scored": only in a row that has some score; a row without any stays unscored (TRL). An objective of
    weight 0 makes a row scored too. "all": in every row (the code of the GDPO paper).

    Reads: rewards. Writes: rewards.

    Source: `nansum` over rewards in TRL 1.16 and in NVlabs/GDPO. Differs: our own recipes leave a missing
    score missing until a policy for it is named.
    """

    rows: Literal["scored", "all"] = "scored"

    def apply(self, batch: Batch) -> Batch:
        """Fill in zeros."""
        missing = batch.rewards.isnan()
        if self.rows == "scored":
            missing = missing & ~missing.all(-1, keepdim=True)
        return batch.replace(rewards=torch.where(missing, 0.0, batch.rewards))
