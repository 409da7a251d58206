"""The algorithm of a recipe, and its aggregator: names, arguments against the signatures, and their parts.

Apart from the other checks because it alone needs the algorithms, which take seconds to load.
"""

import inspect
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, get_type_hints

from pydantic import ConfigDict, TypeAdapter, ValidationError

from paretune.algorithms import ALGORITHMS
from paretune.algorithms.aggregates import AGGREGATES
from paretune.config.aggregate import aggregate_issues, apply_objectives, constraints_of, takes_constraints
from paretune.config.faults import ConfigIssue, closest_match, schema_issues
from paretune.config.frame import apply_prompt_format, prompt_format_issues
from paretune.config.needs import requirement_issues
from paretune.config.schema import Config
from paretune.config.tree import KeyPath, short_repr
from paretune.errors import WiringError
from paretune.learn.evolution import EvolutionSpec
from paretune.learn.recipe import AlgorithmSpec

OBJECTIVE_ARGUMENTS = ("weights", "gates", "constraints")
"""Arguments of algorithms that the section `objectives` gives."""


REGISTRIES: Mapping[str, Mapping[str, Callable[..., Any]]] = {
    "algorithm": ALGORITHMS,
    "aggregate": AGGREGATES,
}
"""Section of a recipe -> the functions that its `name` may be."""


def algorithm_issues(config: Config) -> Iterator[ConfigIssue]:
    """Names that are not there, arguments that their functions do not take, parts that do not fit."""
    named = list(_registry_issues(config))
    yield from named
    wrong = [*named, *(() if any(f.path[0] == "aggregate" for f in named) else aggregate_issues(config))]
    yield from wrong[len(named) :]
    if not wrong:
        yield from _spec_issues(config)
        return
    bad = {str(f.path[1]) for f in named if f.path[0] == "algorithm"}
    found = None if "name" in bad else _build_issue(config, bad)
    if found is not None and found.standalone:
        yield found


def _spec_issues(config: Config) -> Iterator[ConfigIssue]:
    """What the parts themselves object to."""
    found = _build_issue(config)
    if found is not None:
        yield found
        return
    own = _build_base_spec(config)
    try:
        recipe = apply_prompt_format(config, own)
    except WiringError as error:
        key = ("thinking",) if config.thinking is not None else ("data", "world", "confidence")
        yield ConfigIssue(key, str(error), fix="leave it out, or take a method that samples its responses")
        return
    try:
        recipe = apply_objectives(config, recipe)
    except WiringError as error:
        yield ConfigIssue(("aggregate",), str(error))
        return
    yield from requirement_issues(config, recipe)
    yield from prompt_format_issues(config, recipe, own.prompt_format)
    if recipe.prompt_format == "confidence" and takes_constraints(ALGORITHMS[config.algorithm.name]):
        wrong = (
            f"{config.algorithm.name} credits objectives apart, and a stated confidence is none of its own"
        )
        yield ConfigIssue(
            ("algorithm", "name"), wrong, fix="take another algorithm, or ask for no confidence"
        )


def _build_issue(config: Config, exclude: Collection[str] = ()) -> ConfigIssue | None:
    """What the algorithm objects to, some arguments left out; at an argument's key where it names one."""
    try:
        _build_base_spec(config, exclude)
    except WiringError as error:
        found = re.match(r"algorithm\.(\w+) (.*)", str(error))
        if found:
            return ConfigIssue(
                ("algorithm", found[1]), found[2], standalone=found[1] in config.algorithm.arguments
            )
        return ConfigIssue(("algorithm",), str(error))
    return None


def build_spec(config: Config) -> AlgorithmSpec | EvolutionSpec:
    """The algorithm's parts, put together as the experiment says."""
    return apply_objectives(config, apply_prompt_format(config, _build_base_spec(config)))


def _build_base_spec(config: Config, exclude: Collection[str] = ()) -> AlgorithmSpec | EvolutionSpec:
    said = {key: value for key, value in config.algorithm.arguments.items() if key not in exclude}
    function = ALGORITHMS[config.algorithm.name]
    if takes_constraints(function):
        said["constraints"] = constraints_of(config)
    return function(config.weights, gates=config.gates, **said)


def _registry_issues(config: Config) -> Iterator[ConfigIssue]:
    for section, table in REGISTRIES.items():
        given, words = getattr(config, section), list(table)
        if given.name in table:
            yield from _argument_issues(section, given.name, table[given.name], given.arguments)
        else:
            wrong, fix = f"{short_repr(given.name)} is no {section}", f"one of {', '.join(words)}"
            meant = closest_match(given.name, words)
            yield ConfigIssue((section, "name"), wrong, suggestion=meant, fix=fix, standalone=True)


def _argument_issues(
    section: str, name: str, function: Callable[..., Any], arguments: Mapping[str, Any]
) -> Iterator[ConfigIssue]:
    hints, known = get_type_hints(function, include_extras=True), list(algorithm_arguments(function))
    for key, value in arguments.items():
        if key in known:
            yield from _value_issues((section, key), value, hints[key])
        else:
            near = closest_match(key, known)
            fix = f"{name} takes {', '.join(known) or 'no arguments'}"
            yield ConfigIssue((section, key), "unknown key", suggestion=near and f"{section}.{near}", fix=fix)


def algorithm_arguments(function: Callable[..., Any]) -> Mapping[str, Any]:
    """The arguments that a recipe may give to an algorithm, with their defaults."""
    found = inspect.signature(function).parameters.values()
    return {
        p.name: p.default for p in found if p.kind is p.KEYWORD_ONLY and p.name not in OBJECTIVE_ARGUMENTS
    }


def _value_issues(path: KeyPath, value: object, hint: Any) -> Iterator[ConfigIssue]:
    adapter = TypeAdapter(dict[str, hint], config=ConfigDict(strict=True, allow_inf_nan=False))
    try:
        adapter.validate_python({path[-1]: value})
    except ValidationError as error:
        found = schema_issues(error.errors(include_url=False), {str(path[-1]): value})
        yield from (
            ConfigIssue((path[0], *f.path), f.problem, suggestion=f.suggestion, fix=f.fix, standalone=True)
            for f in found
        )


def fill_defaults(config: Config) -> Config:
    """The experiment with every argument of its algorithm and of its aggregator filled in."""
    whole = {}
    for section, table in REGISTRIES.items():
        given = getattr(config, section)
        defaults = algorithm_arguments(table[given.name])
        said = {key: getattr(given, key) for key in type(given).model_fields}
        whole[section] = type(given)(**said, **{**defaults, **given.arguments})
    return config.model_copy(update=whole)
