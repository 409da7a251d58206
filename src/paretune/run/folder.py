"""The run folder: status, configuration, metrics and events of one run, in files that survive a kill.

    run.json            status, stage, step, exit code, hashes  replaced atomically
    LOCK, .lock         process that is using the folder        removed when it ends
    config/             recipe.yaml as given, and resolved.yaml with every key filled in
    env.json            versions, host, matmul throughput; no values of environment variables
    metrics.jsonl       one line per step, no timestamps: byte-identical after a resume
    timing.jsonl        seconds per step and phase, FLOPs, tokens, memory
    events.jsonl        warnings, resumes, checkpoints, stops

Whole files are written as `x.tmp`, fsync, rename, fsync of the folder. A line is appended in one write, and
readers ignore an incomplete last line. No file of a run folder is a pickle.
"""

import difflib
import json
import os
import platform
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import TracebackType
from typing import Any

from paretune.core.errors import DataError, RankError, WiringError, exit_code_of
from paretune.core.launch import is_distributed, is_first
from paretune.run.compat import (
    MANIFEST_FILE,
    RESOLVED_CONFIG_FILE,
    RESUME_MUTABLE_KEYS,
    check_data_unchanged,
    check_resumable,
    config_changes,
    judged_before,
    replace_evaluation,
    reset_if_no_results,
)
from paretune.run.heartbeat import explain_rank_error, remove_heartbeats, write_heartbeat
from paretune.run.io import append_jsonl, read_json, read_jsonl, to_json, write_atomic, write_error
from paretune.run.lock import RunLock
from paretune.run.metrics import METRICS, TIMINGS, Metric, find_metric, find_timing

__all__ = [
    "METRICS",
    "TIMINGS",
    "Metric",
    "Run",
    "environment_info",
    "find_metric",
    "read_json",
    "read_jsonl",
    "to_json",
    "write_atomic",
]

RUN_SCHEMA = "paretune/run/2"
JSONL_FILES = ("metrics.jsonl", "timing.jsonl", "rollouts.jsonl", "events.jsonl")
EARLIER_EVALUATION_EVENT = "earlier_evaluation"
"""Event of another evaluation of a policy that was evaluated before; its text is a warning of the report."""
NEGATIVE_SHARE_EVENT = "negative_variance_share"
"""Event of an objective that the reward lowered during the training."""
CONSTANT_SCORE_EVENT = "constant_score"
"""Event of an objective that scored all responses of the first steps alike, or none of them."""
MISMATCH_EVENT = "rollout_mismatch"
"""Event of sampler and trainer giving different probabilities to the same tokens."""
RESUME_TRUNCATED_FILES = ("metrics.jsonl", "timing.jsonl", "rollouts.jsonl")
"""Files that a resume truncates to the checkpoint; events are kept, since they record the crash."""

Number = int | float


