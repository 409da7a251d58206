"""Aggregators other than weighted sums: minimum, Chebyshev distance; hypervolume-guided weighting."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from paretune.core.batch import Batch
from paretune.core.errors import WiringError
from paretune.core.pareto import hypervolume, nondominated
from paretune.credit.aggregation import aggregation_metrics, weight_vector, weighted_sum
from paretune.credit.base import CreditStep, Metrics, State


def soft_minimum(x: Float[Tensor, "*n J"], sharpness: float) -> Float[Tensor, "*n 1"]:
    """-(1 / k) log mean_j exp(-k x_j): the mean for k to 0, the minimum for k to infinity.

    Source: the risk-sensitive aggregation of RVPO, as a soft minimum.
    """
    count = torch.tensor(float(x.shape[-1]), dtype=x.dtype)
    return -((-sharpness * x).logsumexp(-1, keepdim=True) - count.log()) / sharpness


def chebyshev(
    x: Float[Tensor, "*n J"], weights: Float[Tensor, " J"], ideal_point: Float[Tensor, " J"], rho: float = 0.0
) -> Float[Tensor, "*n 1"]:
    """Negative largest weighted distance from the ideal point, plus a small multiple of the weighted sum.

        -max_j w_j (z_j - x_j) + rho sum_j w_j x_j

    Source: Steuer and Choo 1983, augmented weighted Tchebycheff program.
    """
    return -(weights * (ideal_point - x)).amax(-1, keepdim=True) + rho * (weights * x).sum(-1, keepdim=True)


@dataclass(frozen=True)
class MinObjective(CreditStep):
    """The reward of a response is its lowest objective.

    The objectives must share a scale. A response without a score for one of them is unscored.

    Reads: rewards. Writes: rewards (J becomes 1).
    Logs: how often each objective is the lowest one; its share of the variance of the reward.

    Source: maximin, Rawls 1971; the soft form as in `soft_minimum`.
    """

    objectives: tuple[str, ...]
    sharpness: float | None = None
    """None: the minimum itself; else the k of the soft minimum, in units of 1 / score."""

    def __post_init__(self) -> None:
        if self.sharpness is not None and not 0 < self.sharpness < float("inf"):
            raise WiringError(
                f"MinObjective got sharpness {self.sharpness}; it must be a number above 0, or left out"
            )

    def apply_stateful(
        self, batch: Batch, state: State, rng: torch.Generator
    ) -> tuple[Batch, State, Metrics]:
        """Take the minimum, or the soft minimum."""
        weights = weight_vector(dict.fromkeys(self.objectives, 1.0), batch, "MinObjective")
        x = batch.rewards[:, weights != 0]
        minimum = x.amin(-1, keepdim=True)  # NaN where any objective is NaN
        total = minimum if self.sharpness is None else soft_minimum(x, self.sharpness)
        is_lowest = (batch.rewards == minimum) & (weights != 0)
        return (
            batch.replace(rewards=total),
            state,
            aggregation_metrics(batch, weights, total) | active_objective_metrics(batch, weights, is_lowest),
        )


@dataclass(frozen=True)
class Chebyshev(CreditStep):
    """Negative distance from the ideal point in the farthest objective; reaches concave Pareto fronts.

    distance_of "response": each response by its own farthest objective, -max_k w_k (z_k - s_k). This
    optimizes the expected utility of a response. "policy_mean": every response by the objective in which the
    mean of the policy is farthest, w_j s_j with j = argmax_k w_k (z_k - mean_k): the gradient of the utility
    of the expected scores, which has another optimum. Papers on fronts of policies mean the second.

    The ideal point is the best score of each objective so far, or as given.

    Reads: rewards. Writes: rewards (J becomes 1). State: the ideal point, the running mean, the training
    step.
    Logs: how often each objective decides; `state/ideal/{objective}`.

    Source: Miettinen 1999, section 3.4; Lin et al. 2024 (smooth Tchebycheff, arXiv:2402.19078) for its use
    with gradients. Differs: weights are used as given, `rho` adds that multiple of the weighted sum.
    """

    weights: Mapping[str, float]
    distance_of: Literal["response", "policy_mean"] = "response"
    ideal_point: Mapping[str, float] | None = None
    """For all objectives with a weight, in the units of their scores; None: the best scores so far."""
    rho: float = 0.0
    freeze_ideal_after: int | None = None
    """Training step from which the ideal point is fixed; a moving one makes rewards non-stationary."""
    ema_decay: float = 0.9
    """For "policy_mean": weight of the old running mean in each update."""

    def __post_init__(self) -> None:
        if self.ideal_point is not None and self.freeze_ideal_after is not None:
            raise WiringError(
                "Chebyshev got `ideal_point` and `freeze_ideal_after`, and a given ideal point never moves; "
                "fix: leave out one of them"
            )
        if any(weight < 0 for weight in self.weights.values()):
            raise WiringError(
                "Chebyshev got a weight below 0; fix: weights of distances must not be negative"
            )
        ideal = self.weights if self.ideal_point is None else self.ideal_point
        missing = [name for name, weight in self.weights.items() if weight and name not in ideal]
        if missing:
            raise WiringError(f"Chebyshev's ideal point has no value for {', '.join(missing)}")

    def init_state(self) -> State:
        """No scores yet."""
        return {"ideal_point": None, "running_mean": None, "step": 0}

    def apply_stateful(
        self, batch: Batch, state: State, rng: torch.Generator
    ) -> tuple[Batch, State, Metrics]:
        """Update the ideal point with this batch, then measure the distances from it."""
        weights = weight_vector(self.weights, batch, "Chebyshev")
        used = weights != 0
        state = self._update_state(batch, state)
        ideal = state["ideal_point"].to(batch.rewards)
        distance = torch.where(used, weights * (ideal - batch.rewards), -torch.inf)
        if self.distance_of == "response":
            total = chebyshev(batch.rewards[:, used], weights[used], ideal[used], self.rho)
            is_active = (distance == distance.amax(-1, keepdim=True)) & used
        else:
            mean = state["running_mean"].to(batch.rewards)
            mean_distance = torch.where(used & ~mean.isnan(), weights * (ideal - mean), -torch.inf)
            is_active = torch.zeros_like(used)
            is_active[mean_distance.argmax()] = True
            total = weighted_sum(batch.rewards, torch.where(is_active, weights, 0.0) + self.rho * weights)
            is_active = is_active.expand_as(batch.rewards)
        metrics = aggregation_metrics(batch, weights, total) | active_objective_metrics(
            batch, weights, is_active
        )
        for name in (name for name, weight in self.weights.items() if weight):
            score = float(ideal[batch.objectives.index(name)])
            # As it was scored; of a target there is only the distance.
            metrics[f"state/ideal/{name}"] = -score if batch.goal(name).kind == "lower" else score
        return batch.replace(rewards=total), state, metrics

    def _update_state(self, batch: Batch, state: State) -> State:
        """The state with the scores of this batch; NaN where an objective was never scored."""
        x = batch.rewards.double()
        best = x.nan_to_num(nan=-torch.inf).amax(0)
        # Contiguous: the order of summation, and with it the last bit, must not depend on the other columns.
        mean, old = x.T.contiguous().nanmean(1), state["running_mean"]
        if old is not None:
            updated = self.ema_decay * old + (1 - self.ema_decay) * mean
            mean = torch.where(mean.isnan(), old, torch.where(old.isnan(), mean, updated))
        if self.ideal_point is not None:
            given = ((name, self.ideal_point.get(name, 0.0)) for name in batch.objectives)
            ideal = x.new_tensor([batch.goal(name).orient(score) for name, score in given])
        elif state["ideal_point"] is None:
            ideal = best
        elif self.freeze_ideal_after is not None and state["step"] >= self.freeze_ideal_after:
            ideal = state["ideal_point"]
        else:
            ideal = torch.maximum(state["ideal_point"], best)
        return {"ideal_point": ideal, "running_mean": mean, "step": state["step"] + 1}


def active_objective_metrics(
    batch: Batch, weights: Float[Tensor, " J"], is_active: Bool[Tensor, "B J"]
) -> Metrics:
    """Share of scored responses whose reward each objective decided; ties count for all tied objectives."""
    scored = ~batch.rewards[:, weights != 0].isnan().any(-1)
    count = max(int(scored.sum()), 1)
    return {
        f"active_objective/{name}": float(is_active[scored, k].sum()) / count
        for k, name in enumerate(batch.objectives)
        if weights[k] != 0
    }


def growth_factor(growth: float) -> float:
    """0.5 + 1.5 tanh(max(growth, 0)): 0.5 if the front does not grow, up to 2 if it grows a lot.

    Source: Lu et al. 2025 (arXiv:2509.11452), the meta reward of their hypervolume-guided weighting.
    """
    return 0.5 + 1.5 * float(np.tanh(max(growth, 0.0)))


@dataclass(frozen=True)
class HypervolumeGuidedWeighting(CreditStep):
    """Multiply the rewards by a factor between 0.5 and 2 that grows with the hypervolume this step adds.

    The point of a training step is the mean score of each objective; the first point becomes the reference
    point of the hypervolume, and the Pareto front of the later ones is kept. Put this step after
    normalization: dividing by the standard deviation of the batch or of a group divides the factor out again.

    Reads: scores, rewards. Writes: rewards.
    State: the reference point and the front. Logs: `state/hypervolume`, `state/growth_factor`.

    Source: Lu et al. 2025 (arXiv:2509.11452), hypervolume-guided weighting. Differs: the point is the mean of
    the step's own scores, not of a validation set; growth is relative to the volume so far unless "absolute";
    points that are not above the reference point add nothing, while in their code they can reduce the volume.
    """

    objectives: tuple[str, ...]
    growth_mode: Literal["relative", "absolute"] = "relative"

    def init_state(self) -> State:
        """No front yet."""
        return {"reference_point": None, "pareto_front": None}

    def apply_stateful(
        self, batch: Batch, state: State, rng: torch.Generator
    ) -> tuple[Batch, State, Metrics]:
        """Scale the rewards by the growth of the hypervolume."""
        point = torch.stack([batch.oriented_column(name).double().nanmean() for name in self.objectives])
        if point.isnan().any():
            return batch, state, {}
        if state["reference_point"] is None:
            state = {"reference_point": point, "pareto_front": point[None]}
        reference_point = state["reference_point"].numpy()
        points = torch.cat([state["pareto_front"], point[None]]).numpy()
        before, after = hypervolume(points[:-1], reference_point), hypervolume(points, reference_point)
        growth = after - before
        if self.growth_mode == "relative":
            # The first volume above 0 is infinite growth, hence the largest factor.
            growth = growth / before if before else float("inf") if growth else 0.0
        front = torch.from_numpy(points[nondominated(points, "first")])
        factor = growth_factor(growth)
        return (
            batch.replace(rewards=batch.rewards * factor),
            {"reference_point": state["reference_point"], "pareto_front": front},
            {"state/hypervolume": after, "state/growth_factor": factor},
        )
