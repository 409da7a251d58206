"""Builds the algorithm of a recipe: looks up names, checks arguments against signatures, puts parts together.

Separate from the other checks because it imports the algorithms, which takes seconds.
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
from paretune.worlds import get_world

Spec = AlgorithmSpec | EvolutionSpec

OBJECTIVE_ARGUMENTS = ("weights", "gates", "constraints")
"""Arguments of algorithms that come from the section `objectives`."""
REGISTRIES: Mapping[str, Mapping[str, Callable[..., Any]]] = {
    "algorithm": ALGORITHMS,
    "aggregate": AGGREGATES,
}
"""Section -> the functions that its `name` may select."""
AGGREGATES_WITH_LEVELS = ("lagrangian", "lexicographic")
"""Aggregators that use `at_least`."""

SELF_NORMALIZING = ("gdpo", "mo_grpo")
"""Algorithms that divide every objective by its own standard deviation before they add them."""


def build_spec(config: Config) -> Spec:
    """The algorithm of a valid recipe, with its prompt format and its aggregator."""
    return apply_objectives(config, apply_prompt_format(config, _build_base_spec(config)))


def _build_base_spec(config: Config, exclude: Collection[str] = ()) -> Spec:
    arguments = {key: value for key, value in config.algorithm.arguments.items() if key not in exclude}
    function = ALGORITHMS[config.algorithm.name]
    if takes_constraints(function):
        arguments["constraints"] = constraints_of(config)
    return function(config.weights, gates=config.gates, **arguments)


def apply_objectives(config: Config, spec: Spec) -> Spec:
    """The algorithm with the score transforms and the aggregator of the recipe.

    Raises:
        WiringError: The parts contradict each other, or the algorithm has no weighted sum to replace.
    """
    missing = config.aggregate.missing
    transforms, aggregator = _score_transforms(config), _aggregator(config)
    if not transforms and aggregator is None and missing is None:
        return spec
    missing_step = missing and HandleMissingScores(missing, config.weights)
    return replace_aggregator(spec, aggregator, score_steps=transforms, missing_step=missing_step)


def _score_transforms(config: Config) -> list[CreditStep]:
    """Caps and targets."""
    steps: list[CreditStep] = []
    for name, objective in config.objectives.items():
        if objective.cap is not None:
            steps.append(Threshold(name, objective.cap))
        if objective.target is not None:
            steps.append(DistanceToTarget(name, objective.target))
    return steps


def _aggregator(config: Config) -> CreditStep | None:
    """The replacement of the algorithm's weighted sum; None to keep it."""
    if config.aggregate.name != "weighted_sum":
        aggregator = AGGREGATES[config.aggregate.name]
        return aggregator(config.weights, constraints_of(config), **config.aggregate.arguments)
    if any(objective.weight_schedule for objective in config.objectives.values()):
        schedules = {name: o.weight_schedule or ((0, o.weight),) for name, o in config.objectives.items()}
        steps = sorted({step for schedule in schedules.values() for step, _ in schedule})
        weights = {
            step: {n: _weight_at(schedule, step) for n, schedule in schedules.items()} for step in steps
        }
        return ScheduledWeightedSum(tuple(weights.items()))
    categories = dict.fromkeys(c for objective in config.objectives.values() for c in objective.by_category)
    if categories:
        weights_by_category = {
            category: {name: o.by_category.get(category, o.weight) for name, o in config.objectives.items()}
            for category in categories
        }
        return PerCategoryWeightedSum(weights_by_category, config.weights)
    return None


def _weight_at(schedule: tuple[tuple[int, float], ...], step: int) -> float:
    return interpolate_weights(tuple((at, {"": weight}) for at, weight in schedule), step)[""]


def takes_constraints(function: Callable[..., Any]) -> bool:
    """True if the algorithm enforces constraints itself."""
    return "constraints" in inspect.signature(function).parameters


def _may_take_constraints(algorithm: str) -> bool:
    """True if the algorithm enforces constraints, or is misspelled and might."""
    return algorithm not in ALGORITHMS or takes_constraints(ALGORITHMS[algorithm])


def constraints_of(config: Config) -> tuple[Constraint, ...]:
    """The constraints that objectives set with `at_least`."""
    return tuple(
        Constraint(name, o.at_least, o.constraint, o.constraint_param)
        for name, o in config.objectives.items()
        if o.at_least is not None
    )


def algorithm_issues(config: Config) -> Iterator[ConfigIssue]:
    """Unknown algorithms and aggregators, invalid arguments, and parts that do not fit together."""
    issues = list(_registry_issues(config))
    yield from issues
    aggregate_is_valid = not any(issue.path[0] == "aggregate" for issue in issues)
    further_issues = list(aggregate_issues(config)) if aggregate_is_valid else []
    yield from further_issues
    if not issues and not further_issues:
        yield from _spec_issues(config)
        return
    # With the invalid arguments left out, the algorithm may still object to the value of another one.
    invalid_keys = {str(issue.path[1]) for issue in issues if issue.path[0] == "algorithm"}
    build_issue = None if "name" in invalid_keys else _build_issue(config, invalid_keys)
    if build_issue is not None and build_issue.standalone:
        yield build_issue


