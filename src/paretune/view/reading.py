"""Reading of files that another process may be writing: a damaged one is a message on the page, no error."""

import json
import os
import time
from dataclasses import dataclass, field
from functools import cached_property
from threading import Lock
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from paretune.core.goals import Goal
from paretune.report.formatting import finite_or_none
from paretune.report.run_page import EVALUATION_SCHEMA
from paretune.run.heartbeat import is_running
from paretune.view.folders import EVALUATION_FILE, RUN_FILE, Folder

MAX_JSON_BYTES = 50_000_000
TAIL_BYTES = 200_000
"""Bytes of events.jsonl that a page shows: its last ones."""
LAST_LINE_BYTES = 30_000
"""Bytes of metrics.jsonl that hold its last line: one has a few thousand."""
MAX_TABLES = 4
"""Tables of responses that are kept in memory."""


@dataclass(frozen=True, slots=True)
class Result:
    """The content of a file, or why it could not be read."""

    value: dict[str, Any] | None
    problem: str = ""
    """"" if the file was read, or is not there yet."""


def read_object(folder: Folder, name: str) -> Result:
    """The object of a JSON file of a run."""
    try:
        with folder.open_file(name) as file:
            value = json.loads(file.read(MAX_JSON_BYTES))
    except FileNotFoundError:
        return Result(None)
    except OSError as error:
        return Result(None, f"{name} cannot be read: {error.strerror or error}")
    except (ValueError, RecursionError):
        return Result(None, f"{name} is damaged, or is being written")
    if not isinstance(value, dict):
        return Result(None, f"{name} is not a JSON object")
    return Result(value)


def read_last_lines(
    folder: Folder, name: str, num_bytes: int = TAIL_BYTES
) -> tuple[list[dict[str, Any]], int]:
    """The last objects of a JSONL file, and the number of damaged lines; an unfinished one is ignored."""
    try:
        with folder.open_file(name) as file:
            size = file.seek(0, os.SEEK_END)
            start = max(0, size - num_bytes)
            file.seek(start)
            data = file.read(num_bytes)
    except OSError:
        return [], 0
    lines = data.split(b"\n")[1 if start else 0 : -1]
    return parse_lines(lines)


def parse_lines(lines: list[bytes]) -> tuple[list[dict[str, Any]], int]:
    """The objects of the lines that are whole, and the number of the others."""
    objects, num_damaged = [], 0
    for line in lines:
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            value = None
        if isinstance(value, dict):
            objects.append(value)
        else:
            num_damaged += 1
    return objects, num_damaged


@dataclass(frozen=True, slots=True)
class Status:
    """Where a run is."""

    word: str
    """running, done, stopped, failed, killed; "unknown" of a damaged run.json."""
    stage: str
    step: int
    exit_code: int | None
    age: str
    """Seconds since the last line of metrics.jsonl, in words; "" unless the run is running."""
    problem: str = ""

    @property
    def is_running(self) -> bool:
        """Whether the process of the run is at work."""
        return self.word == "running"


def read_status(folder: Folder) -> tuple[Status, dict[str, Any]]:
    """The status of a run and the content of its run.json."""
    result = read_object(folder, RUN_FILE)
    info = result.value or {}
    word = str(info.get("status", "unknown"))
    pid, step, code = info.get("pid"), info.get("step"), info.get("exit_code")
    saved = step if isinstance(step, int) else 0
    if word == "running" and isinstance(pid, int) and not is_running(str(info.get("host")), pid):
        word = "killed"
    status = Status(
        word=word,
        stage=str(info.get("stage") or "data"),
        step=_last_step(folder, saved) if word == "running" else saved,
        exit_code=code if isinstance(code, int) else None,
        age=_age(folder) if word == "running" else "",
        problem=result.problem,
    )
    return status, info


def _last_step(folder: Folder, saved: int) -> int:
    """Steps that a running run has finished: run.json only counts those of its last checkpoint."""
    lines, _ = read_last_lines(folder, "metrics.jsonl", LAST_LINE_BYTES)
    step = lines[-1].get("step") if lines else None
    return step + 1 if isinstance(step, int) else saved


