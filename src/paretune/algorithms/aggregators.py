"""Where a step belongs that reads the one signal an aggregator made.

How objectives become one, apart from the algorithm: any recipe with a weighted sum can have another way.

`AGGREGATES` holds the ways by the names recipes use. Each takes the weights and the constraints that the
objectives give.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Literal, TypeVar

from paretune.algorithms.grpo import grpo
from paretune.algorithms.signature import inherit_arguments
from paretune.core.errors import WiringError
from paretune.core.types import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from paretune.credit.aggregation import Lexicographic, PreferenceWeightedSum, WeightedSum
from paretune.credit.base import CreditStep, chain, flatten_steps
from paretune.credit.constraints import Constraint, Lagrangian
from paretune.credit.scalarization import Chebyshev, MinObjective
from paretune.rl.algorithm_spec import AlgorithmSpec, map_phases
from paretune.rl.evolution.spec import EvolutionSpec

SpecT = TypeVar("SpecT", AlgorithmSpec, EvolutionSpec, AlgorithmSpec | EvolutionSpec)
"""What an algorithm returns."""


def insert_after_aggregation(spec: SpecT, step: CreditStep) -> SpecT:
    """The recipe with a step behind its weighted sum, before anything is selected; else at its end."""
    steps = list(flatten_steps(spec.reward_steps))
    places = [i for i, part in enumerate(steps) if isinstance(part, WeightedSum)]
    steps.insert(places[0] + 1 if places else len(steps), step)
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
    """The recipe with another aggregator in the place of its weighted sum, in its phases too.

    What an aggregator remembers begins anew in each phase.

    Args:
        spec: One with a WeightedSum, before or after its models are asked.
        aggregator: What takes its place; None: it stays.
        score_steps: Steps on the scores as they come, such as thresholds; gates see them.
        missing_step: What missing scores mean; goes behind the gates, before anything is compared.

    Raises:
        WiringError: The recipe has no weighted sum that could be replaced.
    """
    worth: list[CreditStep] = list(flatten_steps(spec.reward_steps))
    credit: list[CreditStep] = list(flatten_steps(spec.credit))
    home = next((steps for steps in (worth, credit) if any(isinstance(s, WeightedSum) for s in steps)), None)
    if home is None:
        own = ", ".join(type(step).__name__ for step in (*worth, *credit))
        wanted = type(aggregator).__name__ if aggregator else "another aggregator"
        raise WiringError(f"{wanted} has no WeightedSum to take the place of among {own}")
    place = next(i for i, step in enumerate(home) if isinstance(step, WeightedSum))
    home[place] = aggregator or home[place]
    if missing_step is not None:
        worth.insert(place if home is worth else len(worth), missing_step)
    again = partial(
        replace_aggregator, aggregator=aggregator, score_steps=score_steps, missing_step=missing_step
    )
    made = map_phases(spec.phases, again)
    return spec.replace(reward_steps=chain(*score_steps, *worth), credit=chain(*credit), phases=made)


def weighted_sum(weights: Weights, constraints: Constraints) -> CreditStep:
    """The sum of weight times score.

    Args:
        weights: Weight of each objective.
        constraints: None; a sum cannot keep them.

    Raises:
        WiringError: There are constraints.
    """
    _reject_constraints(constraints, "weighted")
    return WeightedSum(weights)


def min_objective(
    weights: Weights, constraints: Constraints, *, sharpness: PositiveFloat | None = None
) -> CreditStep:
    """The worst objective of each response, of those that have a weight.

    Args:
        weights: Equal, or 0 for an objective that is only logged.
        constraints: None.
        sharpness: None: the worst itself; else the k of a soft minimum.

    Raises:
        WiringError: There are constraints, or the weights are not equal.
    """
    _reject_constraints(constraints, "worst")
    if len({weight for weight in weights.values() if weight}) > 1:
        raise WiringError(
            'aggregate "worst" compares scores as they are, and the weights are not equal; '
            "fix: give equal weights, or aggregate.name=chebyshev"
        )
    return MinObjective(tuple(name for name, weight in weights.items() if weight), sharpness)


def chebyshev(
    weights: Weights,
    constraints: Constraints,
    *,
    criterion: Literal["response", "mean"] = "response",
    ideal_point: dict[str, float] | None = None,
    rho: NonNegativeFloat = 0.0,
    freeze_ideal_after: NonNegativeInt | None = None,
) -> CreditStep:
    """The objective that is farthest from its best, of each response or of their mean.

    Args:
        weights: Weight of the distance in each objective.
        constraints: None.
        criterion: "response" or "mean".
        ideal_point: The ideal point; None: the best scores seen so far.
        rho: How much of the weighted sum is added.
        freeze_ideal_after: The step from which the ideal point moves no more.

    Raises:
        WiringError: There are constraints, or the options contradict each other.
    """
    _reject_constraints(constraints, "chebyshev")
    return Chebyshev(weights, criterion, ideal_point, rho, freeze_ideal_after)


def lexicographic(
    weights: Weights, constraints: Constraints, *, bin_width: NonNegativeFloat = 0.0
) -> CreditStep:
    """The first objective first; constraints on means are the levels from which one is good enough.

    Args:
        weights: Their order is that of importance; objectives of weight 0 are only logged.
        constraints: Levels.
        bin_width: Scores are rounded down to multiples of this.

    Raises:
        WiringError: A constraint is on a rate or a quantile.
    """
    wrong = [constraint for constraint in constraints if constraint.statistic != "mean"]
    if wrong:
        raise WiringError(
            f'aggregate "lexicographic" takes `at_least` as a level of the score, and "{wrong[0].objective}" '
            f"has constraint {wrong[0].statistic}; fix: leave out constraint, or aggregate.name=lagrangian"
        )
    levels = {constraint.objective: constraint.lower_bound for constraint in constraints}
    order = tuple((name, levels.get(name)) for name, weight in weights.items() if weight)
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
    """The weighted sum, and a multiplier for each constraint that rises while it is broken.

    Args:
        weights: Weight of each objective beside its multiplier.
        constraints: At least one.
        multiplier_lr: How fast the logarithm of a multiplier moves, for each unit by which its constraint is broken.
        multiplier_update: How it moves; see `ascend`.
        multiplier_init: Multipliers before the first step.
        multiplier_min: Smallest multiplier.
        multiplier_max: Largest multiplier.
        window_size: Scores a level is taken over.
        multiplier_delay_steps: Steps before multipliers move.

    Raises:
        WiringError: There is no constraint, or the numbers contradict each other.
    """
    return Lagrangian(
        weights,
        tuple(constraints),
        "signal",
        multiplier_lr,
        multiplier_update,
        multiplier_init,
        multiplier_min,
        multiplier_max,
        window_size,
        multiplier_delay_steps,
    )


def preference_weighted_sum(weights: Weights, constraints: Constraints) -> CreditStep:
    """The sum of the scores with the weights that each prompt asks for.

    Args:
        weights: Without effect; prompts bring their own.
        constraints: None.

    Raises:
        WiringError: There are constraints.
    """
    _reject_constraints(constraints, "preference")
    return PreferenceWeightedSum()


def _reject_constraints(constraints: Constraints, name: str) -> None:
    if constraints:
        raise WiringError(
            f'aggregate "{name}" keeps no constraint, and "{constraints[0].objective}" has at_least; '
            "fix: aggregate.name=lagrangian, or leave out at_least"
        )


AGGREGATES: dict[str, Callable[..., CreditStep]] = {
    "weighted": weighted_sum,
    "worst": min_objective,
    "chebyshev": chebyshev,
    "lexicographic": lexicographic,
    "lagrangian": lagrangian,
    "preference": preference_weighted_sum,
}


@inherit_arguments(grpo)
def lagrangian_grpo(
    weights: Weights, *, constraints: Constraints = (), multiplier_lr: NonNegativeFloat = 0.5, **kwargs: Any
) -> AlgorithmSpec:
    """Gate, sum with multipliers that learn, then compare within the group.

    Args:
        weights: Weight of each objective beside its multiplier.
        constraints: The levels to keep; objectives bring them by `at_least`.
        multiplier_lr: How fast the logarithm of a multiplier moves.
        kwargs: As for `grpo`.

    Source: Dai et al. 2023 (Safe RLHF, arXiv:2310.12773), with the group in the place of its two critics.
    """
    base = grpo(weights, **kwargs)
    return replace_aggregator(base, lagrangian(weights, constraints, multiplier_lr=multiplier_lr)).replace(
        name="lagrangian_grpo"
    )


@inherit_arguments(grpo)
def chebyshev_grpo(
    weights: Weights,
    *,
    criterion: Literal["response", "mean"] = "response",
    rho: NonNegativeFloat = 0.0,
    **kwargs: Any,
) -> AlgorithmSpec:
    """Gate, measure the distance from the ideal point, then compare within the group.

    Args:
        weights: Weight of the distance in each objective.
        criterion: "response" or "mean".
        rho: How much of the weighted sum is added.
        kwargs: As for `grpo`.

    Source: Miettinen 1999, section 3.4, for the scalarisation; ours in the combination.
    """
    step = chebyshev(weights, (), criterion=criterion, rho=rho)
    return replace_aggregator(grpo(weights, **kwargs), step).replace(name="chebyshev_grpo")
