"""Trackers of other packages, which are imported when a run is shown by them."""

import json
import os
import secrets
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from paretune.config.tracker_schema import MlflowSection, TensorboardSection, TrackioSection, WandbSection
from paretune.run.compat import TRACKERS_FOLDER
from paretune.trackers.base import Row, TrackedRun

NO_TELEMETRY = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "WANDB_ERROR_REPORTING": "false",
    "HF_HUB_DISABLE_TELEMETRY": "1",
}
"""Environment of these packages, unless a person set it: they show a run, and do not report their use."""
MAX_PARAM_CHARS = 500
"""Longest value of a parameter that every version of MLflow takes."""


def stage_of(metrics: Mapping[str, float]) -> str:
    """The stage in whose steps these metrics count."""
    return next(iter(metrics), "").partition("/")[0]


def table_of(rows: Sequence[Row]) -> tuple[list[str], list[list[Any]]]:
    """All columns, in the order in which they first appear, and the values of each row in them."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    return columns, [[row.get(column) for column in columns] for row in rows]


class TensorboardTracker:
    """Event files of scalars, and tables as text."""

    def __init__(self, section: TensorboardSection) -> None:
        self.section = section

    def start(self, run: TrackedRun) -> None:
        """Open a new event file: TensorBoard reads all of a folder as one run."""
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        folder = Path(self.section.directory or run.folder / TRACKERS_FOLDER / "tensorboard")
        self.writer = EventFileWriter(str(folder))
        if not run.memory:
            self._write(
                "config", 0, _markdown([{"key": k, "value": str(v)} for k, v in run.flat_config.items()])
            )
            run.memory["started"] = "yes"

    def log_metrics(self, step: int, metrics: Mapping[str, float]) -> None:
        """One scalar per metric."""
        from tensorboard.compat.proto.summary_pb2 import Summary

        values = [Summary.Value(tag=name, simple_value=value) for name, value in metrics.items()]
        self._add(step, Summary(value=values))

    def log_table(self, name: str, step: int, rows: Sequence[Row]) -> None:
        """A table in Markdown, under Text."""
        self._write(name, step, _markdown(rows))

    def finish(self, status: str) -> None:
        """Close the file."""
        self.writer.close()

    def _write(self, name: str, step: int, text: str) -> None:
        """A text as the plugin stores it, whose own function needs TensorFlow."""
        from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
        from tensorboard.compat.proto.tensor_pb2 import TensorProto
        from tensorboard.compat.proto.types_pb2 import DT_STRING

        plugin = SummaryMetadata.PluginData(plugin_name="text")
        value = Summary.Value(
            tag=f"{name}/text_summary",
            tensor=TensorProto(dtype=DT_STRING, string_val=[text.encode()]),
            metadata=SummaryMetadata(plugin_data=plugin),
        )
        self._add(step, Summary(value=[value]))

    def _add(self, step: int, summary: Any) -> None:
        from tensorboard.compat.proto.event_pb2 import Event

        self.writer.add_event(Event(wall_time=time.time(), step=step, summary=summary))
        self.writer.flush()


class WandbTracker:
    """A run of Weights & Biases; each stage has steps of its own."""

    def __init__(self, section: WandbSection) -> None:
        self.section = section

    def start(self, run: TrackedRun) -> None:
        """Begin a run, or go on with the one of this folder."""
        import wandb

        run_id = run.memory.setdefault("id", secrets.token_hex(4))
        folder = Path(self.section.directory or run.folder / TRACKERS_FOLDER)
        folder.mkdir(parents=True, exist_ok=True)
        self.wandb = wandb
        self.run = wandb.init(
            project=self.section.project,
            entity=self.section.entity,
            name=self.section.name or run.name,
            id=run_id,
            resume="allow",
            mode=self.section.mode,
            dir=str(folder),
            config=run.flat_config,
        )
        self._stages: set[str] = set()

    def log_metrics(self, step: int, metrics: Mapping[str, float]) -> None:
        """One row, with the step of its stage as the axis."""
        stage = stage_of(metrics)
        if stage not in self._stages:
            self._stages.add(stage)
            self.run.define_metric(f"{stage}/step")
            self.run.define_metric(f"{stage}/*", step_metric=f"{stage}/step")
        self.run.log({**metrics, f"{stage}/step": step})

    def log_table(self, name: str, step: int, rows: Sequence[Row]) -> None:
        """A table."""
        columns, data = table_of(rows)
        self.run.log({name: self.wandb.Table(columns=columns, data=data, allow_mixed_types=True)})

    def finish(self, status: str) -> None:
        """End the run there."""
        self.run.finish(exit_code=0 if status == "done" else 1)


class TrackioTracker:
    """A run in the local database of trackio."""

    def __init__(self, section: TrackioSection) -> None:
        self.section = section

    def start(self, run: TrackedRun) -> None:
        """Begin a run, or go on with the one of this name."""
        if self.section.directory is not None:
            os.environ["TRACKIO_DIR"] = str(Path(self.section.directory).resolve())
        import trackio

        self.trackio = trackio
        name = self.section.name or run.name
        config = {key: _plain(value) for key, value in run.flat_config.items()}
        self.run = trackio.init(
            project=self.section.project,
            name=name,
            resume="allow",
            config=config,
            embed=False,
            auto_log_cpu=False,
            auto_log_gpu=False,
        )

    def log_metrics(self, step: int, metrics: Mapping[str, float]) -> None:
        """One row of the step."""
        self.trackio.log(dict(metrics), step=step)

    def log_table(self, name: str, step: int, rows: Sequence[Row]) -> None:
        """A table."""
        columns, data = table_of(rows)
        self.trackio.log({name: self.trackio.Table(columns=columns, data=data)}, step=step)

    def finish(self, status: str) -> None:
        """Wait until everything is in the database."""
        self.trackio.finish()


class MlflowTracker:
    """A run of MLflow, on a server or in a file."""

    def __init__(self, section: MlflowSection) -> None:
        self.section = section

    def start(self, run: TrackedRun) -> None:
        """Begin a run, or go on with the one of this folder."""
        from mlflow.tracking import MlflowClient

        folder = (run.folder / TRACKERS_FOLDER).resolve()
        file = f"sqlite:///{folder / 'mlflow.db'}"
        uri = self.section.tracking_uri or os.environ.get("MLFLOW_TRACKING_URI") or file
        self.client = MlflowClient(tracking_uri=uri)
        if "id" not in run.memory:
            experiment = self.client.get_experiment_by_name(self.section.experiment)
            name = self.section.experiment
            place = (folder / "mlflow").as_uri() if uri == file else None
            number = (
                self.client.create_experiment(name, artifact_location=place)
                if experiment is None
                else experiment.experiment_id
            )
            made = self.client.create_run(number, run_name=self.section.name or run.name)
            run.memory["id"] = made.info.run_id
            for key, value in run.flat_config.items():
                self.client.log_param(run.memory["id"], key, str(_plain(value))[:MAX_PARAM_CHARS])
        self.run_id = run.memory["id"]
        self.client.update_run(self.run_id, status="RUNNING")

    def log_metrics(self, step: int, metrics: Mapping[str, float]) -> None:
        """All metrics of the step in one request."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        values = [Metric(name, value, now, step) for name, value in metrics.items()]
        self.client.log_batch(self.run_id, metrics=values)

    def log_table(self, name: str, step: int, rows: Sequence[Row]) -> None:
        """A table as an artifact, columns first as MLflow's own tables."""
        columns, data = table_of(rows)
        text = json.dumps({"columns": columns, "data": data})
        self.client.log_text(self.run_id, text, f"{name}/step-{step:06d}.json")

    def finish(self, status: str) -> None:
        """Record how the run ended."""
        ends = {"done": "FINISHED", "stopped": "KILLED", "killed": "KILLED"}
        self.client.set_terminated(self.run_id, status=ends.get(status, "FAILED"))


def _plain(value: Any) -> Any:
    return value if isinstance(value, str | int | float | bool) else json.dumps(value)


def _markdown(rows: Sequence[Row]) -> str:
    """A table in Markdown, whose cells are no markup."""
    columns, data = table_of(rows)
    lines = [columns, ["---"] * len(columns)]
    lines += [["" if value is None else str(value) for value in row] for row in data]
    return "\n".join("| " + " | ".join(map(_cell, line)) + " |" for line in lines)


def _cell(text: str) -> str:
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")
