"""Builds the algorithm of a recipe: looks up names, checks arguments against signatures, puts parts together.

Separate from the other checks because it imports the algorithms, which takes seconds.
"""

import inspect
import re
from collections.abc import Callable, Collection, Iterator
from typing import Any

from paretune.algorithms.aggregators import orient_scores, replace_aggregator
from paretune.algorithms.grpo import Gates
from paretune.algorithms.lookup import find_aggregate, find_algorithm
from paretune.algorithms.parts import USER_PART, PartError
from paretune.algorithms.user_functions import is_user_function
from paretune.config.arguments import registry_issues, section_function
from paretune.config.issues import ConfigIssue, closest_match, list_names
from paretune.config.prompt_format import apply_prompt_format, prompt_format_issues
from paretune.config.requirements import requirement_issues
from paretune.config.rollout import CORRECTION_KEY, apply_importance_correction, rollout_issues
from paretune.config.schema import Config
from paretune.config.unknown import until_unknown
from paretune.config.validate import non_default_keys
from paretune.config.yaml import KeyPath, short_repr
from paretune.core.errors import WiringError
from paretune.credit.aggregation import PerCategoryWeightedSum, ScheduledWeightedSum, interpolate_weights
from paretune.credit.base import CreditStep
from paretune.credit.constraints import Constraint
from paretune.credit.score_transforms import HandleMissingScores, Threshold
from paretune.rl.algorithm_spec import AlgorithmSpec
from paretune.rl.data_flow import PartWiringError
from paretune.rl.evolution.spec import EvolutionSpec
from paretune.rl.validate import check_spec
from paretune.worlds import get_world

Spec = AlgorithmSpec | EvolutionSpec

AGGREGATES_WITH_LEVELS = ("lagrangian", "lexicographic")
"""Aggregators that use `at_least`."""

CUSTOM = "custom"
"""The algorithm from parts, which enforces constraints only if a part does."""

SELF_NORMALIZING = ("gdpo", "mo_grpo")
"""Algorithms that divide every objective by its own standard deviation before they add them."""


def build_spec(config: Config) -> Spec:
    """The algorithm of a valid recipe, with its prompt format and its aggregator."""
    spec = apply_objectives(config, apply_prompt_format(config, _build_base_spec(config)))
    return apply_importance_correction(config, spec)


def _build_base_spec(config: Config, exclude: Collection[str] = ()) -> Spec:
    return base_spec(config, gates=config.gates, exclude=exclude)


def base_spec(config: Config, *, gates: Gates, exclude: Collection[str] = ()) -> Spec:
    """The algorithm by itself, without prompt format, score transforms and aggregator.

    Args:
        config: A recipe with valid arguments.
        gates: Of the objectives.
        exclude: Arguments to leave out.

    Raises:
        WiringError: The algorithm refuses its arguments.
    """
    arguments = {key: value for key, value in config.algorithm.arguments.items() if key not in exclude}
    function = find_algorithm(config.algorithm.name)
    parameters = inspect.signature(function).parameters
    if "constraints" in parameters:
        arguments["constraints"] = algorithm_constraints(config)
    if "gates" in parameters:
        arguments["gates"] = gates
    elif gates:
        raise WiringError(
            f"algorithm.name {config.algorithm.name} takes no gates, and {gates[0][0]} has one; fix: give "
            "the function an argument gates, or remove the gate"
        )
    return function(config.weights, **arguments)


def algorithm_constraints(config: Config) -> tuple[Constraint, ...]:
    """The constraints that the algorithm enforces; or none if the aggregator does."""
    in_aggregator = config.algorithm.name == CUSTOM and _uses_levels(config.aggregate.name)
    return () if in_aggregator else constraints_of(config)