def _age(folder: Folder) -> str:
    try:
        with folder.open_file("metrics.jsonl") as file:
            seconds = max(0.0, time.time() - os.fstat(file.fileno()).st_mtime)
    except OSError:
        return ""
    units = ((86400, "d"), (3600, "h"), (60, "min"))
    return next((f"{seconds / n:.0f} {unit}" for n, unit in units if seconds >= 2 * n), f"{seconds:.0f} s")


def _whole_entry(entry: dict[str, Any]) -> dict[str, Any]:
    """The result of an objective with every key that a page shows, whatever a damaged file has."""
    kind, target = entry.get("goal"), finite_or_none(entry.get("target"))
    is_target = kind == "target" and target is not None
    goal = Goal("target", target) if is_target else Goal("lower" if kind == "lower" else "higher")
    oriented, quality, cautions = (entry.get(key) for key in ("oriented", "judge_quality", "cautions"))
    has_reason = isinstance(quality, dict) and "reason" in quality
    return {
        **dict.fromkeys(("before", "after", "change", "low", "high")),
        **entry,
        **goal.entry(),
        "verdict": str(entry.get("verdict", "not measured")),
        "oriented": {"low": None, "high": None, **(oriented if isinstance(oriented, dict) else {})},
        "judge_quality": quality if has_reason else None,
        "cautions": [line for line in cautions if isinstance(line, str)]
        if isinstance(cautions, list)
        else [],
    }


@dataclass(frozen=True)
class Evaluation:
    """An evaluation as its eval.json has it."""

    name: str
    path: str
    """Folder inside that of the run; "" of a comparison of two models."""
    content: dict[str, Any] | None
    problem: str = ""

    @cached_property
    def objectives(self) -> dict[str, dict[str, Any]]:
        """Objective -> its entry; {} without an eval.json."""
        found = (self.content or {}).get("objectives")
        if not isinstance(found, dict):
            return {}
        return {str(name): _whole_entry(entry) for name, entry in found.items() if isinstance(entry, dict)}

    def goal(self, objective: str) -> Goal:
        """Which scores of an objective are good; higher ones where eval.json does not say."""
        return Goal.of(self.objectives.get(objective, {}))

    @property
    def warnings(self) -> list[str]:
        """The warnings of the evaluation."""
        found = (self.content or {}).get("warnings")
        return [line for line in found if isinstance(line, str)] if isinstance(found, list) else []


def read_evaluations(folder: Folder, max_evaluations: int | None = None) -> list[Evaluation]:
    """The evaluations of a run, the final one first, then the last checkpoint's."""
    evaluations = []
    for path, name in list(folder.evaluation_paths().items())[:max_evaluations]:
        result = read_object(folder, f"{path}/{EVALUATION_FILE}".lstrip("/"))
        schema = None if result.value is None else result.value.get("schema")
        if schema not in (None, EVALUATION_SCHEMA):
            problem = (
                f"eval.json is of another version ({schema}); evaluate the run again to see its verdicts"
            )
            result = Result(None, problem)
        evaluations.append(Evaluation(name, path, result.value, result.problem))
    return evaluations


@dataclass
class TableCache:
    """The rows of the tables of responses that were read last."""

    tables: dict[tuple[Any, ...], list[dict[str, Any]]] = field(default_factory=dict)
    lock: Lock = field(default_factory=Lock)

    def read(self, folder: Folder, evaluation: Evaluation) -> tuple[list[dict[str, Any]], str]:
        """The rows of generations.parquet, and why there are none."""
        name = f"{evaluation.path}/generations.parquet".lstrip("/")
        try:
            with folder.open_file(name) as file:
                details = os.fstat(file.fileno())
                key = (folder.path, name, details.st_ino, details.st_size, details.st_mtime_ns)
                with self.lock:
                    if key not in self.tables:
                        self.tables[key] = pq.read_table(file).to_pylist()
                        for old in list(self.tables)[:-MAX_TABLES]:
                            del self.tables[old]
                    return self.tables[key], ""
        except FileNotFoundError:
            return [], "There are no responses yet (generations.parquet)."
        except (OSError, pa.ArrowException, ValueError):
            return [], f"{name} is damaged, or is being written."
