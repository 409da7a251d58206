"""From J objectives to one. Every function works on the last axis and keeps it, at length 1.

Weighted sums whose weights are not the same all the time, or not the same for all prompts.

An order of objectives: the second one matters only between responses that the first cannot tell apart.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches

import torch
from jaxtyping import Float, Int
from torch import Tensor

from paretune.core.batch import Batch
from paretune.core.errors import WiringError
from paretune.core.reductions import group_index, group_mean
from paretune.credit.base import CreditStep, Metrics, State


def weighted_sum(x: Float[Tensor, "*n J"], weights: Float[Tensor, " J"]) -> Float[Tensor, "*n 1"]:
    """Sum of w_j x_j over the objectives that have a weight; the others change not even the rounding."""
    used = weights != 0
    return (x[..., used] * weights[used]).sum(-1, keepdim=True)


def variance_share(
    terms: Float[Tensor, "B J"], total: Float[Tensor, "B 1"], group: Int[Tensor, " B"]
) -> Float[Tensor, " J"]:
    """Share of each part in what moves the whole: Cov(part, whole) / Var(whole) within groups, pooled.

    The shares of parts that add up to the whole add up to 1; a negative share is an objective that is pushed
    down. NaN when the whole does not vary within any group. Rows where the whole is NaN are left out.

    Source: what the theorem of MO-GRPO (arXiv:2509.22047) says of a plain sum, computed on the batch at hand.
    """
    known = ~total.isnan()
    terms = torch.where(known, terms, torch.nan)
    centred = torch.where(known, total - group_mean(total, group), 0.0)
    covariance = (torch.where(known, terms - group_mean(terms, group), 0.0) * centred).sum(0)
    variance = centred.square().sum()
    scale = total.nan_to_num(0.0).abs().max()
    return torch.where(variance > (1e-6 * scale).square(), covariance / variance, torch.nan)


def aggregation_metrics(
    batch: Batch,
    weights: Float[Tensor, "*b K"],
    total: Float[Tensor, "B 1"],
    extra_terms: Float[Tensor, "B K"] | None = None,
) -> Metrics:
    """What each objective with a weight had in the aggregated signal: its weighted mean, and its share.

    Args:
        batch: Its signal still holds the objectives apart.
        weights: One row for all responses, or one for each.
        total: The signal they were aggregated to.
        extra_terms: What an objective adds beside weight times score.
    """
    parts = torch.where(weights != 0, batch.rewards * weights, 0.0)
    parts = parts if extra_terms is None else parts + extra_terms
    # What has no part is left out before anything is added up, so that it changes not even the rounding.
    used = [k for k in range(parts.shape[-1]) if weights[..., k].any() or (parts[:, k] != 0).any()]
    shares = variance_share(parts[:, used], total, batch.group)
    metrics: Metrics = {}
    for k, share in zip(used, shares.tolist(), strict=True):
        metrics[f"weighted_score/{batch.objectives[k]}/mean"] = float(parts[:, k].nanmean())
        metrics[f"variance_share/{batch.objectives[k]}"] = share
    return metrics


@dataclass(frozen=True)
class WeightedSum(CreditStep):
    """One signal from many: R = sum over k of w_k s_k.

    A response with no score for an objective that has a weight stays unscored (NaN); objectives without a
    weight are scored and logged, and do not count. Weights are used as they are given.

    Reads: rewards. Writes: rewards (J becomes 1).
    Reports: the weighted mean of each objective, and its share of the within-group variation of the sum.

    Source: Li et al. 2025 (arXiv:2503.21819), combined reward R(s, a).
    """

    weights: Mapping[str, float]

    def apply_stateful(
        self, batch: Batch, state: State, rng: torch.Generator
    ) -> tuple[Batch, State, Metrics]:
        """The sum, and what each objective had in it."""
        weights = weight_vector(self.weights, batch, "WeightedSum")
        total = weighted_sum(batch.rewards, weights)
        return batch.replace(rewards=total), state, aggregation_metrics(batch, weights, total)


@dataclass(frozen=True)
class Gate(CreditStep):
    """An objective counts only where another one is good enough; elsewhere it is worth `fallback`.

    Where nobody could say whether the condition holds, the gated objective is unscored too.

    Reads: scores, rewards. Writes: rewards (the score_column of `objective`).

    Source: the conditioned rewards of Liu et al. 2026, GDPO (arXiv:2601.05242). Differs: `fallback` is a
    choice; there it is 0.
    """

    objective: str
    condition_objective: str
    threshold: float
    fallback: float = 0.0
    """Worth where the gate is shut, in the units of the objective: give its worst score."""

    def apply(self, batch: Batch) -> Batch:
        """Shut the gate where the condition fails."""
        if batch.rewards.shape[-1] != len(batch.objectives):
            raise WiringError(f'the gate on "{self.objective}" comes after an aggregator: put it before')
        for name in (self.objective, self.condition_objective):
            if name not in batch.objectives:
                raise WiringError(f"a gate names {unknown_objective_message(name, batch.objectives)}")
        condition = batch.score_column(self.condition_objective)
        k = batch.objectives.index(self.objective)
        gated = torch.where(condition >= self.threshold, batch.rewards[:, k], self.fallback)
        signal = batch.rewards.clone()
        signal[:, k] = torch.where(condition.isnan(), torch.nan, gated)
        return batch.replace(rewards=signal)


def require_unaggregated(batch: Batch, step_name: str) -> None:
    """The objectives still stand apart in the signal.

    Raises:
        WiringError: An aggregator came before this part.
    """
    if batch.rewards.shape[-1] != len(batch.objectives):
        raise WiringError(f"{step_name} comes after another aggregator: the objectives are no longer apart")


def weight_vector(weights: Mapping[str, float], batch: Batch, step_name: str) -> Float[Tensor, " J"]:
    """The weights in the order of the objectives, after a look at their names and values.

    Raises:
        WiringError: An aggregator came before, a name is unknown, or no weight is a number other than 0.
    """
    require_unaggregated(batch, step_name)
    for name, weight in weights.items():
        if name not in batch.objectives:
            raise WiringError(f"weights name {unknown_objective_message(name, batch.objectives)}")
        if not math.isfinite(weight):
            raise WiringError(f'the weight of "{name}" is {weight}; it must be a finite number')
    if not any(weights.values()):
        raise WiringError("no objective has a weight: give at least one")
    return batch.rewards.new_tensor([weights.get(name, 0.0) for name in batch.objectives])


def objective_index(batch: Batch, objective: str, step_name: str) -> int:
    """The place of an objective whose column of the signal a part is about to read or change.

    Raises:
        WiringError: An aggregator came before, or there is no such objective.
    """
    require_unaggregated(batch, step_name)
    if objective not in batch.objectives:
        raise WiringError(f"{step_name} names {unknown_objective_message(objective, batch.objectives)}")
    return batch.objectives.index(objective)


def unknown_objective_message(name: str, objectives: tuple[str, ...]) -> str:
    """What to say of a name that is no objective."""
    near = get_close_matches(name, objectives, n=1, cutoff=0.6)
    meant = f'; did you mean "{near[0]}"?' if near else ""
    return f'"{name}", which is none of the objectives {", ".join(objectives)}{meant}'


Weights = Mapping[str, float]


def row_weighted_sum(x: Float[Tensor, "B J"], weights: Float[Tensor, "B J"]) -> Float[Tensor, "B 1"]:
    """Sum over j of w_bj x_bj; what has no weight in a row is not looked at there. NaN weights give NaN."""
    used = (weights != 0).any(0)
    parts = torch.where(weights != 0, x * weights, 0.0)
    return parts[:, used].sum(-1, keepdim=True)


def interpolate_weights(schedule: tuple[tuple[int, Weights], ...], step: int) -> dict[str, float]:
    """Weights that move in straight lines from point to point, and stay before the first and after the last.

    An objective that a point does not name has the weight 0 there.
    """
    after = next((i for i, (at, _) in enumerate(schedule) if at > step), len(schedule))
    left, right = schedule[max(after - 1, 0)], schedule[min(after, len(schedule) - 1)]
    share = (step - left[0]) / (right[0] - left[0]) if right[0] > left[0] <= step else 0.0
    names = dict.fromkeys(name for _, weights in schedule for name in weights)
    return {
        name: (1 - share) * left[1].get(name, 0.0) + share * right[1].get(name, 0.0)
        if share
        else left[1].get(name, 0.0)
        for name in names
    }


@dataclass(frozen=True)
class ScheduledWeightedSum(CreditStep):
    """A weighted sum whose weights depend on the training step; with one point it is WeightedSum.

    Reads: rewards. Writes: rewards (J becomes 1). Remembers: the step.
    Reports: as WeightedSum; `state/weight/{objective}`.

    Source: ours; the weights of linear scalarisation in Li et al. 2025 (arXiv:2503.21819), in time.
    """

    schedule: tuple[tuple[int, Weights], ...]
    """(training step from 0, weights), in the order of the steps."""

    def __post_init__(self) -> None:
        steps = [step for step, _ in self.schedule]
        if not steps or steps != sorted(set(steps)):
            raise WiringError(
                f"ScheduledSum has the steps {steps}: name at least one, each later than the last"
            )

    def init_state(self) -> State:
        """The first step."""
        return 0

    def apply_stateful(
        self, batch: Batch, state: State, rng: torch.Generator
    ) -> tuple[Batch, State, Metrics]:
        """The sum with the weights of this step."""
        now = interpolate_weights(self.schedule, state)
        weights = weight_vector(now, batch, "ScheduledSum")
        total = weighted_sum(batch.rewards, weights)
        metrics = aggregation_metrics(batch, weights, total) | {
            f"state/weight/{name}": w for name, w in now.items()
        }
        return batch.replace(rewards=total), state + 1, metrics


@dataclass(frozen=True)
class PerCategoryWeightedSum(CreditStep):
    """A weighted sum with weights of its own for each kind of prompt.

    Reads: rewards, category, categories. Writes: rewards (J becomes 1). Reports: as WeightedSum.

    Source: ours. Attack and benign prompts want different things of the same four objectives.
    """

    weights: Mapping[str, Weights]
    """Kind -> weights."""
    default_weights: Weights = field(default_factory=dict)
    """Weights of every other kind."""

    def apply_stateful(
        self, batch: Batch, state: State, rng: torch.Generator
    ) -> tuple[Batch, State, Metrics]:
        """The sum with the weights of each row's kind."""
        rows = torch.stack([self._weights_for(kind, batch) for kind in batch.categories])[
            batch.require("category")
        ]
        total = row_weighted_sum(batch.rewards, rows)
        return batch.replace(rewards=total), state, aggregation_metrics(batch, rows, total)

    def _weights_for(self, category: str, batch: Batch) -> Float[Tensor, " J"]:
        found = self.weights.get(category, self.default_weights)
        if not found:
            known = ", ".join(self.weights)
            raise WiringError(
                f'KindSum has no weights for the kind "{category}", only for {known}; give `otherwise`'
            )
        return weight_vector(found, batch, "KindSum")


