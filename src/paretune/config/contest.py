"""A comparison file -> every run it asks for, or every mistake in it at once."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from paretune.config.comparison import Comparison
from paretune.config.fairness import combinations, unfair, unjudged
from paretune.config.faults import Fault, schema_faults, slug
from paretune.config.load import OVERRIDE, built, in_order, laid_over, override, read_recipe
from paretune.config.recipes import find_recipe
from paretune.config.schema import Experiment
from paretune.config.tree import Mark, PathKey, Tree, parse, read_text, short
from paretune.errors import ConfigError, complaint, joined

RECIPE = {"extends", "data", "policy", "reward", "objectives", "algorithm"}
"""Keys of a recipe that no comparison has at its top."""
Settings = Mapping[str, Any]
"""Keys of a recipe, spelt a.b, and their values."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One run of a comparison."""

    method: str
    weighting: str
    seed: int
    experiment: Experiment

    @property
    def label(self) -> str:
        """How messages call it."""
        return f"{self.method}/{self.weighting}/seed-{self.seed}"


@dataclass(frozen=True, kw_only=True)
class Contest:
    """A comparison, checked; makes the experiment of every run."""

    said: Comparison
    text: str
    """As it was given."""
    trials: tuple[Settings, ...]
    """What each tuning trial sets."""
    _tree: Tree = field(repr=False)
    _base: Tree = field(repr=False)

    @property
    def folder(self) -> Path:
        """Where everything of the comparison lies."""
        return Path(self.said.folder)

    def runs(self, chosen: Mapping[str, Settings] | None = None) -> list[Entry]:
        """Every run, method by method; `chosen`: what tuning found for each of them."""
        return [
            self._entry(method, weighting, seed, (chosen or {}).get(method, {}))
            for method in self.said.methods
            for weighting in self.said.weightings
            for seed in self.said.seeds
        ]

    def tried(self, method: str) -> list[Entry]:
        """The tuning trials of a method, under the first weighting."""
        tuning = self.said.tuning
        if tuning is None:
            return []
        weighting, places = next(iter(self.said.weightings)), range(len(self.trials))
        folders = [self.folder / "tuning" / method / f"trial-{place}" for place in places]
        return [
            self._entry(method, weighting, tuning.seed, settings, folder)
            for settings, folder in zip(self.trials, folders, strict=True)
        ]

    def _entry(
        self, method: str, weighting: str, seed: int, settings: Settings, folder: Path | None = None
    ) -> Entry:
        folder = folder or self.folder / method / weighting / f"seed-{seed}"
        found, wrong = built(self.tree(method, weighting, seed, settings, folder), self._note(method))
        if found is None:
            raise ConfigError(joined(wrong))
        return Entry(method=method, weighting=weighting, seed=seed, experiment=found)

    def tree(self, method: str, weighting: str, seed: int, settings: Settings, folder: Path) -> Tree:
        """The recipe of one run: base, `set`, method, weighting, what was tuned, seed and budget."""
        tree = laid_over(_without_algorithm(self._base, self._tree, method), _below(self._tree, ("set",)))
        tree = laid_over(tree, _below(self._tree, ("methods", method)))
        weights = self.said.weightings[weighting]
        for objective, weight in weights.items():
            at = self._tree.mark(("weightings", weighting, objective))
            _place(tree, ("objectives", objective, "weight"), weight, at)
        for key, value in settings.items():
            _place(tree, tuple(key.split(".")), value, self._tree.mark(("tuning", "over", key)))
        budget = self.said.budget
        for key, value in budget.model_dump().items():
            _place(tree, ("run", "budget", key), value, self._tree.mark(("budget", key)))
        # Every step takes at least one of any currency: the budget ends the run, never this bound.
        _place(tree, ("run", "steps"), budget.amount, self._tree.mark(("budget", "amount")))
        _place(tree, ("run", "seed"), seed, self._tree.mark(("seeds",)))
        _place(tree, ("run", "folder"), str(folder), self._tree.mark(("folder",)))
        _place(tree, ("name",), slug(f"{self.said.name}-{method}"), self._tree.mark(("name",)))
        return tree

    def _note(self, method: str) -> str:
        return f"# A run of the method {method} of this comparison:\n{self.text}"


def load_contest(path: Path, overrides: Sequence[str] = ()) -> Contest:
    """The comparison that a file describes, with overrides of the form a.b=c of the file's own keys.

    Raises:
        ConfigError: One line for each mistake of the file, of the overrides, and of the recipes they make.
    """
    tree, text = _read(path, overrides)
    if not {"recipe", "methods"} & tree.values.keys() and RECIPE & tree.values.keys():
        fix = f"paretune run {path}"
        raise ConfigError(complaint(path, 1, None, "", "is a recipe, not a comparison of methods", fix=fix))
    said, faults = (None, []) if tree.refused else _validated(tree.values)
    wrong = [*tree.wrong, *(fault.at(tree) for fault in faults)]
    base = Tree(marks={(): tree.mark(())})
    if said is not None:
        base, unreadable = _base_of(said, tree)
        known = laid_over(base, _below(tree, ("set",))).values.get("objectives")
        faults = list(unfair(said, known if isinstance(known, dict) else ()))
        wrong += [*unreadable, *base.wrong, *(fault.at(tree) for fault in faults)]
    if wrong or said is None:
        raise ConfigError(joined(sorted(dict.fromkeys(wrong), key=in_order)))
    found = Contest(said=said, text=text, trials=_trials(said), _tree=tree, _base=base)
    if wrong := _wrong_runs(found):
        raise ConfigError(joined(sorted(wrong, key=in_order)))
    return found


