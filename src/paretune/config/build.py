"""What the objectives of a recipe ask of its aggregator, and the recipe with that aggregator in it.

The algorithm of a recipe, and its aggregator: names, arguments against the signatures, and their parts.

Apart from the other checks because it alone needs the algorithms, which take seconds to load.
"""

import inspect
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, get_type_hints

from pydantic import ConfigDict, TypeAdapter, ValidationError

from paretune.algorithms import ALGORITHMS
from paretune.algorithms.aggregators import AGGREGATES, replace_aggregator
from paretune.config.issues import ConfigIssue, closest_match, schema_issues
from paretune.config.prompt_format import apply_prompt_format, prompt_format_issues
from paretune.config.requirements import requirement_issues
from paretune.config.schema import Config
from paretune.config.validate import non_default_keys
from paretune.config.yaml import KeyPath, short_repr
from paretune.core.errors import WiringError
from paretune.credit.aggregation import PerCategoryWeightedSum, ScheduledWeightedSum, interpolate_weights
from paretune.credit.base import CreditStep
from paretune.credit.constraints import Constraint
from paretune.credit.score_transforms import DistanceToTarget, HandleMissingScores, Threshold
from paretune.rl.algorithm_spec import AlgorithmSpec
from paretune.rl.evolution.spec import EvolutionSpec

AGGREGATES_WITH_LEVELS = ("lagrangian", "lexicographic")
"""Ways that do something with `at_least`."""


def apply_objectives(config: Config, spec: AlgorithmSpec | EvolutionSpec) -> AlgorithmSpec | EvolutionSpec:
    """The algorithm's recipe, with what the objectives and the section `aggregate` ask for.

    Raises:
        WiringError: The parts contradict each other, or the recipe has no weighted sum to replace.
    """
    missing = config.aggregate.missing
    before, step = _score_transforms(config), _aggregator(config)
    if not before and step is None and missing is None:
        return spec
    return replace_aggregator(
        spec, step, score_steps=before, missing_step=missing and HandleMissingScores(missing, config.weights)
    )


def _score_transforms(config: Config) -> list[CreditStep]:
    """Caps and targets."""
    found: list[CreditStep] = []
    for name, objective in config.objectives.items():
        if objective.cap is not None:
            found.append(Threshold(name, objective.cap))
        if objective.target is not None:
            found.append(DistanceToTarget(name, objective.target))
    return found


def _aggregator(config: Config) -> CreditStep | None:
    """What takes the place of the algorithm's weighted sum; None: nothing does."""
    if config.aggregate.name != "weighted":
        return AGGREGATES[config.aggregate.name](
            config.weights, constraints_of(config), **config.aggregate.arguments
        )
    if any(objective.weight_schedule for objective in config.objectives.values()):
        lines = {n: o.weight_schedule or ((0, o.weight),) for n, o in config.objectives.items()}
        steps = sorted({step for line in lines.values() for step, _ in line})
        weights = {step: {n: _weight_at(line, step) for n, line in lines.items()} for step in steps}
        return ScheduledWeightedSum(tuple(weights.items()))
    kinds = dict.fromkeys(kind for objective in config.objectives.values() for kind in objective.by_category)
    if kinds:
        of = {
            kind: {n: o.by_category.get(kind, o.weight) for n, o in config.objectives.items()}
            for kind in kinds
        }
        return PerCategoryWeightedSum(of, config.weights)
    return None


def _weight_at(schedule: tuple[tuple[int, float], ...], step: int) -> float:
    return interpolate_weights(tuple((at, {"": weight}) for at, weight in schedule), step)[""]


def takes_constraints(function: Callable[..., Any]) -> bool:
    """Whether an algorithm keeps constraints by itself."""
    return "constraints" in inspect.signature(function).parameters


def _may_take_constraints(algorithm: str) -> bool:
    """Whether an algorithm of this name keeps constraints; one that is misspelt may be meant to."""
    return algorithm not in ALGORITHMS or takes_constraints(ALGORITHMS[algorithm])


def constraints_of(config: Config) -> tuple[Constraint, ...]:
    """The levels that objectives give by `at_least`."""
    return tuple(
        Constraint(name, o.at_least, o.constraint, o.constraint_param)
        for name, o in config.objectives.items()
        if o.at_least is not None
    )