@dataclass(frozen=True)
class PreferenceWeightedSum(CreditStep):
    """A weighted sum with the weights that each prompt asks for: a preference-conditioned policy.

    All responses of a prompt must be asked for the same, or their signals are not comparable. A row whose
    preference is NaN is unscored.

    Reads: rewards, preference_weights. Writes: rewards (J becomes 1). Reports: as WeightedSum.

    Source: Yang et al. 2024 (RiC, arXiv:2402.10207) and Guo et al. 2024 (controllable preference
    optimisation, arXiv:2402.19085) condition policies on preferences. Differs: they put the preference into
    supervised data or pairs; here it weighs the scores of responses that the policy sampled.
    """

    def apply_stateful(
        self, batch: Batch, state: State, rng: torch.Generator
    ) -> tuple[Batch, State, Metrics]:
        """The sum with each row's own weights."""
        require_unaggregated(batch, "PreferenceSum")
        if batch.preference_weights is None:
            raise WiringError("PreferenceSum reads batch.preference: give each prompt its `preference`")
        total = row_weighted_sum(batch.rewards, batch.preference_weights)
        return (
            batch.replace(rewards=total),
            state,
            aggregation_metrics(batch, batch.preference_weights, total),
        )


def lexicographic_rank(x: Float[Tensor, "B J"], group: Int[Tensor, " B"]) -> Float[Tensor, "B 1"]:
    """Place of each row in its group by the first column, ties by the second, and so on; 0 worst, 1 best.

    Rows that are equal in every column share the middle of their places. Rows with a NaN are not ranked, and
    stay NaN; a row without others gets 0.5.
    """
    place = x.new_full((len(x), 1), torch.nan)
    index, count = group_index(group)
    known = ~x.isnan().any(-1)
    for g in range(count):
        rows = ((index == g) & known).nonzero().squeeze(-1)
        if not len(rows):
            continue
        _, inverse, ties = x[rows].unique(dim=0, return_inverse=True, return_counts=True)
        middle = ties.cumsum(0) - ties + (ties - 1) / 2
        place[rows, 0] = middle[inverse].to(x.dtype) / (len(rows) - 1) if len(rows) > 1 else 0.5
    return place


