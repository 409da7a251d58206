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
from paretune.config.aggregate import aggregate_faults, constraints_of, takes_constraints, with_objectives
from paretune.config.faults import Fault, nearest, schema_faults
from paretune.config.frame import frame_faults, with_frame
from paretune.config.needs import needed_faults
from paretune.config.schema import Experiment
from paretune.config.tree import PathKey, short
from paretune.errors import WiringError
from paretune.learn.evolution import Evolution
from paretune.learn.recipe import Recipe

FROM_OBJECTIVES = ("weights", "gates", "constraints")
"""Arguments of algorithms that the section `objectives` gives."""


TABLES: Mapping[str, Mapping[str, Callable[..., Any]]] = {"algorithm": ALGORITHMS, "aggregate": AGGREGATES}
"""Section of a recipe -> the functions that its `name` may be."""


def algorithm_faults(e: Experiment) -> Iterator[Fault]:
    """Names that are not there, arguments that their functions do not take, parts that do not fit."""
    named = list(_named(e))
    yield from named
    wrong = [*named, *(() if any(f.path[0] == "aggregate" for f in named) else aggregate_faults(e))]
    yield from wrong[len(named) :]
    if not wrong:
        yield from _unfit(e)
        return
    bad = {str(f.path[1]) for f in named if f.path[0] == "algorithm"}
    found = None if "name" in bad else _objection(e, bad)
    if found is not None and found.alone:
        yield found


def _unfit(e: Experiment) -> Iterator[Fault]:
    """What the parts themselves object to."""
    found = _objection(e)
    if found is not None:
        yield found
        return
    own = _alone(e)
    try:
        recipe = with_frame(e, own)
    except WiringError as error:
        key = ("thinking",) if e.thinking is not None else ("data", "world", "confidence")
        yield Fault(key, str(error), fix="leave it out, or take a method that samples its responses")
        return
    try:
        recipe = with_objectives(e, recipe)
    except WiringError as error:
        yield Fault(("aggregate",), str(error))
        return
    yield from needed_faults(e, recipe)
    yield from frame_faults(e, recipe, own.frame)
    if recipe.frame == "confidence" and takes_constraints(ALGORITHMS[e.algorithm.name]):
        wrong = f"{e.algorithm.name} credits objectives apart, and a stated confidence is none of its own"
        yield Fault(("algorithm", "name"), wrong, fix="take another algorithm, or ask for no confidence")


def _objection(e: Experiment, without: Collection[str] = ()) -> Fault | None:
    """What the algorithm objects to, some arguments left out; at an argument's key where it names one."""
    try:
        _alone(e, without)
    except WiringError as error:
        found = re.match(r"algorithm\.(\w+) (.*)", str(error))
        if found:
            return Fault(("algorithm", found[1]), found[2], alone=found[1] in e.algorithm.arguments)
        return Fault(("algorithm",), str(error))
    return None


def recipe_of(e: Experiment) -> Recipe | Evolution:
    """The algorithm's parts, put together as the experiment says."""
    return with_objectives(e, with_frame(e, _alone(e)))


def _alone(e: Experiment, without: Collection[str] = ()) -> Recipe | Evolution:
    said = {key: value for key, value in e.algorithm.arguments.items() if key not in without}
    function = ALGORITHMS[e.algorithm.name]
    if takes_constraints(function):
        said["constraints"] = constraints_of(e)
    return function(e.weights, gates=e.gates, **said)


def _named(e: Experiment) -> Iterator[Fault]:
    for section, table in TABLES.items():
        given, words = getattr(e, section), list(table)
        if given.name in table:
            yield from _arguments(section, given.name, table[given.name], given.arguments)
        else:
            wrong, fix = f"{short(given.name)} is no {section}", f"one of {', '.join(words)}"
            meant = nearest(given.name, words)
            yield Fault((section, "name"), wrong, meant=meant, fix=fix, alone=True)


def _arguments(
    section: str, name: str, function: Callable[..., Any], given: Mapping[str, Any]
) -> Iterator[Fault]:
    hints, known = get_type_hints(function, include_extras=True), list(algorithm_arguments(function))
    for key, value in given.items():
        if key in known:
            yield from _argument((section, key), value, hints[key])
        else:
            near = nearest(key, known)
            fix = f"{name} takes {', '.join(known) or 'no arguments'}"
            yield Fault((section, key), "unknown key", meant=near and f"{section}.{near}", fix=fix)


def algorithm_arguments(function: Callable[..., Any]) -> Mapping[str, Any]:
    """The arguments that a recipe may give to an algorithm, with their defaults."""
    found = inspect.signature(function).parameters.values()
    return {p.name: p.default for p in found if p.kind is p.KEYWORD_ONLY and p.name not in FROM_OBJECTIVES}


def _argument(path: PathKey, value: object, hint: Any) -> Iterator[Fault]:
    adapter = TypeAdapter(dict[str, hint], config=ConfigDict(strict=True, allow_inf_nan=False))
    try:
        adapter.validate_python({path[-1]: value})
    except ValidationError as error:
        found = schema_faults(error.errors(include_url=False), {str(path[-1]): value})
        yield from (Fault((path[0], *f.path), f.wrong, meant=f.meant, fix=f.fix, alone=True) for f in found)


def with_defaults(e: Experiment) -> Experiment:
    """The experiment with every argument of its algorithm and of its aggregator filled in."""
    whole = {}
    for section, table in TABLES.items():
        given = getattr(e, section)
        defaults = algorithm_arguments(table[given.name])
        said = {key: getattr(given, key) for key in type(given).model_fields}
        whole[section] = type(given)(**said, **{**defaults, **given.arguments})
    return e.model_copy(update=whole)
