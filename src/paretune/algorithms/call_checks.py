"""Checks of the arguments of algorithms that are called from Python; those of recipes are checked before."""

from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")
CallCheck = Callable[[Callable[..., Any], Sequence[Any], Mapping[str, Any]], None]
"""From a function and the arguments of a call to nothing, or an error."""

_checks: list[CallCheck] = []


def add_call_check(check: CallCheck) -> None:
    """Check every call of a public algorithm from now on, by rules that this room does not know."""
    if check not in _checks:
        _checks.append(check)


def with_call_checks(function: Callable[P, R]) -> Callable[P, R]:
    """The function with its arguments checked."""

    @wraps(function)
    def checked(*args: P.args, **kwargs: P.kwargs) -> R:
        for check in _checks:
            check(function, args, kwargs)
        return function(*args, **kwargs)

    return checked
