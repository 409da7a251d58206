"""Checks of the arguments of public functions: one line with the fix, before anything is loaded."""

import inspect
import math
import re
import reprlib
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from functools import wraps
from numbers import Real
from pathlib import Path
from typing import Any, NamedTuple, ParamSpec, TypeVar

from paretune.core.errors import ConfigError

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
    """Check the arguments of each call whose names have a rule; None is accepted where it is the default.

    The same name has the same meaning in all public functions, so one table holds the rules.
    """
    signature = inspect.signature(function)
    parameters = signature.parameters

    @wraps(function)
    def checked(*args: P.args, **kwargs: P.kwargs) -> R:
        arguments = signature.bind(*args, **kwargs).arguments
        for name, value in arguments.items():
            rule = RULES.get(name)
            is_default = value is parameters[name].default or (value is None and name in _OPTIONAL)
            if rule is not None and not is_default and not rule.accepts(value):
                default = parameters[name].default
                has_default = isinstance(default, int | float | str)
                example = repr(default) if has_default else rule.example
                raise argument_error(function.__name__, name, value, rule.expected, example)
        return function(*args, **kwargs)

    return checked


def argument_error(function: str, name: str, value: object, expected: str, example: str) -> ConfigError:
    """The error about one argument of a public function."""
    problem = f"{' '.join(reprlib.repr(value).split())} is not {expected}"
    return ConfigError(f"paretune.{function}: {name}: {problem}; fix: {name}={example}")


def check_weights(name: str, spec: Any) -> None:
    """Check that the weights of all parts are numbers by objective: those of recipes are checked by type.

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
    "temperature": _number("a number above 0", "1.0", lambda value: 0 < value < float("inf")),
    "learning_rate": _number("a number above 0", "1e-5", lambda value: 0 < value < float("inf")),
    "holdout_fraction": _number("a number between 0 and 1", "0.1", lambda value: 0 < value < 1),
    "max_failure_rate": _number("a number from 0 to 1", "0.2", lambda value: 0 <= value <= 1),
    "device": Rule(
        "one of auto, cpu, cuda",
        '"auto"',
        lambda value: isinstance(value, str) and bool(re.fullmatch(r"auto|cpu|cuda(:\d+)?", value)),
    ),
    "dtype": _one_of("float32", "bfloat16"),
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
