"""Trackers of a run: checked at the door, started beside it, and fed afterwards."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from filelock import FileLock, Timeout

from paretune.config.issues import closest_match
from paretune.config.tracker_schema import TrackerSection
from paretune.core.errors import ConfigError, MissingDependencyError, first_line
from paretune.experiment.resolved import ResolvedRun
from paretune.reward.function_calls import Attempt
from paretune.run.io import read_json
from paretune.run.lock import lock_holder
from paretune.trackers.feed import FOLDER, read_state
from paretune.trackers.loading import (
    PACKAGES,
    make_tracker,
    require_tracker,
    section_of,
    tracker_names,
)
from paretune.trackers.process import follow


def check_trackers(run: ResolvedRun) -> None:
    """Raise an error, with a line for each, if trackers of the recipe cannot be made; none is started.

    Raises:
        ConfigError: A custom class cannot be loaded.
        MissingDependencyError: A package is missing.
    """
    errors: list[ConfigError | MissingDependencyError] = []
    lines = []
    for index, section in enumerate(run.config.trackers):
        try:
            require_tracker(section)
        except (ConfigError, MissingDependencyError) as error:
            problem, _, fix = str(error).partition("; fix: ")
            lines.append(run.issue(("trackers", index), problem, fix))
            errors.append(error)
    if errors:
        is_invalid = any(isinstance(error, ConfigError) for error in errors)
        kind = ConfigError if is_invalid else MissingDependencyError
        raise kind("\n".join(lines)) from errors[0]


def track_run(run_dir: Path, types: Sequence[str]) -> Iterator[str]:
    """Send what was not sent yet of a run that has ended; a line per tracker.

    Args:
        run_dir: The run folder.
        types: The trackers; empty: all that the recipe names.

    Raises:
        ConfigError: The folder holds no run that has ended, or the recipe does not name the tracker.
        MissingDependencyError: A package is missing.
    """
    if read_json(run_dir / "run.json") is None:
        raise ConfigError(f"{run_dir}: is not a run folder; fix: name the folder of a run")
    if holder := lock_holder(run_dir):
        raise ConfigError(f"{run_dir}: {holder} is at work in it; fix: wait until the run has ended")
    chosen = _chosen(run_dir, types)
    for _, section in chosen:
        require_tracker(section)
    for name, section in chosen:
        (run_dir / FOLDER).mkdir(exist_ok=True)
        before = _num_sent(run_dir, name)
        try:
            with FileLock(run_dir / FOLDER / f"{name}.lock", timeout=0), Attempt() as attempt:
                follow(run_dir, name, make_tracker(section), parent=None)
        except Timeout:
            problem = f"its tracker {name} is still sending"
            raise ConfigError(f"{run_dir}: {problem}; fix: wait until it has ended") from None
        if attempt.error is not None:
            problem = f"tracker {name}: {type(attempt.error).__name__}: {first_line(attempt.error)}"
            raise ConfigError(f"{run_dir}: {problem}; fix: remove the cause, then send the rest again")
        yield f"{name}: {_num_sent(run_dir, name) - before:,} lines sent"


def _chosen(run_dir: Path, types: Sequence[str]) -> list[tuple[str, TrackerSection]]:
    """Name and section of the trackers; a type that the recipe does not name has its defaults."""
    from paretune.config import load_config
    from paretune.run.compat import RESOLVED_CONFIG_FILE

    resolved = run_dir / RESOLVED_CONFIG_FILE
    sections = load_config(resolved, check_files=False).trackers if resolved.exists() else ()
    own = list(zip(tracker_names(sections), sections, strict=True))
    if not types and not own:
        raise ConfigError(f"{run_dir}: its recipe names no tracker; fix: --to one of {', '.join(PACKAGES)}")
    chosen = [] if types else own
    for kind in types:
        found = [each for each in own if each[1].type == kind]
        if not found and kind not in PACKAGES:
            match = closest_match(kind, PACKAGES)
            hint = f'; did you mean "{match}"?' if match else ""
            raise ConfigError(f"--to: {kind} is not a tracker{hint}; fix: one of {', '.join(PACKAGES)}")
        chosen += found or [(kind, section_of({"type": kind}))]
    return chosen


def _num_sent(run_dir: Path, name: str) -> int:
    return sum(read_state(run_dir, name).get("lines", {}).values())
