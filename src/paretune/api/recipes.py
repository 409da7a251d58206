"""Recipes, benchmarks and reports from Python; the same functions as behind the commands."""

import json
import reprlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from paretune.api.arguments import check_arguments
from paretune.config import Config, find_recipe, load_config
from paretune.core.errors import ConfigError

if TYPE_CHECKING:
    from paretune.benchmark.choose import Choice

Overrides = Mapping[str, Any] | Sequence[str]
"""Values that override the recipe: {"run.seed": 1}, or ["run.seed=1"] as on the command line."""
RecipeLike = str | Path | Config
"""A YAML file, the name of a shipped recipe, or a loaded recipe."""


@check_arguments
def load_recipe(recipe: str | Path, overrides: Overrides = ()) -> Config:
    """Load a recipe, and check all that is known without its data and models.

    Args:
        recipe: A YAML file, or the name of a shipped recipe.
        overrides: Values that override it.

    Raises:
        ConfigError: One line per mistake.
    """
    return load_config(find_recipe(str(recipe)), _as_words(overrides))


@check_arguments
def check(recipe: RecipeLike, overrides: Overrides = (), *, explain: bool = False) -> str:
    """Check a recipe, its data and models, and describe the run with an estimate of its time.

    Args:
        recipe: A YAML file, the name of a shipped recipe, or a loaded recipe.
        overrides: Values that override a recipe that is not loaded yet.
        explain: Add the parts of the algorithm with all their settings.

    Raises:
        ParetuneError: One line per mistake.
    """
    from paretune.experiment.dry_run import check as dry_run

    return dry_run(_loaded(recipe, overrides), explain=explain)


@check_arguments
def run(
    recipe: RecipeLike,
    overrides: Overrides = (),
    *,
    until: Literal["judge", "align", "tuning-trial", "judged-tuning-trial"] | None = None,
    reuse_from: str | Path | None = None,
) -> Path:
    """Run a recipe, or resume it, and return the run folder.

    Args:
        recipe: A YAML file, the name of a shipped recipe, or a loaded recipe.
        overrides: Values that override a recipe that is not loaded yet.
        until: The last stage; None: all.
        reuse_from: Reuse policy, reward and judge of an earlier run, whose recipe agrees in them.

    Raises:
        ParetuneError: One line per mistake.
        KeyboardInterrupt: After a checkpoint.
    """
    from paretune.experiment.pipeline import run_pipeline

    source = None if reuse_from is None else Path(reuse_from)
    return run_pipeline(_loaded(recipe, overrides), until=until or "", reuse_from=source)


@check_arguments
def compare(benchmark: str | Path, overrides: Overrides = ()) -> dict[str, Any]:
    """Compare methods under one budget, or resume; the content of benchmark.json.

    Args:
        benchmark: A YAML file, or the name of a shipped benchmark.
        overrides: Values that override it.

    Raises:
        ParetuneError: One line per mistake.
    """
    from paretune.benchmark.run import run_benchmark
    from paretune.benchmark.spec import load_benchmark

    return run_benchmark(load_benchmark(find_recipe(str(benchmark)), _as_words(overrides)))


@check_arguments
def sweep(
    recipe: str | Path,
    overrides: Overrides = (),
    *,
    over: Sequence[str] | None = None,
    points: int | None = None,
    design: Literal["grid", "adaptive"] = "grid",
    seeds: Sequence[int] | None = None,
    reuse_from: str | Path | None = None,
    num_processes: int = 1,
) -> dict[str, Any]:
    """Run a recipe under several weightings, or resume; the content of sweep.json.

    Args:
        recipe: A YAML file, or the name of a shipped recipe.
        overrides: Values that override it; `run.output_dir` is the folder of the sweep.
        over: The swept objectives; None: all that have a weight.
        points: Number of weightings; None: about 9.
        design: grid: evenly spaced; adaptive: each where the front has its largest gap.
        seeds: Training seeds of every weighting; None: that of the recipe.
        reuse_from: An earlier run whose policy, reward and judge are reused for the first seed.
        num_processes: Runs in parallel.

    Raises:
        ParetuneError: One line per mistake.
    """
    from paretune.benchmark.sweep import load_sweep, run_sweep

    return run_sweep(
        load_sweep(
            str(recipe),
            _as_words(overrides),
            over=over,
            points=points,
            design=design,
            seeds=seeds,
            reuse_from=None if reuse_from is None else Path(reuse_from),
            num_processes=num_processes,
        )
    )


@check_arguments
def choose(folder: str | Path, rule: str) -> "Choice":
    """Choose a point of a sweep, a comparison, merges or a run, by constraints and then by the best.

    `paretune.export(choice.run_dir)` exports its policy; as text, a choice is what `paretune choose` prints.

    Args:
        folder: The folder of a sweep, a comparison, merges, or a run with evaluations of its steps.
        rule: Such as "safety >= 0.8, then actionability"; see docs/sweep.md.

    Raises:
        ConfigError: The rule has a mistake, or no point meets it: the message says by how much.
    """
    from paretune.benchmark.choose import choose as choose_point

    return choose_point(Path(folder), rule)


@check_arguments
def report(run_dir: str | Path) -> Path:
    """Write the report page of a run again, and return its path.

    Raises:
        ConfigError: The folder holds no run.
        DataError: A file of the run is damaged.
    """
    from paretune.report.run_page import write_report

    return write_report(run_dir)


def _loaded(recipe: RecipeLike, overrides: Overrides) -> Config:
    if not isinstance(recipe, Config):
        return load_recipe(recipe, overrides)
    if overrides:
        problem = "have no effect on a recipe that is loaded already"
        raise ConfigError(f"overrides: {problem}; fix: paretune.load_recipe(path, overrides)")
    return recipe


def _as_words(overrides: Overrides) -> list[str]:
    if isinstance(overrides, Mapping):
        return [f"{key}={_as_text(key, value)}" for key, value in overrides.items()]
    if isinstance(overrides, list | tuple) and all(isinstance(word, str) for word in overrides):
        return list(overrides)
    fix = 'pass {"run.seed": 1}, or the list ["run.seed=1"]'
    problem = f"{reprlib.repr(overrides)} is neither a mapping nor a list of texts"
    raise ConfigError(f"overrides: {problem}; fix: {fix}")


def _as_text(key: object, value: Any) -> str:
    """A value as YAML on one line."""
    if isinstance(value, str | Path):
        return str(value)
    try:
        return json.dumps(value)
    except TypeError as error:
        problem = f"{reprlib.repr(value)} cannot be written in a recipe"
        fix = "pass a text, a number, a list or a mapping"
        raise ConfigError(f"overrides: {key}: {problem}; fix: {fix}") from error
