"""Heartbeats of ranks, the rank that failed first, and `paretune status`."""

import json
import os
import platform
import subprocess
import sys
import time

import pytest

from paretune.core.errors import ConfigError, NonFiniteError, RankError
from paretune.core.launch import PROCESS
from paretune.run.heartbeat import (
    Heartbeat,
    describe_stopped,
    explain_rank_error,
    first_fault,
    read_heartbeats,
    remove_heartbeats,
    write_heartbeat,
)
from paretune.run.status import describe_status


def beat(rank, *, error="", pid=None, seconds=0.0, code=None):
    pid = os.getpid() if pid is None else pid
    return Heartbeat(rank, 3, "rollout", time.time() - seconds, pid, platform.node(), error, code)


def save(folder, *beats):
    (folder / "ranks").mkdir(exist_ok=True)
    for each in beats:
        (folder / "ranks" / f"rank-{each.rank:05d}.json").write_text(json.dumps(vars(each)))


@pytest.fixture
def dead_pid():
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def run_state(folder, **state):
    (folder / "run.json").write_text(
        json.dumps({"schema": "paretune/run/2", "host": platform.node()} | state)
    )


def test_heartbeat_is_read_as_it_was_written(tmp_path):
    write_heartbeat(tmp_path, 7, "update", NonFiniteError("the loss is nan"))
    (read,) = read_heartbeats(tmp_path)
    assert (read.rank, read.step, read.phase, read.exit_code) == (0, 7, "update", 4)
    assert read.error == "NonFiniteError: the loss is nan"
    assert read.position == "step 7, update"
    remove_heartbeats(tmp_path)
    assert read_heartbeats(tmp_path) == []


def test_torn_heartbeat_is_left_out(tmp_path):
    save(tmp_path, beat(0), beat(1))
    (tmp_path / "ranks" / "rank-00001.json").write_text('{"rank": 1, "st')
    assert [each.rank for each in read_heartbeats(tmp_path)] == [0]


def test_first_fault_is_the_earliest_error_of_its_own(dead_pid):
    let_down = beat(0, error="RankError: rank 2 failed", seconds=9)
    early, late = beat(2, error="ValueError: x", seconds=5), beat(1, error="ValueError: y", seconds=4)
    assert first_fault([let_down, late, early]) == early
    assert first_fault([let_down, beat(1, pid=dead_pid)]).rank == 1
    assert first_fault([let_down, beat(1)]) is None


def test_rank_error_names_the_cause_and_takes_its_exit_code(tmp_path):
    save(tmp_path, beat(0), beat(1, error="NonFiniteError: the loss is nan", code=4))
    error = RankError("another rank ended")
    explain_rank_error(tmp_path, error)
    assert str(error).startswith("rank 1 failed (step 3, rollout): NonFiniteError: the loss is nan")
    assert (error.exit_code, error.first_failed_rank) == (4, 1)  # rank 1 has told it itself


def test_killed_first_rank_is_told_by_the_second(tmp_path, dead_pid):
    save(tmp_path, beat(0, pid=dead_pid), beat(1, error="RankError: another rank ended"))
    error = RankError("another rank ended")
    explain_rank_error(tmp_path, error)
    assert "rank 0 ended without an error (step 3, rollout); it may have been killed" in str(error)
    assert (error.exit_code, error.first_failed_rank) == (75, 1)


def test_stopped_rank_is_named(tmp_path, monkeypatch):
    save(tmp_path, beat(0), beat(1, seconds=40))
    monkeypatch.setattr(PROCESS, "stopped_rank", 1)
    error = RankError("rank 1 shows no sign of life")
    explain_rank_error(tmp_path, error)
    assert str(error) == describe_stopped(tmp_path, 1)
    assert "rank 1 does not answer (step 3, rollout, for 40 s)" in str(error)


@pytest.mark.parametrize(
    ("state", "status", "code"),
    [
        ({"status": "running", "pid": os.getpid(), "exit_code": None}, "running", 0),
        ({"status": "failed", "pid": 1, "exit_code": 4}, "failed, exit code 4", 4),
        ({"status": "stopped", "pid": 1, "exit_code": 75}, "stopped, exit code 75", 75),
        ({"status": "done", "pid": 1, "exit_code": 0}, "done, exit code 0", 0),
    ],
)
def test_status_and_exit_code(tmp_path, state, status, code):
    run_state(tmp_path, **state)
    lines, found = describe_status(tmp_path)
    assert lines[0] == f"status     {status}"
    assert found == code
    assert any("resumes" in line for line in lines) == (code == 75)


def test_run_whose_process_is_gone_was_killed(tmp_path, dead_pid):
    run_state(tmp_path, status="running", pid=dead_pid, stage="align", step=4, command="paretune run x")
    save(tmp_path, beat(0, pid=dead_pid), beat(1, error="RankError: another rank ended"))
    lines, code = describe_status(tmp_path)
    assert lines[:2] == ["status     killed, exit code 137", "stage      align, 4 steps saved"]
    assert lines[2].endswith("process gone  # failed first")
    assert lines[-1] == "next       paretune run x  # resumes"
    assert code == 137


def test_no_rank_failed_where_a_signal_stopped_the_run_or_it_is_done(tmp_path, dead_pid):
    save(tmp_path, beat(0, pid=dead_pid), beat(1, error="RunInterrupted: stopped by a signal", pid=dead_pid))
    run_state(tmp_path, status="done", pid=dead_pid, exit_code=0)
    assert not any("failed first" in line or "gone" in line for line in describe_status(tmp_path)[0])
    assert first_fault([beat(1, error="RunInterrupted: stopped by a signal")]) is None


def test_other_folder_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="is not a run folder"):
        describe_status(tmp_path)


def test_status_names_the_saved_steps_of_the_stage_and_a_signal_once(tmp_path, dead_pid):
    run_state(tmp_path, status="stopped", pid=dead_pid, exit_code=75, stage="sft", step=0)
    for name in ("step-000400", "step-000438", "step-000440.tmp"):
        (tmp_path / "checkpoints" / "sft" / name).mkdir(parents=True)
    save(tmp_path, *(beat(n, error="RunInterrupted: stopped by a signal", pid=dead_pid) for n in (0, 1)))
    lines, _ = describe_status(tmp_path)
    assert lines[1] == "stage      sft, 438 steps saved"
    assert lines[2].endswith(": stopped by a signal")
    assert lines[3].endswith(": the same")
