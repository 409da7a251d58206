"""Fairness checks of a benchmark: unknown names, and keys that must be the same for every method."""

import itertools
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from paretune.benchmark.schema import BenchmarkConfig
from paretune.config.data_schema import RewardSection
from paretune.config.issues import ConfigIssue, closest_match
from paretune.config.schema import Config
from paretune.config.scorers import read_label_names
from paretune.config.yaml import KeyPath, short_repr
from paretune.worlds import get_world

RESERVED_NAMES = ("shared", "tuning", "recipes", "logs")
"""Folders of a benchmark beside those of its methods."""
COMMON_KEYS = ("judge", "judges", "evaluate", "data")
"""Keys that `overrides` may set for all methods, but no method for itself."""
FIXED_KEYS = (
    "name",
    "extends",
    *COMMON_KEYS,
    "run.output_dir",
    "run.seed",
    "run.max_steps",
    "run.budget",
)
"""Keys that no method may set: a benchmark is fair only if they are the same for all."""
METHOD_DATA_KEYS = ("stored_responses", "demonstrations")
"""Exceptions below `data`: only some methods read these keys."""


def fairness_issues(benchmark: BenchmarkConfig, objectives: Iterable[str]) -> Iterator[ConfigIssue]:
    """Issues between the parts of a benchmark: names, seeds, fixed keys, tuning.

    Args:
        benchmark: The benchmark file.
        objectives: Names of the recipe's objectives; empty if the recipe is invalid.
    """
    yield from _name_issues(benchmark, list(objectives))
    for index, seed in enumerate(benchmark.seeds):
        if seed in benchmark.seeds[:index]:
            yield ConfigIssue(("seeds", index), f"{seed} is given twice", fix="remove one of them")
    yield from _fixed_key_issues(("overrides",), benchmark.overrides)
    for name, changes in benchmark.methods.items():
        yield from _fixed_key_issues(("methods", name), changes)
    if benchmark.tuning is not None:
        yield from _tuning_issues(benchmark, benchmark.tuning.num_trials)
    if benchmark.budget.resource == "steps" and len(benchmark.methods) > 1:
        problem = "steps is no common budget: a step of one method may cost more than one of another"
        fix = "write rollout_tokens, trained_tokens or reward_calls"
        yield ConfigIssue(("budget", "resource"), problem, fix=fix)


def _name_issues(benchmark: BenchmarkConfig, objective_names: list[str]) -> Iterator[ConfigIssue]:
    """Reserved method names, an unknown baseline, unknown objectives."""
    methods = benchmark.methods
    for name in methods:
        if name in RESERVED_NAMES:
            problem = "is reserved: every benchmark has a folder of this name"
            yield ConfigIssue(("methods", name), problem, fix="choose another name")
    if benchmark.baseline is not None and benchmark.baseline not in methods:
        yield ConfigIssue(
            ("baseline",),
            f"{short_repr(benchmark.baseline)} is not in methods",
            suggestion=closest_match(benchmark.baseline, methods),
            fix=f"one of {', '.join(methods)}",
        )
    uses: list[tuple[KeyPath, str]] = [
        (("reference_point", name), name) for name in benchmark.reference_point
    ]
    uses += [
        (("weightings", weighting, name), name)
        for weighting, weights in benchmark.weightings.items()
        for name in weights
    ]
    uses += [
        (("scatter_pairs", i, j), name)
        for i, pair in enumerate(benchmark.scatter_pairs)
        for j, name in enumerate(pair)
    ]
    for path, name in uses:
        if objective_names and name not in objective_names:
            yield ConfigIssue(
                path,
                f"{short_repr(name)} is not an objective of the recipe",
                suggestion=closest_match(name, objective_names),
                fix=f"the recipe has {', '.join(objective_names)}",
            )


def _fixed_key_issues(path: KeyPath, changes: Mapping[str, Any]) -> Iterator[ConfigIssue]:
    """Fixed keys among the changes of a method; `overrides` may set the common ones."""
    for key in FIXED_KEYS:
        section, _, inner = key.partition(".")
        value = changes.get(section)
        if section not in changes or (inner and not (isinstance(value, dict) and inner in value)):
            continue
        if path == ("overrides",) and key in COMMON_KEYS:
            continue
        if key == "data" and isinstance(value, dict) and not value.keys() - set(METHOD_DATA_KEYS):
            continue
        fix = "remove it: the benchmark sets it"
        if key in COMMON_KEYS:
            fix = "move it to `overrides`, which apply to all methods"
        yield ConfigIssue((*path, *key.split(".")), "must be the same for all methods", fix=fix)


def _tuning_issues(benchmark: BenchmarkConfig, num_trials: int) -> Iterator[ConfigIssue]:
    tuning = benchmark.tuning
    assert tuning is not None
    if tuning.seed in benchmark.seeds:
        fix = "choose one that is not in seeds: settings must not be tested on the seed they were tuned on"
        yield ConfigIssue(("tuning", "seed"), f"{tuning.seed} is one of seeds", fix=fix)
    for key in tuning.search_space:
        if key in FIXED_KEYS or key.split(".")[0] in FIXED_KEYS or not all(key.split(".")):
            path = ("tuning", "search_space", key)
            yield ConfigIssue(path, "cannot be tuned", fix="name a key such as training.learning_rate")
    count = len(grid_combinations(benchmark))
    if num_trials > count:
        problem = f"is {num_trials}, but the search space has {count} combinations of values"
        fix = "lower it, or add values to tuning.search_space"
        yield ConfigIssue(("tuning", "num_trials"), problem, fix=fix)


def judge_selection_issues(config: Config) -> Iterator[ConfigIssue]:
    """Reasons why the judge cannot select trials, as far as they show without loading the judge."""
    path, alternative = ("tuning", "select_by"), "set tuning.select_by: reward"
    if config.judge is None and not config.judges:
        problem = "judge needs a judge that is not the training reward, and the recipe has none"
        yield ConfigIssue(path, problem, fix=f"add a judge to the recipe, or {alternative}")
        return
    judged = None if config.judge is None or config.judges else _judged_objectives(config.judge)
    for name, objective in config.objectives.items():
        if judged is not None and objective.weight and (objective.scores_from or name) not in judged:
            problem = f"the judge does not score {short_repr(name)}, which has a weight"
            fix = (
                f"use a judge that does (this one scores {', '.join(judged) or 'nothing'}), or {alternative}"
            )
            yield ConfigIssue(path, problem, fix=fix)


def _judged_objectives(judge: RewardSection | str) -> Iterable[str] | None:
    """The objectives that a judge scores; None if they cannot be read without downloading it."""
    if not isinstance(judge, RewardSection):
        return get_world().objectives
    return judge.objectives if judge.path is None else read_label_names(Path(judge.path))


def grid_combinations(benchmark: BenchmarkConfig) -> list[dict[str, Any]]:
    """Every combination of the values in the search space, as key -> value."""
    space = benchmark.tuning.search_space if benchmark.tuning is not None else {}
    return [dict(zip(space, values, strict=True)) for values in itertools.product(*space.values())]
