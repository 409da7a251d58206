"""From J objectives to one. Every function works on the last axis and keeps it, at length 1."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches

import torch
from jaxtyping import Float, Int
from torch import Tensor

from paretune.batch import Batch
from paretune.credit.step import CreditStep, Metrics, State
from paretune.errors import WiringError
from paretune.reduce import group_mean


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