def apply_objectives(config: Config, spec: Spec) -> Spec:
    """The algorithm with the goals, the score transforms and the aggregator of the recipe.

    Raises:
        WiringError: The parts contradict each other, or the algorithm has no weighted sum to replace.
    """
    missing = config.aggregate.missing
    transforms, aggregator = _score_transforms(config), _aggregator(config)
    if transforms or aggregator is not None or missing is not None:
        missing_step = missing and HandleMissingScores(missing, config.weights)
        spec = replace_aggregator(spec, aggregator, score_steps=transforms, missing_step=missing_step)
    return orient_scores(spec, config.goals)


def _score_transforms(config: Config) -> list[CreditStep]:
    """The caps."""
    caps = ((name, objective.cap) for name, objective in config.objectives.items())
    return [Threshold(name, cap) for name, cap in caps if cap is not None]


def _aggregator(config: Config) -> CreditStep | None:
    """The replacement of the algorithm's weighted sum; None to keep it."""
    if config.aggregate.name != "weighted_sum":
        aggregator = find_aggregate(config.aggregate.name)
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
    function = section_function("algorithm", algorithm)
    return function is None or takes_constraints(function)


def _uses_levels(aggregate: str) -> bool:
    """True if the aggregator uses `at_least`, or is one's own and might."""
    return is_user_function(aggregate) or aggregate in AGGREGATES_WITH_LEVELS


def constraints_of(config: Config) -> tuple[Constraint, ...]:
    """The constraints that objectives set with `at_least` or `at_most`."""
    return tuple(
        Constraint(name, o.bound, o.constraint, o.constraint_param)
        for name, o in config.objectives.items()
        if o.bound is not None
    )


def algorithm_issues(config: Config) -> Iterator[ConfigIssue]:
    """Unknown algorithms and aggregators, invalid arguments, and parts that do not fit together."""
    issues = list(until_unknown(registry_issues(config)))
    yield from issues
    aggregate_is_valid = not any(issue.path[0] == "aggregate" for issue in issues)
    further_issues = list(until_unknown(aggregate_issues(config))) if aggregate_is_valid else []
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
        yield ConfigIssue(_aggregation_path(config), str(error))
        return
    try:
        spec = apply_importance_correction(config, spec)
    except WiringError as error:
        yield ConfigIssue(CORRECTION_KEY, str(error), fix="remove it")
        return
    issue = _dry_run_issue(config, spec)
    if issue is not None:
        yield issue
        return
    yield from requirement_issues(config, spec)
    yield from rollout_issues(config, spec)
    yield from prompt_format_issues(config, spec, base_spec.prompt_format)
    name = config.algorithm.name
    if spec.prompt_format == "confidence" and name != CUSTOM and takes_constraints(find_algorithm(name)):
        problem = (
            f"{config.algorithm.name} trains on each objective separately, and confidence is none of them"
        )
        fix = "write another algorithm, or do not ask for a confidence"
        yield ConfigIssue(("algorithm", "name"), problem, fix=fix)


def _aggregation_path(config: Config) -> KeyPath:
    """The key that asks for another aggregation than the algorithm's."""
    aggregate = config.aggregate
    keys = [
        (name, key)
        for name, objective in config.objectives.items()
        for key in ("cap", "weight_schedule", "by_category")
        if getattr(objective, key)
    ]
    if aggregate.name != "weighted_sum" or aggregate.missing is not None or not keys:
        return ("aggregate",)
    return ("objectives", *keys[0])


def _dry_run_issue(config: Config, spec: Spec) -> ConfigIssue | None:
    """The objection of a dry run to parts that the recipe names itself, at the part that it is about."""
    if (
        config.algorithm.name != CUSTOM
        and not is_user_function(config.algorithm.name)
        and not is_user_function(config.aggregate.name)
    ):
        return None
    try:
        roles = check_spec(spec, tuple(config.objectives)).frozen_roles
    except WiringError as error:
        problem = str(error).removeprefix(f'algorithm "{spec.name}": ')
        path = _refused_part(config, error.__cause__) or _named_part(config, problem)
        return ConfigIssue(("algorithm", *path), problem)
    known = ("reference", *(phase.role for phase in spec.phases))
    unknown = next((role for role in roles if role not in known), None)
    if unknown is None:
        return None
    problem = (
        f'a part reads the frozen model "{unknown}", and there is none; the models are {", ".join(known)}'
    )
    return ConfigIssue(("algorithm",), problem, fix="write role: reference")


