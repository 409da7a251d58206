"""Where a step belongs that reads the one signal an aggregator made."""

from typing import TypeVar

from paretune.credit.aggregate import WeightedSum
from paretune.credit.step import CreditStep, chain, flatten_steps
from paretune.learn.evolution import EvolutionSpec
from paretune.learn.recipe import AlgorithmSpec

SpecT = TypeVar("SpecT", AlgorithmSpec, EvolutionSpec, AlgorithmSpec | EvolutionSpec)
"""What an algorithm returns."""


def insert_after_aggregation(spec: SpecT, step: CreditStep) -> SpecT:
    """The recipe with a step behind its weighted sum, before anything is selected; else at its end."""
    steps = list(flatten_steps(spec.reward_steps))
    places = [i for i, part in enumerate(steps) if isinstance(part, WeightedSum)]
    steps.insert(places[0] + 1 if places else len(steps), step)
    return spec.replace(reward_steps=chain(*steps))
