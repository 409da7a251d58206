"""A comparison file -> every run it asks for, or every mistake in it at once."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from paretune.benchmark.schema import BenchmarkConfig
from paretune.benchmark.validate import fairness_issues, grid_combinations, judge_selection_issues
from paretune.config.issues import ConfigIssue, schema_issues, slugify
from paretune.config.load import (
    OVERRIDE,
    apply_override,
    build_config,
    issue_sort_key,
    merge_trees,
    read_recipe,
)
from paretune.config.schema import Config
from paretune.config.shipped import find_recipe
from paretune.config.yaml import ConfigTree, KeyPath, SourceLocation, parse_yaml, read_text, short_repr
from paretune.core.errors import ConfigError, format_issue, join_issues

RECIPE_KEYS = {"extends", "data", "policy", "reward", "objectives", "algorithm"}
"""Keys of a recipe that no comparison has at its top."""
Settings = Mapping[str, Any]
"""Keys of a recipe, spelt a.b, and their values."""


@dataclass(frozen=True, kw_only=True)
class RunSpec:
    """One run of a comparison."""

    method: str
    weighting: str
    seed: int
    config: Config

    @property
    def label(self) -> str:
        """How messages call it."""
        return f"{self.method}/{self.weighting}/seed-{self.seed}"


@dataclass(frozen=True, kw_only=True)
class BenchmarkSpec:
    """A comparison, checked; makes the experiment of every run."""

    config: BenchmarkConfig
    source_text: str
    """As it was given."""
    trial_settings: tuple[Settings, ...]
    """What each tuning trial sets."""
    _tree: ConfigTree = field(repr=False)
    _base_tree: ConfigTree = field(repr=False)

    @property
    def output_dir(self) -> Path:
        """Where everything of the comparison lies."""
        return Path(self.config.output_dir)

    def run_specs(self, tuned_settings: Mapping[str, Settings] | None = None) -> list[RunSpec]:
        """Every run, method by method; `tuned_settings`: what tuning found for each of them."""
        return [
            self._run_spec(method, weighting, seed, (tuned_settings or {}).get(method, {}))
            for method in self.config.methods
            for weighting in self.config.weightings
            for seed in self.config.seeds
        ]

    def tuning_specs(self, method: str) -> list[RunSpec]:
        """The tuning trials of a method, under the first weighting."""
        tuning = self.config.tuning
        if tuning is None:
            return []
        weighting, places = next(iter(self.config.weightings)), range(len(self.trial_settings))
        folders = [self.output_dir / "tuning" / method / f"trial-{place}" for place in places]
        return [
            self._run_spec(method, weighting, tuning.seed, settings, folder)
            for settings, folder in zip(self.trial_settings, folders, strict=True)
        ]

    def _run_spec(
        self, method: str, weighting: str, seed: int, settings: Settings, output_dir: Path | None = None
    ) -> RunSpec:
        output_dir = output_dir or self.output_dir / method / weighting / f"seed-{seed}"
        found, wrong = build_config(
            self.build_run_tree(method, weighting, seed, settings, output_dir), self._run_header(method)
        )
        if found is None:
            raise ConfigError(join_issues(wrong))
        return RunSpec(method=method, weighting=weighting, seed=seed, config=found)

    def build_run_tree(
        self, method: str, weighting: str, seed: int, settings: Settings, output_dir: Path
    ) -> ConfigTree:
        """The recipe of one run: base, `set`, method, weighting, what was tuned, seed and budget."""
        tree = merge_trees(
            _drop_algorithm(self._base_tree, self._tree, method), _subtree(self._tree, ("set",))
        )
        tree = merge_trees(tree, _subtree(self._tree, ("methods", method)))
        weights = self.config.weightings[weighting]
        for objective, weight in weights.items():
            at = self._tree.location(("weightings", weighting, objective))
            _set_value(tree, ("objectives", objective, "weight"), weight, at)
        for key, value in settings.items():
            _set_value(tree, tuple(key.split(".")), value, self._tree.location(("tuning", "over", key)))
        budget = self.config.budget
        for key, value in budget.model_dump().items():
            _set_value(tree, ("run", "budget", key), value, self._tree.location(("budget", key)))
        # Every step takes at least one of any currency: the budget ends the run, never this bound.
        _set_value(tree, ("run", "max_steps"), budget.limit, self._tree.location(("budget", "amount")))
        _set_value(tree, ("run", "seed"), seed, self._tree.location(("seeds",)))
        _set_value(tree, ("run", "output_dir"), str(output_dir), self._tree.location(("folder",)))
        _set_value(tree, ("name",), slugify(f"{self.config.name}-{method}"), self._tree.location(("name",)))
        return tree

    def _run_header(self, method: str) -> str:
        return f"# A run of the method {method} of this comparison:\n{self.source_text}"


def load_benchmark(path: Path, overrides: Sequence[str] = ()) -> BenchmarkSpec:
    """The comparison that a file describes, with overrides of the form a.b=c of the file's own keys.

    Raises:
        ConfigError: One line for each mistake of the file, of the overrides, and of the recipes they make.
    """
    tree, text = _read_tree(path, overrides)
    if not {"recipe", "methods"} & tree.values.keys() and RECIPE_KEYS & tree.values.keys():
        fix = f"paretune run {path}"
        raise ConfigError(
            format_issue(path, 1, None, "", "is a recipe, not a comparison of methods", fix=fix)
        )
    said, faults = (None, []) if tree.unreadable else _validate(tree.values)
    wrong = [*tree.issues, *(fault.render(tree) for fault in faults)]
    base = ConfigTree(locations={(): tree.location(())})
    if said is not None:
        base, unreadable = _load_base(said, tree)
        known = merge_trees(base, _subtree(tree, ("set",))).values.get("objectives")
        faults = list(fairness_issues(said, known if isinstance(known, dict) else ()))
        wrong += [*unreadable, *base.issues, *(fault.render(tree) for fault in faults)]
    if wrong or said is None:
        raise ConfigError(join_issues(sorted(dict.fromkeys(wrong), key=issue_sort_key)))
    found = BenchmarkSpec(
        config=said, source_text=text, trial_settings=_sample_trials(said), _tree=tree, _base_tree=base
    )
    if wrong := _run_issues(found):
        raise ConfigError(join_issues(sorted(wrong, key=issue_sort_key)))
    return found


def _read_tree(path: Path, overrides: Sequence[str]) -> tuple[ConfigTree, str]:
    """The tree of the file, its lists of a.b=c as sections, overrides put in."""
    text, unreadable = read_text(path, str(path))
    if unreadable:
        return ConfigTree(
            locations={(): SourceLocation(str(path), 1)}, issues=[unreadable], unreadable=True
        ), text
    tree = parse_yaml(text, str(path))
    methods = tree.values.get("methods")
    names = methods if isinstance(methods, dict) else {}
    for key in (("set",), *(("methods", name) for name in names)):
        _expand_override_list(tree, key)
    for line, given in enumerate(overrides, 1):
        apply_override(tree, given, SourceLocation(OVERRIDE, line))
    tree.values.setdefault("name", slugify(path.stem))
    more = (f"# override: {given!r}" for given in overrides)
    return tree, "\n".join([text.rstrip("\n"), *more, ""])


def _expand_override_list(tree: ConfigTree, path: KeyPath) -> None:
    """A list of a.b=c as the section it stands for; null as an empty one."""
    key, above = str(path[-1]), tree.values if len(path) == 1 else tree.values[str(path[0])]
    given = above.get(key)
    if given is None and key in above:
        above[key] = {}
    if not isinstance(given, list):
        return
    inner = ConfigTree(locations={(): tree.location(path)}, issues=tree.issues)
    for place, line in enumerate(given):
        apply_override(inner, str(line), tree.location((*path, place)))
    above[key] = inner.values
    tree.locations |= {(*path, *inside): mark for inside, mark in inner.locations.items()}


def _validate(values: dict[str, Any]) -> tuple[BenchmarkConfig | None, list[ConfigIssue]]:
    try:
        return BenchmarkConfig.model_validate(values), []
    except ValidationError as error:
        return None, schema_issues(error.errors(include_url=False), values, BenchmarkConfig)


def _load_base(benchmark: BenchmarkConfig, tree: ConfigTree) -> tuple[ConfigTree, list[str]]:
    try:
        return read_recipe(find_recipe(benchmark.recipe))[0], []
    except ConfigError as error:
        wrong = str(error).partition(": ")[2]
        return ConfigTree(locations={(): tree.location(())}), [
            ConfigIssue(("recipe",), f"{short_repr(benchmark.recipe)} {wrong}").render(tree)
        ]


def _sample_trials(benchmark: BenchmarkConfig) -> tuple[Settings, ...]:
    """What is tried for every method: combinations of values, drawn where there are more than trials."""
    if benchmark.tuning is None:
        return ()
    from paretune.core.rng import numpy_generator

    found = grid_combinations(benchmark)
    rng = numpy_generator(benchmark.tuning.seed, 0, "tuning trials")
    picked = sorted(rng.choice(len(found), benchmark.tuning.num_trials, replace=False).tolist())
    return tuple(found[place] for place in picked)


def _run_issues(spec: BenchmarkSpec) -> list[str]:
    """Mistakes of the recipes that the comparison makes; the method is named where the place does not."""
    said, found = spec.config, dict[str, dict[str, None]]()
    settings: tuple[Settings, ...] = spec.trial_settings or ({},)
    first = next(iter(said.weightings))
    for method, weighting in itertools.product(said.methods, said.weightings):
        for tried in settings:
            tree = spec.build_run_tree(method, weighting, said.seeds[0], tried, spec.output_dir / "check")
            experiment, wrong = build_config(tree, "")
            if experiment is not None:
                faults = list(_unspendable_budget(spec, method, experiment))
                # Trials are made under the first weighting alone.
                if said.tuning is not None and said.tuning.select_by == "judge" and weighting == first:
                    faults += judge_selection_issues(experiment)
                wrong = [fault.render(spec._tree) for fault in faults]
            for line in wrong:
                found.setdefault(line, {})[method] = None
    here = spec._tree.location(()).file
    return [
        line
        if line.startswith((here, OVERRIDE)) or len(methods) == len(said.methods)
        else f"{line} [{', '.join(methods)}]"
        for line, methods in found.items()
    ]


def _unspendable_budget(spec: BenchmarkSpec, method: str, config: Config) -> Iterator[ConfigIssue]:
    """Methods that the budget would never end."""
    from paretune.config.build import build_spec
    from paretune.rollout.sampler import StoredResponses

    source = build_spec(config).rollout
    name = spec.config.budget.resource
    if isinstance(source, StoredResponses) and name != "trained_tokens":
        fix = "declare trained_tokens, or take algorithm.response_source: start"
        wrong = f"never spends {name}: it learns from stored responses"
        yield ConfigIssue(("methods", method), wrong, fix=fix)


def _drop_algorithm(base: ConfigTree, tree: ConfigTree, method: str) -> ConfigTree:
    """The base recipe, without its algorithm where the method brings one."""
    found = ConfigTree(deepcopy(base.values), dict(base.locations), list(base.issues), base.unreadable)
    if "algorithm" in tree.values["methods"][method]:
        found.values.pop("algorithm", None)
        for path in [path for path in found.locations if path[:1] == ("algorithm",)]:
            del found.locations[path]
    return found


def _subtree(tree: ConfigTree, path: KeyPath) -> ConfigTree:
    """A section as a tree of its own."""
    values: Any = tree.values
    for part in path:
        values = values.get(str(part), {})
    marks = {key[len(path) :]: mark for key, mark in tree.locations.items() if key[: len(path)] == path}
    return ConfigTree(deepcopy(values), {**marks, (): tree.location(path)})


def _set_value(tree: ConfigTree, path: KeyPath, value: Any, location: SourceLocation) -> None:
    """Put a value where it belongs, whatever stood there."""
    into = tree.values
    for depth, part in enumerate(path[:-1], 1):
        if not isinstance(into.get(str(part)), dict):
            into[str(part)] = {}
            tree.locations[path[:depth]] = location
        into = into[str(part)]
    into[str(path[-1])] = value
    for old in [old for old in tree.locations if old[: len(path)] == path]:
        del tree.locations[old]
    tree.locations[path] = location