def _spec_issues(config: Config) -> Iterator[ConfigIssue]:
    """Objections of the parts themselves, from the inside out: algorithm, prompt format, aggregator."""
    build_issue = _build_issue(config)
    if build_issue is not None:
        yield build_issue
        return
    base_spec = _build_base_spec(config)
    try:
        spec = apply_prompt_format(config, base_spec)
    except WiringError as error:
        path = ("thinking",) if config.thinking is not None else ("data", "world", "confidence")
        problem = str(error).partition("; fix: ")[0]
        yield ConfigIssue(path, problem, fix="remove it, or use an algorithm that samples its responses")
        return
    try:
        spec = apply_objectives(config, spec)
    except WiringError as error:
        yield ConfigIssue(("aggregate",), str(error))
        return
    yield from requirement_issues(config, spec)
    yield from prompt_format_issues(config, spec, base_spec.prompt_format)
    if spec.prompt_format == "confidence" and takes_constraints(ALGORITHMS[config.algorithm.name]):
        problem = (
            f"{config.algorithm.name} trains on each objective separately, and confidence is none of them"
        )
        fix = "write another algorithm, or do not ask for a confidence"
        yield ConfigIssue(("algorithm", "name"), problem, fix=fix)


def _build_issue(config: Config, exclude: Collection[str] = ()) -> ConfigIssue | None:
    """The algorithm's objection to its arguments, without some; at the argument's key if it names one."""
    try:
        _build_base_spec(config, exclude)
    except WiringError as error:
        match = re.match(r"algorithm\.(\w+) (.*)", str(error))
        if match:
            key, problem = match[1], match[2]
            return ConfigIssue(("algorithm", key), problem, standalone=key in config.algorithm.arguments)
        return ConfigIssue(("algorithm",), str(error))
    return None


def aggregate_issues(config: Config) -> Iterator[ConfigIssue]:
    """Settings of objectives that have no effect with this aggregator, or contradict each other."""
    aggregate = config.aggregate.name
    for name in config.objectives:
        yield from _weight_issues(config, name)
        yield from _level_issues(config, name)
    if aggregate == "lagrangian" and all(o.at_least is None for o in config.objectives.values()):
        problem = "lagrangian enforces constraints, and no objective has one"
        yield ConfigIssue(
            ("aggregate", "name"), problem, fix="give an objective at_least, or remove aggregate"
        )
    if config.aggregate.missing == "renormalize" and aggregate != "weighted_sum":
        problem = f"renormalize rescales the weights of a weighted sum, and aggregate.name is {aggregate}"
        yield ConfigIssue(("aggregate", "missing"), problem, fix="write drop or group_mean")


def _level_issues(config: Config, name: str) -> Iterator[ConfigIssue]:
    """`at_least`, `cap` and `target` of an objective."""
    objective, aggregate = config.objectives[name], config.aggregate.name
    path: KeyPath = ("objectives", name)
    if objective.at_least is None:
        for key in non_default_keys(objective):
            if key in {"constraint", "constraint_param"}:
                yield ConfigIssue(
                    (*path, key), "has no effect without at_least", fix="set both, or remove it"
                )
    elif aggregate not in AGGREGATES_WITH_LEVELS and not _may_take_constraints(config.algorithm.name):
        fix = "write aggregate: {name: lagrangian}, or remove it"
        yield ConfigIssue((*path, "at_least"), f"has no effect with aggregate.name {aggregate}", fix=fix)
    else:
        yield from _constraint_issues(config, name)
    if objective.cap is not None and objective.target is not None:
        problem = "contradicts cap: above the target the score counts less, above the cap no more"
        yield ConfigIssue((*path, "target"), problem, fix="remove one of the two")


def _weight_issues(config: Config, name: str) -> Iterator[ConfigIssue]:
    """Weights that are set twice, or that the aggregator does not use."""
    objective, path, aggregate = config.objectives[name], ("objectives", name), config.aggregate.name
    any_schedule = any(other.weight_schedule for other in config.objectives.values())
    if objective.weight_schedule and "weight" in non_default_keys(objective):
        fix = "remove one of the two"
        yield ConfigIssue((*path, "weight"), "has no effect with weight_schedule", fix=fix)
    if objective.by_category and any_schedule:
        fix = "remove by_category, or every weight_schedule"
        yield ConfigIssue((*path, "by_category"), "cannot be combined with a weight_schedule", fix=fix)
    yield from _normalize_issues(config, name)
    for key in ("weight_schedule", "by_category"):
        if getattr(objective, key) and aggregate != "weighted_sum":
            problem, fix = f"has no effect with aggregate.name {aggregate}", "remove one of the two"
            yield ConfigIssue((*path, key), problem, fix=fix)
    steps = [step for step, _ in objective.weight_schedule]
    if steps != sorted(set(steps)):
        problem = f"has the steps {steps}, which must increase"
        yield ConfigIssue((*path, "weight_schedule"), problem, standalone=True)
    known = _known_categories(config)
    for category in objective.by_category:
        if known and category not in known:
            yield ConfigIssue(
                (*path, "by_category", category),
                f"no prompt has the category {short_repr(category)}",
                suggestion=closest_match(category, known),
                fix=f"the categories are {', '.join(known)}",
            )


