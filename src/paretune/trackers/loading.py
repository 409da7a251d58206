"""Makes the tracker of a section, and checks beforehand that its package is installed."""

import os
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import Any

from paretune.config.tracker_schema import (
    MlflowSection,
    PythonTrackerSection,
    TensorboardSection,
    TrackerSection,
    TrackioSection,
    WandbSection,
)
from paretune.core.errors import ConfigError, MissingDependencyError
from paretune.reward.function_loading import load_object
from paretune.trackers.base import Tracker
from paretune.trackers.packages import (
    NO_TELEMETRY,
    MlflowTracker,
    TensorboardTracker,
    TrackioTracker,
    WandbTracker,
)

PACKAGES = {"tensorboard": "tensorboard", "wandb": "wandb", "trackio": "trackio", "mlflow": "mlflow-skinny"}
"""Type of a tracker -> what pip installs; the module has the name of the type."""
METHODS = ("start", "log_metrics", "log_table", "finish")


def make_tracker(section: TrackerSection) -> Tracker:
    """The tracker of a section.

    Raises:
        ConfigError: The class of a `python` tracker cannot be loaded, or lacks a method.
        MissingDependencyError: Its package is not installed.
    """
    require_tracker(section)
    for name, value in NO_TELEMETRY.items():
        os.environ.setdefault(name, value)
    if isinstance(section, PythonTrackerSection):
        tracker: Tracker = _tracker_class(section)(**section.arguments)
        return tracker
    if isinstance(section, TensorboardSection):
        return TensorboardTracker(section)
    if isinstance(section, WandbSection):
        return WandbTracker(section)
    if isinstance(section, TrackioSection):
        return TrackioTracker(section)
    assert isinstance(section, MlflowSection)
    return MlflowTracker(section)


def require_tracker(section: TrackerSection) -> None:
    """Raise an error if a tracker cannot be made; nothing of it is started.

    Raises:
        ConfigError: A custom class cannot be loaded, or lacks a method.
        MissingDependencyError: Its package is missing; with the pip command.
    """
    if isinstance(section, PythonTrackerSection):
        _tracker_class(section)
        return
    package, spec = PACKAGES[section.type], find_spec(section.type)
    if spec is None or spec.origin is None:  # a folder of this name in the working directory is no match
        raise MissingDependencyError(
            f"{section.type}: the package {package} is not installed; fix: pip install {package}"
        )


def tracker_names(sections: Sequence[TrackerSection]) -> list[str]:
    """A name for each, of which its files are named: its type, numbered where there are several."""
    counts: dict[str, int] = {}
    names = []
    for section in sections:
        counts[section.type] = counts.get(section.type, 0) + 1
        number = counts[section.type]
        names.append(section.type if number == 1 else f"{section.type}-{number}")
    return names


def _tracker_class(section: PythonTrackerSection) -> Any:
    value = load_object(section.tracker, lambda value: isinstance(value, type)).value
    missing = [name for name in METHODS if not callable(getattr(value, name, None))]
    if not callable(value) or missing:
        problem = f"has no {', '.join(missing)}" if missing else "is not a class"
        raise ConfigError(f'"{section.tracker}" {problem}; fix: give it the methods {", ".join(METHODS)}')
    return value


def section_of(values: Mapping[str, Any]) -> TrackerSection:
    """The section with these values, which are valid."""
    from pydantic import TypeAdapter

    adapter: TypeAdapter[TrackerSection] = TypeAdapter(TrackerSection)
    return adapter.validate_python(dict(values))
