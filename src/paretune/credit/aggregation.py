"""Aggregation of J objectives into one reward: weighted sums, gates, and a lexicographic order.

Functions work on the last axis and keep it, at length 1.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from paretune.core.batch import Batch
from paretune.core.errors import WiringError
from paretune.core.reductions import group_index, group_mean
from paretune.credit.base import CreditStep, Metrics, State

Weights = Mapping[str, float]


def weighted_sum(x: Float[Tensor, "*n J"], weights: Float[Tensor, " J"]) -> Float[Tensor, "*n 1"]:
    """Sum of w_j x_j over the objectives with a nonzero weight."""
    # Select before summing: an unweighted objective must not change even the rounding, and its NaN not
    # spread.
    used = weights != 0
    return (x[..., used] * weights[used]).sum(-1, keepdim=True)


def variance_share(
    terms: Float[Tensor, "B J"], total: Float[Tensor, "B 1"], group: Int[Tensor, " B"]
) -> Float[Tensor, " J"]:
    """Share of each term in the within-group variance of the total, pooled: Cov(term, total) / Var(total).

    The shares of terms that add up to the total add up to 1. A negative share is an objective that training
    pushes down. NaN if the total does not vary within any group. Rows where the total is NaN are left out.

    Source: MO-GRPO (arXiv:2509.22047), the theorem on a plain sum, computed on the batch at hand.
    """
    if not len(total):  # every row was dropped; an empty tensor has no maximum
        return terms.new_full((terms.shape[1],), torch.nan)
    known = ~total.isnan()
    terms = torch.where(known, terms, torch.nan)
    centered = torch.where(known, total - group_mean(total, group), 0.0)
    covariance = (torch.where(known, terms - group_mean(terms, group), 0.0) * centered).sum(0)
    variance = centered.square().sum()
    # Equal float32 rewards leave rounding noise of about 1e-7 of their size; it has no shares.
    scale = total.nan_to_num(0.0).abs().max()
    return torch.where(variance > (1e-6 * scale).square(), covariance / variance, torch.nan)


def aggregation_metrics(
    batch: Batch,
    weights: Float[Tensor, "*b K"],
    total: Float[Tensor, "B 1"],
    extra_terms: Float[Tensor, "B K"] | None = None,
) -> Metrics:
    """Weighted mean and variance share of each objective with a weight.

    Args:
        batch: With rewards not aggregated yet.
        weights: One row for all responses, or one row per response.
        total: The aggregated reward.
        extra_terms: Added to weight times score, per objective.
    """
    terms = torch.where(weights != 0, batch.rewards * weights, 0.0)
    terms = terms if extra_terms is None else terms + extra_terms
    # Unused objectives are removed before any summation, so that they do not change even the rounding.
    used = [k for k in range(terms.shape[-1]) if weights[..., k].any() or (terms[:, k] != 0).any()]
    shares = variance_share(terms[:, used], total, batch.group)
    metrics: Metrics = {}
    for k, share in zip(used, shares.tolist(), strict=True):
        metrics[f"weighted_score/{batch.objectives[k]}/mean"] = float(terms[:, k].nanmean())
        metrics[f"variance_share/{batch.objectives[k]}"] = share
    return metrics


@dataclass(frozen=True)
class WeightedSum(CreditStep):
    """One reward from many objectives: R = sum over k of w_k s_k.

    A response without a score for a weighted objective stays unscored (NaN). Objectives without a weight are
    scored and logged, and do not count. Weights are used as given, not normalized.

    Reads: rewards. Writes: rewards (J becomes 1).
    Logs: the weighted mean of each objective, and its share of the within-group variance of the sum.

    Source: Li et al. 2025 (arXiv:2503.21819), combined reward R(s, a).
    """

    weights: Weights

    def apply_stateful(
        self, batch: Batch, state: State, rng: torch.Generator
    ) -> tuple[Batch, State, Metrics]:
        """Sum the weighted objectives."""
        weights = weight_vector(self.weights, batch, "WeightedSum")
        total = weighted_sum(batch.rewards, weights)
        return batch.replace(rewards=total), state, aggregation_metrics(batch, weights, total)


@dataclass(frozen=True)
class Gate(CreditStep):
    """An objective counts only if another one reaches a threshold; otherwise it is set to `fallback`.

    The condition is on the score as it was given, whatever the goal of its objective. If the condition is
    unscored, the gated objective is unscored too.

    Reads: scores, rewards. Writes: rewards (the column of `objective`).

    Source: the conditioned rewards of Liu et al. 2026, GDPO (arXiv:2601.05242). Differs: `fallback` is a
    choice; there it is 0.
    """

    objective: str
    condition_objective: str
    threshold: float
    fallback: float = 0.0
    """Score if the condition fails, in the units of the objective: give its worst score."""
    comparison: Literal[">=", "<="] = ">="
    """What the condition must be to the threshold."""

    def apply(self, batch: Batch) -> Batch:
        """Replace the objective where the condition fails."""
        if batch.rewards.shape[-1] != len(batch.objectives):
            raise WiringError(f'the gate on "{self.objective}" comes after an aggregator; fix: put it before')
        for name in (self.objective, self.condition_objective):
            if name not in batch.objectives:
                raise WiringError(f"a gate names {unknown_objective_message(name, batch.objectives)}")
        # Conditions read `scores`, which no step changes, so the order of several gates does not matter.
        condition = batch.score_column(self.condition_objective)
        k = batch.objectives.index(self.objective)
        holds = condition <= self.threshold if self.comparison == "<=" else condition >= self.threshold
        fallback = batch.goal(self.objective).orient(self.fallback)
        gated = torch.where(holds, batch.rewards[:, k], fallback)
        rewards = batch.rewards.clone()
        rewards[:, k] = torch.where(condition.isnan(), torch.nan, gated)
        return batch.replace(rewards=rewards)


def require_unaggregated(batch: Batch, step_name: str) -> None:
    """Check that `rewards` still has one column per objective.

    Raises:
        WiringError: An aggregator came before this step.
    """
    if batch.rewards.shape[-1] != len(batch.objectives):
        raise WiringError(
            f"{step_name} needs one reward per objective and comes after another aggregator; "
            "fix: leave out one of the two"
        )


def weight_vector(weights: Weights, batch: Batch, step_name: str) -> Float[Tensor, " J"]:
    """The weights in the order of the objectives, names and values checked.

    Raises:
        WiringError: An aggregator came before, a name is unknown, or no weight is nonzero and finite.
    """
    require_unaggregated(batch, step_name)
    for name, weight in weights.items():
        if name not in batch.objectives:
            raise WiringError(f"the weights name {unknown_objective_message(name, batch.objectives)}")
        if not math.isfinite(weight):
            raise WiringError(f'the weight of "{name}" is {weight}; it must be a finite number')
    if not any(weights.values()):
        raise WiringError("no objective has a weight; fix: give at least one a weight other than 0")
    return batch.rewards.new_tensor([weights.get(name, 0.0) for name in batch.objectives])


def objective_index(batch: Batch, objective: str, step_name: str) -> int:
    """The column of an objective in `rewards`.

    Raises:
        WiringError: An aggregator came before, or there is no such objective.
    """
    require_unaggregated(batch, step_name)
    if objective not in batch.objectives:
        raise WiringError(f"{step_name} names {unknown_objective_message(objective, batch.objectives)}")
    return batch.objectives.index(objective)


def unknown_objective_message(name: str, objectives: tuple[str, ...]) -> str:
    """The end of an error message about an unknown objective, with the nearest known name."""
    matches = get_close_matches(name, objectives, n=1, cutoff=0.6)
    suggestion = f'; did you mean "{matches[0]}"?' if matches else ""
    return f'the objective "{name}", which is none of {", ".join(objectives)}{suggestion}'


def row_weighted_sum(x: Float[Tensor, "B J"], weights: Float[Tensor, "B J"]) -> Float[Tensor, "B 1"]:
    """Sum over j of w_bj x_bj; scores with weight 0 in a row are not read there. NaN weights give NaN."""
    used = (weights != 0).any(0)
    terms = torch.where(weights != 0, x * weights, 0.0)
    return terms[:, used].sum(-1, keepdim=True)


def interpolate_weights(schedule: tuple[tuple[int, Weights], ...], step: int) -> dict[str, float]:
    """Weights at a training step: linear between the points of the schedule, constant before and after them.

    An objective that a point does not name has weight 0 there.
    """
    after = next((i for i, (at, _) in enumerate(schedule) if at > step), len(schedule))
    left, right = schedule[max(after - 1, 0)], schedule[min(after, len(schedule) - 1)]
    fraction = (step - left[0]) / (right[0] - left[0]) if right[0] > left[0] <= step else 0.0
    names = dict.fromkeys(name for _, weights in schedule for name in weights)
    # At a point of the schedule the weight is taken as given: interpolating with fraction 0 could round it.
    return {
        name: (1 - fraction) * left[1].get(name, 0.0) + fraction * right[1].get(name, 0.0)
        if fraction
        else left[1].get(name, 0.0)
        for name in names
    }


@dataclass(frozen=True)
class ScheduledWeightedSum(CreditStep):
    """A weighted sum whose weights depend on the training step; with one point it is WeightedSum.

    Reads: rewards. Writes: rewards (J becomes 1). State: the training step.
    Logs: as WeightedSum; `state/weight/{objective}`.

    Source: ours; the weights of linear scalarization in Li et al. 2025 (arXiv:2503.21819), scheduled.
    """

    schedule: tuple[tuple[int, Weights], ...]
    """(training step from 0, weights), in the order of the steps."""

    def __post_init__(self) -> None:
        steps = [step for step, _ in self.schedule]
        if not steps or steps != sorted(set(steps)):
            raise WiringError(
                f"ScheduledWeightedSum has the steps {steps}; fix: at least one, each later than the one "
                "before"
            )

    def init_state(self) -> State:
        """Training step 0."""
        return 0

    def apply_stateful(
        self, batch: Batch, state: State, rng: torch.Generator
    ) -> tuple[Batch, State, Metrics]:
        """Sum with the weights of this training step."""
        current = interpolate_weights(self.schedule, state)
        weights = weight_vector(current, batch, "ScheduledWeightedSum")
        total = weighted_sum(batch.rewards, weights)
        metrics = aggregation_metrics(batch, weights, total) | {
            f"state/weight/{name}": weight for name, weight in current.items()
        }
        return batch.replace(rewards=total), state + 1, metrics


@dataclass(frozen=True)
class PerCategoryWeightedSum(CreditStep):
    """A weighted sum with separate weights for each prompt category.

    Reads: rewards, category, categories. Writes: rewards (J becomes 1). Logs: as WeightedSum.

    Source: ours. Attack and benign prompts need different weights on the same four objectives.
    """

    weights: Mapping[str, Weights]
    """Category -> weights."""
    default_weights: Weights = field(default_factory=dict)
    """Weights of every other category."""

    def apply_stateful(
        self, batch: Batch, state: State, rng: torch.Generator
    ) -> tuple[Batch, State, Metrics]:
        """Sum with the weights of each row's category."""
        per_category = torch.stack([self._weights_for(category, batch) for category in batch.categories])
        weights = per_category[batch.require("category")]
        total = row_weighted_sum(batch.rewards, weights)
        return batch.replace(rewards=total), state, aggregation_metrics(batch, weights, total)

    def _weights_for(self, category: str, batch: Batch) -> Float[Tensor, " J"]:
        weights = self.weights.get(category, self.default_weights)
        if not weights:
            raise WiringError(
                f'PerCategoryWeightedSum has no weights for the category "{category}", only for '
                f"{', '.join(self.weights)}; fix: give `default_weights`"
            )
        return weight_vector(weights, batch, "PerCategoryWeightedSum")


