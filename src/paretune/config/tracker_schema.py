"""Schema of trackers: where the metrics of a run are shown besides its own folder."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, JsonValue

from paretune.config.data_schema import NonEmptyStr, PathStr, Section


class TensorboardSection(Section):
    """TensorBoard: event files that `tensorboard --logdir` shows."""

    type: Literal["tensorboard"]
    directory: PathStr | None = None
    """Folder of the event files; null: `trackers/tensorboard` in the run folder."""


class WandbSection(Section):
    """Weights & Biases; its own environment variables, such as WANDB_MODE=offline, hold too."""

    type: Literal["wandb"]
    project: NonEmptyStr = "paretune"
    entity: NonEmptyStr | None = None
    """User or team; null: your default."""
    name: NonEmptyStr | None = None
    """Name of the run; null: the name of the recipe."""
    mode: Literal["online", "offline"] | None = None
    """offline: write only files, for `wandb sync`; null: WANDB_MODE, or online."""
    directory: PathStr | None = None
    """Folder of the files of wandb; null: `trackers` in the run folder."""


class TrackioSection(Section):
    """Trackio: a local database that `trackio show` shows."""

    type: Literal["trackio"]
    project: NonEmptyStr = "paretune"
    name: NonEmptyStr | None = None
    """Name of the run; null: the name of the recipe."""
    directory: PathStr | None = None
    """Folder of the database; null: TRACKIO_DIR, or trackio's default."""


class MlflowSection(Section):
    """MLflow: a server or a local database."""

    type: Literal["mlflow"]
    tracking_uri: NonEmptyStr | None = None
    """Address of the server, or `sqlite:///FILE`; null: MLFLOW_TRACKING_URI, or
    `trackers/mlflow.db` in the run folder."""
    experiment: NonEmptyStr = "paretune"
    name: NonEmptyStr | None = None
    """Name of the run; null: the name of the recipe."""


class PythonTrackerSection(Section):
    """Your own class with the methods of `paretune.Tracker`; it runs in a separate process."""

    type: Literal["python"]
    tracker: NonEmptyStr
    """`package.module:Class`, or `file.py:Class` with a path relative to the working directory."""
    arguments: dict[NonEmptyStr, JsonValue] = Field(default_factory=dict)
    """Keyword arguments of the class."""


def _as_section(value: Any) -> Any:
    return {"type": value} if isinstance(value, str) else value


TrackerSection = Annotated[
    TensorboardSection | WandbSection | TrackioSection | MlflowSection | PythonTrackerSection,
    Field(discriminator="type"),
]
"""A tracker of any type."""
TrackerEntry = Annotated[
    TrackerSection,
    BeforeValidator(
        _as_section,
        json_schema_input_type=TrackerSection | Literal["tensorboard", "wandb", "trackio", "mlflow"],
    ),
]
"""A tracker, or its type alone."""
