"""The state of a run as its folder tells it: `paretune status RUN`."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from paretune.core.errors import ConfigError
from paretune.run.heartbeat import Heartbeat, first_fault, is_running, read_heartbeats
from paretune.run.io import read_json

EXIT_SIGKILL = 137
"""Exit code of a run whose process is gone without having written one: 128 + SIGKILL."""


def describe_status(run_dir: Path) -> tuple[list[str], int]:
    """The lines of the status of a run, and its exit code; 0 while it runs.

    Launchers such as torchrun end with 1 whatever the exit code of a process was; this is the true one.

    Raises:
        ConfigError: The folder holds no run.
    """
    state = read_json(run_dir / "run.json")
    if state is None:
        raise ConfigError(f"{run_dir}: is not a run folder: it has no run.json; fix: name a run folder")
    beats = read_heartbeats(run_dir)
    status, code = str(state.get("status")), state.get("exit_code")
    if status == "running" and not is_running(str(state.get("host")), _pid(state)):
        status, code = "killed", EXIT_SIGKILL
    lines = [f"status     {status}" + (f", exit code {code}" if code is not None else "")]
    stage = str(state.get("stage", "data"))
    lines.append(f"stage      {stage}, {_saved_steps(run_dir, stage, state)} steps saved")
    lines += list(_rank_lines(beats, status))
    if code == 75 or status in ("killed", "stopped"):
        lines.append(f"next       {state.get('command', 'the same command')}  # resumes")
    return lines, code if isinstance(code, int) else 0


def _saved_steps(run_dir: Path, stage: str, state: dict[str, Any]) -> int:
    """Steps in the newest checkpoint of a stage that keeps its own, or those of the alignment."""
    folders = (run_dir / "checkpoints" / stage).glob("step-*")
    numbers = [int(number) for folder in folders if (number := folder.name.removeprefix("step-")).isdecimal()]
    step = state.get("step", 0)
    return max(numbers, default=step if isinstance(step, int) else 0)


def _rank_lines(beats: list[Heartbeat], status: str) -> Iterator[str]:
    fault = None if status in ("running", "done") else first_fault(beats)
    told: set[str] = set()
    for beat in beats:
        gone = "" if status == "running" or beat.is_alive() else "process gone"
        error = beat.error.removeprefix("RunInterrupted: ")
        ended = "" if status == "done" else "the same" if error in told else error or gone
        told |= {error} - {""}
        seconds = f", for {time.time() - beat.time:.0f} s" if status == "running" else ""
        mark = "  # failed first" if fault is not None and beat.rank == fault.rank else ""
        yield f"rank {beat.rank:<6}{beat.position}{seconds}{': ' + ended if ended else ''}{mark}"


def _pid(state: dict[str, Any]) -> int:
    """The process that writes run.json; -1, which no process has, where the file does not say."""
    pid = state.get("pid")
    return pid if isinstance(pid, int) else -1
