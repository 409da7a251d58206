"""Reward functions of TRL, verl and OpenRLHF: their arguments, and what of them is known before a call."""

import inspect
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from paretune.core.errors import ConfigError
from paretune.reward.function_calls import Attempt, describe_error
from paretune.reward.function_files import function_name, home_files, source_files
from paretune.reward.function_loading import load_object, source_hash

FunctionSignature = Literal["trl", "verl", "openrlhf"]
STANDARD_ARGUMENTS: Mapping[FunctionSignature, tuple[str, ...]] = {
    "trl": ("prompts", "completions", "completion_ids", "trainer_state", "log_extra", "log_metric"),
    "verl": ("data_source", "solution_str", "ground_truth", "extra_info"),
    "openrlhf": ("queries", "prompts", "labels"),
}
"""Arguments that every function with this signature can ask for."""
PROMPT_FIELDS = ("id", "category")
"""Columns that prompts always have."""
LABEL_COLUMNS = ("label", "labels")
"""Columns of the `labels` of OpenRLHF."""
_RESPONSE_ARGUMENTS: Mapping[FunctionSignature, tuple[str, ...]] = {
    "trl": ("prompts", "completions", "completion_ids"),
    "verl": ("solution_str",),
    "openrlhf": ("queries",),
}
_KINDS = inspect.Parameter
_SIGNATURE_HINTS = {"solution_str": "verl", "queries": "openrlhf", "completions": "trl"}


