"""Runs as child processes: in parallel, failing, stopped by a signal."""

import os
import signal
import sys
import threading
import time

import pytest

from paretune.benchmark import processes
from paretune.benchmark.processes import Job, JobRunner
from paretune.core.errors import ConfigError, NonFiniteError, ParetuneError, ResourceError, RunInterrupted
from paretune.run.lock import RunLock, lock_holder
from paretune.training.guards import StopRequest


@pytest.fixture(autouse=True)
def python_jobs(monkeypatch):
    """The arguments of a job are Python code here."""
    monkeypatch.setattr(processes, "CLI_COMMAND", (sys.executable, "-c"))


def job(tmp_path, name, code, **more):
    return Job(
        label=name, cli_args=(code,), run_dir=tmp_path / name, log_file=tmp_path / "logs" / name, **more
    )


def test_jobs_run_and_their_output_is_logged(tmp_path):
    messages = []
    with StopRequest() as stop:
        codes = JobRunner(2, stop, lambda *message: messages.append(message)).run_all(
            [
                job(tmp_path, "a", "print('one')"),
                job(tmp_path, "b", "raise SystemExit(4)", allow_guard_exit=True),
            ]
        )
    assert codes == {"a": 0, "b": 4}
    assert (tmp_path / "logs" / "a").read_text() == "one\n"
    assert messages[:2] == [(0, "a …"), (0, "b …")]
    assert sorted(line for _, line in messages[2:]) == ["a: done", "b: done"]
    assert [finished for finished, _ in messages[2:]] == [1, 2]


@pytest.mark.parametrize(
    ("code", "error"),
    [
        (2, ConfigError),
        (3, ResourceError),
        (4, NonFiniteError),
        (75, RunInterrupted),
        (1, ParetuneError),
        (-9, ResourceError),
    ],
)
def test_failed_job_stops_the_others_and_passes_its_exit_code(tmp_path, code, error):
    exits = f"raise SystemExit({code})" if code > 0 else "import os; os.kill(os.getpid(), 9)"
    sleeps = f"import time, pathlib; time.sleep(60); pathlib.Path({str(tmp_path)!r}, 'late').touch()"
    with StopRequest() as stop, pytest.raises(error) as caught:
        JobRunner(2, stop, print).run_all(
            [job(tmp_path, "a", sleeps), job(tmp_path, "b", f"print('because')\n{exits}")]
        )
    assert caught.value.exit_code == (3 if code < 0 else code)
    assert str(caught.value).startswith("b: " if code < 0 else "b failed: ")
    assert ("killed by signal 9" if code < 0 else "because") in str(caught.value)
    assert not (tmp_path / "late").exists()


@pytest.mark.parametrize(
    ("exits", "code"), [("raise SystemExit(4)", 4), ("import os; os.kill(os.getpid(), 9)", -9)]
)
def test_job_that_may_fail_leaves_the_others_running(tmp_path, exits, code):
    messages = []
    with StopRequest() as stop:
        codes = JobRunner(2, stop, lambda *message: messages.append(message)).run_all(
            [
                job(tmp_path, "a", exits, may_fail=True),
                job(tmp_path, "b", "import time; time.sleep(0.3)", may_fail=True),
            ]
        )
    assert codes == {"a": code, "b": 0}
    assert [line for _, line in messages if not line.endswith("…")] == ["a: failed", "b: done"]


@pytest.mark.parametrize(
    ("number", "error"), [(signal.SIGTERM, RunInterrupted), (signal.SIGINT, KeyboardInterrupt)]
)
def test_signal_is_forwarded_and_children_are_awaited(tmp_path, number, error):
    waits = (
        "import signal, sys, time\n"
        "def save(*_):\n"
        f"    open({str(tmp_path / 'saved')!r}, 'w').close()\n"
        "    sys.exit(75)\n"
        "signal.signal(signal.SIGTERM, save)\n"
        f"open({str(tmp_path / 'ready')!r}, 'w').close()\n"
        "time.sleep(60)"
    )

    def send():
        while not (tmp_path / "ready").exists():
            time.sleep(0.01)
        os.kill(os.getpid(), number)

    with StopRequest() as stop:
        thread = threading.Thread(target=send)
        thread.start()
        with pytest.raises(error, match="after the last complete step"):
            JobRunner(1, stop, print).run_all([job(tmp_path, "a", waits)])
        thread.join()
    assert (tmp_path / "saved").exists()


def test_job_waits_for_a_run_that_survived_a_killed_benchmark(tmp_path):
    (tmp_path / "a").mkdir()
    lock = RunLock(tmp_path / "a", "")
    assert lock_holder(tmp_path / "a") == f"process {os.getpid()}"
    messages = []

    def on_progress(finished, message):
        messages.append((finished, message))
        lock.release()

    with StopRequest() as stop:
        assert JobRunner(1, stop, on_progress).run_all([job(tmp_path, "a", "")]) == {"a": 0}
    waiting = f"a: waiting for process {os.getpid()}, which still works on this run"
    assert messages == [(0, waiting), (0, "a …"), (1, "a: done")]
    assert lock_holder(tmp_path / "a") == ""
