"""Types and shapes of signatures checked at run time, faster than by jaxtyping's own decorator.

That one makes two more functions per function while a module is imported, binds the arguments of each call,
and checks them before and after it. Here the checks are made at the first call and run once per call, and the
sizes of axes are kept only for signatures that have axes.
"""

import inspect
from dataclasses import is_dataclass
from functools import partial, wraps
from types import FunctionType
from typing import Any, get_args, get_type_hints

import jaxtyping
from beartype import BeartypeConf, beartype

CONF = BeartypeConf(violation_type=jaxtyping.TypeCheckError)
JAXTYPED = jaxtyping.jaxtyped


def resolve_hint(hint, namespace):
    """A hint without names in quotes; anything, if it names something that only type checkers import."""

    def carrier(value): ...

    carrier.__annotations__ = {"value": hint}
    try:
        return get_type_hints(carrier, namespace, include_extras=True)["value"]
    except (NameError, AttributeError, TypeError, ValueError):
        return Any


def has_axes(hint):
    """Whether some part of a hint is an array with named axes."""
    return hasattr(hint, "dim_str") or any(has_axes(part) for part in get_args(hint))


def check_calls(function):
    """The function with checks of its parameters and its result, and whether a shape is among them."""
    hints = {
        name: resolve_hint(hint, function.__globals__) for name, hint in function.__annotations__.items()
    }
    # A copy, so that nobody else who reads the annotations sees other ones.
    copy = FunctionType(
        function.__code__,
        function.__globals__,
        function.__name__,
        function.__defaults__,
        function.__closure__,
    )
    copy.__kwdefaults__, copy.__annotations__ = function.__kwdefaults__, hints
    copy.__module__, copy.__qualname__ = function.__module__, function.__qualname__
    return beartype(copy, conf=CONF), any(map(has_axes, hints.values()))


def check_signature(target=None, *, typechecker):
    """In place of `jaxtyping.jaxtyped`, for functions and for the `__init__` of dataclasses."""
    if target is None:
        return partial(check_signature, typechecker=typechecker)
    if inspect.isclass(target):
        if is_dataclass(target) and not hasattr(target.__init__, "checks_signature"):
            target.__init__ = check_signature(target.__init__, typechecker=typechecker)
        return target
    # beartype would check the items of generators too, and jaxtyping does not.
    if inspect.isgeneratorfunction(target):
        return JAXTYPED(target, typechecker=typechecker)
    checked, shaped = None, False

    @wraps(target)
    def function(*args, **kwargs):
        nonlocal checked, shaped
        if jaxtyping.config.jaxtyping_disable:
            return target(*args, **kwargs)
        if checked is None:
            checked, shaped = check_calls(target)
        if not shaped:
            return checked(*args, **kwargs)
        # A name of an axis means one size within one call.
        with JAXTYPED("context"):
            return checked(*args, **kwargs)

    function.checks_signature = True
    return function
