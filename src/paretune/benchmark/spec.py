"""Loads a benchmark file and builds the config of every run, or reports every mistake in it at once."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from paretune.benchmark.schema import BenchmarkConfig
from paretune.benchmark.validate import fairness_issues, grid_combinations, judge_selection_issues
from paretune.config.issues import ConfigIssue, schema_issues, slugify
from paretune.config.load import (
    OVERRIDE,
    apply_override,
    apply_overrides,
    build_config,
    issue_sort_key,
    merge_trees,
    read_recipe,
)
from paretune.config.schema import Config
from paretune.config.shipped import find_recipe
from paretune.config.yaml import ConfigTree, KeyPath, SourceLocation, parse_yaml, read_text, short_repr
from paretune.core.errors import ConfigError, format_issue, join_issues

if TYPE_CHECKING:
    from paretune.experiment.resolved import ResolvedRun

RECIPE_KEYS = {"extends", "data", "policy", "reward", "scorers", "objectives", "algorithm"}
"""Top-level keys of a recipe that a benchmark file does not have."""
Settings = Mapping[str, Any]
"""Recipe key with dots (a.b) -> value."""


@dataclass(frozen=True, kw_only=True)
class RunSpec:
    """One run of a benchmark: its method, weighting, seed and config."""

    method: str
    weighting: str
    seed: int
    config: Config

    @cached_property
    def resolved(self) -> "ResolvedRun":
        """The config with its algorithm, built on first use."""
        from paretune.experiment.resolved import resolve

        return resolve(self.config)

    @property
    def label(self) -> str:
        """Name of the run in messages."""
        return f"{self.method}/{self.weighting}/seed-{self.seed}"


@dataclass(frozen=True, kw_only=True)
class BenchmarkSpec:
    """A valid benchmark; builds the config of every run."""

    config: BenchmarkConfig
    source_text: str
    """Text of the benchmark file, with the overrides of the command line as comments."""
    trial_settings: tuple[Settings, ...]
    """Settings of each tuning trial, the same for every method."""
    _tree: ConfigTree = field(repr=False)
    _base_tree: ConfigTree = field(repr=False)

    @property
    def output_dir(self) -> Path:
        """Folder of the benchmark."""
        return Path(self.config.output_dir)

    def run_specs(self, tuned_settings: Mapping[str, Settings] | None = None) -> list[RunSpec]:
        """Every run, ordered by method, weighting and seed.

        Args:
            tuned_settings: Method -> settings of its selected tuning trial.
        """
        return [
            self._run_spec(method, weighting, seed, (tuned_settings or {}).get(method, {}))
            for method in self.config.methods
            for weighting in self.config.weightings
            for seed in self.config.seeds
        ]

    def tuning_specs(self, method: str) -> list[RunSpec]:
        """The tuning trials of a method; they use the first weighting."""
        tuning = self.config.tuning
        if tuning is None:
            return []
        weighting = next(iter(self.config.weightings))
        trials_dir = self.output_dir / "tuning" / method
        return [
            self._run_spec(method, weighting, tuning.seed, settings, trials_dir / f"trial-{index}")
            for index, settings in enumerate(self.trial_settings)
        ]

    def _run_spec(
        self, method: str, weighting: str, seed: int, settings: Settings, output_dir: Path | None = None
    ) -> RunSpec:
        output_dir = output_dir or self.output_dir / method / weighting / f"seed-{seed}"
        tree = self.build_run_tree(method, weighting, seed, settings, output_dir)
        config, issues = build_config(tree, self._run_header(method))
        if config is None:
            raise ConfigError(join_issues(issues))
        return RunSpec(method=method, weighting=weighting, seed=seed, config=config)

    def build_run_tree(
        self, method: str, weighting: str, seed: int, settings: Settings, output_dir: Path
    ) -> ConfigTree:
        """The recipe of one run.

        Later layers replace earlier ones: base recipe, `overrides`, method, weighting, tuned settings, then
        budget, seed, output folder and name.
        """
        tree = merge_trees(
            _drop_algorithm(self._base_tree, self._tree, method), _subtree(self._tree, ("overrides",))
        )
        tree = merge_trees(tree, _subtree(self._tree, ("methods", method)))
        weights = self.config.weightings[weighting]
        for objective, weight in weights.items():
            location = self._tree.location(("weightings", weighting, objective))
            _set_value(tree, ("objectives", objective, "weight"), weight, location)
        for key, value in settings.items():
            location = self._tree.location(("tuning", "search_space", key))
            _set_value(tree, tuple(key.split(".")), value, location)
        budget = self.config.budget
        if budget.resource == "steps":
            _remove_section(tree, ("run", "budget"))
        else:
            for key, value in budget.model_dump().items():
                _set_value(tree, ("run", "budget", key), value, self._tree.location(("budget", key)))
        # Every step uses at least one unit of any resource: the budget ends the run, never this bound.
        _set_value(tree, ("run", "max_steps"), budget.limit, self._tree.location(("budget", "limit")))
        _set_value(tree, ("run", "seed"), seed, self._tree.location(("seeds",)))
        _set_value(tree, ("run", "output_dir"), str(output_dir), self._tree.location(("output_dir",)))
        _set_value(tree, ("name",), slugify(f"{self.config.name}-{method}"), self._tree.location(("name",)))
        return tree

    def _run_header(self, method: str) -> str:
        return f"# A run of the method {method} of this benchmark:\n{self.source_text}"


def load_benchmark(path: Path, overrides: Sequence[str] = ()) -> BenchmarkSpec:
    """Load and validate a benchmark file.

    Args:
        path: The file.
        overrides: Overrides of the file's own keys, of the form a.b=c.

    Raises:
        ConfigError: One line per mistake in the file, in the overrides, and in the recipes of the runs.
    """
    tree, text = _read_tree(path, overrides)
    if not {"recipe", "methods"} & tree.values.keys() and RECIPE_KEYS & tree.values.keys():
        fix = f"paretune run {path}"
        raise ConfigError(format_issue(path, 1, None, "", "is a recipe, not a benchmark file", fix=fix))
    config, issues = (None, []) if tree.unreadable else _validate(tree.values)
    lines = [*tree.issues, *(issue.render(tree) for issue in issues)]
    base = ConfigTree(locations={(): tree.location(())})
    if config is not None:
        base, base_lines = _load_base(config, tree)
        objectives = merge_trees(base, _subtree(tree, ("overrides",))).values.get("objectives")
        issues = list(fairness_issues(config, objectives if isinstance(objectives, dict) else ()))
        lines += [*base_lines, *base.issues, *(issue.render(tree) for issue in issues)]
    if lines or config is None:
        raise ConfigError(join_issues(sorted(dict.fromkeys(lines), key=issue_sort_key)))
    spec = BenchmarkSpec(
        config=config, source_text=text, trial_settings=_sample_trials(config), _tree=tree, _base_tree=base
    )
    if lines := run_issues(spec):
        raise ConfigError(join_issues(sorted(lines, key=issue_sort_key)))
    return spec


def _read_tree(path: Path, overrides: Sequence[str]) -> tuple[ConfigTree, str]:
    """The tree of the file, with lists of a.b=c expanded and overrides applied; and its text."""
    text, problem = read_text(path, str(path))
    if problem:
        location = SourceLocation(str(path), 1)
        return ConfigTree(locations={(): location}, issues=[problem], unreadable=True), text
    tree = parse_yaml(text, str(path))
    methods = tree.values.get("methods")
    names = methods if isinstance(methods, dict) else {}
    for key_path in (("overrides",), *(("methods", name) for name in names)):
        _expand_override_list(tree, key_path)
    apply_overrides(tree, overrides)
    tree.values.setdefault("name", slugify(path.stem))
    comments = (f"# override: {override!r}" for override in overrides)
    return tree, "\n".join([text.rstrip("\n"), *comments, ""])


def _expand_override_list(tree: ConfigTree, path: KeyPath) -> None:
    """Replace a list of a.b=c by the section it stands for, and null by an empty section."""
    key, parent = str(path[-1]), tree.values if len(path) == 1 else tree.values[str(path[0])]
    value = parent.get(key)
    if value is None and key in parent:
        parent[key] = {}
    if not isinstance(value, list):
        return
    section = ConfigTree(locations={(): tree.location(path)}, issues=tree.issues)
    for index, override in enumerate(value):
        apply_override(section, str(override), tree.location((*path, index)))
    parent[key] = section.values
    tree.locations |= {(*path, *inner): location for inner, location in section.locations.items()}


def _validate(values: dict[str, Any]) -> tuple[BenchmarkConfig | None, list[ConfigIssue]]:
    try:
        return BenchmarkConfig.model_validate(values), []
    except ValidationError as error:
        return None, schema_issues(error.errors(include_url=False), values, BenchmarkConfig)


def _load_base(benchmark: BenchmarkConfig, tree: ConfigTree) -> tuple[ConfigTree, list[str]]:
    try:
        return read_recipe(find_recipe(benchmark.recipe))[0], []
    except ConfigError as error:
        # The error names the recipe; the issue names the key of the benchmark file instead.
        problem = str(error).partition(": ")[2]
        issue = ConfigIssue(("recipe",), f"{short_repr(benchmark.recipe)}: {problem}")
        return ConfigTree(locations={(): tree.location(())}), [issue.render(tree)]


def _sample_trials(benchmark: BenchmarkConfig) -> tuple[Settings, ...]:
    """The combinations of values to try; a random subset if there are more than `num_trials`."""
    if benchmark.tuning is None:
        return ()
    from paretune.core.rng import numpy_generator

    combinations = grid_combinations(benchmark)
    rng = numpy_generator(benchmark.tuning.seed, 0, "tuning trials")
    picked = sorted(rng.choice(len(combinations), benchmark.tuning.num_trials, replace=False).tolist())
    return tuple(combinations[index] for index in picked)


def run_issues(spec: BenchmarkSpec) -> list[str]:
    """Mistakes in the recipes of the runs; the method is named where the location does not show it."""
    config = spec.config
    # A dict as an ordered set: the same line from several trials counts once.
    methods_by_line: dict[str, dict[str, None]] = {}
    all_settings: tuple[Settings, ...] = spec.trial_settings or ({},)
    first_weighting = next(iter(config.weightings))
    for method, weighting in itertools.product(config.methods, config.weightings):
        for settings in all_settings:
            tree = spec.build_run_tree(
                method, weighting, config.seeds[0], settings, spec.output_dir / "check"
            )
            run_config, lines = build_config(tree, "")
            if run_config is not None:
                issues = list(_unspendable_budget(spec, method, run_config))
                # Trials use the first weighting alone.
                by_judge = config.tuning is not None and config.tuning.select_by == "judge"
                if by_judge and weighting == first_weighting:
                    issues += judge_selection_issues(run_config)
                lines = [issue.render(spec._tree) for issue in issues]
            for line in lines:
                methods_by_line.setdefault(line, {})[method] = None
    file = spec._tree.location(()).file
    return [
        line
        if line.startswith((file, OVERRIDE)) or len(methods) == len(config.methods)
        else f"{line} [{', '.join(methods)}]"
        for line, methods in methods_by_line.items()
    ]


def _unspendable_budget(spec: BenchmarkSpec, method: str, config: Config) -> Iterator[ConfigIssue]:
    """An issue if the method never uses the resource, so that the budget would never end its runs."""
    from paretune.experiment.resolved import resolve

    resource = spec.config.budget.resource
    if resource not in ("trained_tokens", "steps") and not resolve(config).algorithm.rollout.generates:
        problem = f"never uses {resource}: it trains on stored responses"
        fix = "set budget.resource: trained_tokens, or algorithm.response_source: start"
        yield ConfigIssue(("methods", method), problem, fix=fix)


def _drop_algorithm(base: ConfigTree, tree: ConfigTree, method: str) -> ConfigTree:
    """The base recipe; without its algorithm if the method sets one."""
    result = ConfigTree(deepcopy(base.values), dict(base.locations), list(base.issues), base.unreadable)
    if "algorithm" in tree.values["methods"][method]:
        _remove_section(result, ("algorithm",))
    return result


def _remove_section(tree: ConfigTree, path: KeyPath) -> None:
    section = tree.values
    for part in path[:-1]:
        section = section.get(str(part)) or {}
    section.pop(str(path[-1]), None)
    for stale in [stale for stale in tree.locations if stale[: len(path)] == path]:
        del tree.locations[stale]


def _subtree(tree: ConfigTree, path: KeyPath) -> ConfigTree:
    """A section as its own tree."""
    values: Any = tree.values
    for part in path:
        values = values.get(str(part), {})
    locations = {
        key[len(path) :]: location for key, location in tree.locations.items() if key[: len(path)] == path
    }
    return ConfigTree(deepcopy(values), {**locations, (): tree.location(path)})


def _set_value(tree: ConfigTree, path: KeyPath, value: Any, location: SourceLocation) -> None:
    """Set a value, replacing any value or section at this path."""
    section = tree.values
    for depth, part in enumerate(path[:-1], 1):
        if not isinstance(section.get(str(part)), dict):
            section[str(part)] = {}
            tree.locations[path[:depth]] = location
        section = section[str(part)]
    section[str(path[-1])] = value
    # Locations inside a replaced section would point at keys that no longer exist.
    for stale in [stale for stale in tree.locations if stale[: len(path)] == path]:
        del tree.locations[stale]
    tree.locations[path] = location