@dataclass(frozen=True)
class PreferenceWeightedSum(CreditStep):
    """A weighted sum with the weights that each prompt brings: a preference-conditioned policy.

    All responses of a prompt must have the same weights, or their rewards are not comparable. A row whose
    preference weights are NaN is unscored.

    Reads: rewards, preference_weights. Writes: rewards (J becomes 1). Logs: as WeightedSum.

    Source: Yang et al. 2024 (RiC, arXiv:2402.10207) and Guo et al. 2024 (controllable preference
    optimization, arXiv:2402.19085) condition policies on preferences. Differs: they put the preference into
    supervised data or pairs; here it weights the scores of responses that the policy sampled.
    """

    def apply_stateful(
        self, batch: Batch, state: State, rng: torch.Generator
    ) -> tuple[Batch, State, Metrics]:
        """Sum with the weights of each row."""
        require_unaggregated(batch, "PreferenceWeightedSum")
        weights = batch.preference_weights
        if weights is None:
            raise WiringError(
                "PreferenceWeightedSum has no weights, since the prompts have none; fix: give each prompt "
                "`preference_weights`"
            )
        total = row_weighted_sum(batch.rewards, weights)
        return batch.replace(rewards=total), state, aggregation_metrics(batch, weights, total)


def lexicographic_rank(x: Float[Tensor, "B J"], group: Int[Tensor, " B"]) -> Float[Tensor, "B 1"]:
    """Rank of each row in its group by the first column, ties by the second, and so on; 0 worst, 1 best.

    Rows that are equal in every column share the mean of their ranks. Rows with a NaN are not ranked and stay
    NaN; a row without others gets 0.5.
    """
    ranks = x.new_full((len(x), 1), torch.nan)
    index, count = group_index(group)
    known = ~x.isnan().any(-1)
    for g in range(count):
        rows = ((index == g) & known).nonzero().squeeze(-1)
        if not len(rows):
            continue
        # `unique` sorts rows lexicographically, which is the order wanted.
        _, inverse, ties = x[rows].unique(dim=0, return_inverse=True, return_counts=True)
        mean_rank = ties.cumsum(0) - ties + (ties - 1) / 2
        ranks[rows, 0] = mean_rank[inverse].to(x.dtype) / (len(rows) - 1) if len(rows) > 1 else 0.5
    return ranks


