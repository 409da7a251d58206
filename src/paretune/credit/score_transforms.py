"""Transforms of scores before objectives meet: goals, missing scores, thresholds, invalid formats."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from paretune.core.batch import Batch
from paretune.core.errors import WiringError
from paretune.core.goals import HIGHER, Goal
from paretune.core.reductions import group_count, group_mean
from paretune.credit.aggregation import objective_index, weight_vector
from paretune.credit.base import CreditStep, Metrics, State


def fill_with_row_mean(x: Float[Tensor, "B J"], weights: Float[Tensor, " J"]) -> Float[Tensor, "B J"]:
    """Missing entries replaced by the row's weighted mean of the others; NaN if the row has no others.

    A weighted sum of the result is sum_known(w x) * sum(w) / sum_known(w): the weights of the known entries,
    scaled up to the sum of all weights. Entries without a weight are not changed.
    """
    known = ~x.isnan() & (weights != 0)
    known_weight = (known * weights).sum(-1, keepdim=True)
    mean = torch.where(known, x * weights, 0.0).sum(-1, keepdim=True) / known_weight
    return torch.where(x.isnan() & (weights != 0), mean, x)


def fill_with_group_mean(x: Float[Tensor, "B J"], group: Int[Tensor, " B"]) -> Float[Tensor, "B J"]:
    """Missing entries replaced by the objective's mean over the group; NaN if the group has no scores."""
    mean = torch.where(group_count(x, group) > 0, group_mean(x, group), torch.nan)
    return torch.where(x.isnan(), mean, x)


@dataclass(frozen=True)
class HandleMissingScores(CreditStep):
    """Drop or fill in missing scores of the objectives that have a weight.

    "drop": the response is removed from the batch, and from the denominators of the losses. "renormalize":
    the weights of the other objectives are scaled up. "group_mean": the mean of the scored responses to the
    same prompt. A score that cannot be filled in stays missing. Without this step a response with a missing
    score is unscored.

    Reads: rewards, group. Writes: rewards; "drop" removes rows.
    Logs: the share of rows dropped, or of entries filled.

    Source: ours. Published code turns a missing reward into 0 (GDPO), which is a reward like any other.
    """

    strategy: Literal["drop", "renormalize", "group_mean"]
    weights: Mapping[str, float]
    """Of the aggregator that follows."""

    def apply_stateful(
        self, batch: Batch, state: State, rng: torch.Generator
    ) -> tuple[Batch, State, Metrics]:
        """Drop rows, or fill in scores."""
        weights = weight_vector(self.weights, batch, "HandleMissingScores")
        used, rewards = weights != 0, batch.rewards
        missing = rewards.isnan() & used
        if self.strategy == "drop":
            keep = ~missing.any(-1)
            dropped = 1 - float(keep.double().mean())
            return batch.select(keep.nonzero().squeeze(-1)), state, {"missing_scores/dropped": dropped}
        if self.strategy == "renormalize":
            filled = fill_with_row_mean(rewards, weights)
        else:
            filled = torch.where(used, fill_with_group_mean(rewards, batch.group), rewards)
        fraction = float((missing & ~filled.isnan()).sum() / (used.sum() * len(batch)))
        return batch.replace(rewards=filled), state, {"missing_scores/filled": fraction}


@dataclass(frozen=True)
class Threshold(CreditStep):
    """Cap an objective at a threshold, or turn it into pass/fail.

        cap: min(s, threshold)      binary: 1 where s >= threshold, else 0

    Where lower scores are better, the maximum takes the place of the minimum, and <= that of >=. NaN stays
    NaN.

    Reads: rewards. Writes: rewards (the column of `objective`).

    Source: Gabor et al. 1998, thresholded values ("cap"); the rule rewards of Lambert et al. 2024
    (arXiv:2411.15124) ("binary").
    """

    objective: str
    threshold: float
    mode: Literal["cap", "binary"] = "cap"

    def apply(self, batch: Batch) -> Batch:
        """Transform the column."""
        k = objective_index(batch, self.objective, "Threshold")
        score, rewards = batch.rewards[:, k], batch.rewards.clone()
        threshold = batch.goal(self.objective).orient(self.threshold)
        passed = (score >= threshold).to(score.dtype)
        transformed = score.clamp(max=threshold) if self.mode == "cap" else passed
        rewards[:, k] = torch.where(score.isnan(), torch.nan, transformed)
        return batch.replace(rewards=rewards)


