"""The run folder: what a run was and did, in files that survive a kill; and the dictionary of metrics.

    run.json            status, stage, step, exit code          replaced as a whole
    LOCK                who is at work in here                   gone when nobody is
    config/             the recipe as given, and with every key filled in
    env.json            versions and machine, how fast it multiplies; no values of environment variables
    metrics.jsonl       one line a step, no clock inside: byte for byte the same after a resume
    timing.jsonl        seconds of each step and of its phases, what they had to do, tokens, memory
    events.jsonl        warnings, resumes, checkpoints, stops

A whole file is written as `x.tmp`, fsync, replace, fsync of the folder. A line is appended in one write,
and every reader ignores a last line that was torn. Nothing in a run folder is a pickle.
"""

import difflib
import json
import os
import platform
import time
from collections.abc import Iterable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import TracebackType
from typing import Any

from paretune.core.errors import DataError, ParetuneError, WiringError
from paretune.run.compat import (
    MANIFEST_FILE,
    RESOLVED_CONFIG_FILE,
    RESUME_MUTABLE_KEYS,
    check_data_unchanged,
    check_resumable,
    config_changes,
    reset_if_no_results,
)
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

RUN_SCHEMA = "paretune/run/1"
JSONL_FILES = ("metrics.jsonl", "timing.jsonl", "events.jsonl")
RESUME_TRUNCATED_FILES = ("metrics.jsonl", "timing.jsonl")
"""The files a resume cuts back to the checkpoint; events stay, for a crash is part of the story."""

Number = int | float