class Run:
    """One run folder, open for writing.

    `Run(path)` only creates the folder. `Run.start_or_resume(...)` also takes the lock and writes run.json;
    used as a context manager it records how the run ended:

        with Run.start_or_resume("runs/a", name="a", config_hash=..., files=...) as run:
            ...
    """

    def __init__(self, path: str | Path, *, stage: str = "align") -> None:
        self.path = Path(path)
        self.stage = stage
        self.phase = stage
        """Phase of the current step, or the stage; for the heartbeats of ranks."""
        self.step: int | None = None
        """Current step of a training loop; None outside of one."""
        self.previous_state: Mapping[str, Any] | None = None
        """Content of run.json before this attempt; None for a new run."""
        self.on_metrics: Callable[[int, Mapping[str, Number]], None] | None = None
        """Called with each line of metrics.jsonl, after it was written."""
        self._lock: RunLock | None = None
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise write_error(self.path, error) from error

    @classmethod
    def start_or_resume(
        cls,
        path: str | Path,
        *,
        name: str,
        config_hash: str,
        files: Mapping[str, str] | None = None,
        data_manifest: Mapping[str, Any] | None = None,
        evaluation: Mapping[str, str] | None = None,
    ) -> "Run":
        """Open and lock a new run folder, or one that the same configuration started.

        Args:
            path: The folder.
            name: Name of the run in the report.
            config_hash: Hash of everything that decides the run's numbers; a different hash is another run.
                With `evaluation`: of everything that decides the numbers of the training.
            files: Text files to write when the folder is new, by path inside the folder. config/resolved.yaml
                among them lets an error name the keys that differ.
            data_manifest: Content of data/manifest.json, which must not change on resume except `exclusions`,
                and the entries that its key `evaluation` names.
            evaluation: Hashes of what only the evaluation reads, by section; they may change as long as the
                run holds no judgment.

        Raises:
            ConfigError: The folder holds another run with results, or files of no run; another process is
                using it; or the run was started on other data.
        """
        resolved = (files or {}).get(RESOLVED_CONFIG_FILE, "")
        check_resumable(Path(path), config_hash, resolved)
        run = cls(path)
        run._lock = RunLock(run.path, config_hash)
        try:
            # Again, now that no other process can start a run here.
            check_resumable(run.path, config_hash, resolved)
            was_reset = reset_if_no_results(run.path, config_hash, data_manifest or {})
            check_data_unchanged(run.path, data_manifest or {})
            replaced = replace_evaluation(run.path, evaluation or {}, resolved)
            run._drop_torn_lines()
            run._start_attempt(name, config_hash, run._lock.previous_holder, resolved)
            remove_heartbeats(run.path)
            if evaluation:
                run.update_state(evaluation=dict(evaluation))
            setup_files = {
                **(files or {}),
                **({MANIFEST_FILE: to_json(data_manifest)} if data_manifest is not None else {}),
            }
            for name_inside, text in setup_files.items():
                (run.path / name_inside).parent.mkdir(parents=True, exist_ok=True)
                # A resume keeps the files of the first attempt, unless its evaluation is another one.
                if replaced or not (run.path / name_inside).exists():
                    write_atomic(run.path / name_inside, text)
            if was_reset:
                run.log_event("restarted_empty", "the folder held a run without results; it was emptied")
            if replaced:
                run._log_replaced(replaced)
        except BaseException:
            run.release()
            raise
        return run

    def __enter__(self) -> "Run":
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if exc is not None and is_distributed():
            write_heartbeat(self.path, self.step, self.phase, exc)
            if isinstance(exc, RankError):
                explain_rank_error(self.path, exc)
        status, code = _exit_status(exc)
        try:
            if exc is not None:
                self.log_event(status, f"{type(exc).__name__}: {exc}")
            self.update_state(status=status, exit_code=code)
        finally:
            self.release()

    def enter_stage(self, stage: str) -> None:
        """Start a stage of the pipeline; later lines carry its name."""
        self.stage, self.step = stage, None
        self.update_state(stage=stage)
        self.write_heartbeat(None, stage)

    def write_heartbeat(self, step: int | None, phase: str) -> None:
        """Record where this rank is, so that the others can name it if it does not answer."""
        self.step, self.phase = step, phase
        if is_distributed():
            write_heartbeat(self.path, step, phase)

    def resume_message(self, max_steps: int) -> str:
        """One line on where a resumed run continues; "" for a new run.

        Args:
            max_steps: Number of steps of the run.
        """
        if self.previous_state is None:
            return ""
        stage = self.previous_state.get("stage")
        if self.previous_state.get("status") == "done":
            return f"resuming {self.path}: every stage is complete"
        if stage == "align":
            step = self.previous_state.get("step", 0)
            return f"resuming {self.path}: stage align, step {step} of {max_steps}"
        return f"resuming {self.path}: " + (f"stage {stage}" if stage else "no stage was started")

    def update_state(self, **changes: str | int | float | Mapping[str, str] | None) -> None:
        """Change some entries of run.json."""
        state = read_json(self.path / "run.json") or {"schema": RUN_SCHEMA}
        write_atomic(self.path / "run.json", to_json(state | changes))

    def log_metrics(self, step: int, metrics: Mapping[str, Number]) -> None:
        """Append one line to metrics.jsonl; NaN and infinities become null.

        Raises:
            WiringError: A key is not in METRICS.
        """
        _check_known_metrics((key for key in metrics if find_metric(key) is None), METRICS, "METRICS")
        append_jsonl(self.path / "metrics.jsonl", {"stage": self.stage, "step": step, **metrics})
        if self.on_metrics is not None:
            self.on_metrics(step, metrics)

    def log_timing(self, step: int, **timings: Number) -> None:
        """Append one line to timing.jsonl, for numbers that may differ between two identical runs.

        Raises:
            WiringError: A key is not in TIMINGS.
        """
        _check_known_metrics((key for key in timings if find_timing(key) is None), TIMINGS, "TIMINGS")
        append_jsonl(self.path / "timing.jsonl", {"stage": self.stage, "step": step, **timings})

    def log_rollouts(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """Append one line to rollouts.jsonl: some responses of a training step, with their scores."""
        append_jsonl(self.path / "rollouts.jsonl", {"stage": self.stage, "step": step, "samples": list(rows)})

    def update_environment(self, **facts: Any) -> None:
        """Change some entries of env.json, such as the measured matmul throughput."""
        path = self.path / "env.json"
        write_atomic(path, to_json((read_json(path) or {}) | facts))

    def log_event(self, event_type: str, text: str) -> None:
        """Append one line to events.jsonl: a warning, a resume, a stop."""
        event = {"time": _utc_now(), "stage": self.stage, "type": event_type, "text": text}
        append_jsonl(self.path / "events.jsonl", event)

    def log_offsets(self) -> dict[str, int]:
        """Sizes in bytes of the files that a resume truncates, flushed to disk first."""
        sizes = {}
        for name in RESUME_TRUNCATED_FILES:
            path = self.path / name
            if path.exists():
                with path.open("rb") as file:
                    os.fsync(file.fileno())
                sizes[name] = path.stat().st_size
            else:
                sizes[name] = 0
        return sizes

    def truncate_logs(self, offsets: Mapping[str, int]) -> None:
        """Remove the lines written after `log_offsets` was called.

        Raises:
            DataError: A file is shorter than its offset.
        """
        for name in RESUME_TRUNCATED_FILES if is_first() else ():
            size, path = offsets.get(name, 0), self.path / name
            current_size = path.stat().st_size if path.exists() else 0
            if current_size < size:
                raise DataError(
                    f"{path}: has {current_size} bytes, but the checkpoint was made at {size} bytes; "
                    "fix: start in a new folder"
                )
            if current_size > size:
                os.truncate(path, size)

    def discard_stage(self, stage: str) -> None:
        """Remove the last lines, as far as they are of this stage: a stage without a checkpoint starts over.

        Earlier lines of the stage are those of a judge that was replaced after the alignment; they stay.
        """
        for name in RESUME_TRUNCATED_FILES if is_first() else ():
            path = self.path / name
            if not path.exists():
                continue
            lines = path.read_bytes().splitlines(keepends=True)
            while lines and (not lines[-1].endswith(b"\n") or json.loads(lines[-1])["stage"] == stage):
                lines.pop()
            os.truncate(path, sum(map(len, lines)))

    def release(self) -> None:
        """Release the lock; does nothing if the run holds none."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def _drop_torn_lines(self) -> None:
        for name in JSONL_FILES:
            path = self.path / name
            if path.exists():
                content = path.read_bytes()
                os.truncate(path, content.rfind(b"\n") + 1)

    def _log_replaced(self, sections: Sequence[str]) -> None:
        """Record that these sections of the evaluation are others now, and whether they had judged before."""
        if judged_before(self.previous_state):
            other = "by another judge" if "judge" in sections else "with other settings"
            text = f"Judged again: an earlier evaluation of this policy {other} was removed or renamed."
            self.log_event(EARLIER_EVALUATION_EVENT, text)
        else:
            text = f"nothing was judged yet: other {' and '.join(sections)}"
            self.log_event("evaluation_replaced", text)

    def _start_attempt(self, name: str, config_hash: str, previous_holder: str, resolved_config: str) -> None:
        state = self.previous_state = read_json(self.path / "run.json")
        if state is None:
            state = {"schema": RUN_SCHEMA, "name": name, "config_hash": config_hash, "step": 0, "attempt": 0}
            state["started_at"] = _utc_now()
        attempt = int(state.get("attempt", 0)) + 1
        process = {"host": platform.node(), "pid": os.getpid()}
        status = {"status": "running", "exit_code": None, "attempt": attempt}
        write_atomic(self.path / "run.json", to_json(state | status | process))
        if previous_holder:
            self.log_event("stale_lock", f"took over the lock of {previous_holder}, which no longer runs")
        if attempt > 1:
            changes = [
                f"{'.'.join(key)} was {there}, is {here}"
                for key, there, here in config_changes(self.path, resolved_config)
                if key in RESUME_MUTABLE_KEYS
            ]
            self.log_event("resumed", "; ".join([f"attempt {attempt}", *changes]))


def _utc_now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def environment_info() -> dict[str, Any]:
    """Versions of packages and facts about the host for env.json; no values of environment variables."""
    names = ("paretune", "torch", "transformers", "tokenizers", "peft", "safetensors", "numpy", "pydantic")
    versions: dict[str, str | None] = {}
    for name in names:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = None
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cores": os.cpu_count(),
        "versions": versions,
    }


def _check_known_metrics(keys: Iterable[str], registry: Mapping[str, Metric], registry_name: str) -> None:
    for key in keys:
        nearest = difflib.get_close_matches(key, registry, 1, 0.0)
        raise WiringError(
            f'unknown metric "{key}"; the nearest known one is "{nearest[0]}"; '
            f"fix: add it to paretune.run.metrics.{registry_name} with unit, description and direction"
        )


def _exit_status(error: BaseException | None) -> tuple[str, int]:
    if error is None:
        return "done", 0
    code = exit_code_of(error)
    return ("stopped" if code in (75, 130) else "failed"), code