@dataclass(frozen=True)
class Lexicographic(CreditStep):
    """Objectives in order of importance; the reward of a response is its rank in its group.

    An objective with a threshold counts only up to it: once responses are good enough in it, the next
    objective decides. Without thresholds, and with scores that hardly ever tie, the first objective decides
    everything; `resolution` makes near scores equal.

    Reads: rewards, group. Writes: rewards (J becomes 1), in [0, 1].
    Logs: `active_objective/{objective}`, the share of pairs of responses that each objective decides.

    Source: Gabor et al. 1998 and Vamplew et al. 2011 (Machine Learning 84), thresholded lexicographic order.
    Differs: among the responses to a prompt instead of among actions; a rank instead of a choice.
    """

    order: tuple[tuple[str, float | None], ...]
    """(objective, threshold from which it is good enough, or None), the most important first; thresholds are
    in the units of the score."""
    resolution: float = 0.0
    """Scores are rounded down to multiples of this; 0: not rounded."""

    def __post_init__(self) -> None:
        names = [name for name, _ in self.order]
        if not names or len(set(names)) < len(names):
            raise WiringError(
                f"Lexicographic orders {', '.join(names) or 'nothing'}; fix: name each objective once"
            )
        if not 0 <= self.resolution < float("inf"):
            raise WiringError(f"Lexicographic got resolution {self.resolution}; it must be 0 or above")

    def apply_stateful(
        self, batch: Batch, state: State, rng: torch.Generator
    ) -> tuple[Batch, State, Metrics]:
        """Rank the responses of each group."""
        columns = []
        for name, threshold in self.order:
            x = batch.rewards[:, objective_index(batch, name, "Lexicographic")]
            x = x if threshold is None else x.clamp(max=batch.goal(name).orient(threshold))
            columns.append((x / self.resolution).floor() if self.resolution else x)
        x = torch.stack(columns, -1)
        return (
            batch.replace(rewards=lexicographic_rank(x, batch.group)),
            state,
            self._active_metrics(x, batch.group),
        )

    def _active_metrics(self, x: Float[Tensor, "B J"], group: Int[Tensor, " B"]) -> Metrics:
        known = ~x.isnan().any(-1)
        pairs = (group[:, None] == group) & known[:, None] & known
        pairs = pairs.triu(1)
        differs = (x[:, None] != x) & pairs[..., None]
        # The objective that decides a pair is the first one in which the two responses differ.
        first = differs & (differs.cumsum(-1) == 1)
        count = max(int(pairs.sum()), 1)
        return {
            f"active_objective/{name}": float(first[..., j].sum()) / count
            for j, (name, _) in enumerate(self.order)
        }
