"""Checks of the arguments of public functions: one line with the fix, before anything is loaded."""

import inspect
import math
import re
import reprlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from functools import wraps
from numbers import Real
from pathlib import Path
from typing import Any, NamedTuple, ParamSpec, TypeVar

from paretune.algorithms.call_checks import add_call_check
from paretune.config.yaml import dotted_key
from paretune.core.errors import ConfigError, format_issue
from paretune.core.goals import Goal

P = ParamSpec("P")
R = TypeVar("R")


class Rule(NamedTuple):
    """What an argument must be."""

    expected: str
    """A noun phrase."""
    example: str
    """An argument that fits."""
    accepts: Callable[[Any], bool]


def check_arguments(function: Callable[P, R]) -> Callable[P, R]:
    """Check the names of the arguments of each call, and those that have a rule; None fits as default.

    The same name has the same meaning in all public functions, so one table holds the rules.
    """
    parameters = inspect.signature(function).parameters

    @wraps(function)
    def checked(*args: P.args, **kwargs: P.kwargs) -> R:
        for name, value in bound_arguments(function, args, kwargs).items():
            rule = RULES.get(name)
            is_default = value is parameters[name].default or (value is None and name in _OPTIONAL)
            if rule is not None and not is_default and not rule.accepts(value):
                default = parameters[name].default
                has_default = isinstance(default, int | float | str)
                example = repr(default) if has_default else rule.example
                raise argument_error(public_name(function), name, value, rule.expected, example)
        return function(*args, **kwargs)

    return checked


def argument_error(function: str, name: str, value: object, expected: str, example: str) -> ConfigError:
    """The error about one argument of a public function."""
    problem = f"{' '.join(reprlib.repr(value).split())} is not {expected}"
    return ConfigError(f"paretune.{function}: {name}: {problem}; fix: {name}={example}")


