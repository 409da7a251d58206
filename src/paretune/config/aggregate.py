"""What the objectives of a recipe ask of its aggregator, and the recipe with that aggregator in it."""

import inspect
from collections.abc import Callable, Iterator
from typing import Any

from paretune.algorithms import ALGORITHMS
from paretune.algorithms.aggregates import AGGREGATES, aggregated
from paretune.config.faults import Fault, nearest
from paretune.config.rules import given
from paretune.config.schema import Experiment
from paretune.config.tree import PathKey, short
from paretune.credit.constraint import Constraint
from paretune.credit.missing import Missing
from paretune.credit.step import Step
from paretune.credit.threshold import Target, Threshold
from paretune.credit.weights import KindSum, ScheduledSum, weights_at
from paretune.errors import WiringError
from paretune.learn.evolution import Evolution
from paretune.learn.recipe import Recipe

WITH_LEVELS = ("lagrangian", "lexicographic")
"""Ways that do something with `at_least`."""


def with_objectives(e: Experiment, recipe: Recipe | Evolution) -> Recipe | Evolution:
    """The algorithm's recipe, with what the objectives and the section `aggregate` ask for.

    Raises:
        WiringError: The parts contradict each other, or the recipe has no weighted sum to replace.
    """
    missing = e.aggregate.missing
    before, step = _before(e), _aggregator(e)
    if not before and step is None and missing is None:
        return recipe
    return aggregated(recipe, step, before=before, missing=missing and Missing(missing, e.weights))


def _before(e: Experiment) -> list[Step]:
    """Caps and targets."""
    found: list[Step] = []
    for name, objective in e.objectives.items():
        if objective.cap is not None:
            found.append(Threshold(name, objective.cap))
        if objective.target is not None:
            found.append(Target(name, objective.target))
    return found


def _aggregator(e: Experiment) -> Step | None:
    """What takes the place of the algorithm's weighted sum; None: nothing does."""
    if e.aggregate.name != "weighted":
        return AGGREGATES[e.aggregate.name](e.weights, constraints_of(e), **e.aggregate.arguments)
    if any(objective.schedule for objective in e.objectives.values()):
        lines = {n: o.schedule or ((0, o.weight),) for n, o in e.objectives.items()}
        steps = sorted({step for line in lines.values() for step, _ in line})
        weights = {step: {n: _at(line, step) for n, line in lines.items()} for step in steps}
        return ScheduledSum(tuple(weights.items()))
    kinds = dict.fromkeys(kind for objective in e.objectives.values() for kind in objective.by_kind)
    if kinds:
        of = {kind: {n: o.by_kind.get(kind, o.weight) for n, o in e.objectives.items()} for kind in kinds}
        return KindSum(of, e.weights)
    return None


def _at(line: tuple[tuple[int, float], ...], step: int) -> float:
    return weights_at(tuple((at, {"": weight}) for at, weight in line), step)[""]


def takes_constraints(function: Callable[..., Any]) -> bool:
    """Whether an algorithm keeps constraints by itself."""
    return "constraints" in inspect.signature(function).parameters


def _may_keep(algorithm: str) -> bool:
    """Whether an algorithm of this name keeps constraints; one that is misspelt may be meant to."""
    return algorithm not in ALGORITHMS or takes_constraints(ALGORITHMS[algorithm])


def constraints_of(e: Experiment) -> tuple[Constraint, ...]:
    """The levels that objectives give by `at_least`."""
    return tuple(
        Constraint(name, o.at_least, o.constraint, o.at)
        for name, o in e.objectives.items()
        if o.at_least is not None
    )


def aggregate_faults(e: Experiment) -> Iterator[Fault]:
    """Keys of objectives that mean nothing under this aggregator, or not together."""
    way = e.aggregate.name
    for name, o in e.objectives.items():
        path: PathKey = ("objectives", name)
        yield from _weight_faults(e, name)
        if o.at_least is None:
            for key in (key for key in given(o) if key in {"constraint", "at"}):
                yield Fault((*path, key), "has no effect without at_least", fix="give both, or leave it out")
        elif way not in WITH_LEVELS and not _may_keep(e.algorithm.name):
            fix = "write aggregate: {name: lagrangian}, or leave it out"
            yield Fault((*path, "at_least"), f"has no effect with aggregate.name {way}", fix=fix)
        else:
            yield from _constraint_faults(e, name)
        if o.cap is not None and o.target is not None:
            wrong = "is given beside cap: more than the target is worse, more than the cap is neither"
            yield Fault((*path, "target"), wrong, fix="leave out one of the two")
    if way == "lagrangian" and all(o.at_least is None for o in e.objectives.values()):
        fix = "give an objective at_least, or leave out aggregate"
        yield Fault(("aggregate", "name"), "lagrangian keeps constraints, and no objective has one", fix=fix)
    if e.aggregate.missing == "renormalise" and way != "weighted":
        wrong = f"renormalise stretches the weights of a weighted sum, and aggregate.name is {way}"
        yield Fault(("aggregate", "missing"), wrong, fix="take drop or group_mean")


def _weight_faults(e: Experiment, name: str) -> Iterator[Fault]:
    """Weights that are said twice, or that the aggregator does not look at."""
    o, path, way = e.objectives[name], ("objectives", name), e.aggregate.name
    scheduled = any(other.schedule for other in e.objectives.values())
    if o.schedule and "weight" in given(o):
        yield Fault((*path, "weight"), "has no effect beside schedule", fix="leave out one of the two")
    if o.by_kind and scheduled:
        wrong = "cannot be combined with a schedule"
        yield Fault((*path, "by_kind"), wrong, fix="leave out by_kind, or every schedule")
    for key in ("schedule", "by_kind"):
        if getattr(o, key) and way != "weighted":
            fix = "leave out one of the two"
            yield Fault((*path, key), f"has no effect with aggregate.name {way}", fix=fix)
    steps = [step for step, _ in o.schedule]
    if steps != sorted(set(steps)):
        yield Fault((*path, "schedule"), f"has the steps {steps}, which must rise", alone=True)
    known = _kinds(e)
    for kind in o.by_kind:
        if known and kind not in known:
            fix = f"the prompts are {', '.join(known)}"
            wrong = f"no prompt is of the kind {short(kind)}"
            yield Fault((*path, "by_kind", kind), wrong, meant=nearest(kind, known), fix=fix)


def _kinds(e: Experiment) -> list[str]:
    """The kinds of prompts, where the recipe knows them all; else nothing."""
    if e.data.world is not None:
        from paretune.data.world import MIX

        return list(MIX)
    kinds = [source.kind for source in e.data.prompts.values()]
    return list(dict.fromkeys(kind for kind in kinds if kind)) if all(kinds) else []


def _constraint_faults(e: Experiment, name: str) -> Iterator[Fault]:
    o = e.objectives[name]
    assert o.at_least is not None
    try:
        Constraint(name, o.at_least, o.constraint, o.at)
    except WiringError as error:
        yield Fault(("objectives", name, "at_least"), str(error))
    if e.aggregate.name == "lexicographic" and o.constraint != "mean":
        wrong = "has no effect with aggregate.name lexicographic, where at_least is a level of the score"
        yield Fault(("objectives", name, "constraint"), wrong, fix="leave it out, or take lagrangian")
