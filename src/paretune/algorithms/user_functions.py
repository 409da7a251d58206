"""Code of one's own: algorithms, aggregators and parts that a recipe names by file or module."""

import inspect
from collections.abc import Callable, Mapping
from functools import wraps
from pathlib import Path
from typing import Any, get_type_hints

from paretune.core.errors import ConfigError, ParetuneError, WiringError
from paretune.reward.function_calls import Attempt, describe_error
from paretune.reward.function_loading import LoadedObject, load_object


def is_user_function(name: str) -> bool:
    """Whether a name is a reference, `file.py:name` or `package.module:name`."""
    return ":" in name


def user_files(reference: str) -> tuple[Path, ...]:
    """The source files that a reference rests on: its module, and the modules beside it that it imports.

    Raises:
        ConfigError: There is no such object.
    """
    return load_object(reference).files


def user_function(
    reference: str, arguments: tuple[str, ...], results: tuple[type, ...]
) -> Callable[..., Any]:
    """An algorithm or an aggregator of one's own, whose errors are WiringErrors.

    Args:
        reference: `file.py:name` or `package.module:name`.
        arguments: Names of the arguments that it is called with by position; the others are by keyword.
        results: The types that it may return.

    Raises:
        ConfigError: There is no such function, or its signature is another one.
    """
    loaded = load_object(reference, lambda value: _positional(value) == arguments)
    function = loaded.value
    _check_callable(reference, loaded)
    problem = _signature_problem(function, arguments)
    if problem:
        fix = f"def {reference.rpartition(':')[2]}({', '.join(arguments)}, *, ...)"
        raise ConfigError(f'"{reference}" {problem}; fix: {fix}')
    _check_hints(reference, function)

    @wraps(function)
    def checked(*args: Any, **kwargs: Any) -> Any:
        return _call(reference, loaded, args, kwargs, results)

    return checked


def user_part(reference: str, arguments: Mapping[str, Any], defaults: Mapping[str, Any], kind: type) -> Any:
    """A part of one's own: what a class, or a function, makes of the arguments.

    Args:
        reference: `file.py:name` or `package.module:name`.
        arguments: Its keyword arguments.
        defaults: Values of arguments without a default that are not given, where it has them.
        kind: The type that the result must have.

    Raises:
        ConfigError: There is no such class or function.
        WiringError: It raises an error, or returns something else.
    """
    loaded = load_object(reference)
    parameters = part_arguments(reference)
    missing = {n: v for n, v in defaults.items() if n in parameters and n not in arguments}
    kwargs = {n: v for n, v in missing.items() if parameters[n] is inspect.Parameter.empty} | dict(arguments)
    return _call(reference, loaded, (), kwargs, (kind,))


def part_arguments(reference: str) -> dict[str, Any]:
    """The arguments of a part of one's own and their defaults (`inspect.Parameter.empty`: none).

    Raises:
        ConfigError: There is no such class or function.
    """
    loaded = load_object(reference, _may_be_part)
    _check_callable(reference, loaded)
    _check_hints(reference, loaded.value)
    return {
        p.name: p.default
        for p in inspect.signature(loaded.value).parameters.values()
        if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
    }


def user_types(reference: str) -> dict[str, Any]:
    """The types of the arguments of a part of one's own, where they are annotated.

    Raises:
        ConfigError: There is no such class or function.
    """
    return _hints(load_object(reference).value)


def _check_callable(reference: str, loaded: LoadedObject) -> None:
    if not callable(loaded.value):
        raise ConfigError(
            f'"{reference}" is a {type(loaded.value).__name__}; fix: name a function or a class'
        )
    with Attempt() as attempt:
        inspect.signature(loaded.value)
    if attempt.error is not None:
        raise ConfigError(f'"{reference}" has no signature; fix: write a function that calls it')


def _signature_problem(function: Callable[..., Any], arguments: tuple[str, ...]) -> str:
    parameters = inspect.signature(function).parameters.values()
    positional = _positional(function) or ()
    if len(positional) != len(arguments):
        names = ", ".join(positional) or "none"
        return f"has the positional arguments {names}, and is called with {', '.join(arguments)}"
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return "takes **kwargs, whose names a recipe cannot know (`inherit_arguments` names those of another)"
    return ""


def _positional(value: Any) -> tuple[str, ...] | None:
    """The names of the arguments that a function takes by position; None: it is no function."""
    if not inspect.isroutine(value):
        return None
    parameters = inspect.signature(value).parameters.values()
    return tuple(p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD))


def _may_be_part(value: Any) -> bool:
    """Whether a value is a class, or a function that is no algorithm, aggregator or reward function."""
    positional = _positional(value)
    return inspect.isclass(value) if positional is None else not {"weights", "completions"} & {*positional}


def _hints(value: Any) -> dict[str, Any]:
    return get_type_hints(value.__init__ if inspect.isclass(value) else value, include_extras=True)


def _check_hints(reference: str, value: Any) -> None:
    with Attempt() as attempt:
        _hints(value)
    if attempt.error is not None:
        raise ConfigError(
            f'the annotations of "{reference}" cannot be read: {describe_error(attempt.error)}; '
            "fix: import what they name outside `if TYPE_CHECKING`"
        )


def _call(
    reference: str,
    loaded: LoadedObject,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    results: tuple[type, ...],
) -> Any:
    with Attempt() as attempt:
        attempt.value = loaded.value(*args, **kwargs)
    if isinstance(attempt.error, ParetuneError):
        raise attempt.error
    if attempt.error is not None:
        raise WiringError(f'"{reference}" raised {describe_error(attempt.error, loaded.source)}')
    if not isinstance(attempt.value, results):
        expected = " or ".join(result.__name__ for result in results)
        raise WiringError(
            f'"{reference}" returns a {type(attempt.value).__name__}, and must return a {expected}'
        )
    return attempt.value