def _refused_part(config: Config, error: BaseException | None) -> KeyPath:
    """Argument and index of the part of a custom algorithm that the dry run refuses; () without one."""
    if not isinstance(error, PartWiringError):
        return ()
    part, values = error.part, config.algorithm.arguments.get(error.part.argument)
    index = len(values) - 1 - part.index_from_end if isinstance(values, list) else -1
    # Steps that follow from the objectives stand among those of the recipe.
    if isinstance(values, list) and index >= 0 and values[index].get("type") in (part.name, USER_PART):
        return (part.argument, index)
    return ()


def _named_part(config: Config, problem: str) -> KeyPath:
    """Argument and index of the first part of a custom algorithm that a message names; () without one."""
    parts = {
        name: (key, index)
        for key, value in reversed(config.algorithm.arguments.items())
        for index, part in enumerate(value if isinstance(value, list) else ())
        if isinstance(part, dict)
        for name in (str(part.get("type")), str(part.get("function")).rpartition(":")[2])
    }
    return next((parts[word] for word in re.findall(r"\w+", problem) if word in parts), ())


def _build_issue(config: Config, exclude: Collection[str] = ()) -> ConfigIssue | None:
    """The algorithm's objection to its arguments, without some; at the argument's key if it names one."""
    try:
        _build_base_spec(config, exclude)
    except WiringError as error:
        if isinstance(error, PartError):
            key = str(error.path[0])
            standalone = key in config.algorithm.arguments
            return ConfigIssue(("algorithm", *error.path), str(error), standalone=standalone)
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
        yield from until_unknown(_weight_issues(config, name))
        yield from until_unknown(_level_issues(config, name))
    if aggregate == "lagrangian" and all(o.bound is None for o in config.objectives.values()):
        problem = "lagrangian enforces constraints, and no objective has one"
        yield ConfigIssue(
            ("aggregate", "name"), problem, fix="give an objective at_least, or remove aggregate"
        )
    if config.aggregate.missing == "renormalize" and aggregate != "weighted_sum":
        problem = f"renormalize rescales the weights of a weighted sum, and aggregate.name is {aggregate}"
        yield ConfigIssue(("aggregate", "missing"), problem, fix="write drop or group_mean")


def _level_issues(config: Config, name: str) -> Iterator[ConfigIssue]:
    """`at_least`, `at_most` and `cap` of an objective."""
    objective, aggregate = config.objectives[name], config.aggregate.name
    path: KeyPath = ("objectives", name)
    if objective.bound is None:
        for key in non_default_keys(objective):
            if key in {"constraint", "constraint_param"}:
                yield ConfigIssue(
                    (*path, key), "has no effect without at_least", fix="set both, or remove it"
                )
    elif not _uses_levels(aggregate) and not _may_take_constraints(config.algorithm.name):
        fix = "write aggregate: {name: lagrangian}, or remove it"
        yield ConfigIssue(
            (*path, _bound_key(config, name)), f"has no effect with aggregate.name {aggregate}", fix=fix
        )
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
                fix=f"the categories are {list_names(known)}",
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
    assert objective.bound is not None
    try:
        Constraint(name, objective.bound, objective.constraint, objective.constraint_param)
    except WiringError as error:
        yield ConfigIssue(("objectives", name, _bound_key(config, name)), str(error))
    if config.aggregate.name == "lexicographic" and objective.constraint != "mean":
        problem = "has no effect with aggregate.name lexicographic, where at_least is a score per response"
        yield ConfigIssue(("objectives", name, "constraint"), problem, fix="remove it, or write lagrangian")


def _bound_key(config: Config, name: str) -> str:
    return "at_least" if config.objectives[name].at_most is None else "at_most"
