"""Weights that follow the training: towards growth of the front, or towards objectives left behind."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from paretune.batch import Batch
from paretune.credit.aggregate import aggregation_metrics, require_unaggregated, weight_vector, weighted_sum
from paretune.credit.step import CreditStep, Metrics, State
from paretune.errors import WiringError
from paretune.front import hypervolume, nondominated
from paretune.reduce import group_mean


def growth_factor(growth: float) -> float:
    """0.5 + 1.5 tanh(max(growth, 0)): a half where the front stands still, up to 2 where it leaps.

    Source: Lu et al. 2025 (arXiv:2509.11452), the meta reward of their hypervolume-guided weighting.
    """
    return 0.5 + 1.5 * float(np.tanh(max(growth, 0.0)))


def within_group_correlation(
    x: Float[Tensor, "B J"], total: Float[Tensor, "B 1"], group: Int[Tensor, " B"]
) -> Float[Tensor, " J"]:
    """Correlation of each column with the whole, within groups and pooled; NaN without spread."""
    known = ~(x.isnan() | total.isnan())
    column = torch.where(known, x, torch.nan)
    both = torch.where(known, total, torch.nan)
    a = torch.where(known, column - group_mean(column, group), 0.0)
    b = torch.where(known, both - group_mean(both, group), 0.0)
    spread = (a.square().sum(0) * b.square().sum(0)).sqrt()
    return torch.where(spread > 0, (a * b).sum(0) / spread, torch.nan)


@dataclass(frozen=True)
class HypervolumeGuidedWeighting(CreditStep):
    """Learn more from a step that pushes the front out: the signal times a factor between 0.5 and 2.

    The point of a step is the mean score of each objective; the first one becomes the corner, and the front
    of the later ones is remembered. Whatever divides by the spread of the batch or of a group after this step
    divides the factor out again, so it belongs after normalisation.

    Reads: scores, rewards. Writes: rewards.
    Remembers: the corner and the front. Reports: `state/hypervolume`, `state/growth_factor`.

    Source: Lu et al. 2025 (arXiv:2509.11452), hypervolume-guided weighting. Differs: the point is the mean of
    the step's own scores, not of a validation set; growth is relative to the volume so far unless "absolute";
    points that are not above the corner add nothing, while in their code they can take volume away.
    """

    objectives: tuple[str, ...]
    growth_mode: Literal["relative", "absolute"] = "relative"

    def init_state(self) -> State:
        """No front yet."""
        return {"corner": None, "front": None}

    def apply_stateful(
        self, batch: Batch, state: State, rng: torch.Generator
    ) -> tuple[Batch, State, Metrics]:
        """The signal, weighed by how much this step adds to the front."""
        point = torch.stack([batch.score_column(name).double().nanmean() for name in self.objectives])
        if point.isnan().any():
            return batch, state, {}
        if state["corner"] is None:
            state = {"corner": point, "front": point[None]}
        corner = state["corner"].numpy()
        every = torch.cat([state["front"], point[None]]).numpy()
        before, after = hypervolume(every[:-1], corner), hypervolume(every, corner)
        gain = after - before
        if self.growth_mode == "relative":
            gain = gain / before if before else float("inf") if gain else 0.0
        front = torch.from_numpy(every[nondominated(every, "first")])
        factor = growth_factor(gain)
        seen = {"state/hypervolume": after, "state/growth_factor": factor}
        return (
            batch.replace(rewards=batch.rewards * factor),
            {"corner": state["corner"], "front": front},
            seen,
        )


@dataclass(frozen=True)
class CorrelationTargetWeightedSum(CreditStep):
    """A weighted sum that raises the weight of an objective while the sum does not follow it enough.

        c_k <- memory c_k + (1 - memory) corr(s_k, R)      log w_k <- log w_k + rate max(target_k - c_k, 0)

    Weights never fall and are not made to add up to one. An objective whose mean score has reached its level
    is not raised further.

    Reads: rewards, scores, group. Writes: rewards (J becomes 1). Remembers: the logarithms of the weights, the
    correlations. Reports: as WeightedSum; `state/weight/{objective}`, `state/correlation/{objective}`.

    Source: CTWA (arXiv:2602.06869), correlation targets. Differs: the correlation is within groups, which is
    all that a group advantage passes on.
    """

    weights: Mapping[str, float]
    """Before the first step; each must be above 0."""
    target_correlations: Mapping[str, float]
    """Objective -> the correlation with the sum that it should have."""
    sufficient_scores: Mapping[str, float] = field(default_factory=dict)
    """Objective -> the mean score from which it is not raised any more."""
    step_size: float = 0.1
    ema_decay: float = 0.9

    def __post_init__(self) -> None:
        for name in (*self.target_correlations, *self.sufficient_scores):
            if self.weights.get(name, 0.0) <= 0:
                raise WiringError(f'CorrelationTarget has a target for "{name}" and no weight above 0')

    def init_state(self) -> State:
        """No weight raised, no correlation seen."""
        return {"raised": None, "correlation": None}

    def apply_stateful(
        self, batch: Batch, state: State, rng: torch.Generator
    ) -> tuple[Batch, State, Metrics]:
        """The sum with the weights as they are; then raise them."""
        base = weight_vector(self.weights, batch, "CorrelationTarget")
        raised = torch.zeros(len(base), dtype=torch.float64) if state["raised"] is None else state["raised"]
        weights = base * raised.exp().to(base)
        total = weighted_sum(batch.rewards, weights)
        now, old = self._correlations(batch, base, total), state["correlation"]
        if old is not None:
            moved = self.ema_decay * old + (1 - self.ema_decay) * now
            now = torch.where(now.isnan(), old, torch.where(old.isnan(), now, moved))
        metrics = aggregation_metrics(batch, weights, total)
        for k, name in enumerate(batch.objectives):
            if base[k] != 0:
                metrics[f"state/weight/{name}"] = float(weights[k])
                metrics[f"state/correlation/{name}"] = float(now[k])
        state = {"raised": raised + self.step_size * self._shortfall(batch, now), "correlation": now}
        return batch.replace(rewards=total), state, metrics

    def _correlations(
        self, batch: Batch, weights: Float[Tensor, " J"], total: Float[Tensor, "B 1"]
    ) -> Float[Tensor, " J"]:
        """Of the objectives with a weight; NaN for the others, which do not take part in the arithmetic."""
        found = torch.full((len(weights),), torch.nan, dtype=torch.float64)
        found[weights != 0] = within_group_correlation(
            batch.rewards[:, weights != 0], total, batch.group
        ).double()
        return found

    def _shortfall(self, batch: Batch, correlations: Float[Tensor, " J"]) -> Float[Tensor, " J"]:
        """How far each objective is below its target; 0 where it has none, or has reached its level."""
        require_unaggregated(batch, "CorrelationTarget")
        target = torch.tensor([self.target_correlations.get(name, -1.0) for name in batch.objectives]).to(
            correlations
        )
        level = torch.tensor([self.sufficient_scores.get(name, torch.inf) for name in batch.objectives]).to(
            correlations
        )
        mean = batch.scores.double().nanmean(0)
        return torch.where(
            correlations.isnan() | (mean >= level), 0.0, (target - correlations).clamp(min=0.0)
        )
