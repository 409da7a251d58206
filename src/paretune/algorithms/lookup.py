"""Algorithms and aggregators by the name that a recipe gives: shipped ones, and functions of one's own."""

from collections.abc import Callable

from paretune.algorithms import ALGORITHMS
from paretune.algorithms.aggregators import AGGREGATES
from paretune.algorithms.user_functions import is_user_function, user_function
from paretune.credit.base import CreditStep
from paretune.rl.algorithm_spec import AlgorithmSpec
from paretune.rl.evolution.spec import EvolutionSpec


def find_algorithm(name: str) -> Callable[..., AlgorithmSpec | EvolutionSpec]:
    """The function of `algorithm.name`: a key of `ALGORITHMS`, `file.py:name` or `package.module:name`.

    Raises:
        KeyError: There is no shipped algorithm of this name.
        ConfigError: There is no such function, or its signature is another one.
    """
    return (
        user_function(name, ("weights",), (AlgorithmSpec, EvolutionSpec))
        if is_user_function(name)
        else ALGORITHMS[name]
    )


def find_aggregate(name: str) -> Callable[..., CreditStep]:
    """The function of `aggregate.name`, as for `find_algorithm`.

    Raises:
        KeyError: There is no shipped aggregator of this name.
        ConfigError: There is no such function, or its signature is another one.
    """
    return (
        user_function(name, ("weights", "constraints"), (CreditStep,))
        if is_user_function(name)
        else AGGREGATES[name]
    )