def _normalize_issues(config: Config, name: str) -> Iterator[ConfigIssue]:
    """`normalize: std` without effect: the aggregate has no weights, or the algorithm normalizes scores."""
    if config.objectives[name].normalize == "none":
        return
    path, algorithm = ("objectives", name, "normalize"), config.algorithm.name
    if config.aggregate.name != "weighted_sum":
        problem = f"has no effect with aggregate.name {config.aggregate.name}"
        yield ConfigIssue(path, problem, fix="remove one of the two")
    elif algorithm in SELF_NORMALIZING:
        problem = f"has no effect: {algorithm} divides every objective by its own spread"
        yield ConfigIssue(path, problem, fix="remove it")


def _known_categories(config: Config) -> list[str]:
    """The categories of the prompts; empty if a file of prompts names them per row."""
    if config.data.world is not None:
        return list(get_world().category_mix)
    categories = [source.category for source in config.data.prompts.values()]
    return list(dict.fromkeys(categories)) if all(categories) else []


def _constraint_issues(config: Config, name: str) -> Iterator[ConfigIssue]:
    objective = config.objectives[name]
    assert objective.at_least is not None
    try:
        Constraint(name, objective.at_least, objective.constraint, objective.constraint_param)
    except WiringError as error:
        yield ConfigIssue(("objectives", name, "at_least"), str(error))
    if config.aggregate.name == "lexicographic" and objective.constraint != "mean":
        problem = "has no effect with aggregate.name lexicographic, where at_least is a score per response"
        yield ConfigIssue(("objectives", name, "constraint"), problem, fix="remove it, or write lagrangian")


def _registry_issues(config: Config) -> Iterator[ConfigIssue]:
    for section_name, registry in REGISTRIES.items():
        section, names = getattr(config, section_name), list(registry)
        if section.name in registry:
            function = registry[section.name]
            yield from _argument_issues(section_name, section.name, function, section.arguments)
        else:
            article = "an" if section_name[0] in "aeiou" else "a"
            yield ConfigIssue(
                (section_name, "name"),
                f"{short_repr(section.name)} is not {article} {section_name}",
                suggestion=closest_match(section.name, names),
                fix=f"one of {', '.join(names)}",
                standalone=True,
            )


def _argument_issues(
    section: str, name: str, function: Callable[..., Any], arguments: Mapping[str, Any]
) -> Iterator[ConfigIssue]:
    hints, known = get_type_hints(function, include_extras=True), list(algorithm_arguments(function))
    for key, value in arguments.items():
        if key in known:
            yield from _value_issues((section, key), value, hints[key])
        else:
            match = closest_match(key, known)
            fix = f"{name} takes {', '.join(known) or 'no arguments'}"
            suggestion = match and f"{section}.{match}"
            yield ConfigIssue((section, key), "unknown key", suggestion=suggestion, fix=fix)


def algorithm_arguments(function: Callable[..., Any]) -> Mapping[str, Any]:
    """The arguments of an algorithm that a recipe may set -> their defaults."""
    parameters = inspect.signature(function).parameters.values()
    return {
        p.name: p.default
        for p in parameters
        if p.kind is p.KEYWORD_ONLY and p.name not in OBJECTIVE_ARGUMENTS
    }


def _value_issues(path: KeyPath, value: object, hint: Any) -> Iterator[ConfigIssue]:
    adapter = TypeAdapter(dict[str, hint], config=ConfigDict(strict=True, allow_inf_nan=False))
    try:
        adapter.validate_python({path[-1]: value})
    except ValidationError as error:
        for issue in schema_issues(error.errors(include_url=False), {str(path[-1]): value}):
            yield ConfigIssue(
                (path[0], *issue.path),
                issue.problem,
                suggestion=issue.suggestion,
                fix=issue.fix,
                standalone=True,
            )


def fill_defaults(config: Config) -> Config:
    """The config with every argument of its algorithm and of its aggregator filled in."""
    sections = {}
    for section_name, registry in REGISTRIES.items():
        section = getattr(config, section_name)
        defaults = algorithm_arguments(registry[section.name])
        fields = {key: getattr(section, key) for key in type(section).model_fields}
        sections[section_name] = type(section)(**fields, **{**defaults, **section.arguments})
    return config.model_copy(update=sections)
