"""How objectives become one, apart from the algorithm: any recipe with a weighted sum can have another way.

`AGGREGATES` holds the ways by the names recipes use. Each takes the weights and the constraints that the
objectives give.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Literal

from paretune.algorithms.grpo import grpo
from paretune.algorithms.signature import extends
from paretune.algorithms.views import Made
from paretune.bounds import Count, Natural, NotNegative, Positive
from paretune.credit.aggregate import WeightedSum
from paretune.credit.constraint import Constraint, Lagrangian
from paretune.credit.order import Lexicographic
from paretune.credit.step import Step, chain, steps_of
from paretune.credit.weights import PreferenceSum
from paretune.credit.worst import Chebyshev, Worst
from paretune.errors import WiringError
from paretune.learn.recipe import Recipe, in_phases

Weights = Mapping[str, float]
Constraints = Sequence[Constraint]


def aggregated(
    recipe: Made,
    aggregator: Step | None = None,
    *,
    before: Sequence[Step] = (),
    missing: Step | None = None,
) -> Made:
    """The recipe with another aggregator in the place of its weighted sum, in its phases too.

    What an aggregator remembers begins anew in each phase.

    Args:
        recipe: One with a WeightedSum, before or after its models are asked.
        aggregator: What takes its place; None: it stays.
        before: Steps on the scores as they come, such as thresholds; gates see them.
        missing: What missing scores mean; goes behind the gates, before anything is compared.

    Raises:
        WiringError: The recipe has no weighted sum that could be replaced.
    """
    worth: list[Step] = list(steps_of(recipe.worth))
    credit: list[Step] = list(steps_of(recipe.credit))
    home = next((steps for steps in (worth, credit) if any(isinstance(s, WeightedSum) for s in steps)), None)
    if home is None:
        own = ", ".join(type(step).__name__ for step in (*worth, *credit))
        wanted = type(aggregator).__name__ if aggregator else "another aggregator"
        raise WiringError(f"{wanted} has no WeightedSum to take the place of among {own}")
    place = next(i for i, step in enumerate(home) if isinstance(step, WeightedSum))
    home[place] = aggregator or home[place]
    if missing is not None:
        worth.insert(place if home is worth else len(worth), missing)
    again = partial(aggregated, aggregator=aggregator, before=before, missing=missing)
    made = in_phases(recipe.before, again)
    return recipe.but(worth=chain(*before, *worth), credit=chain(*credit), before=made)


def weighted(weights: Weights, constraints: Constraints) -> Step:
    """The sum of weight times score.

    Args:
        weights: Weight of each objective.
        constraints: None; a sum cannot keep them.

    Raises:
        WiringError: There are constraints.
    """
    _unused(constraints, "weighted")
    return WeightedSum(weights)


def worst(weights: Weights, constraints: Constraints, *, sharpness: Positive | None = None) -> Step:
    """The worst objective of each response, of those that have a weight.

    Args:
        weights: Equal, or 0 for an objective that is only logged.
        constraints: None.
        sharpness: None: the worst itself; else the k of a soft minimum.

    Raises:
        WiringError: There are constraints, or the weights are not equal.
    """
    _unused(constraints, "worst")
    if len({weight for weight in weights.values() if weight}) > 1:
        raise WiringError(
            'aggregate "worst" compares scores as they are, and the weights are not equal; '
            "fix: give equal weights, or aggregate.name=chebyshev"
        )
    return Worst(tuple(name for name, weight in weights.items() if weight), sharpness)


def chebyshev(
    weights: Weights,
    constraints: Constraints,
    *,
    of: Literal["response", "mean"] = "response",
    ideal: dict[str, float] | None = None,
    rho: NotNegative = 0.0,
    freeze_after: Natural | None = None,
) -> Step:
    """The objective that is farthest from its best, of each response or of their mean.

    Args:
        weights: Weight of the distance in each objective.
        constraints: None.
        of: "response" or "mean".
        ideal: The ideal point; None: the best scores seen so far.
        rho: How much of the weighted sum is added.
        freeze_after: The step from which the ideal point moves no more.

    Raises:
        WiringError: There are constraints, or the options contradict each other.
    """
    _unused(constraints, "chebyshev")
    return Chebyshev(weights, of, ideal, rho, freeze_after)


def lexicographic(weights: Weights, constraints: Constraints, *, grain: NotNegative = 0.0) -> Step:
    """The first objective first; constraints on means are the levels from which one is good enough.

    Args:
        weights: Their order is that of importance; objectives of weight 0 are only logged.
        constraints: Levels.
        grain: Scores are rounded down to multiples of this.

    Raises:
        WiringError: A constraint is on a rate or a quantile.
    """
    wrong = [constraint for constraint in constraints if constraint.of != "mean"]
    if wrong:
        raise WiringError(
            f'aggregate "lexicographic" takes `at_least` as a level of the score, and "{wrong[0].objective}" '
            f"has constraint {wrong[0].of}; fix: leave out constraint, or aggregate.name=lagrangian"
        )
    levels = {constraint.objective: constraint.at_least for constraint in constraints}
    order = tuple((name, levels.get(name)) for name, weight in weights.items() if weight)
    return Lexicographic(order, grain)


def lagrangian(
    weights: Weights,
    constraints: Constraints,
    *,
    rate: NotNegative = 0.5,
    form: Literal["mirror", "gradient"] = "mirror",
    start_at: Positive = 1.0,
    least: NotNegative = 0.01,
    most: Positive = 10.0,
    window: Count = 256,
    delay: Natural = 0,
) -> Step:
    """The weighted sum, and a multiplier for each constraint that rises while it is broken.

    Args:
        weights: Weight of each objective beside its multiplier.
        constraints: At least one.
        rate: How fast the logarithm of a multiplier moves, for each unit by which its constraint is broken.
        form: How it moves; see `ascend`.
        start_at: Multipliers before the first step.
        least: Smallest multiplier.
        most: Largest multiplier.
        window: Scores a level is taken over.
        delay: Steps before multipliers move.

    Raises:
        WiringError: There is no constraint, or the numbers contradict each other.
    """
    return Lagrangian(weights, tuple(constraints), "signal", rate, form, start_at, least, most, window, delay)


def preference(weights: Weights, constraints: Constraints) -> Step:
    """The sum of the scores with the weights that each prompt asks for.

    Args:
        weights: Without effect; prompts bring their own.
        constraints: None.

    Raises:
        WiringError: There are constraints.
    """
    _unused(constraints, "preference")
    return PreferenceSum()


def _unused(constraints: Constraints, name: str) -> None:
    if constraints:
        raise WiringError(
            f'aggregate "{name}" keeps no constraint, and "{constraints[0].objective}" has at_least; '
            "fix: aggregate.name=lagrangian, or leave out at_least"
        )


AGGREGATES: dict[str, Callable[..., Step]] = {
    "weighted": weighted,
    "worst": worst,
    "chebyshev": chebyshev,
    "lexicographic": lexicographic,
    "lagrangian": lagrangian,
    "preference": preference,
}


@extends(grpo)
def lagrangian_grpo(
    weights: Weights, *, constraints: Constraints = (), rate: NotNegative = 0.5, **more: Any
) -> Recipe:
    """Gate, sum with multipliers that learn, then compare within the group.

    Args:
        weights: Weight of each objective beside its multiplier.
        constraints: The levels to keep; objectives bring them by `at_least`.
        rate: How fast the logarithm of a multiplier moves.
        more: As for `grpo`.

    Source: Dai et al. 2023 (Safe RLHF, arXiv:2310.12773), with the group in the place of its two critics.
    """
    base = grpo(weights, **more)
    return aggregated(base, lagrangian(weights, constraints, rate=rate)).but(name="lagrangian_grpo")


@extends(grpo)
def chebyshev_grpo(
    weights: Weights, *, of: Literal["response", "mean"] = "response", rho: NotNegative = 0.0, **more: Any
) -> Recipe:
    """Gate, measure the distance from the ideal point, then compare within the group.

    Args:
        weights: Weight of the distance in each objective.
        of: "response" or "mean".
        rho: How much of the weighted sum is added.
        more: As for `grpo`.

    Source: Miettinen 1999, section 3.4, for the scalarisation; ours in the combination.
    """
    step = chebyshev(weights, (), of=of, rho=rho)
    return aggregated(grpo(weights, **more), step).but(name="chebyshev_grpo")
