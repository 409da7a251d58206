"""Inherited arguments: an algorithm built on another one repeats none of its arguments."""

import inspect
from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar, cast

from paretune.core.errors import WiringError
from paretune.rl.algorithm_spec import AlgorithmSpec

AlgorithmT = TypeVar("AlgorithmT", bound=Callable[..., AlgorithmSpec])


class GroupSizeError(WiringError):
    """An algorithm that compares the responses to a prompt got one of each.

    One that is built on another raises it anew, with its own name.
    """

    def __init__(self, algorithm: str, num_generations: int) -> None:
        super().__init__(
            f"algorithm.num_generations is {num_generations}, and {algorithm} compares the responses to a "
            "prompt; fix: 2 or more"
        )
        self.num_generations = num_generations


def inherit_arguments(
    parent: Callable[..., AlgorithmSpec], *exclude: str
) -> Callable[[AlgorithmT], AlgorithmT]:
    """Give a function with `**kwargs` the explicit signature of the function it passes them to.

    The signature, which recipe validation and help read, has the function's own arguments, then the keyword
    arguments of `parent` that it does not have itself and that are not in `exclude`. Any other argument is a
    TypeError, as for any function.
    """

    def decorate(function: AlgorithmT) -> AlgorithmT:
        own = inspect.signature(function).parameters
        inherited = {
            name: parameter
            for name, parameter in inspect.signature(parent).parameters.items()
            if parameter.kind is parameter.KEYWORD_ONLY and name not in own and name not in exclude
        }
        explicit = [p for p in own.values() if p.kind is not p.VAR_KEYWORD]
        signature = inspect.Signature([*explicit, *inherited.values()], return_annotation=AlgorithmSpec)

        @wraps(function)
        def checked(*args: Any, **kwargs: Any) -> AlgorithmSpec:
            # Bind first: a wrong name is reported for this function, not for one further down.
            signature.bind(*args, **kwargs)
            try:
                return function(*args, **kwargs)
            except GroupSizeError as error:
                raise GroupSizeError(function.__name__, error.num_generations) from None

        checked.__annotations__ = function.__annotations__ | {n: p.annotation for n, p in inherited.items()}
        checked.__signature__ = signature  # type: ignore[attr-defined]
        checked.inherits_from = parent  # type: ignore[attr-defined]  # whose docstring has those arguments
        return cast("AlgorithmT", checked)

    return decorate