def aggregate_issues(config: Config) -> Iterator[ConfigIssue]:
    """Keys of objectives that mean nothing under this aggregator, or not together."""
    way = config.aggregate.name
    for name, o in config.objectives.items():
        path: KeyPath = ("objectives", name)
        yield from _weight_issues(config, name)
        if o.at_least is None:
            for key in (key for key in non_default_keys(o) if key in {"constraint", "at"}):
                yield ConfigIssue(
                    (*path, key), "has no effect without at_least", fix="give both, or leave it out"
                )
        elif way not in AGGREGATES_WITH_LEVELS and not _may_take_constraints(config.algorithm.name):
            fix = "write aggregate: {name: lagrangian}, or leave it out"
            yield ConfigIssue((*path, "at_least"), f"has no effect with aggregate.name {way}", fix=fix)
        else:
            yield from _constraint_issues(config, name)
        if o.cap is not None and o.target is not None:
            wrong = "is given beside cap: more than the target is worse, more than the cap is neither"
            yield ConfigIssue((*path, "target"), wrong, fix="leave out one of the two")
    if way == "lagrangian" and all(o.at_least is None for o in config.objectives.values()):
        fix = "give an objective at_least, or leave out aggregate"
        yield ConfigIssue(
            ("aggregate", "name"), "lagrangian keeps constraints, and no objective has one", fix=fix
        )
    if config.aggregate.missing == "renormalise" and way != "weighted":
        wrong = f"renormalise stretches the weights of a weighted sum, and aggregate.name is {way}"
        yield ConfigIssue(("aggregate", "missing"), wrong, fix="take drop or group_mean")


def _weight_issues(config: Config, name: str) -> Iterator[ConfigIssue]:
    """Weights that are said twice, or that the aggregator does not look at."""
    o, path, way = config.objectives[name], ("objectives", name), config.aggregate.name
    scheduled = any(other.weight_schedule for other in config.objectives.values())
    if o.weight_schedule and "weight" in non_default_keys(o):
        yield ConfigIssue((*path, "weight"), "has no effect beside schedule", fix="leave out one of the two")
    if o.by_category and scheduled:
        wrong = "cannot be combined with a schedule"
        yield ConfigIssue((*path, "by_kind"), wrong, fix="leave out by_kind, or every schedule")
    for key in ("schedule", "by_kind"):
        if getattr(o, key) and way != "weighted":
            fix = "leave out one of the two"
            yield ConfigIssue((*path, key), f"has no effect with aggregate.name {way}", fix=fix)
    steps = [step for step, _ in o.weight_schedule]
    if steps != sorted(set(steps)):
        yield ConfigIssue((*path, "schedule"), f"has the steps {steps}, which must rise", standalone=True)
    known = _known_categories(config)
    for kind in o.by_category:
        if known and kind not in known:
            fix = f"the prompts are {', '.join(known)}"
            wrong = f"no prompt is of the kind {short_repr(kind)}"
            yield ConfigIssue((*path, "by_kind", kind), wrong, suggestion=closest_match(kind, known), fix=fix)


def _known_categories(config: Config) -> list[str]:
    """The kinds of prompts, where the recipe knows them all; else nothing."""
    if config.data.world is not None:
        from paretune.worlds.helpdesk.world import CATEGORY_MIX

        return list(CATEGORY_MIX)
    kinds = [source.category for source in config.data.prompts.values()]
    return list(dict.fromkeys(kind for kind in kinds if kind)) if all(kinds) else []


def _constraint_issues(config: Config, name: str) -> Iterator[ConfigIssue]:
    o = config.objectives[name]
    assert o.at_least is not None
    try:
        Constraint(name, o.at_least, o.constraint, o.constraint_param)
    except WiringError as error:
        yield ConfigIssue(("objectives", name, "at_least"), str(error))
    if config.aggregate.name == "lexicographic" and o.constraint != "mean":
        wrong = "has no effect with aggregate.name lexicographic, where at_least is a level of the score"
        yield ConfigIssue(("objectives", name, "constraint"), wrong, fix="leave it out, or take lagrangian")


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
