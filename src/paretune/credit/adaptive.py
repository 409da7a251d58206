"""Weights that follow the training: towards growth of the front, or towards objectives left behind."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from paretune.batch import Batch
from paretune.credit.aggregate import account, apart, in_order, weighted_sum
from paretune.credit.step import Metrics, State, Step
from paretune.errors import WiringError
from paretune.front import hypervolume, nondominated
from paretune.reduce import group_mean


def growth_factor(growth: float) -> float:
    """0.5 + 1.5 tanh(max(growth, 0)): a half where the front stands still, up to 2 where it leaps.

    Source: Lu et al. 2025 (arXiv:2509.11452), the meta reward of their hypervolume-guided weighting.
    """
    return 0.5 + 1.5 * float(np.tanh(max(growth, 0.0)))


def correlation(
    x: Float[Tensor, "B J"], whole: Float[Tensor, "B 1"], group: Int[Tensor, " B"]
) -> Float[Tensor, " J"]:
    """Correlation of each column with the whole, within groups and pooled; NaN without spread."""
    known = ~(x.isnan() | whole.isnan())
    column = torch.where(known, x, torch.nan)
    both = torch.where(known, whole, torch.nan)
    a = torch.where(known, column - group_mean(column, group), 0.0)
    b = torch.where(known, both - group_mean(both, group), 0.0)
    spread = (a.square().sum(0) * b.square().sum(0)).sqrt()
    return torch.where(spread > 0, (a * b).sum(0) / spread, torch.nan)


@dataclass(frozen=True)
class HypervolumeGuided(Step):
    """Learn more from a step that pushes the front out: the signal times a factor between 0.5 and 2.

    The point of a step is the mean score of each objective; the first one becomes the corner, and the front
    of the later ones is remembered. Whatever divides by the spread of the batch or of a group after this step
    divides the factor out again, so it belongs after normalisation.

    Reads: scores, signal. Writes: signal.
    Remembers: the corner and the front. Reports: `state/hypervolume`, `state/growth_factor`.

    Source: Lu et al. 2025 (arXiv:2509.11452), hypervolume-guided weighting. Differs: the point is the mean of
    the step's own scores, not of a validation set; growth is relative to the volume so far unless "absolute";
    points that are not above the corner add nothing, while in their code they can take volume away.
    """

    objectives: tuple[str, ...]
    growth: Literal["relative", "absolute"] = "relative"

    def start(self) -> State:
        """No front yet."""
        return {"corner": None, "front": None}

    def advance(self, batch: Batch, state: State, rng: torch.Generator) -> tuple[Batch, State, Metrics]:
        """The signal, weighed by how much this step adds to the front."""
        point = torch.stack([batch.column(name).double().nanmean() for name in self.objectives])
        if point.isnan().any():
            return batch, state, {}
        if state["corner"] is None:
            state = {"corner": point, "front": point[None]}
        corner = state["corner"].numpy()
        every = torch.cat([state["front"], point[None]]).numpy()
        before, after = hypervolume(every[:-1], corner), hypervolume(every, corner)
        gain = after - before
        if self.growth == "relative":
            gain = gain / before if before else float("inf") if gain else 0.0
        front = torch.from_numpy(every[nondominated(every, "first")])
        factor = growth_factor(gain)
        seen = {"state/hypervolume": after, "state/growth_factor": factor}
        return batch.set(signal=batch.signal * factor), {"corner": state["corner"], "front": front}, seen


@dataclass(frozen=True)
class CorrelationTarget(Step):
    """A weighted sum that raises the weight of an objective while the sum does not follow it enough.

        c_k <- memory c_k + (1 - memory) corr(s_k, R)      log w_k <- log w_k + rate max(target_k - c_k, 0)

    Weights never fall and are not made to add up to one. An objective whose mean score has reached its level
    is not raised further.

    Reads: signal, scores, group. Writes: signal (J becomes 1). Remembers: the logarithms of the weights, the
    correlations. Reports: as WeightedSum; `state/weight/{objective}`, `state/correlation/{objective}`.

    Source: CTWA (arXiv:2602.06869), correlation targets. Differs: the correlation is within groups, which is
    all that a group advantage passes on.
    """

    weights: Mapping[str, float]
    """Before the first step; each must be above 0."""
    targets: Mapping[str, float]
    """Objective -> the correlation with the sum that it should have."""
    enough: Mapping[str, float] = field(default_factory=dict)
    """Objective -> the mean score from which it is not raised any more."""
    rate: float = 0.1
    memory: float = 0.9

    def __post_init__(self) -> None:
        for name in (*self.targets, *self.enough):
            if self.weights.get(name, 0.0) <= 0:
                raise WiringError(f'CorrelationTarget has a target for "{name}" and no weight above 0')

    def start(self) -> State:
        """No weight raised, no correlation seen."""
        return {"raised": None, "correlation": None}

    def advance(self, batch: Batch, state: State, rng: torch.Generator) -> tuple[Batch, State, Metrics]:
        """The sum with the weights as they are; then raise them."""
        base = in_order(self.weights, batch, "CorrelationTarget")
        raised = torch.zeros(len(base), dtype=torch.float64) if state["raised"] is None else state["raised"]
        weights = base * raised.exp().to(base)
        total = weighted_sum(batch.signal, weights)
        now, old = self._correlation(batch, base, total), state["correlation"]
        if old is not None:
            moved = self.memory * old + (1 - self.memory) * now
            now = torch.where(now.isnan(), old, torch.where(old.isnan(), now, moved))
        metrics = account(batch, weights, total)
        for k, name in enumerate(batch.objectives):
            if base[k] != 0:
                metrics[f"state/weight/{name}"] = float(weights[k])
                metrics[f"state/correlation/{name}"] = float(now[k])
        state = {"raised": raised + self.rate * self._short(batch, now), "correlation": now}
        return batch.set(signal=total), state, metrics

    def _correlation(
        self, batch: Batch, base: Float[Tensor, " J"], total: Float[Tensor, "B 1"]
    ) -> Float[Tensor, " J"]:
        """Of the objectives with a weight; NaN for the others, which do not take part in the arithmetic."""
        found = torch.full((len(base),), torch.nan, dtype=torch.float64)
        found[base != 0] = correlation(batch.signal[:, base != 0], total, batch.group).double()
        return found

    def _short(self, batch: Batch, now: Float[Tensor, " J"]) -> Float[Tensor, " J"]:
        """How far each objective is below its target; 0 where it has none, or has reached its level."""
        apart(batch, "CorrelationTarget")
        target = torch.tensor([self.targets.get(name, -1.0) for name in batch.objectives]).to(now)
        level = torch.tensor([self.enough.get(name, torch.inf) for name in batch.objectives]).to(now)
        mean = batch.scores.double().nanmean(0)
        return torch.where(now.isnan() | (mean >= level), 0.0, (target - now).clamp(min=0.0))
