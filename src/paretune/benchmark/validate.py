"""What makes a comparison unfair or void: names that are not there, keys that no method may choose."""

import itertools
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from paretune.benchmark.schema import BenchmarkConfig
from paretune.config.data_schema import RewardSection
from paretune.config.issues import ConfigIssue, closest_match
from paretune.config.requirements import read_label_names
from paretune.config.schema import Config
from paretune.config.yaml import KeyPath, short_repr

RESERVED_NAMES = ("shared", "tuning", "recipes", "logs")
"""Folders of a comparison beside those of its methods."""
FIXED_KEYS = (
    "name",
    "extends",
    "judge",
    "evaluate",
    "data",
    "run.output_dir",
    "run.seed",
    "run.max_steps",
    "run.budget",
)
"""Keys that no method may set: a comparison is fair where they are the same for all."""
METHOD_DATA_KEYS = ("stored", "demonstrations")
"""Keys of `data` that a method may set all the same, since only some methods read them."""


def fairness_issues(benchmark: BenchmarkConfig, objectives: Iterable[str]) -> Iterator[ConfigIssue]:
    """What the parts of a comparison must be to each other."""
    yield from _name_issues(benchmark, list(objectives))
    for place, seed in enumerate(benchmark.seeds):
        if seed in benchmark.seeds[:place]:
            yield ConfigIssue(("seeds", place), f"{seed} is given twice", fix="leave out one of them")
    for path, changes in (
        (("set",), benchmark.overrides),
        *((("methods", name), method) for name, method in benchmark.methods.items()),
    ):
        yield from _fixed_key_issues(path, changes)
    if benchmark.tuning is not None:
        yield from _tuning_issues(benchmark, benchmark.tuning.num_trials)


def _name_issues(benchmark: BenchmarkConfig, objective_names: list[str]) -> Iterator[ConfigIssue]:
    """Names of methods and of objectives."""
    for name in benchmark.methods:
        if name in RESERVED_NAMES:
            yield ConfigIssue(
                ("methods", name), "is the name of a folder of every comparison", fix="choose another"
            )
    if benchmark.baseline is not None and benchmark.baseline not in benchmark.methods:
        meant, fix = (
            closest_match(benchmark.baseline, benchmark.methods),
            f"one of {', '.join(benchmark.methods)}",
        )
        yield ConfigIssue(
            ("baseline",), f"{short_repr(benchmark.baseline)} is no method", suggestion=meant, fix=fix
        )
    asked: list[tuple[KeyPath, str]] = [(("reference", name), name) for name in benchmark.reference_point]
    asked += [
        (("weightings", w, name), name) for w, weights in benchmark.weightings.items() for name in weights
    ]
    asked += [
        (("scatter", i, j), name)
        for i, pair in enumerate(benchmark.scatter_pairs)
        for j, name in enumerate(pair)
    ]
    for path, name in asked:
        if objective_names and name not in objective_names:
            fix = f"the recipe has {', '.join(objective_names)}"
            yield ConfigIssue(
                path,
                f"{short_repr(name)} is no objective",
                suggestion=closest_match(name, objective_names),
                fix=fix,
            )


def _fixed_key_issues(path: KeyPath, overrides: Mapping[str, Any]) -> Iterator[ConfigIssue]:
    """What `set` or a method may not say; `set` is the same for all, and may say what all have in common."""
    everywhere = path == ("set",)
    for key in FIXED_KEYS:
        section, _, inner = key.partition(".")
        said = overrides.get(section)
        if section not in overrides or (inner and not (isinstance(said, dict) and inner in said)):
            continue
        if everywhere and key in ("judge", "evaluate", "data"):
            continue
        if key == "data" and isinstance(said, dict) and not said.keys() - set(METHOD_DATA_KEYS):
            continue
        common = key in ("judge", "evaluate", "data")
        fix = "write it into `set`, for all" if common else "leave it out: the comparison gives it"
        yield ConfigIssue((*path, *key.split(".")), "is not a method's to choose", fix=fix)


def _tuning_issues(benchmark: BenchmarkConfig, num_trials: int) -> Iterator[ConfigIssue]:
    tuning = benchmark.tuning
    assert tuning is not None
    if tuning.seed in benchmark.seeds:
        fix = "choose one outside seeds: what was tuned on a seed is not tested by it"
        yield ConfigIssue(("tuning", "seed"), f"{tuning.seed} is one of seeds", fix=fix)
    for key in tuning.search_space:
        if key in FIXED_KEYS or key.split(".")[0] in FIXED_KEYS or not all(key.split(".")):
            yield ConfigIssue(
                ("tuning", "over", key), "cannot be tuned", fix="name a key such as training.learning_rate"
            )
    count = len(grid_combinations(benchmark))
    if num_trials > count:
        fix = "try fewer, or name more values"
        wrong = f"is {num_trials}, and there are {count} combinations of values"
        yield ConfigIssue(("tuning", "trials"), wrong, fix=fix)


def judge_selection_issues(config: Config) -> Iterator[ConfigIssue]:
    """What keeps the judge of a trial from choosing its settings, as far as it shows without the judge."""
    path, instead = ("tuning", "by"), "write tuning.by: reward"
    if config.judge is None:
        wrong = "judge needs one that is not the training reward, and the recipe has none"
        yield ConfigIssue(path, wrong, fix=f"give the recipe a judge, or {instead}")
        return
    known = _judged_objectives(config.judge)
    for name, objective in config.objectives.items():
        if known is not None and objective.weight and (objective.scores_from or name) not in known:
            wrong = f"the judge does not score {short_repr(name)}, which has a weight"
            fix = f"take a judge that does (it scores {', '.join(known) or 'nothing'}), or {instead}"
            yield ConfigIssue(path, wrong, fix=fix)


def _judged_objectives(judge: RewardSection | str) -> Iterable[str] | None:
    """The objectives that a judge scores; None: its folder is not here to be asked."""
    if not isinstance(judge, RewardSection):
        from paretune.worlds.helpdesk.world import OBJECTIVES

        return OBJECTIVES
    return judge.objectives if judge.path is None else read_label_names(Path(judge.path))


def grid_combinations(benchmark: BenchmarkConfig) -> list[dict[str, Any]]:
    """Every combination of the values that tuning names: key -> value."""
    over = benchmark.tuning.search_space if benchmark.tuning is not None else {}
    return [dict(zip(over, values, strict=True)) for values in itertools.product(*over.values())]