class Run:
    """One run folder, open for writing.

    `Run(path)` only makes the folder. `Run.claim(...)` also takes the lock and writes what identifies the
    run; used as a context it records how the run ended:

        with Run.claim("runs/a", name="a", config_hash=..., files={"config/run.yaml": text}) as run: ...
    """

    def __init__(self, path: str | Path, *, stage: str = "align") -> None:
        self.path = Path(path)
        self.stage = stage
        self.previous_state: Mapping[str, Any] | None = None
        """What run.json said before this attempt claimed the folder; None: the run is new."""
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
    ) -> "Run":
        """Open a new run folder, or one that the same configuration began, and lock it.

        Args:
            path: The folder.
            name: What the run is called in the report.
            config_hash: Of everything that decides the run's numbers; another hash is another run.
            files: Text of files to lay down when the folder is new, by path inside the folder; a refusal
                says what differs in config/resolved.yaml.
            data_manifest: What data/manifest.json says, and has said since the run began; `left_out` may differ.

        Raises:
            ConfigError: The folder holds another run, which has made something, or foreign files, another
                process is at work in it, or it was begun with other data.
        """
        resolved = (files or {}).get(RESOLVED_CONFIG_FILE, "")
        check_resumable(Path(path), config_hash, resolved)
        run = cls(path)
        run._lock = RunLock(run.path, config_hash)
        try:
            check_resumable(run.path, config_hash, resolved)
            anew = reset_if_no_results(run.path, config_hash, data_manifest or {})
            check_data_unchanged(run.path, data_manifest or {})
            run._drop_torn_lines()
            run._start_attempt(name, config_hash, run._lock.previous_holder, resolved)
            laid = {
                **(files or {}),
                **({MANIFEST_FILE: to_json(data_manifest)} if data_manifest is not None else {}),
            }
            for inside, text in laid.items():
                (run.path / inside).parent.mkdir(parents=True, exist_ok=True)
                if not (run.path / inside).exists():
                    write_atomic(run.path / inside, text)
            if anew:
                run.log_event("anew", "in the folder of a run that had made nothing")
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
        status, code = _exit_status(exc)
        try:
            if exc is not None:
                self.log_event(status, f"{type(exc).__name__}: {exc}")
            self.update_state(status=status, exit_code=code)
        finally:
            self.release()

    # --- what a run says of itself -------------------------------------------------------------

    def enter_stage(self, stage: str) -> None:
        """Enter a stage: later metrics carry its name."""
        self.stage = stage
        self.update_state(stage=stage)

    def resume_message(self, max_steps: int) -> str:
        """Where a run that was begun before stands, as one line; "" for a new one. `max_steps`: of the run."""
        if self.previous_state is None:
            return ""
        stage = self.previous_state.get("stage")
        if self.previous_state.get("status") == "done":
            return f"goes on in {self.path}: every stage was complete"
        if stage == "align":
            return f"goes on in {self.path}: stage align, step {self.previous_state.get('step', 0)} of {max_steps}"
        return f"goes on in {self.path}: " + (f"stage {stage}" if stage else "no stage was begun")

    def update_state(self, **changes: str | int | float | None) -> None:
        """Change some entries of run.json."""
        book = read_json(self.path / "run.json") or {"schema": RUN_SCHEMA}
        write_atomic(self.path / "run.json", to_json(book | changes))

    def log_metrics(self, step: int, metrics: Mapping[str, Number]) -> None:
        """Append one line of metrics; a number that is not finite becomes null.

        Raises:
            WiringError: A key is not in METRICS.
        """
        _check_known_metrics((key for key in metrics if find_metric(key) is None), METRICS, "METRICS")
        append_jsonl(self.path / "metrics.jsonl", {"stage": self.stage, "step": step, **metrics})

    def log_timing(self, step: int, **timings: Number) -> None:
        """Append one line of seconds, tokens or bytes: all that may differ between two equal runs.

        Raises:
            WiringError: A key is not in TIMINGS.
        """
        _check_known_metrics((key for key in timings if find_timing(key) is None), TIMINGS, "TIMINGS")
        append_jsonl(self.path / "timing.jsonl", {"stage": self.stage, "step": step, **timings})

    def update_environment(self, **facts: Any) -> None:
        """Change some entries of env.json: what was found out about the machine."""
        path = self.path / "env.json"
        write_atomic(path, to_json((read_json(path) or {}) | facts))

    def log_event(self, event_type: str, text: str) -> None:
        """Append one line on something that happened: a warning, a resume, a stop."""
        when = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        append_jsonl(
            self.path / "events.jsonl", {"time": when, "stage": self.stage, "kind": event_type, "text": text}
        )

    # --- stopping and going on -----------------------------------------------------------------

    def log_offsets(self) -> dict[str, int]:
        """Byte lengths of the files a resume cuts back; what they count has reached the disk."""
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
        """Forget the lines written after `log_offsets` were taken.

        Raises:
            DataError: A file is shorter than that.
        """
        for name in RESUME_TRUNCATED_FILES:
            size, path = offsets.get(name, 0), self.path / name
            have = path.stat().st_size if path.exists() else 0
            if have < size:
                raise DataError(
                    f"{path}: {have} bytes, but the checkpoint says {size}; fix: start in a new folder"
                )
            if have > size:
                os.truncate(path, size)

    def discard_stage(self, stage: str) -> None:
        """Forget what a stage wrote, and all after it: it begins again, having no checkpoint."""
        for name in RESUME_TRUNCATED_FILES:
            path, at = self.path / name, 0
            if not path.exists():
                continue
            for line in path.read_bytes().splitlines(keepends=True):
                if not line.endswith(b"\n") or json.loads(line)["stage"] == stage:
                    os.truncate(path, at)
                    break
                at += len(line)

    def release(self) -> None:
        """Give the lock back; harmless when there is none."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    # --- within --------------------------------------------------------------------------------

    def _drop_torn_lines(self) -> None:
        for name in JSONL_FILES:
            path = self.path / name
            if path.exists():
                content = path.read_bytes()
                os.truncate(path, content.rfind(b"\n") + 1)

    def _start_attempt(self, name: str, config_hash: str, previous_holder: str, resolved_config: str) -> None:
        book = self.previous_state = read_json(self.path / "run.json")
        if book is None:
            book = {"schema": RUN_SCHEMA, "name": name, "config_hash": config_hash, "step": 0, "attempt": 0}
            book["started"] = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        attempt = int(book.get("attempt", 0)) + 1
        host = platform.node()
        now = {"status": "running", "exit_code": None, "attempt": attempt, "host": host, "pid": os.getpid()}
        write_atomic(self.path / "run.json", to_json(book | now))
        if previous_holder:
            self.log_event("stale_lock", f"took over the lock of {previous_holder}, which is gone")
        if attempt > 1:
            moved = [
                f"{'.'.join(key)} was {there}, is {here}"
                for key, there, here in config_changes(self.path, resolved_config)
                if key in RESUME_MUTABLE_KEYS
            ]
            self.log_event("resume", "; ".join([f"attempt {attempt}", *moved]))


def environment_info() -> dict[str, Any]:
    """Versions and machine, for env.json; nothing secret, no values of environment variables."""
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
        near = difflib.get_close_matches(key, registry, 1, 0.0)
        raise WiringError(
            f'metric "{key}" is not in the dictionary; the nearest is "{near[0]}"; '
            f"fix: give it a unit, a meaning and a direction in rundir.{registry_name}"
        )


def _exit_status(error: BaseException | None) -> tuple[str, int]:
    if error is None:
        return "done", 0
    if isinstance(error, KeyboardInterrupt):
        return "stopped", 130
    code = error.exit_code if isinstance(error, ParetuneError) else 1
    return ("stopped" if code == 75 else "failed"), code