@dataclass(frozen=True)
class Lexicographic(CreditStep):
    """Objectives in the order of their importance; a response is worth its place in its group.

    An objective with a level counts only up to it: once responses are good enough in it, the next one
    decides. Without levels, and with scores that hardly ever tie, the first objective decides everything;
    `resolution` makes near scores equal.

    Reads: rewards, group. Writes: rewards (J becomes 1), in [0, 1].
    Reports: `active_objective/{objective}`, the share of pairs of responses that each objective decides.

    Source: Gabor et al. 1998 and Vamplew et al. 2011 (Machine Learning 84), thresholded lexicographic order.
    Differs: among the responses of a prompt instead of among actions; the place instead of a choice.
    """

    order: tuple[tuple[str, float | None], ...]
    """(objective, level from which it is good enough, or None), the most important first."""
    resolution: float = 0.0
    """Scores are rounded down to multiples of this; 0: as they are."""

    def __post_init__(self) -> None:
        names = [name for name, _ in self.order]
        if not names or len(set(names)) < len(names):
            raise WiringError(
                f"Lexicographic orders {', '.join(names) or 'nothing'}: name each objective once"
            )
        if not 0 <= self.resolution < float("inf"):
            raise WiringError(f"Lexicographic got grain {self.resolution}; it must be 0 or above")

    def apply_stateful(
        self, batch: Batch, state: State, rng: torch.Generator
    ) -> tuple[Batch, State, Metrics]:
        """The places, and who decided them."""
        columns = []
        for name, level in self.order:
            x = batch.rewards[:, objective_index(batch, name, "Lexicographic")]
            x = x if level is None else x.clamp(max=level)
            columns.append((x / self.resolution).floor() if self.resolution else x)
        x = torch.stack(columns, -1)
        place = lexicographic_rank(x, batch.group)
        return batch.replace(rewards=place), state, self._active_metrics(x, batch.group)

    def _active_metrics(self, x: Float[Tensor, "B J"], group: Int[Tensor, " B"]) -> Metrics:
        known = ~x.isnan().any(-1)
        pairs = (group[:, None] == group) & known[:, None] & known
        pairs = pairs.triu(1)
        differs = (x[:, None] != x) & pairs[..., None]
        first = differs & (differs.cumsum(-1) == 1)
        count = max(int(pairs.sum()), 1)
        return {
            f"active_objective/{name}": float(first[..., j].sum()) / count
            for j, (name, _) in enumerate(self.order)
        }
