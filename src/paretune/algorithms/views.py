"""Where a step belongs that reads the one signal an aggregator made."""

from typing import TypeVar

from paretune.credit.aggregate import WeightedSum
from paretune.credit.step import Step, chain, steps_of
from paretune.learn.evolution import Evolution
from paretune.learn.recipe import Recipe

Made = TypeVar("Made", Recipe, Evolution, Recipe | Evolution)
"""What an algorithm returns."""


def after_sum(recipe: Made, step: Step) -> Made:
    """The recipe with a step behind its weighted sum, before anything is selected; else at its end."""
    steps = list(steps_of(recipe.worth))
    places = [i for i, part in enumerate(steps) if isinstance(part, WeightedSum)]
    steps.insert(places[0] + 1 if places else len(steps), step)
    return recipe.but(worth=chain(*steps))
