"""What the objectives of a recipe ask of its aggregator, and the recipe with that aggregator in it."""

import inspect
from collections.abc import Callable, Iterator
from typing import Any

from paretune.algorithms import ALGORITHMS
from paretune.algorithms.aggregates import AGGREGATES, replace_aggregator
from paretune.config.faults import ConfigIssue, closest_match
from paretune.config.rules import non_default_keys
from paretune.config.schema import Config
from paretune.config.tree import KeyPath, short_repr
from paretune.credit.constraint import Constraint
from paretune.credit.missing import HandleMissingScores
from paretune.credit.step import CreditStep
from paretune.credit.threshold import DistanceToTarget, Threshold
from paretune.credit.weights import PerCategoryWeightedSum, ScheduledWeightedSum, interpolate_weights
from paretune.errors import WiringError
from paretune.learn.evolution import EvolutionSpec
from paretune.learn.recipe import AlgorithmSpec

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
        from paretune.data.world import CATEGORY_MIX

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
