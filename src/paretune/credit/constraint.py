"""Constraints, and the multipliers that enforce them: a weight that rises while its constraint is broken."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from paretune.batch import Batch
from paretune.credit.aggregate import account, column, in_order, weighted_sum
from paretune.credit.step import Metrics, State, Step
from paretune.errors import WiringError


@dataclass(frozen=True)
class Constraint:
    """The scores of one objective must reach a level: their mean, a rate, or a quantile.

        mean: E[s] >= at_least    rate: P(s >= at) >= at_least    quantile: the at-quantile of s >= at_least

    Source: the constraint of Dai et al. 2023 (Safe RLHF, arXiv:2310.12773) is a mean; chance constraints,
    Charnes and Cooper 1959, are the other two.
    """

    objective: str
    at_least: float
    of: Literal["mean", "rate", "quantile"] = "mean"
    at: float | None = None
    """For "rate" the score from which a response passes; for "quantile" which one, between 0 and 1."""

    def __post_init__(self) -> None:
        what = f'the constraint on "{self.objective}"'
        if (self.of == "mean") != (self.at is None):
            need = "takes no `at`" if self.of == "mean" else "needs `at`"
            raise WiringError(f"{what} is on its {self.of}, which {need}")
        if not math.isfinite(self.at_least) or (self.of == "rate" and not 0 < self.at_least <= 1):
            raise WiringError(f"{what} is on its {self.of} and asks for at least {self.at_least}")
        if self.of == "quantile" and not 0 < (self.at or 0.0) < 1:
            raise WiringError(f"{what} is on the quantile {self.at}, which must lie between 0 and 1")

    @property
    def name(self) -> str:
        """Its name in metrics."""
        return self.objective if self.of == "mean" else f"{self.objective}/{self.of}"

    def level(self, scores: Float[Tensor, " N"]) -> Float[Tensor, ""]:
        """What the constraint bounds, over the scores that are known; NaN when none is."""
        known = scores[~scores.isnan()]
        if not len(known):
            return scores.new_tensor(torch.nan)
        if self.at is None:
            return known.mean()
        return (known >= self.at).to(scores.dtype).mean() if self.of == "rate" else known.quantile(self.at)

    def passes(self, scores: Float[Tensor, " B"]) -> Float[Tensor, " B"]:
        """1 for a response that helps the rate or the quantile, 0 for one that does not; NaN stays NaN.

        The at-quantile reaches a level exactly when a share 1 - at of the responses does.
        """
        bar = self.at if self.of == "rate" else self.at_least
        assert bar is not None
        return torch.where(scores.isnan(), torch.nan, (scores >= bar).to(scores.dtype))


def ascend(
    log_multiplier: Float[Tensor, " C"],
    violation: Float[Tensor, " C"],
    rate: float,
    form: Literal["mirror", "gradient"],
    bounds: tuple[float, float],
) -> Float[Tensor, " C"]:
    """One step up the dual, in the logarithm of the multiplier; no step where the violation is NaN.

        mirror: log m + rate * violation      gradient: log m + rate * violation * m

    Both keep m above 0. The second, the plain gradient in log m, all but stops where m is small. The result
    is held within the bounds, so that a long time far from the level winds nothing up.

    Source: "gradient" is Dai et al. 2023 (arXiv:2310.12773), as in their code; "mirror" is the
    exponentiated gradient of Kivinen and Warmuth 1997.
    """
    push = rate * violation * (log_multiplier.exp() if form == "gradient" else 1.0)
    moved = log_multiplier + torch.where(violation.isnan(), 0.0, push)
    low, high = (math.log(bound) if bound > 0 else -math.inf for bound in bounds)
    return moved.clamp(low, high)


@dataclass(frozen=True)
class Lagrangian(Step):
    """A weighted sum in which each constrained objective has, on top, a multiplier that learns.

        R = (sum_k w_k s_k + sum_c m_c g_c) / (1 + sum_c m_c)

    g is the score itself for a mean, and whether the response passes for a rate or a quantile. The levels are
    taken over the last `window` scores, as scored; the multipliers move before they are used. On "advantages"
    each objective has its own advantage, and constraints are on means.

    Reads: scores; signal, or advantages and respond. Writes: signal (J becomes 1), or advantages (A becomes
    1). Remembers: the logarithms of the multipliers, the recent scores, the step.
    Reports: `state/multiplier/{constraint}`, `constraint/{constraint}` (how far it is broken), shares.

    Source: Dai et al. 2023, the min-max objective (Safe RLHF, arXiv:2310.12773). Differs:
    objectives are to be large, so at_least - level is their J_C - d; any number of constraints; the default
    form is "mirror", and multipliers have a lower bound too. Theirs: form="gradient", rate=0.1, least=0,
    most=5, window=128.
    """

    weights: Mapping[str, float]
    constraints: tuple[Constraint, ...]
    on: Literal["signal", "advantages"] = "signal"
    rate: float = 0.5
    form: Literal["mirror", "gradient"] = "mirror"
    start_at: float = 1.0
    """Every multiplier before the first step."""
    least: float = 0.01
    most: float = 10.0
    window: int = 256
    """How many of the latest scores a level is taken over."""
    delay: int = 0
    """Steps before the multipliers begin to move."""

    def __post_init__(self) -> None:
        names = [constraint.name for constraint in self.constraints]
        if not names:
            raise WiringError("there is no constraint to keep; fix: give an objective a level by at_least")
        if len(set(names)) < len(names):
            raise WiringError(f"Lagrangian has the constraints {', '.join(names)}, one of them twice")
        if not 0 <= self.least <= self.start_at <= self.most or self.start_at <= 0 or self.most == math.inf:
            raise WiringError(
                f"Lagrangian starts at {self.start_at}, which must lie between least {self.least} and most "
                f"{self.most}, above 0 and finite"
            )
        if self.window < 1 or self.rate < 0:
            raise WiringError(f"Lagrangian got window {self.window} and rate {self.rate}")
        if self.on == "advantages" and any(constraint.of != "mean" for constraint in self.constraints):
            raise WiringError(
                'Lagrangian(on="advantages") has a constraint on a rate or a quantile, and an advantage is '
                'of the score itself; fix: on="signal", or a constraint on the mean'
            )

    def start(self) -> State:
        """Every multiplier at its start, no scores seen."""
        count = len(self.constraints)
        return {
            "log": torch.full((count,), math.log(self.start_at), dtype=torch.float64),
            "recent": torch.full((count, self.window), torch.nan, dtype=torch.float64),
            "step": 0,
        }

    def advance(self, batch: Batch, state: State, rng: torch.Generator) -> tuple[Batch, State, Metrics]:
        """Move the multipliers, then combine."""
        state, metrics = self._moved(batch, state)
        multipliers = state["log"].exp().to(batch.scores)
        if self.on == "signal":
            batch, seen = self._signal(batch, multipliers)
        else:
            batch, seen = self._advantages(batch, multipliers)
        return batch, state, metrics | seen

    def _moved(self, batch: Batch, state: State) -> tuple[State, Metrics]:
        recent, violations = state["recent"].clone(), []
        for c, constraint in enumerate(self.constraints):
            scores = batch.column(constraint.objective).double()
            recent[c] = torch.cat([recent[c], scores[~scores.isnan()]])[-self.window :]
            violations.append(constraint.at_least - constraint.level(recent[c]))
        violation, log = torch.stack(violations), state["log"]
        if state["step"] >= self.delay:
            log = ascend(log, violation, self.rate, self.form, (self.least, self.most))
        metrics: Metrics = {}
        for c, constraint in enumerate(self.constraints):
            metrics[f"constraint/{constraint.name}"] = float(violation[c])
            metrics[f"state/multiplier/{constraint.name}"] = math.exp(float(log[c]))
        return {"log": log, "recent": recent, "step": state["step"] + 1}, metrics

    def _linear(self, batch: Batch, multipliers: Float[Tensor, " C"]) -> Float[Tensor, " K"]:
        """Weights, with the multipliers of the constraints on means added to them, over 1 + all of them."""
        weights = in_order(self.weights, batch, "Lagrangian").clone()
        for constraint, multiplier in zip(self.constraints, multipliers, strict=True):
            if constraint.of == "mean":
                weights[batch.objectives.index(constraint.objective)] += multiplier
        return weights / (1 + multipliers.sum())

    def _signal(self, batch: Batch, multipliers: Float[Tensor, " C"]) -> tuple[Batch, Metrics]:
        weights, passing = self._linear(batch, multipliers), torch.zeros_like(batch.signal)
        for constraint, multiplier in zip(self.constraints, multipliers, strict=True):
            k = column(batch, constraint.objective, "Lagrangian")
            if constraint.of != "mean":
                share = multiplier / (1 + multipliers.sum())
                passing[:, k] += share * constraint.passes(batch.scores[:, k])
        total = weighted_sum(batch.signal, weights) + passing.sum(-1, keepdim=True)
        return batch.set(signal=total), account(batch, weights, total, passing)

    def _advantages(self, batch: Batch, multipliers: Float[Tensor, " C"]) -> tuple[Batch, Metrics]:
        each = batch.need("advantages")
        if each.shape[-1] != len(batch.objectives):
            raise WiringError(
                f'Lagrangian(on="advantages") got advantages of {each.shape[-1]} objectives and needs all '
                f"{len(batch.objectives)}: leave out the aggregator before it"
            )
        apiece = batch.set(signal=each.sum(1))
        weights = self._linear(apiece, multipliers)
        total = weighted_sum(each, weights)
        return batch.set(advantages=total), account(apiece, weights, total.sum(1))
