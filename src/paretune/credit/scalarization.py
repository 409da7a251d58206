"""Aggregators that look at where a response is worst, not at what it has in all.

Weights that follow the training: towards growth of the front, or towards objectives left behind.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from paretune.core.batch import Batch
from paretune.core.errors import WiringError
from paretune.core.pareto import hypervolume, nondominated
from paretune.core.reductions import group_mean
from paretune.credit.aggregation import aggregation_metrics, require_unaggregated, weight_vector, weighted_sum
from paretune.credit.base import CreditStep, Metrics, State


def soft_minimum(x: Float[Tensor, "*n J"], sharpness: float) -> Float[Tensor, "*n 1"]:
    """-(1 / k) log mean_j exp(-k x_j): the mean for k to 0, the smallest for k to infinity.

    Source: the risk-sensitive aggregation of RVPO, as a soft minimum.
    """
    count = torch.tensor(float(x.shape[-1]), dtype=x.dtype)
    return -((-sharpness * x).logsumexp(-1, keepdim=True) - count.log()) / sharpness


def chebyshev(
    x: Float[Tensor, "*n J"], weights: Float[Tensor, " J"], ideal_point: Float[Tensor, " J"], rho: float = 0.0
) -> Float[Tensor, "*n 1"]:
    """Minus the largest weighted distance from the ideal point, plus a little of the weighted sum.

        -max_j w_j (z_j - x_j) + rho sum_j w_j x_j

    Source: Steuer and Choo 1983, augmented weighted Tchebycheff programme.
    """
    return -(weights * (ideal_point - x)).amax(-1, keepdim=True) + rho * (weights * x).sum(-1, keepdim=True)


@dataclass(frozen=True)
class MinObjective(CreditStep):
    """A response is worth as much as its worst objective.

    The objectives must share a scale. A response with no score for one of them is unscored.

    Reads: rewards. Writes: rewards (J becomes 1).
    Reports: how often each objective is the worst one; what it had in the spread of the signal.

    Source: maximin, Rawls 1971; the soft form as in `soft_minimum`.
    """

    objectives: tuple[str, ...]
    sharpness: float | None = None
    """None: the smallest itself; else the k of the soft minimum, in units of 1 / score."""

    def __post_init__(self) -> None:
        if self.sharpness is not None and not 0 < self.sharpness < float("inf"):
            raise WiringError(
                f"Worst got sharpness {self.sharpness}; it must be a number above 0, or left out"
            )

    def apply_stateful(
        self, batch: Batch, state: State, rng: torch.Generator
    ) -> tuple[Batch, State, Metrics]:
        """The smallest, or nearly so."""
        weights = weight_vector(dict.fromkeys(self.objectives, 1.0), batch, "Worst")
        x = batch.rewards[:, weights != 0]
        hard = x.amin(-1, keepdim=True)  # NaN where any is NaN
        total = hard if self.sharpness is None else soft_minimum(x, self.sharpness)
        lowest = (batch.rewards == hard) & (weights != 0)
        return (
            batch.replace(rewards=total),
            state,
            aggregation_metrics(batch, weights, total) | active_objective_metrics(batch, weights, lowest),
        )


@dataclass(frozen=True)
class Chebyshev(CreditStep):
    """Come nearer to the ideal point in the objective that is farthest from it; reaches concave fronts.

    of "response": each response by its own farthest objective, -max_k w_k (z_k - s_k). This is the expected
    utility of a response. of "mean": every response by the objective in which the policy's mean is farthest,
    w_j s_j with j = argmax_k w_k (z_k - mean_k): the slope of the utility of the expected scores, which is
    another optimum. Papers on fronts of policies mean the second.

    The ideal point is the best score seen so far of each objective, or as given.

    Reads: rewards. Writes: rewards (J becomes 1). Remembers: the ideal point, the running mean, the step.
    Reports: how often each objective decides; `state/ideal/{objective}`.

    Source: Miettinen 1999, section 3.4; Lin et al. 2024 (smooth Tchebycheff, arXiv:2402.19078) for its use
    with gradients. Differs: weights are used as given, `rho` adds that much of the weighted sum.
    """

    weights: Mapping[str, float]
    distance_of: Literal["response", "mean"] = "response"
    ideal_point: Mapping[str, float] | None = None
    """The ideal point, for all objectives with a weight; None: the best seen so far."""
    rho: float = 0.0
    freeze_ideal_after: int | None = None
    """The step from which on the ideal point moves no more; a moving one moves the reward."""
    ema_decay: float = 0.9
    """For "mean": how much of the running mean is kept from step to step."""

    def __post_init__(self) -> None:
        if self.ideal_point is not None and self.freeze_ideal_after is not None:
            raise WiringError("Chebyshev got `ideal` and `freeze_after`: a given ideal point never moves")
        if any(weight < 0 for weight in self.weights.values()):
            raise WiringError("Chebyshev got a weight below 0; there is no ideal in being far from the best")
        ideal = self.weights if self.ideal_point is None else self.ideal_point
        lacking = [name for name, weight in self.weights.items() if weight and name not in ideal]
        if lacking:
            raise WiringError(f"Chebyshev's ideal point has no value for {', '.join(lacking)}")

    def init_state(self) -> State:
        """Nothing seen yet."""
        return {"ideal": None, "mean": None, "step": 0}

    def apply_stateful(
        self, batch: Batch, state: State, rng: torch.Generator
    ) -> tuple[Batch, State, Metrics]:
        """The signal, and what it is measured against."""
        weights = weight_vector(self.weights, batch, "Chebyshev")
        used = weights != 0
        state = self._update_state(batch, state)
        ideal = state["ideal"].to(batch.rewards)
        gap = torch.where(used, weights * (ideal - batch.rewards), -torch.inf)
        if self.distance_of == "response":
            total = chebyshev(batch.rewards[:, used], weights[used], ideal[used], self.rho)
            decides = (gap == gap.amax(-1, keepdim=True)) & used
        else:
            mean = state["mean"].to(batch.rewards)
            far = torch.where(used & ~mean.isnan(), weights * (ideal - mean), -torch.inf)
            decides = torch.zeros_like(used)
            decides[far.argmax()] = True
            total = weighted_sum(batch.rewards, torch.where(decides, weights, 0.0) + self.rho * weights)
            decides = decides.expand_as(batch.rewards)
        metrics = aggregation_metrics(batch, weights, total) | active_objective_metrics(
            batch, weights, decides
        )
        for name in (name for name, weight in self.weights.items() if weight):
            metrics[f"state/ideal/{name}"] = float(ideal[batch.objectives.index(name)])
        return batch.replace(rewards=total), state, metrics

    def _update_state(self, batch: Batch, state: State) -> State:
        """The state with this batch's scores in it; NaN where an objective was never scored."""
        x = batch.rewards.double()
        best = x.nan_to_num(nan=-torch.inf).amax(0)
        mean, old = x.T.contiguous().nanmean(1), state["mean"]
        if old is not None:
            moved = self.ema_decay * old + (1 - self.ema_decay) * mean
            mean = torch.where(mean.isnan(), old, torch.where(old.isnan(), mean, moved))
        if self.ideal_point is not None:
            ideal = x.new_tensor([self.ideal_point.get(name, 0.0) for name in batch.objectives])
        elif state["ideal"] is None:
            ideal = best
        elif self.freeze_ideal_after is not None and state["step"] >= self.freeze_ideal_after:
            ideal = state["ideal"]
        else:
            ideal = torch.maximum(state["ideal"], best)
        return {"ideal": ideal, "mean": mean, "step": state["step"] + 1}


def active_objective_metrics(
    batch: Batch, weights: Float[Tensor, " J"], is_active: Bool[Tensor, "B J"]
) -> Metrics:
    """How often each objective alone decided the signal of a response; ties count for each."""
    scored = ~batch.rewards[:, weights != 0].isnan().any(-1)
    count = max(int(scored.sum()), 1)
    return {
        f"active_objective/{name}": float(is_active[scored, k].sum()) / count
        for k, name in enumerate(batch.objectives)
        if weights[k] != 0
    }


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
