"""Aggregators of objectives, independent of the algorithm: they replace the weighted sum of any spec.

The keys of `AGGREGATES` are the values of `aggregate.name` in recipes. Each function takes the weights and
the constraints of the objectives.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Literal, TypeVar

from paretune.algorithms.grpo import grpo
from paretune.algorithms.signature import inherit_arguments
from paretune.core.errors import WiringError
from paretune.core.goals import HIGHER, Goal
from paretune.core.types import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from paretune.credit.aggregation import Lexicographic, PreferenceWeightedSum, WeightedSum
from paretune.credit.base import CreditStep, chain, flatten_steps
from paretune.credit.constraints import Constraint, Lagrangian
from paretune.credit.scalarization import Chebyshev, MinObjective
from paretune.credit.score_transforms import OrientScores
from paretune.rl.algorithm_spec import AlgorithmSpec, map_phases
from paretune.rl.evolution.spec import EvolutionSpec

SpecT = TypeVar("SpecT", AlgorithmSpec, EvolutionSpec, AlgorithmSpec | EvolutionSpec)
"""The spec that an algorithm returns."""


def insert_after_aggregation(spec: SpecT, step: CreditStep) -> SpecT:
    """Insert a step right after the weighted sum, hence before selections; without one, at the end."""
    steps = list(flatten_steps(spec.reward_steps))
    index = next((i for i, other in enumerate(steps) if isinstance(other, WeightedSum)), len(steps) - 1)
    steps.insert(index + 1, step)
    return spec.replace(reward_steps=chain(*steps))


Weights = Mapping[str, float]
Constraints = Sequence[Constraint]


def replace_aggregator(
    spec: SpecT,
    aggregator: CreditStep | None = None,
    *,
    score_steps: Sequence[CreditStep] = (),
    missing_step: CreditStep | None = None,
) -> SpecT:
    """Replace the weighted sum of a spec, and of its phases, by another aggregator.

    The state of an aggregator starts anew in each phase.

    Args:
        spec: With a WeightedSum in its reward steps or its credit steps.
        aggregator: Its replacement; None: keep it.
        score_steps: Steps before all others, such as thresholds; gates see their result.
        missing_step: Handling of missing scores; inserted after the gates and before the aggregator.

    Raises:
        WiringError: The spec has no weighted sum.
    """
    reward_steps: list[CreditStep] = list(flatten_steps(spec.reward_steps))
    credit: list[CreditStep] = list(flatten_steps(spec.credit))
    steps = next(
        (steps for steps in (reward_steps, credit) if any(isinstance(s, WeightedSum) for s in steps)), None
    )
    if steps is None:
        names = ", ".join(type(step).__name__ for step in (*reward_steps, *credit))
        if aggregator is None:
            raise WiringError(f"it acts on a WeightedSum, and there is none among {names}")
        raise WiringError(f"{type(aggregator).__name__} has no WeightedSum to replace among {names}")
    index = next(i for i, step in enumerate(steps) if isinstance(step, WeightedSum))
    steps[index] = aggregator or steps[index]
    if missing_step is not None:
        # With the sum in credit, objectives are normalized before it: missing scores are handled before that.
        reward_steps.insert(index if steps is reward_steps else len(reward_steps), missing_step)
    in_phases = partial(
        replace_aggregator, aggregator=aggregator, score_steps=score_steps, missing_step=missing_step
    )
    return spec.replace(
        reward_steps=chain(*score_steps, *reward_steps),
        credit=chain(*credit),
        phases=map_phases(spec.phases, in_phases),
    )


def orient_scores(spec: SpecT, goals: Mapping[str, Goal]) -> SpecT:
    """The spec, and its phases, with a first step that makes higher rewards better for every objective.

    Args:
        spec: Any spec.
        goals: Objective -> its goal. Without one that differs from "higher", the spec is unchanged.
    """
    used = {name: goal for name, goal in goals.items() if goal != HIGHER}
    if not used:
        return spec
    return spec.replace(
        reward_steps=chain(OrientScores.of(used), *flatten_steps(spec.reward_steps)),
        phases=map_phases(spec.phases, partial(orient_scores, goals=goals)),
    )


def weighted_sum(weights: Weights, constraints: Constraints) -> CreditStep:
    """The sum of weight times score.

    Args:
        weights: Weight of each objective.
        constraints: Must be empty; a sum cannot enforce them.

    Raises:
        WiringError: There are constraints.
    """
    _reject_constraints(constraints, "weighted_sum")
    return WeightedSum(weights)


def min_objective(
    weights: Weights, constraints: Constraints, *, sharpness: PositiveFloat | None = None
) -> CreditStep:
    """The lowest objective of each response, of those that have a weight.

    Args:
        weights: Equal, or 0 for an objective that is only logged.
        constraints: Must be empty.
        sharpness: None: the minimum itself; else the k of a soft minimum.

    Raises:
        WiringError: There are constraints, or the weights are not equal.
    """
    _reject_constraints(constraints, "min_objective")
    if len({weight for weight in weights.values() if weight}) > 1:
        raise WiringError(
            'aggregate "min_objective" compares scores as they are, and the weights are not equal; '
            "fix: give equal weights, or aggregate.name=chebyshev"
        )
    return MinObjective(tuple(name for name, weight in weights.items() if weight), sharpness)


def chebyshev(
    weights: Weights,
    constraints: Constraints,
    *,
    criterion: Literal["response", "policy_mean"] = "response",
    ideal_point: dict[str, float] | None = None,
    rho: NonNegativeFloat = 0.0,
    freeze_ideal_after: NonNegativeInt | None = None,
) -> CreditStep:
    """Distance from the ideal point in the farthest objective, of each response or of the policy's mean.

    Args:
        weights: Weight of the distance in each objective.
        constraints: Must be empty.
        criterion: "response" or "policy_mean"; see `Chebyshev`.
        ideal_point: The ideal point, in the units of the scores; None: the best scores so far.
        rho: Multiple of the weighted sum that is added.
        freeze_ideal_after: Training step from which the ideal point is fixed.

    Raises:
        WiringError: There are constraints, or the options contradict each other.
    """
    _reject_constraints(constraints, "chebyshev")
    return Chebyshev(weights, criterion, ideal_point, rho, freeze_ideal_after)


def lexicographic(
    weights: Weights, constraints: Constraints, *, bin_width: NonNegativeFloat = 0.0
) -> CreditStep:
    """Objectives in order of importance; constraints on means are thresholds from which one is good enough.

    Args:
        weights: In order of importance; objectives of weight 0 are only logged.
        constraints: Thresholds.
        bin_width: Scores are rounded down to multiples of this.

    Raises:
        WiringError: A constraint is on a rate or a quantile.
    """
    for constraint in constraints:
        if constraint.statistic != "mean":
            raise WiringError(
                'aggregate "lexicographic" takes `at_least` as a threshold of the score, and '
                f'"{constraint.objective}" has constraint {constraint.statistic}; '
                "fix: leave out constraint, or aggregate.name=lagrangian"
            )
    thresholds = {constraint.objective: constraint.lower_bound for constraint in constraints}
    order = tuple((name, thresholds.get(name)) for name, weight in weights.items() if weight)
    return Lexicographic(order, bin_width)


def lagrangian(
    weights: Weights,
    constraints: Constraints,
    *,
    multiplier_lr: NonNegativeFloat = 0.5,
    multiplier_update: Literal["mirror", "gradient"] = "mirror",
    multiplier_init: PositiveFloat = 1.0,
    multiplier_min: NonNegativeFloat = 0.01,
    multiplier_max: PositiveFloat = 10.0,
    window_size: PositiveInt = 256,
    multiplier_delay_steps: NonNegativeInt = 0,
) -> CreditStep:
    """The weighted sum, plus a multiplier for each constraint that grows while the constraint is violated.

    Args:
        weights: Weight of each objective, added to its multiplier.
        constraints: At least one.
        multiplier_lr: Learning rate of the logarithm of a multiplier, per unit of violation.
        multiplier_update: Update rule; see `dual_ascent`.
        multiplier_init: Multipliers before the first training step.
        multiplier_min: Smallest multiplier.
        multiplier_max: Largest multiplier.
        window_size: Number of latest scores that a constrained statistic is taken over.
        multiplier_delay_steps: Training steps before the multipliers are first updated.

    Raises:
        WiringError: There is no constraint, or the numbers contradict each other.
    """
    return Lagrangian(
        weights,
        tuple(constraints),
        "rewards",
        multiplier_lr,
        multiplier_update,
        multiplier_init,
        multiplier_min,
        multiplier_max,
        window_size,
        multiplier_delay_steps,
    )


def preference_weighted_sum(weights: Weights, constraints: Constraints) -> CreditStep:
    """The weighted sum of scores with the weights of each prompt.

    Args:
        weights: Ignored; prompts bring their own.
        constraints: Must be empty.

    Raises:
        WiringError: There are constraints.
    """
    _reject_constraints(constraints, "preference_weighted_sum")
    return PreferenceWeightedSum()


def _reject_constraints(constraints: Constraints, name: str) -> None:
    if constraints:
        raise WiringError(
            f'aggregate "{name}" enforces no constraint, and "{constraints[0].objective}" has at_least; '
            "fix: aggregate.name=lagrangian, or leave out at_least"
        )


AGGREGATES: dict[str, Callable[..., CreditStep]] = {
    "weighted_sum": weighted_sum,
    "min_objective": min_objective,
    "chebyshev": chebyshev,
    "lexicographic": lexicographic,
    "lagrangian": lagrangian,
    "preference_weighted_sum": preference_weighted_sum,
}
"""Name in recipes -> function."""


@inherit_arguments(grpo)
def lagrangian_grpo(
    weights: Weights, *, constraints: Constraints = (), multiplier_lr: NonNegativeFloat = 0.5, **kwargs: Any
) -> AlgorithmSpec:
    """GRPO on a weighted sum with learned multipliers for constraints.

    Args:
        weights: Weight of each objective, added to its multiplier.
        constraints: Lower bounds; objectives give them by `at_least`.
        multiplier_lr: Learning rate of the logarithm of a multiplier.
        kwargs: As for `grpo`.

    Source: Dai et al. 2023 (Safe RLHF, arXiv:2310.12773), with group baselines instead of its two critics.
    """
    base = grpo(weights, **kwargs)
    return replace_aggregator(base, lagrangian(weights, constraints, multiplier_lr=multiplier_lr)).replace(
        name="lagrangian_grpo"
    )


@inherit_arguments(grpo)
def chebyshev_grpo(
    weights: Weights,
    *,
    criterion: Literal["response", "policy_mean"] = "response",
    rho: NonNegativeFloat = 0.0,
    **kwargs: Any,
) -> AlgorithmSpec:
    """GRPO on the negative Chebyshev distance from the ideal point.

    Args:
        weights: Weight of the distance in each objective.
        criterion: "response" or "policy_mean"; see `Chebyshev`.
        rho: Multiple of the weighted sum that is added.
        kwargs: As for `grpo`.

    Source: Miettinen 1999, section 3.4, for the scalarisation; ours in the combination.
    """
    step = chebyshev(weights, (), criterion=criterion, rho=rho)
    return replace_aggregator(grpo(weights, **kwargs), step).replace(name="chebyshev_grpo")
