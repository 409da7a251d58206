"""What makes a comparison unfair or void: names that are not there, keys that no method may choose."""

import itertools
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from paretune.config.comparison import Comparison
from paretune.config.faults import Fault, nearest
from paretune.config.outside import labels_of
from paretune.config.schema import Experiment
from paretune.config.sources import RewardSection
from paretune.config.tree import PathKey, short

RESERVED = ("shared", "tuning", "recipes", "logs")
"""Folders of a comparison beside those of its methods."""
OWN = ("name", "extends", "judge", "evaluate", "data", "run.folder", "run.seed", "run.steps", "run.budget")
"""Keys that no method may set: a comparison is fair where they are the same for all."""
OF_DATA = ("stored", "demonstrations")
"""Keys of `data` that a method may set all the same, since only some methods read them."""


def unfair(said: Comparison, objectives: Iterable[str]) -> Iterator[Fault]:
    """What the parts of a comparison must be to each other."""
    yield from _names(said, list(objectives))
    for place, seed in enumerate(said.seeds):
        if seed in said.seeds[:place]:
            yield Fault(("seeds", place), f"{seed} is given twice", fix="leave out one of them")
    for path, changes in (
        (("set",), said.changes),
        *((("methods", name), method) for name, method in said.methods.items()),
    ):
        yield from _not_its_own(path, changes)
    if said.tuning is not None:
        yield from _tuning_faults(said, said.tuning.trials)


def _names(said: Comparison, known: list[str]) -> Iterator[Fault]:
    """Names of methods and of objectives."""
    for name in said.methods:
        if name in RESERVED:
            yield Fault(
                ("methods", name), "is the name of a folder of every comparison", fix="choose another"
            )
    if said.baseline is not None and said.baseline not in said.methods:
        meant, fix = nearest(said.baseline, said.methods), f"one of {', '.join(said.methods)}"
        yield Fault(("baseline",), f"{short(said.baseline)} is no method", meant=meant, fix=fix)
    asked: list[tuple[PathKey, str]] = [(("reference", name), name) for name in said.reference]
    asked += [(("weightings", w, name), name) for w, weights in said.weightings.items() for name in weights]
    asked += [(("scatter", i, j), name) for i, pair in enumerate(said.scatter) for j, name in enumerate(pair)]
    for path, name in asked:
        if known and name not in known:
            fix = f"the recipe has {', '.join(known)}"
            yield Fault(path, f"{short(name)} is no objective", meant=nearest(name, known), fix=fix)


def _not_its_own(path: PathKey, changes: Mapping[str, Any]) -> Iterator[Fault]:
    """What `set` or a method may not say; `set` is the same for all, and may say what all have in common."""
    everywhere = path == ("set",)
    for key in OWN:
        section, _, inner = key.partition(".")
        said = changes.get(section)
        if section not in changes or (inner and not (isinstance(said, dict) and inner in said)):
            continue
        if everywhere and key in ("judge", "evaluate", "data"):
            continue
        if key == "data" and isinstance(said, dict) and not said.keys() - set(OF_DATA):
            continue
        common = key in ("judge", "evaluate", "data")
        fix = "write it into `set`, for all" if common else "leave it out: the comparison gives it"
        yield Fault((*path, *key.split(".")), "is not a method's to choose", fix=fix)


def _tuning_faults(said: Comparison, trials: int) -> Iterator[Fault]:
    tuning = said.tuning
    assert tuning is not None
    if tuning.seed in said.seeds:
        fix = "choose one outside seeds: what was tuned on a seed is not tested by it"
        yield Fault(("tuning", "seed"), f"{tuning.seed} is one of seeds", fix=fix)
    for key in tuning.over:
        if key in OWN or key.split(".")[0] in OWN or not all(key.split(".")):
            yield Fault(("tuning", "over", key), "cannot be tuned", fix="name a key such as learn.lr")
    count = len(combinations(said))
    if trials > count:
        fix = "try fewer, or name more values"
        wrong = f"is {trials}, and there are {count} combinations of values"
        yield Fault(("tuning", "trials"), wrong, fix=fix)


def unjudged(e: Experiment) -> Iterator[Fault]:
    """What keeps the judge of a trial from choosing its settings, as far as it shows without the judge."""
    path, instead = ("tuning", "by"), "write tuning.by: reward"
    if e.judge is None:
        wrong = "judge needs one that is not the training reward, and the recipe has none"
        yield Fault(path, wrong, fix=f"give the recipe a judge, or {instead}")
        return
    known = _judged(e.judge)
    for name, objective in e.objectives.items():
        if known is not None and objective.weight and (objective.of or name) not in known:
            wrong = f"the judge does not score {short(name)}, which has a weight"
            fix = f"take a judge that does (it scores {', '.join(known) or 'nothing'}), or {instead}"
            yield Fault(path, wrong, fix=fix)


def _judged(judge: RewardSection | str) -> Iterable[str] | None:
    """The objectives that a judge scores; None: its folder is not here to be asked."""
    if not isinstance(judge, RewardSection):
        from paretune.data.world import OBJECTIVES

        return OBJECTIVES
    return judge.objectives if judge.path is None else labels_of(Path(judge.path))


def combinations(said: Comparison) -> list[dict[str, Any]]:
    """Every combination of the values that tuning names: key -> value."""
    over = said.tuning.over if said.tuning is not None else {}
    return [dict(zip(over, values, strict=True)) for values in itertools.product(*over.values())]
