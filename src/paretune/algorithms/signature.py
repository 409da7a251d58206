"""Arguments that an algorithm takes over from the one it is made of, so that each is written down once."""

import inspect
from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar, cast

from paretune.rl.algorithm_spec import AlgorithmSpec

AlgorithmT = TypeVar("AlgorithmT", bound=Callable[..., AlgorithmSpec])


def inherit_arguments(
    parent: Callable[..., AlgorithmSpec], *exclude: str
) -> Callable[[AlgorithmT], AlgorithmT]:
    """Let a function with `**more` name the keyword arguments of the function it hands them to.

    Whoever reads the signature (a recipe, a help page) sees its own arguments, then those of `parent` that it
    does not have itself and that are not among `exclude`; others are a TypeError, as for any function.
    """

    def name_all(function: AlgorithmT) -> AlgorithmT:
        own = inspect.signature(function).parameters
        inherited = {
            name: parameter
            for name, parameter in inspect.signature(parent).parameters.items()
            if parameter.kind is parameter.KEYWORD_ONLY and name not in own and name not in exclude
        }
        kept = [p for p in own.values() if p.kind is not p.VAR_KEYWORD]
        signature = inspect.Signature([*kept, *inherited.values()], return_annotation=AlgorithmSpec)

        @wraps(function)
        def checked(*args: Any, **more: Any) -> AlgorithmSpec:
            signature.bind(*args, **more)
            return function(*args, **more)

        checked.__annotations__ = function.__annotations__ | {n: p.annotation for n, p in inherited.items()}
        checked.__signature__ = signature  # type: ignore[attr-defined]
        return cast("AlgorithmT", checked)

    return name_all
