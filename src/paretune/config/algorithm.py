"""The algorithm of a recipe: its name, its arguments against the signature of its function, and its parts.

Apart from the other checks because it alone needs the algorithms, which take seconds to load.
"""

import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, get_type_hints

from pydantic import ConfigDict, TypeAdapter, ValidationError

from paretune.algorithms import ALGORITHMS
from paretune.config.faults import Fault, nearest, schema_faults
from paretune.config.schema import Experiment
from paretune.config.tree import PathKey, short
from paretune.errors import WiringError
from paretune.learn.recipe import Recipe

FROM_OBJECTIVES = ("weights", "gates")
"""Arguments of every algorithm that the section `objectives` gives."""


def algorithm_faults(e: Experiment) -> Iterator[Fault]:
    """An algorithm that is not there, and arguments that its function does not take."""
    name, words = e.algorithm.name, list(ALGORITHMS)
    if name not in words:
        wrong, fix = f"{short(name)} is no algorithm", f"one of {', '.join(words)}"
        yield Fault(("algorithm", "name"), wrong, meant=nearest(name, words), fix=fix, alone=True)
        return
    wrong_arguments = list(_arguments(name, ALGORITHMS[name], e.algorithm.arguments))
    yield from wrong_arguments
    if not wrong_arguments:
        try:
            recipe_of(e)
        except WiringError as error:
            found = re.match(r"algorithm\.(\w+) (.*)", str(error))
            path, wrong = (("algorithm", found[1]), found[2]) if found else (("algorithm",), str(error))
            yield Fault(path, wrong)


def recipe_of(e: Experiment) -> Recipe:
    """The algorithm's parts, put together as the experiment says."""
    return ALGORITHMS[e.algorithm.name](e.weights, gates=e.gates, **e.algorithm.arguments)


def _arguments(name: str, function: Callable[..., Any], given: Mapping[str, Any]) -> Iterator[Fault]:
    hints, known = get_type_hints(function), list(algorithm_arguments(function))
    for key, value in given.items():
        if key in known:
            yield from _argument(("algorithm", key), value, hints[key])
        else:
            near = nearest(key, known)
            fix = f"{name} takes {', '.join(known)}"
            yield Fault(("algorithm", key), "unknown key", meant=near and f"algorithm.{near}", fix=fix)


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
    """The experiment with every argument of its algorithm filled in."""
    section = e.algorithm
    defaults = algorithm_arguments(ALGORITHMS[section.name])
    whole = type(section)(name=section.name, **{**defaults, **section.arguments})
    return e.model_copy(update={"algorithm": whole})
