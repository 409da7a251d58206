"""Constraints on objectives, and the Lagrange multipliers that enforce them."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from paretune.core.batch import Batch
from paretune.core.errors import WiringError
from paretune.core.goals import Goal
from paretune.credit.aggregation import aggregation_metrics, objective_index, weight_vector, weighted_sum
from paretune.credit.base import CreditStep, Metrics, State


@dataclass(frozen=True)
class Constraint:
    """A lower bound on a statistic of one objective: its mean, a rate, or a quantile.

        mean:     E[s] >= lower_bound
        rate:     P(s >= statistic_arg) >= lower_bound
        quantile: the statistic_arg-quantile of s >= lower_bound

    Where lower scores are better, scores are bounded from above: a mean of at most `lower_bound`, a rate of
    scores of at most `statistic_arg`, a quantile counted from the highest score.

    Source: the constraint of Dai et al. 2023 (Safe RLHF, arXiv:2310.12773) is a mean; chance constraints,
    Charnes and Cooper 1959, are the other two.
    """

    objective: str
    lower_bound: float
    statistic: Literal["mean", "rate", "quantile"] = "mean"
    statistic_arg: float | None = None
    """For "rate" the score from which a response passes; for "quantile" which one, between 0 and 1."""

    def __post_init__(self) -> None:
        prefix = f'the constraint on "{self.objective}"'
        if (self.statistic == "mean") != (self.statistic_arg is None):
            problem = (
                "takes no `constraint_param`" if self.statistic == "mean" else "needs `constraint_param`"
            )
            raise WiringError(f"{prefix} is on its {self.statistic}, which {problem}")
        if not math.isfinite(self.lower_bound) or (
            self.statistic == "rate" and not 0 < self.lower_bound <= 1
        ):
            raise WiringError(
                f"{prefix} is on its {self.statistic} and asks for at least {self.lower_bound}"
                + ("; a rate is in (0, 1]" if self.statistic == "rate" else "; it must be finite")
            )
        if self.statistic == "quantile" and not 0 < (self.statistic_arg or 0.0) < 1:
            raise WiringError(
                f"{prefix} is on the quantile {self.statistic_arg}, which must lie between 0 and 1"
            )

    @property
    def name(self) -> str:
        """Its name in metrics."""
        return self.objective if self.statistic == "mean" else f"{self.objective}/{self.statistic}"

    def oriented(self, goal: Goal) -> "Constraint":
        """The same constraint on oriented scores, where higher is better."""
        if self.statistic == "rate":
            assert self.statistic_arg is not None
            return replace(self, statistic_arg=goal.orient(self.statistic_arg))
        return replace(self, lower_bound=goal.orient(self.lower_bound))

    def statistic_value(self, scores: Float[Tensor, " N"]) -> Float[Tensor, ""]:
        """The constrained statistic over the scores that are not NaN; NaN if all are."""
        known = scores[~scores.isnan()]
        if not len(known):
            return scores.new_tensor(torch.nan)
        if self.statistic_arg is None:
            return known.mean()
        return (
            (known >= self.statistic_arg).to(scores.dtype).mean()
            if self.statistic == "rate"
            else known.quantile(self.statistic_arg)
        )

    def passes(self, scores: Float[Tensor, " B"]) -> Float[Tensor, " B"]:
        """1 for a response that helps to satisfy the rate or the quantile, else 0; NaN stays NaN.

        The q-quantile reaches a bound exactly if a share 1 - q of the responses does.
        """
        pass_score = self.statistic_arg if self.statistic == "rate" else self.lower_bound
        assert pass_score is not None
        return torch.where(scores.isnan(), torch.nan, (scores >= pass_score).to(scores.dtype))


def dual_ascent(
    log_multiplier: Float[Tensor, " C"],
    violation: Float[Tensor, " C"],
    dual_learning_rate: float,
    update_rule: Literal["mirror", "gradient"],
    bounds: tuple[float, float],
) -> Float[Tensor, " C"]:
    """One step of dual ascent, in the logarithm of the multiplier; no step where the violation is NaN.

        mirror: log m + rate * violation      gradient: log m + rate * violation * m

    Both keep m above 0. The second, the plain gradient in log m, nearly stops where m is small. The result is
    clamped to the bounds, so that a long violation does not wind the multiplier up.

    Source: "gradient" is Dai et al. 2023 (arXiv:2310.12773), as in their code; "mirror" is the
    exponentiated gradient of Kivinen and Warmuth 1997.
    """
    step = dual_learning_rate * violation * (log_multiplier.exp() if update_rule == "gradient" else 1.0)
    updated = log_multiplier + torch.where(violation.isnan(), 0.0, step)
    low, high = (math.log(bound) if bound > 0 else -math.inf for bound in bounds)
    return updated.clamp(low, high)


@dataclass(frozen=True)
class Lagrangian(CreditStep):
    """A weighted sum in which each constrained objective also has a learned multiplier.

        R = (sum_k w_k s_k + sum_c m_c g_c) / (1 + sum_c m_c)

    g is the score itself for a mean, and whether the response passes for a rate or a quantile. The statistics
    are taken over the last `window_size` scores, before any score transform; the multipliers are updated
    before they are used. With `apply_to="advantages"` each objective has its own advantage, and all
    constraints must be on means.

    Reads: scores; rewards, or advantages and response_mask. Writes: rewards (J becomes 1), or advantages (A
    becomes 1). State: the logarithms of the multipliers, the recent scores, the training step.
    Logs: `state/multiplier/{constraint}`, `constraint_violation/{constraint}` (positive: broken), shares.

    Source: Dai et al. 2023, the min-max objective (Safe RLHF, arXiv:2310.12773). Differs: objectives are to
    be large, so lower_bound - statistic is their J_C - d; any number of constraints; the default update rule
    is "mirror", and multipliers have a lower bound too. Theirs: update_rule="gradient",
    dual_learning_rate=0.1, min_multiplier=0, max_multiplier=5, window_size=128.
    """

    weights: Mapping[str, float]
    constraints: tuple[Constraint, ...]
    apply_to: Literal["rewards", "advantages"] = "rewards"
    dual_learning_rate: float = 0.5
    update_rule: Literal["mirror", "gradient"] = "mirror"
    initial_multiplier: float = 1.0
    """Every multiplier before the first training step."""
    min_multiplier: float = 0.01
    max_multiplier: float = 10.0
    window_size: int = 256
    """Number of latest scores that a statistic is taken over."""
    update_delay_steps: int = 0
    """Training steps before the multipliers are first updated."""

    def __post_init__(self) -> None:
        names = [constraint.name for constraint in self.constraints]
        if not names:
            raise WiringError(
                "there is no constraint to keep; fix: give an objective a lower bound by at_least"
            )
        if len(set(names)) < len(names):
            raise WiringError(f"Lagrangian has the constraints {', '.join(names)}, one of them twice")
        if (
            not 0 <= self.min_multiplier <= self.initial_multiplier <= self.max_multiplier
            or self.initial_multiplier <= 0
            or self.max_multiplier == math.inf
        ):
            raise WiringError(
                f"Lagrangian starts at the multiplier {self.initial_multiplier}, which must lie between "
                f"min_multiplier {self.min_multiplier} and max_multiplier {self.max_multiplier}, above 0 and "
                "finite"
            )
        if self.window_size < 1 or self.dual_learning_rate < 0:
            raise WiringError(
                f"Lagrangian got window_size {self.window_size} and dual_learning_rate "
                f"{self.dual_learning_rate}; "
                "the first must be at least 1, the second not negative"
            )
        if self.apply_to == "advantages" and any(
            constraint.statistic != "mean" for constraint in self.constraints
        ):
            raise WiringError(
                'Lagrangian(apply_to="advantages") has a constraint on a rate or a quantile, and an '
                "advantage is "
                'of the score itself; fix: apply_to="rewards", or a constraint on the mean'
            )

    def init_state(self) -> State:
        """Initial multipliers, no recent scores."""
        count = len(self.constraints)
        # Float64 in log space: many small updates add up without losing digits.
        return {
            "log_multipliers": torch.full((count,), math.log(self.initial_multiplier), dtype=torch.float64),
            "recent_scores": torch.full((count, self.window_size), torch.nan, dtype=torch.float64),
            "step": 0,
        }

    def apply_stateful(
        self, batch: Batch, state: State, rng: torch.Generator
    ) -> tuple[Batch, State, Metrics]:
        """Update the multipliers, then aggregate with them."""
        state, metrics = self._update_multipliers(batch, state)
        multipliers = state["log_multipliers"].exp().to(batch.scores)
        if self.apply_to == "rewards":
            batch, sum_metrics = self._aggregate_rewards(batch, multipliers)
        else:
            batch, sum_metrics = self._aggregate_advantages(batch, multipliers)
        return batch, state, metrics | sum_metrics

    def _update_multipliers(self, batch: Batch, state: State) -> tuple[State, Metrics]:
        recent, violations = state["recent_scores"].clone(), []
        for c, constraint in enumerate(self._oriented_constraints(batch)):
            # `scores`, not `rewards`: the bound is in the units of the objective as scored.
            scores = batch.oriented_column(constraint.objective).double()
            recent[c] = torch.cat([recent[c], scores[~scores.isnan()]])[-self.window_size :]
            violations.append(constraint.lower_bound - constraint.statistic_value(recent[c]))
        violation, log_multipliers = torch.stack(violations), state["log_multipliers"]
        if state["step"] >= self.update_delay_steps:
            log_multipliers = dual_ascent(
                log_multipliers,
                violation,
                self.dual_learning_rate,
                self.update_rule,
                (self.min_multiplier, self.max_multiplier),
            )
        metrics: Metrics = {}
        for c, constraint in enumerate(self.constraints):
            metrics[f"constraint_violation/{constraint.name}"] = float(violation[c])
            metrics[f"state/multiplier/{constraint.name}"] = math.exp(float(log_multipliers[c]))
        next_state = {"log_multipliers": log_multipliers, "recent_scores": recent, "step": state["step"] + 1}
        return next_state, metrics

    def _oriented_constraints(self, batch: Batch) -> list[Constraint]:
        return [c.oriented(batch.goal(c.objective)) if batch.goals else c for c in self.constraints]

    def _effective_weights(self, batch: Batch, multipliers: Float[Tensor, " C"]) -> Float[Tensor, " K"]:
        """(weights + multipliers of constraints on means) / (1 + sum of all multipliers)."""
        weights = weight_vector(self.weights, batch, "Lagrangian").clone()
        for constraint, multiplier in zip(self.constraints, multipliers, strict=True):
            if constraint.statistic == "mean":
                weights[batch.objectives.index(constraint.objective)] += multiplier
        # The division keeps the scale of the rewards, and with it of the gradient, as multipliers grow.
        return weights / (1 + multipliers.sum())

    def _aggregate_rewards(self, batch: Batch, multipliers: Float[Tensor, " C"]) -> tuple[Batch, Metrics]:
        weights, pass_terms = self._effective_weights(batch, multipliers), torch.zeros_like(batch.rewards)
        for constraint, multiplier in zip(self._oriented_constraints(batch), multipliers, strict=True):
            k = objective_index(batch, constraint.objective, "Lagrangian")
            if constraint.statistic != "mean":
                coefficient = multiplier / (1 + multipliers.sum())
                passes = constraint.passes(batch.oriented_column(constraint.objective))
                pass_terms[:, k] += coefficient * passes
        total = weighted_sum(batch.rewards, weights) + pass_terms.sum(-1, keepdim=True)
        return batch.replace(rewards=total), aggregation_metrics(batch, weights, total, pass_terms)

    def _aggregate_advantages(self, batch: Batch, multipliers: Float[Tensor, " C"]) -> tuple[Batch, Metrics]:
        advantages = batch.require("advantages")
        if advantages.shape[-1] != len(batch.objectives):
            raise WiringError(
                f'Lagrangian(apply_to="advantages") got advantages of {advantages.shape[-1]} objectives and '
                "needs "
                f"all {len(batch.objectives)}; fix: leave out the aggregator before it"
            )
        # Metrics are per response: the advantages of its tokens are added up.
        per_response = batch.replace(rewards=advantages.sum(1))
        weights = self._effective_weights(per_response, multipliers)
        total = weighted_sum(advantages, weights)
        return batch.replace(advantages=total), aggregation_metrics(per_response, weights, total.sum(1))
