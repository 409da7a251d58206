"""Dry run of `paretune check`, and of every run before its first stage: all that works without weights."""

from dataclasses import dataclass

from paretune.config import Config
from paretune.core.errors import ConfigError, DataError, ParetuneError, WiringError
from paretune.experiment.all_issues import with_all_issues
from paretune.experiment.data import ProgressCallback, load_data
from paretune.experiment.dataset import Dataset
from paretune.experiment.estimates import estimate_run
from paretune.experiment.label_settings import apply_labels
from paretune.experiment.preflight import check_memory_options
from paretune.experiment.readability import PromptReading, prompt_readings, unreadable_issues
from paretune.experiment.resolved import ResolvedRun, resolve
from paretune.experiment.rollout_engine import check_rollout_engine
from paretune.experiment.run_description import describe_prompts, describe_run
from paretune.experiment.tracking import check_trackers

__all__ = ["CheckedRun", "check", "check_and_load_data", "check_run", "describe_prompts"]


@dataclass(frozen=True, kw_only=True)
class CheckedRun:
    """A run whose recipe, models and records fit together."""

    run: ResolvedRun
    """With the settings that follow from the labels filled in."""
    dataset: Dataset
    readings: tuple[PromptReading, ...]
    """The prompts as scorers with a context of their own read them."""


def check(config: Config, *, explain: bool = False) -> str:
    """Check everything that needs no weights, and describe the run; writes nothing.

    Args:
        config: The recipe.
        explain: Also list the parts of the algorithm with all their settings.

    Raises:
        ParetuneError: One line per error of the recipe, of the models' configurations and of the rows.
    """
    run = resolve(config)
    try:
        checked = check_run(run)
    except ParetuneError as error:
        raise with_all_issues(run, error) from error
    if config.run.device != "cuda":  # with an explicit cuda, the recipe may be meant for another machine
        check_memory_options(run)
    estimate = estimate_run(checked.run, checked.dataset)
    lines = describe_run(run, checked.run, checked.dataset, checked.readings, estimate)
    return "\n".join([*lines, *(checked.run.algorithm.describe() if explain else [])])


def check_run(run: ResolvedRun, on_progress: ProgressCallback = lambda done, total, note: None) -> CheckedRun:
    """Check the recipe with its records, and fill in what follows from the labels.

    Raises:
        ParetuneError: As `check`.
    """
    dataset = check_and_load_data(run, on_progress)
    check_rollout_engine(run)
    check_trackers(run)
    readings = tuple(prompt_readings(run, dataset))
    if issues := list(unreadable_issues(run, readings)):
        raise ConfigError("\n".join(issues))
    return CheckedRun(run=apply_labels(run, dataset), dataset=dataset, readings=readings)


def check_and_load_data(
    run: ResolvedRun, on_progress: ProgressCallback = lambda done, total, note: None
) -> Dataset:
    """Dry-run the algorithm on a small fake batch and read all records; errors of both are raised together.

    Raises:
        ParetuneError: As `check`.
    """
    try:
        _ = run.requirements  # the dry run
    except WiringError as wiring:
        try:
            load_data(run, on_progress)
        except (ConfigError, DataError) as error:
            raise ConfigError(f"{wiring}\n{error}") from error
        raise
    return load_data(run, on_progress)