@dataclass(frozen=True)
class OrientScores(CreditStep):
    """Make higher rewards better for every objective: -s where lower scores are, -|s - target| for a target.

    It comes first. All later steps see oriented rewards; numbers in their fields stay in the units of the
    scores. NaN stays NaN.

    Reads: rewards. Writes: rewards, goals.

    Source: goal programming, Charnes and Cooper 1961, for the distance to a target, of objectives, such as
    length, of which there can be too much.
    """

    lower: tuple[str, ...] = ()
    """Objectives where lower scores are better."""
    targets: Mapping[str, float] = field(default_factory=dict)
    """Objective -> its best score."""

    @classmethod
    def of(cls, goals: Mapping[str, Goal]) -> "OrientScores":
        """The step of these goals."""
        targets = {name: goal.target for name, goal in goals.items() if goal.target is not None}
        return cls(tuple(name for name, goal in goals.items() if goal.kind == "lower"), targets)

    def __post_init__(self) -> None:
        both = [name for name in self.lower if name in self.targets]
        if both:
            raise WiringError(f"OrientScores has both a target and goal lower for {', '.join(both)}")

    def apply(self, batch: Batch) -> Batch:
        """Orient the columns.

        Raises:
            WiringError: There is no such objective, an aggregator came before, or the scores are oriented.
        """
        if batch.goals:
            raise WiringError("OrientScores comes twice; fix: leave out one of the two")
        goals = dict.fromkeys(batch.objectives, HIGHER)
        for name, goal in self._goals().items():
            objective_index(batch, name, "OrientScores")
            goals[name] = goal
        columns = [goal.orient(batch.rewards[:, k]) for k, goal in enumerate(goals.values())]
        return batch.replace(rewards=torch.stack(columns, -1), goals=tuple(goals.values()))

    def _goals(self) -> dict[str, Goal]:
        targets = {name: Goal("target", target) for name, target in self.targets.items()}
        return dict.fromkeys(self.lower, Goal("lower")) | targets


@dataclass(frozen=True)
class InvalidFormatPenalty(CreditStep):
    """A response in an invalid format gets the lowest reward so far.

    Without this step it is unscored, and the policy never learns the format. The minimum is per column of the
    rewards, over all training steps including this one; before any reward it stays unscored. A response in a
    valid format without a score stays unscored too.

    Reads: format_valid, rewards. Writes: rewards. State: the minimum of each column, infinite at first.

    Source: the strict mode of Bhaskar et al. 2025 (arXiv:2509.20357). Differs: their code lets the reward
    model score a fixed text instead of such a response.
    """

    def init_state(self) -> Float[Tensor, ""]:
        """No rewards yet."""
        return torch.tensor(torch.inf, dtype=torch.float64)

    def apply_stateful(
        self, batch: Batch, state: Float[Tensor, "*j"], rng: torch.Generator
    ) -> tuple[Batch, Float[Tensor, " J"], Metrics]:
        """Update the minimum with this batch, then assign it."""
        invalid = ~batch.require("format_valid")[:, None]
        known = batch.rewards.nan_to_num(torch.inf, torch.inf, -torch.inf)
        # An empty batch has no minimum to take.
        batch_minimum = (
            known.amin(0).double() if len(batch) else known.new_full((known.shape[1],), torch.inf).double()
        )
        minimum = torch.minimum(state.to(batch_minimum), batch_minimum)
        penalty = torch.where(minimum.isinf(), torch.nan, minimum).to(batch.rewards)
        rewards = torch.where(invalid & batch.rewards.isnan(), penalty, batch.rewards)
        return batch.replace(rewards=rewards), minimum, {}


@dataclass(frozen=True)
class MissingAsZero(CreditStep):
    """A missing score counts as 0: a reward like any other, and not "unknown".

    For comparison with other libraries.
    rows "scored": only in a row that has some score; a row without any stays unscored (TRL). An objective of
    weight 0 makes a row scored too. "all": in every row (the code of the GDPO paper).

    Reads: rewards. Writes: rewards.

    Source: `nansum` over rewards in TRL 1.16 and in NVlabs/GDPO. Differs: our own algorithms leave a missing
    score missing unless HandleMissingScores is configured.
    """

    rows: Literal["scored", "all"] = "scored"

    def apply(self, batch: Batch) -> Batch:
        """Fill in zeros."""
        missing = batch.rewards.isnan()
        if self.rows == "scored":
            missing = missing & ~missing.all(-1, keepdim=True)
        return batch.replace(rewards=torch.where(missing, 0.0, batch.rewards))