@dataclass(frozen=True)
class RewardFunction:
    """A function that scores responses, as loaded and checked."""

    function: Callable[..., Any]
    signature: FunctionSignature = "trl"
    arguments: Mapping[str, Any] = field(default_factory=dict)
    """Further keyword arguments of every call."""
    reference: str = ""
    """`package.module:name` or `file.py:name`; "": the function was given as an object."""
    source: Path | None = None
    """File that defines it."""
    files: tuple[Path, ...] = ()
    """All files that it rests on, as far as they are known."""
    hash: str = ""
    """SHA-256 of all files that its code rests on."""
    name: str = ""
    """Its qualified name in its module: the same however it was reached."""
    load_arguments: Mapping[str, Any] = field(default_factory=dict)
    """`arguments` as given to `load_function`: those of a factory are not passed to every call."""

    def __reduce__(self) -> tuple[Any, ...]:
        """Another process loads the function again by its name; one given as an object is pickled."""
        target = self.reference or self.function
        return load_function, (target, self.signature, dict(self.load_arguments))

    @cached_property
    def parameters(self) -> Mapping[str, inspect.Parameter]:
        """Its parameters by name."""
        return inspect.signature(self.function).parameters

    @property
    def accepts_any(self) -> bool:
        """Whether it takes keyword arguments of any name."""
        return any(p.kind is _KINDS.VAR_KEYWORD for p in self.parameters.values())

    @property
    def required(self) -> tuple[str, ...]:
        """Parameters without a default."""
        fixed = (_KINDS.VAR_KEYWORD, _KINDS.VAR_POSITIONAL)
        return tuple(
            name for name, p in self.parameters.items() if p.default is p.empty and p.kind not in fixed
        )

    def accepted(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Those of the keyword arguments that it takes."""
        return {name: value for name, value in arguments.items() if self.accepts(name)}

    def accepts(self, name: str) -> bool:
        """Whether it takes a keyword argument."""
        return self.accepts_any or name in self.parameters


def load_function(
    target: str | Callable[..., Any],
    signature: FunctionSignature = "trl",
    arguments: Mapping[str, Any] | None = None,
) -> RewardFunction:
    """Load a reward function and check its parameters.

    A class, or a function that takes no responses, is a factory: it is called once with the arguments, and
    what it returns is the reward function.

    Args:
        target: `package.module:name`, `file.py:name`, or the function itself.
        signature: Whose arguments it takes.
        arguments: Further keyword arguments of every call, or those of the factory.

    Raises:
        ConfigError: It cannot be loaded, is no function, or takes other arguments.
    """
    given = dict(arguments or {})
    if isinstance(target, str):
        loaded = load_object(target)
        value, source, files, label = loaded.value, loaded.source, loaded.files, target
    else:
        has_source = inspect.isfunction(target) or inspect.ismethod(target)  # not what is written in C
        file = inspect.getsourcefile(target) if has_source else None
        value, source = target, Path(file) if file else None
        files = tuple(dict.fromkeys(each for home in home_files(target) for each in source_files(home)))
        label = getattr(target, "__name__", type(target).__name__)
    # Of a factory, whose code decides what it makes.
    code_hash = source_hash(value, source if isinstance(target, str) else None)
    name = function_name(value, target.rpartition(":")[2] if isinstance(target, str) else "")
    rest = given
    if _is_factory(value, signature, given, label):
        value, rest = _make(value, given, label, source), {}
    result = RewardFunction(
        function=value,
        signature=signature,
        arguments=rest,
        reference=target if isinstance(target, str) else "",
        source=source,
        files=files,
        hash=code_hash,
        name=name,
        load_arguments=given,
    )
    _check_parameters(result, label)
    check_arguments(result)
    return result


def check_arguments(function: RewardFunction, columns: Collection[str] = ()) -> None:
    """Check the further arguments of a function.

    Raises:
        ConfigError: One of them is not a parameter, or is given by a standard argument or a column too.
    """
    standard = STANDARD_ARGUMENTS[function.signature]
    for name in function.arguments:
        if name in standard:
            raise ConfigError(f'"{name}" is given to every call already; fix: remove it')
        if name in columns and function.signature == "trl":
            raise ConfigError(f'"{name}" is a column of the prompts too; fix: remove one of the two')
        if not function.accepts(name):
            names = ", ".join(n for n in function.parameters if n not in standard) or "none"
            raise ConfigError(f'the function has no parameter "{name}"; further parameters: {names}')


def check_columns(function: RewardFunction, columns: Collection[str]) -> None:
    """Check that the prompts have what a function needs.

    Args:
        function: The function.
        columns: Names of the further columns of the prompts.

    Raises:
        ConfigError: A parameter without a default is no column, or a column has the name of a standard
            argument.
    """
    available = {*columns, *PROMPT_FIELDS}
    standard = STANDARD_ARGUMENTS[function.signature]
    needed: list[tuple[str, ...]] = []  # of each group, one column is needed
    if function.signature == "trl":
        taken = [name for name in columns if name in standard]
        if taken:
            raise ConfigError(
                f'the prompts have a column "{taken[0]}", the name of an argument; fix: rename it'
            )
        needed = [(n,) for n in function.required if n not in standard and n not in function.arguments]
    elif function.signature == "verl":
        groups = {"data_source": ("data_source",), "ground_truth": ("reward_model", "ground_truth")}
        needed = [group for name, group in groups.items() if name in function.required]
    else:
        needed = [LABEL_COLUMNS]
    missing = [" or ".join(group) for group in needed if not available.intersection(group)]
    if not missing:
        return
    if "environments" in missing:
        raise ConfigError(
            "the function reads environments, which only exist when responses call tools; "
            "fix: use a function that reads completions"
        )
    present = ", ".join(sorted(columns)) or "none"
    alternative = ", or an entry of arguments" if function.signature == "trl" else ""
    raise ConfigError(
        f"the function needs {', '.join(missing)}; columns of the prompts: {present}; "
        f"fix: add a column{alternative}"
    )


def _parameters_of(value: Any, label: str) -> Mapping[str, inspect.Parameter]:
    try:
        return inspect.signature(value).parameters
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f'"{label}" does not tell its parameters; fix: wrap it in a Python function'
        ) from error


def _is_factory(value: Any, signature: FunctionSignature, arguments: Mapping[str, Any], label: str) -> bool:
    if not callable(value):
        raise ConfigError(f'"{label}" is a {type(value).__name__}, not a function; fix: name a function')
    if inspect.isclass(value):
        return True
    parameters = _parameters_of(value, label)
    if _takes_responses(parameters, signature):
        return False
    required = {n for n, p in parameters.items() if p.default is p.empty}
    if required <= arguments.keys():
        return True
    hints = [hint for name, hint in _SIGNATURE_HINTS.items() if name in parameters and hint != signature]
    fix = f"signature: {hints[0]}" if hints else "accept them, or all by **kwargs"
    raise ConfigError(
        f'"{label}" takes {", ".join(parameters)}, and none of '
        f"{', '.join(_RESPONSE_ARGUMENTS[signature])}; fix: {fix}"
    )


def _takes_responses(parameters: Mapping[str, inspect.Parameter], signature: FunctionSignature) -> bool:
    kinds = [p.kind for p in parameters.values()]
    if signature == "openrlhf" and _num_positional(parameters) >= len(STANDARD_ARGUMENTS["openrlhf"]):
        return True
    return _KINDS.VAR_KEYWORD in kinds or any(n in parameters for n in _RESPONSE_ARGUMENTS[signature])


def _num_positional(parameters: Mapping[str, inspect.Parameter]) -> int:
    kinds = [p.kind for p in parameters.values()]
    if _KINDS.VAR_POSITIONAL in kinds:
        return len(STANDARD_ARGUMENTS["openrlhf"])
    return sum(kind in (_KINDS.POSITIONAL_ONLY, _KINDS.POSITIONAL_OR_KEYWORD) for kind in kinds)


def _make(value: Any, arguments: Mapping[str, Any], label: str, source: Path | None) -> Callable[..., Any]:
    with Attempt() as attempt:
        attempt.value = value(**arguments)
    if attempt.error is not None:
        raise ConfigError(
            f'"{label}" makes a function, and failed: {describe_error(attempt.error, source)}; '
            "fix: give its arguments under arguments"
        ) from attempt.error
    if not callable(attempt.value):
        raise ConfigError(
            f'"{label}" takes no responses, and returned a {type(attempt.value).__name__}, not a function; '
            "fix: name a function that takes completions"
        )
    function: Callable[..., Any] = attempt.value
    return function


def _check_parameters(function: RewardFunction, label: str) -> None:
    parameters, signature = _parameters_of(function.function, label), function.signature
    if not _takes_responses(parameters, signature):
        raise ConfigError(
            f'what "{label}" made takes none of {", ".join(_RESPONSE_ARGUMENTS[signature])}; '
            "fix: name a function that takes them"
        )
    by_position = [n for n, p in parameters.items() if p.kind is _KINDS.POSITIONAL_ONLY]
    if by_position and signature != "openrlhf":
        raise ConfigError(
            f'"{label}" takes "{by_position[0]}" by position only; fix: take it by name, without the /'
        )
    if signature == "openrlhf":
        others = function.required[len(STANDARD_ARGUMENTS["openrlhf"]) :]
    else:
        others = function.required if signature == "verl" else ()
    known = {*STANDARD_ARGUMENTS[signature], *function.arguments}
    unknown = [name for name in others if name not in known]
    if unknown:
        raise ConfigError(
            f'"{label}" needs the argument "{unknown[0]}"; fix: give it under arguments, or a default'
        )