def check_algorithm_call(
    function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> None:
    """Check the arguments of a call of one of `paretune.algorithms`, as those of a recipe.

    Raises:
        ConfigError: One line per mistake.
    """
    from paretune.config.arguments import argument_types, value_issues

    hints, place = argument_types(function), f"paretune.{public_name(function)}"
    parameters, lines = inspect.signature(function).parameters, []
    for name, value in bound_arguments(function, args, kwargs).items():
        rule, default = RULES.get(name), parameters[name].default
        if rule is not None and not rule.accepts(value):
            lines.append(str(argument_error(public_name(function), name, value, rule.expected, rule.example)))
            continue
        for issue in value_issues((name,), value, hints.get(name, Any)):
            fix = issue.fix or (f"{name}={default!r}" if isinstance(default, int | float | str) else "")
            key, suggestion = dotted_key(issue.path), issue.suggestion
            lines.append(format_issue(place, None, None, key, issue.problem, suggestion=suggestion, fix=fix))
    if lines:
        raise ConfigError("\n".join(lines))


add_call_check(check_algorithm_call)


def bound_arguments(
    function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> Mapping[str, Any]:
    """Name -> value of the arguments of a call.

    Raises:
        ConfigError: They do not fit the signature: an unknown or a missing one, or too many by position.
    """
    signature = inspect.signature(function)
    try:
        return signature.bind(*args, **kwargs).arguments
    except TypeError as error:
        problems = list(_call_problems(function, signature.parameters, args, kwargs))
        lines = [f"paretune.{public_name(function)}: {problem}" for problem in problems or [str(error)]]
        raise ConfigError("\n".join(lines)) from error


def public_name(function: Callable[..., Any]) -> str:
    """The name of a public function below `paretune`, such as `scorers.rule`."""
    module = function.__module__.removeprefix("paretune.")
    room = "algorithms." if module.startswith("algorithms") else "scorers." * (module == "api.scorers")
    return f"{room}{function.__qualname__}"


def _call_problems(
    function: Callable[..., Any],
    parameters: Mapping[str, inspect.Parameter],
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
) -> Iterator[str]:
    """What does not fit the signature, each with its fix."""
    named = {n: p for n, p in parameters.items() if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)}
    positional = [n for n, p in named.items() if p.kind is not p.KEYWORD_ONLY]
    if len(args) > len(positional):
        first = next(n for n in [*named, "name"] if n not in positional)
        taken = f"takes {len(positional)} by position ({', '.join(positional)}), not {len(args)}"
        yield f"{taken}; fix: name the others, such as {first}=..."
    for name in positional[: len(args)]:
        if name in kwargs:
            yield f"{name}: is given twice, by position and by name; fix: leave out one of them"
    takes_any = len(parameters) > len(named)
    unknown = [] if takes_any else [name for name in kwargs if name not in named]
    for name in unknown:
        yield f"{name}: unknown argument{_instead(function.__name__, name, named)}"
    if not unknown:  # else it may be the one that is meant
        for name in (n for n, p in named.items() if p.default is p.empty):
            if name not in kwargs and name not in positional[: len(args)]:
                rule = RULES.get(name)
                yield f"{name}: is missing; fix: {name}={rule.example if rule else '...'}"


def _instead(function: str, name: str, known: Mapping[str, Any]) -> str:
    """What to write instead of an unknown argument, as a part of a message."""
    from paretune.config.issues import closest_match
    from paretune.config.other_names import other_name_key

    library, key = other_name_key(("algorithm", name), {"algorithm": {"name": function}})
    own = key.rpartition(".")[2]
    if own in known:
        return f"; fix: this is {library}'s name; here: {own}"
    is_of_algorithm = name in ("num_generations", "max_new_tokens", "temperature")
    if "algorithm" in known and (key.startswith("algorithm.") or is_of_algorithm):
        example = f"paretune.algorithms.grpo(weights, {own or name}=...)"
        return f"; fix: it is one of the algorithm: algorithm={example}"
    match = closest_match(name, known, 0.6)
    hint = f'; did you mean "{match}"?' if match else ""
    return f"{hint}; fix: one of {', '.join(known)}" if known else f"{hint}; fix: leave it out"


def check_objective_names(
    function: str, parameter: str, names: Iterable[str], objectives: Iterable[str]
) -> None:
    """Check that an argument names objectives that something scores.

    Raises:
        ConfigError: One of them is unknown.
    """
    known = list(dict.fromkeys(objectives))
    for name in names:
        if name not in known:
            fix = f"the objectives are {', '.join(known)}"
            raise ConfigError(f'paretune.{function}: {parameter}: nothing scores "{name}"; fix: {fix}')


def check_weights(name: str, spec: Any) -> None:
    """Check that the weights of all parts are numbers of at least 0 by objective, as those of recipes are.

    Args:
        name: The algorithm.
        spec: Its `AlgorithmSpec`.

    Raises:
        ConfigError: They are something else.
    """
    parts: list[Any] = [spec]
    for part in parts:  # grows while it is read
        if is_dataclass(part):
            weights = getattr(part, "weights", {})
            numbers = weights.values() if isinstance(weights, Mapping) else [weights]
            if not all(isinstance(number, Real) and math.isfinite(number) for number in numbers):
                problem = f"the weights {reprlib.repr(weights)} are no numbers by objective"
                fix = f'paretune.algorithms.{name}({{"polite": 1.0}})'
                raise ConfigError(f"paretune.align: algorithm: {problem}; fix: {fix}")
            if isinstance(weights, Mapping) and (
                negative := next((n for n, w in weights.items() if w < 0), None)
            ):
                problem = (
                    f"the weight of {negative} is below 0, which leaves open which of its scores are good"
                )
                fix = f'a weight above 0, and goals={{"{negative}": "lower"}}'
                raise ConfigError(f"paretune.align: algorithm: {problem}; fix: {fix}")
            parts += [getattr(part, each.name) for each in fields(part)]
        elif isinstance(part, tuple):
            parts += part


def _whole(lowest: int, example: str) -> Rule:
    def accepts(value: Any) -> bool:
        return isinstance(value, int) and not isinstance(value, bool) and value >= lowest

    return Rule(f"a whole number of at least {lowest}", example, accepts)


def _number(expected: str, example: str, accepts: Callable[[float], bool]) -> Rule:
    def is_in_range(value: Any) -> bool:
        return isinstance(value, Real) and not isinstance(value, bool) and accepts(float(value))

    return Rule(expected, example, is_in_range)


def _one_of(*names: str) -> Rule:
    return Rule(
        f"one of {', '.join(names)}", f'"{names[0]}"', lambda value: isinstance(value, str) and value in names
    )


def _is_path(value: Any) -> bool:
    return isinstance(value, str | Path) and bool(str(value).strip())


def _is_policy(value: Any) -> bool:
    from paretune.models.load import PolicyModel

    return _is_path(value) or isinstance(value, PolicyModel)


def _is_recipe(value: Any) -> bool:
    from paretune.config import Config

    return _is_path(value) or isinstance(value, Config)


def _is_lora(value: Any) -> bool:
    from paretune.models.lora import LoraSpec

    return isinstance(value, LoraSpec)


def _is_names(value: Any) -> bool:
    return isinstance(value, list | tuple | Mapping) and all(isinstance(name, str) and name for name in value)


def _is_goals(value: Any) -> bool:
    return isinstance(value, Mapping) and all(
        isinstance(goal, Goal)
        or goal in ("higher", "lower")
        or (isinstance(goal, Real) and not isinstance(goal, bool) and math.isfinite(goal))
        for goal in value.values()
    )


_COUNT = _whole(1, "8")
_PATH = Rule("a path", '"runs/first"', _is_path)
_MODEL_PATH = Rule("a folder or a hub name", '"models/name"', _is_path)
_POLICY = Rule(
    "a model folder, a hub name or a result of paretune.load_policy", '"models/policy"', _is_policy
)
_FUNCTION = Rule("a function", "print", callable)
_MAPPING = Rule("a mapping", '{"name": ...}', lambda value: isinstance(value, Mapping))
RULES: Mapping[str, Rule] = {
    **dict.fromkeys(
        ("num_generations", "max_new_tokens", "max_steps", "prompts_per_step", "save_steps"), _COUNT
    ),
    **dict.fromkeys(("num_train_epochs", "batch_size", "num_repeats", "bootstrap_samples"), _COUNT),
    "max_tokens_per_pass": _whole(1, "4096"),
    "seed": _whole(0, "0"),
    "temperature": _number("a finite number above 0", "1.0", lambda value: 0 < value < float("inf")),
    "learning_rate": _number("a number above 0", "1e-5", lambda value: 0 < value < float("inf")),
    "holdout_fraction": _number("a number between 0 and 1", "0.1", lambda value: 0 < value < 1),
    "max_failure_rate": _number("a number from 0 to 1", "0.2", lambda value: 0 <= value <= 1),
    "device": Rule(
        "one of auto, cpu, cuda",
        '"auto"',
        lambda value: isinstance(value, str) and bool(re.fullmatch(r"auto|cpu|cuda(:\d+)?", value)),
    ),
    "dtype": _one_of("float32", "bfloat16"),
    "design": _one_of("grid", "adaptive"),
    "num_processes": _whole(1, "2"),
    "rule": Rule("a text", '"safety >= 0.8, then actionability"', lambda value: isinstance(value, str)),
    "until": _one_of("judge", "align", "tuning-trial", "judged-tuning-trial"),
    **dict.fromkeys(("policy", "before", "after", "init_from"), _POLICY),
    "path": _MODEL_PATH,
    **dict.fromkeys(("run_dir", "output_dir", "reuse_from", "folder"), _PATH),
    "recipe": Rule("a file, the name of a shipped recipe or a loaded recipe", '"demo"', _is_recipe),
    "benchmark": Rule("a file or the name of a shipped benchmark", '"compare-world"', _is_path),
    "lora": Rule("a LoraSpec", "paretune.models.lora.LoraSpec(r=8)", _is_lora),
    "sampler": _FUNCTION._replace(
        expected="a function that makes a sampler", example="paretune.rollout.sampler.LocalSampler"
    ),
    "on_step": _FUNCTION,
    "function": Rule(
        "a function or module:name", "my_reward", lambda value: callable(value) or _is_path(value)
    ),
    "label": Rule(
        "the name or index of a label",
        '"toxic"',
        lambda value: isinstance(value, str | int) and not isinstance(value, bool),
    ),
    "objectives": Rule("a list of names", '["polite", "brief"]', _is_names),
    "weights": _MAPPING._replace(expected="a mapping of objectives to weights", example='{"polite": 1.0}'),
    "goals": Rule(
        'a mapping of objectives to "higher", "lower" or a number, the target',
        '{"toxicity": "lower", "length": 120.0}',
        _is_goals,
    ),
    "labels": _MAPPING._replace(expected="a mapping of objectives to columns", example='{"polite": "label"}'),
    "outputs": _MAPPING._replace(expected="a mapping of objectives to labels", example='{"polite": 0}'),
    "arguments": _MAPPING._replace(expected="a mapping of keyword arguments", example='{"limit": 40}'),
    "chat_template_kwargs": _MAPPING._replace(
        expected="a mapping of keyword arguments", example='{"thinking": False}'
    ),
    "non_inferiority_margin": Rule(
        "a mapping of objectives to numbers of at least 0",
        '{"polite": 0.1}',
        lambda value: (
            isinstance(value, Mapping)
            and all(isinstance(number, Real) and float(number) >= 0 for number in value.values())
        ),
    ),
}
"""Name of an argument -> its rule."""
_OPTIONAL = ("learning_rate", "max_tokens_per_pass", "lora", "on_step", "until", "reuse_from")
"""Arguments for which None means the default."""