def _read(path: Path, overrides: Sequence[str]) -> tuple[Tree, str]:
    """The tree of the file, its lists of a.b=c as sections, overrides put in."""
    text, unreadable = read_text(path, str(path))
    if unreadable:
        return Tree(marks={(): Mark(str(path), 1)}, wrong=[unreadable], refused=True), text
    tree = parse(text, str(path))
    methods = tree.values.get("methods")
    names = methods if isinstance(methods, dict) else {}
    for key in (("set",), *(("methods", name) for name in names)):
        _unlisted(tree, key)
    for line, given in enumerate(overrides, 1):
        override(tree, given, Mark(OVERRIDE, line))
    tree.values.setdefault("name", slug(path.stem))
    more = (f"# override: {given!r}" for given in overrides)
    return tree, "\n".join([text.rstrip("\n"), *more, ""])


def _unlisted(tree: Tree, path: PathKey) -> None:
    """A list of a.b=c as the section it stands for; null as an empty one."""
    key, above = str(path[-1]), tree.values if len(path) == 1 else tree.values[str(path[0])]
    given = above.get(key)
    if given is None and key in above:
        above[key] = {}
    if not isinstance(given, list):
        return
    inner = Tree(marks={(): tree.mark(path)}, wrong=tree.wrong)
    for place, line in enumerate(given):
        override(inner, str(line), tree.mark((*path, place)))
    above[key] = inner.values
    tree.marks |= {(*path, *inside): mark for inside, mark in inner.marks.items()}


def _validated(values: dict[str, Any]) -> tuple[Comparison | None, list[Fault]]:
    try:
        return Comparison.model_validate(values), []
    except ValidationError as error:
        return None, schema_faults(error.errors(include_url=False), values, Comparison)


def _base_of(said: Comparison, tree: Tree) -> tuple[Tree, list[str]]:
    try:
        return read_recipe(find_recipe(said.recipe))[0], []
    except ConfigError as error:
        wrong = str(error).partition(": ")[2]
        return Tree(marks={(): tree.mark(())}), [Fault(("recipe",), f"{short(said.recipe)} {wrong}").at(tree)]


def _trials(said: Comparison) -> tuple[Settings, ...]:
    """What is tried for every method: combinations of values, drawn where there are more than trials."""
    if said.tuning is None:
        return ()
    from paretune.chance import numpy_generator

    found = combinations(said)
    rng = numpy_generator(said.tuning.seed, 0, "tuning trials")
    picked = sorted(rng.choice(len(found), said.tuning.trials, replace=False).tolist())
    return tuple(found[place] for place in picked)


def _wrong_runs(contest: Contest) -> list[str]:
    """Mistakes of the recipes that the comparison makes; the method is named where the place does not."""
    said, found = contest.said, dict[str, dict[str, None]]()
    settings: tuple[Settings, ...] = contest.trials or ({},)
    first = next(iter(said.weightings))
    for method, weighting in itertools.product(said.methods, said.weightings):
        for tried in settings:
            tree = contest.tree(method, weighting, said.seeds[0], tried, contest.folder / "check")
            experiment, wrong = built(tree, "")
            if experiment is not None:
                faults = list(_idle(contest, method, experiment))
                # Trials are made under the first weighting alone.
                if said.tuning is not None and said.tuning.by == "judge" and weighting == first:
                    faults += unjudged(experiment)
                wrong = [fault.at(contest._tree) for fault in faults]
            for line in wrong:
                found.setdefault(line, {})[method] = None
    here = contest._tree.mark(()).file
    return [
        line
        if line.startswith((here, OVERRIDE)) or len(methods) == len(said.methods)
        else f"{line} [{', '.join(methods)}]"
        for line, methods in found.items()
    ]


def _idle(contest: Contest, method: str, experiment: Experiment) -> Iterator[Fault]:
    """Methods that the budget would never end."""
    from paretune.config.algorithm import recipe_of
    from paretune.rollout.sample import Offline

    source = recipe_of(experiment).source
    name = contest.said.budget.currency
    if isinstance(source, Offline) and name != "trained_tokens":
        fix = "declare trained_tokens, or take algorithm.responses: start"
        wrong = f"never spends {name}: it learns from stored responses"
        yield Fault(("methods", method), wrong, fix=fix)


def _without_algorithm(base: Tree, tree: Tree, method: str) -> Tree:
    """The base recipe, without its algorithm where the method brings one."""
    found = Tree(deepcopy(base.values), dict(base.marks), list(base.wrong), base.refused)
    if "algorithm" in tree.values["methods"][method]:
        found.values.pop("algorithm", None)
        for path in [path for path in found.marks if path[:1] == ("algorithm",)]:
            del found.marks[path]
    return found


def _below(tree: Tree, path: PathKey) -> Tree:
    """A section as a tree of its own."""
    values: Any = tree.values
    for part in path:
        values = values.get(str(part), {})
    marks = {key[len(path) :]: mark for key, mark in tree.marks.items() if key[: len(path)] == path}
    return Tree(deepcopy(values), {**marks, (): tree.mark(path)})


def _place(tree: Tree, path: PathKey, value: Any, at: Mark) -> None:
    """Put a value where it belongs, whatever stood there."""
    into = tree.values
    for depth, part in enumerate(path[:-1], 1):
        if not isinstance(into.get(str(part)), dict):
            into[str(part)] = {}
            tree.marks[path[:depth]] = at
        into = into[str(part)]
    into[str(path[-1])] = value
    for old in [old for old in tree.marks if old[: len(path)] == path]:
        del tree.marks[old]
    tree.marks[path] = at
