"""Constraints, and the multipliers that enforce them: a weight that rises while its constraint is broken.

Choosing multipliers before training, from scored responses of the reference policy alone.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from paretune.core.batch import Batch
from paretune.core.errors import DataError, WiringError
from paretune.core.reductions import group_index
from paretune.credit.aggregation import aggregation_metrics, objective_index, weight_vector, weighted_sum
from paretune.credit.base import CreditStep, Metrics, State


@dataclass(frozen=True)
class Constraint:
    """The scores of one objective must reach a level: their mean, a rate, or a quantile.

        mean: E[s] >= at_least    rate: P(s >= at) >= at_least    quantile: the at-quantile of s >= at_least

    Source: the constraint of Dai et al. 2023 (Safe RLHF, arXiv:2310.12773) is a mean; chance constraints,
    Charnes and Cooper 1959, are the other two.
    """

    objective: str
    lower_bound: float
    statistic: Literal["mean", "rate", "quantile"] = "mean"
    statistic_arg: float | None = None
    """For "rate" the score from which a response passes; for "quantile" which one, between 0 and 1."""

    def __post_init__(self) -> None:
        what = f'the constraint on "{self.objective}"'
        if (self.statistic == "mean") != (self.statistic_arg is None):
            need = "takes no `at`" if self.statistic == "mean" else "needs `at`"
            raise WiringError(f"{what} is on its {self.statistic}, which {need}")
        if not math.isfinite(self.lower_bound) or (
            self.statistic == "rate" and not 0 < self.lower_bound <= 1
        ):
            raise WiringError(f"{what} is on its {self.statistic} and asks for at least {self.lower_bound}")
        if self.statistic == "quantile" and not 0 < (self.statistic_arg or 0.0) < 1:
            raise WiringError(
                f"{what} is on the quantile {self.statistic_arg}, which must lie between 0 and 1"
            )

    @property
    def name(self) -> str:
        """Its name in metrics."""
        return self.objective if self.statistic == "mean" else f"{self.objective}/{self.statistic}"

    def statistic_value(self, scores: Float[Tensor, " N"]) -> Float[Tensor, ""]:
        """What the constraint bounds, over the scores that are known; NaN when none is."""
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
        """1 for a response that helps the rate or the quantile, 0 for one that does not; NaN stays NaN.

        The at-quantile reaches a level exactly when a share 1 - at of the responses does.
        """
        bar = self.statistic_arg if self.statistic == "rate" else self.lower_bound
        assert bar is not None
        return torch.where(scores.isnan(), torch.nan, (scores >= bar).to(scores.dtype))


def dual_ascent(
    log_multiplier: Float[Tensor, " C"],
    violation: Float[Tensor, " C"],
    dual_learning_rate: float,
    update_rule: Literal["mirror", "gradient"],
    bounds: tuple[float, float],
) -> Float[Tensor, " C"]:
    """One step up the dual, in the logarithm of the multiplier; no step where the violation is NaN.

        mirror: log m + rate * violation      gradient: log m + rate * violation * m

    Both keep m above 0. The second, the plain gradient in log m, all but stops where m is small. The result
    is held within the bounds, so that a long time far from the level winds nothing up.

    Source: "gradient" is Dai et al. 2023 (arXiv:2310.12773), as in their code; "mirror" is the
    exponentiated gradient of Kivinen and Warmuth 1997.
    """
    push = dual_learning_rate * violation * (log_multiplier.exp() if update_rule == "gradient" else 1.0)
    moved = log_multiplier + torch.where(violation.isnan(), 0.0, push)
    low, high = (math.log(bound) if bound > 0 else -math.inf for bound in bounds)
    return moved.clamp(low, high)


@dataclass(frozen=True)
class Lagrangian(CreditStep):
    """A weighted sum in which each constrained objective has, on top, a multiplier that learns.

        R = (sum_k w_k s_k + sum_c m_c g_c) / (1 + sum_c m_c)

    g is the score itself for a mean, and whether the response passes for a rate or a quantile. The levels are
    taken over the last `window_size` scores, as scored; the multipliers move before they are used. On "advantages"
    each objective has its own advantage, and constraints are on means.

    Reads: scores; rewards, or advantages and response_mask. Writes: rewards (J becomes 1), or advantages (A becomes
    1). Remembers: the logarithms of the multipliers, the recent scores, the step.
    Reports: `state/multiplier/{constraint}`, `constraint_violation/{constraint}` (how far it is broken), shares.

    Source: Dai et al. 2023, the min-max objective (Safe RLHF, arXiv:2310.12773). Differs:
    objectives are to be large, so at_least - level is their J_C - d; any number of constraints; the default
    form is "mirror", and multipliers have a lower bound too. Theirs: form="gradient", rate=0.1, least=0,
    most=5, window=128.
    """

    weights: Mapping[str, float]
    constraints: tuple[Constraint, ...]
    apply_to: Literal["signal", "advantages"] = "signal"
    dual_learning_rate: float = 0.5
    update_rule: Literal["mirror", "gradient"] = "mirror"
    initial_multiplier: float = 1.0
    """Every multiplier before the first step."""
    min_multiplier: float = 0.01
    max_multiplier: float = 10.0
    window_size: int = 256
    """How many of the latest scores a level is taken over."""
    update_delay_steps: int = 0
    """Steps before the multipliers begin to move."""

    def __post_init__(self) -> None:
        names = [constraint.name for constraint in self.constraints]
        if not names:
            raise WiringError("there is no constraint to keep; fix: give an objective a level by at_least")
        if len(set(names)) < len(names):
            raise WiringError(f"Lagrangian has the constraints {', '.join(names)}, one of them twice")
        if (
            not 0 <= self.min_multiplier <= self.initial_multiplier <= self.max_multiplier
            or self.initial_multiplier <= 0
            or self.max_multiplier == math.inf
        ):
            raise WiringError(
                f"Lagrangian starts at {self.initial_multiplier}, which must lie between least {self.min_multiplier} and most "
                f"{self.max_multiplier}, above 0 and finite"
            )
        if self.window_size < 1 or self.dual_learning_rate < 0:
            raise WiringError(f"Lagrangian got window {self.window_size} and rate {self.dual_learning_rate}")
        if self.apply_to == "advantages" and any(
            constraint.statistic != "mean" for constraint in self.constraints
        ):
            raise WiringError(
                'Lagrangian(on="advantages") has a constraint on a rate or a quantile, and an advantage is '
                'of the score itself; fix: on="signal", or a constraint on the mean'
            )

    def init_state(self) -> State:
        """Every multiplier at its start, no scores seen."""
        count = len(self.constraints)
        return {
            "log": torch.full((count,), math.log(self.initial_multiplier), dtype=torch.float64),
            "recent": torch.full((count, self.window_size), torch.nan, dtype=torch.float64),
            "step": 0,
        }

    def apply_stateful(
        self, batch: Batch, state: State, rng: torch.Generator
    ) -> tuple[Batch, State, Metrics]:
        """Move the multipliers, then combine."""
        state, metrics = self._update_multipliers(batch, state)
        multipliers = state["log"].exp().to(batch.scores)
        if self.apply_to == "signal":
            batch, seen = self._aggregate_rewards(batch, multipliers)
        else:
            batch, seen = self._aggregate_advantages(batch, multipliers)
        return batch, state, metrics | seen

    def _update_multipliers(self, batch: Batch, state: State) -> tuple[State, Metrics]:
        recent, violations = state["recent"].clone(), []
        for c, constraint in enumerate(self.constraints):
            scores = batch.score_column(constraint.objective).double()
            recent[c] = torch.cat([recent[c], scores[~scores.isnan()]])[-self.window_size :]
            violations.append(constraint.lower_bound - constraint.statistic_value(recent[c]))
        violation, log = torch.stack(violations), state["log"]
        if state["step"] >= self.update_delay_steps:
            log = dual_ascent(
                log,
                violation,
                self.dual_learning_rate,
                self.update_rule,
                (self.min_multiplier, self.max_multiplier),
            )
        metrics: Metrics = {}
        for c, constraint in enumerate(self.constraints):
            metrics[f"constraint_violation/{constraint.name}"] = float(violation[c])
            metrics[f"state/multiplier/{constraint.name}"] = math.exp(float(log[c]))
        return {"log": log, "recent": recent, "step": state["step"] + 1}, metrics

    def _effective_weights(self, batch: Batch, multipliers: Float[Tensor, " C"]) -> Float[Tensor, " K"]:
        """Weights, with the multipliers of the constraints on means added to them, over 1 + all of them."""
        weights = weight_vector(self.weights, batch, "Lagrangian").clone()
        for constraint, multiplier in zip(self.constraints, multipliers, strict=True):
            if constraint.statistic == "mean":
                weights[batch.objectives.index(constraint.objective)] += multiplier
        return weights / (1 + multipliers.sum())

    def _aggregate_rewards(self, batch: Batch, multipliers: Float[Tensor, " C"]) -> tuple[Batch, Metrics]:
        weights, passing = self._effective_weights(batch, multipliers), torch.zeros_like(batch.rewards)
        for constraint, multiplier in zip(self.constraints, multipliers, strict=True):
            k = objective_index(batch, constraint.objective, "Lagrangian")
            if constraint.statistic != "mean":
                share = multiplier / (1 + multipliers.sum())
                passing[:, k] += share * constraint.passes(batch.scores[:, k])
        total = weighted_sum(batch.rewards, weights) + passing.sum(-1, keepdim=True)
        return batch.replace(rewards=total), aggregation_metrics(batch, weights, total, passing)

    def _aggregate_advantages(self, batch: Batch, multipliers: Float[Tensor, " C"]) -> tuple[Batch, Metrics]:
        each = batch.require("advantages")
        if each.shape[-1] != len(batch.objectives):
            raise WiringError(
                f'Lagrangian(on="advantages") got advantages of {each.shape[-1]} objectives and needs all '
                f"{len(batch.objectives)}: leave out the aggregator before it"
            )
        apiece = batch.replace(rewards=each.sum(1))
        weights = self._effective_weights(apiece, multipliers)
        total = weighted_sum(each, weights)
        return batch.replace(advantages=total), aggregation_metrics(apiece, weights, total.sum(1))


@dataclass(frozen=True)
class DualSolution:
    """The best multipliers, and what the aligned policy is then expected to reach."""

    multipliers: Float[Tensor, " C"]
    dual_value: float
    """Of the dual function, which is the best KL-regularised reward that respects the constraints."""
    slacks: Float[Tensor, " C"]
    """Expected level less the demanded one; about 0 where a constraint binds, above 0 where it is slack."""


def dual_value_and_grad(
    multipliers: Float[Tensor, " C"],
    rewards: Float[Tensor, " N"],
    slack: Float[Tensor, "N C"],
    group: Int[Tensor, " N"],
    beta: float,
) -> tuple[Float[Tensor, ""], Float[Tensor, " C"]]:
    """The dual function and its slope, each the mean over prompts.

        D(m) = beta log E_ref exp((r + m . g) / beta),    dD/dm = E_tilted[g]

    Source: Huang et al. 2024, one-shot safety alignment by optimal dualisation (arXiv:2405.19544).
    """
    index, count = group_index(group)
    exponent = (rewards + slack @ multipliers) / beta
    most = exponent.new_full((count,), -torch.inf).scatter_reduce(0, index, exponent, "amax")
    shifted = (exponent - most[index]).exp()
    total = shifted.new_zeros(count).index_add(0, index, shifted)
    size = shifted.new_zeros(count).index_add(0, index, torch.ones_like(shifted))
    value = beta * (most + (total / size).log())
    slope = (shifted / total[index])[:, None] * slack / count
    return value.mean(), slope.sum(0)


def solve_dual(
    rewards: Float[Tensor, " N"],
    slack: Float[Tensor, "N C"],
    group: Int[Tensor, " N"],
    beta: float,
    max_multiplier: float = 100.0,
) -> DualSolution:
    """Minimise the dual over 0 <= m <= most; it is convex, so each coordinate is bisected in turn.

    Align once, with the fixed weights r + m . g and the KL coefficient `beta`, and the constraints hold. A
    multiplier at `max_multiplier` says that the reference hardly ever writes a response that meets its constraint.

    Args:
        rewards: Combined reward of each response.
        slack: Score less its level, one column a constraint.
        group: Responses with equal numbers answer the same prompt.
        beta: Coefficient of KL(policy || reference).
        max_multiplier: Largest multiplier to look at.

    Raises:
        DataError: There are no responses, or a score is not finite.

    Source: Huang et al. 2024 (arXiv:2405.19544), MoCAN. Differs: bisection, not projected descent.
    """
    if not len(rewards) or not (rewards.isfinite().all() and slack.isfinite().all()):
        raise DataError("a dual needs scored responses: leave out those that nobody could score")
    rewards, slack = rewards.double(), slack.double()
    at = torch.zeros(slack.shape[1], dtype=torch.float64)
    for _ in range(200):
        before = at.clone()
        for c in range(len(at)):
            low, high = 0.0, max_multiplier
            for _ in range(60):
                at[c] = (low + high) / 2
                _, slope = dual_value_and_grad(at, rewards, slack, group, beta)
                low, high = (low, float(at[c])) if slope[c] >= 0 else (float(at[c]), high)
            at[c] = low  # 0 where the constraint is slack
        if (at - before).abs().max() <= 1e-12 * max_multiplier or len(at) == 1:
            break
    value, slope = dual_value_and_grad(at, rewards, slack, group, beta)
    return DualSolution(at, float(value), slope)
