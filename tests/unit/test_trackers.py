"""Trackers: what they get of a run, once each, and that nothing which happens to them changes the run."""

import contextlib
import json
import os
import signal
import sys
import threading
import time
import types

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml

from paretune.cli import main
from paretune.config import config_hash, load_config
from paretune.config.tracker_schema import (
    MlflowSection,
    PythonTrackerSection,
    TensorboardSection,
    WandbSection,
)
from paretune.core.errors import ConfigError, MissingDependencyError
from paretune.data.loader import collate
from paretune.data.records import Message, Prompt, Sample
from paretune.experiment.resolved import resolve
from paretune.experiment.rollout_samples import rollout_rows
from paretune.experiment.tracking import check_trackers
from paretune.run.folder import Run
from paretune.trackers import loading, packages, process
from paretune.trackers.base import TrackedRun, Tracker
from paretune.trackers.feed import Feed
from paretune.trackers.loading import make_tracker, require_tracker, tracker_names
from paretune.trackers.process import TrackerProcesses, follow

RECIPE = """\
name: mine
data: {world: {}}
policy: {path: world, sft: {}}
reward: {objectives: {safety: {}}}
objectives: {safety: {}}
algorithm: {name: grpo, max_new_tokens: 40}
"""
NOTEBOOK = """\
import json, os, time

class Notebook:
    def __init__(self, file, then=""):
        self.file, self.then = file, then

    def _write(self, *values):
        with open(self.file, "a") as file:
            file.write(json.dumps(values) + "\\n")

    def start(self, run):
        self._write("start", run.name, os.getpid(), dict(run.memory))
        run.memory["id"] = "r1"
        if self.then == "raise":
            raise ValueError("no\\nentry")
        if self.then == "leave":
            os._exit(0)
        if self.then == "hang":
            time.sleep(600)

    def log_metrics(self, step, metrics):
        self._write("metrics", step, metrics)

    def log_table(self, name, step, rows):
        self._write("table", name, step, list(rows))

    def finish(self, status):
        self._write("finish", status)

class Half:
    def start(self, run): ...
"""


class Recorder:
    """A tracker in memory."""

    def __init__(self, fails_at=None):
        self.calls, self.fails_at = [], fails_at

    def start(self, run):
        self.run = run
        self.calls.append(("start", dict(run.memory)))
        run.memory["id"] = "r1"

    def log_metrics(self, step, metrics):
        if len(self.calls) == self.fails_at:
            raise OSError("gone")
        self.calls.append(("metrics", step, dict(metrics)))

    def log_table(self, name, step, rows):
        self.calls.append(("table", name, step, list(rows)))

    def finish(self, status):
        self.calls.append(("finish", status))

    def steps(self, stage="align"):
        return [c[1] for c in self.calls if c[0] == "metrics" and f"{stage}/loss/total" in c[2]]


def start_run(folder):
    return Run.start_or_resume(folder, name="mine", config_hash="x", files={"config/resolved.yaml": RECIPE})


def write_steps(run, steps):
    for step in steps:
        run.log_metrics(step, {"loss/total": step / 10, "entropy": float("nan")})
        run.log_timing(step, seconds=0.5 + step)
        run.log_rollouts(step, [{"prompt": "p", "response": "r", "safety": None}])


def write_evaluation(folder):
    values = {
        "before": 0.1,
        "after": 0.3,
        "change": 0.2,
        "low": 0.1,
        "high": 0.3,
        "verdict": "better",
        "judge": "j",
    }
    (folder / "eval" / "final").mkdir(parents=True)
    (folder / "eval" / "final" / "eval.json").write_text(json.dumps({"objectives": {"safety": values}}))
    table = pa.table({"prompt": ["p"] * 150, "before": ["b"] * 150, "after": ["a"] * 150})
    pq.write_table(table, folder / "eval" / "final" / "generations.parquet")


def test_a_finished_run_is_sent_with_its_evaluation(tmp_path):
    with start_run(tmp_path / "r") as run:
        run.enter_stage("align")
        write_steps(run, range(3))
        run.log_event("constant_score", "safety: all alike")
    write_evaluation(tmp_path / "r")
    recorder = Recorder()
    follow(tmp_path / "r", "python", recorder, parent=None)
    assert recorder.calls[0] == ("start", {})
    assert recorder.calls[-1] == ("finish", "done")
    assert recorder.run.name == "mine (r)"
    assert recorder.run.flat_config["algorithm.name"] == "grpo"
    assert recorder.calls[1] == ("metrics", 0, {"align/loss/total": 0.0})
    assert recorder.steps() == [0, 1, 2]
    assert ("metrics", 1, {"align/timing/seconds": 1.5}) in recorder.calls
    tables = {call[1]: call[3] for call in recorder.calls if call[0] == "table"}
    assert [call[2] for call in recorder.calls if call[1] == "align/rollouts"] == [0, 1, 2]
    assert tables.pop("align/rollouts") == [{"prompt": "p", "response": "r", "safety": None}]
    assert list(tables) == ["events", "evaluate-final/verdicts", "evaluate-final/samples"]
    assert tables["events"][0]["text"] == "safety: all alike"
    assert tables["evaluate-final/verdicts"][0] == {
        "objective": "safety", "verdict": "better", "before": 0.1, "after": 0.3, "change": 0.2, "low": 0.1,
        "high": 0.3, "judge": "j",
    }  # fmt: skip
    assert len(tables["evaluate-final/samples"]) == 100
    again = Recorder()
    follow(tmp_path / "r", "python", again, parent=None)
    assert again.calls == [("start", {"id": "r1"}), ("finish", "done")], "nothing is sent twice"


@pytest.mark.parametrize("kept", [0, 2, 4])
def test_a_resume_sends_nothing_twice_and_leaves_nothing_out(tmp_path, kept):
    folder, recorder = tmp_path / "r", Recorder()
    with start_run(folder) as run:
        run.enter_stage("align")
        write_steps(run, range(kept))
        offsets = run.log_offsets()
        write_steps(run, range(kept, 4))
        Feed(folder, "python").send_new(recorder)
    with start_run(folder) as run:
        run.stage = "align"
        run.truncate_logs(offsets)
        feed = Feed(folder, "python")
        for step in range(kept, 7):
            write_steps(run, [step])
            feed.send_new(recorder)
    assert recorder.steps() == list(range(7))
    assert [c[1] for c in recorder.calls if "align/timing/seconds" in c[-1]] == list(range(7))
    assert [c[2] for c in recorder.calls if c[1] == "align/rollouts"] == list(range(7))


def test_files_that_are_cut_and_written_again_while_they_are_followed(tmp_path):
    recorder, feed = Recorder(), Feed(tmp_path, "python")
    run = Run(tmp_path)
    run.log_event("x", "first")  # events are never cut
    write_steps(run, range(5))
    feed.send_new(recorder)
    run.truncate_logs(dict.fromkeys(("metrics.jsonl", "timing.jsonl"), 0))
    for step in range(8):
        write_steps(run, [step])
        feed.send_new(recorder)
    assert recorder.steps() == list(range(8))


def test_a_line_that_is_being_written_is_sent_when_it_is_complete(tmp_path):
    recorder, feed = Recorder(), Feed(tmp_path, "python")
    file = tmp_path / "metrics.jsonl"
    file.write_text('{"stage": "align", "step": 0, "loss/to')
    feed.send_new(recorder)
    assert recorder.calls == []
    file.write_text('{"stage": "align", "step": 0, "loss/total": 1.0}\n')
    feed.send_new(recorder)
    assert recorder.steps() == [0]


def test_what_a_failed_tracker_did_not_get_is_sent_by_the_next_one(tmp_path):
    with start_run(tmp_path / "r") as run:
        run.enter_stage("align")
        write_steps(run, range(5))
    first, second = Recorder(fails_at=3), Recorder()
    with pytest.raises(OSError, match="gone"):
        follow(tmp_path / "r", "python", first, parent=None)
    follow(tmp_path / "r", "python", second, parent=None)
    assert first.steps() + second.steps() == list(range(5))


def test_a_run_whose_process_is_gone_counts_as_killed(tmp_path):
    run = start_run(tmp_path / "r")  # "running", and nobody ends it
    recorder = Recorder()
    follow(tmp_path / "r", "python", recorder, parent=os.getppid() + 1)
    run.release()
    assert recorder.calls[-1] == ("finish", "killed")


def notebook(folder, name, then=""):
    (folder / "notebook.py").write_text(NOTEBOOK)
    arguments = {"file": str(folder / f"{name}.jsonl"), "then": then}
    return PythonTrackerSection(
        type="python", tracker=f"{folder / 'notebook.py'}:Notebook", arguments=arguments
    )


def lines(file):
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def test_trackers_that_raise_hang_or_are_killed_change_no_byte_and_hold_up_nothing(tmp_path):
    def metrics(folder, sections, kill=""):
        start = time.monotonic()
        with TrackerProcesses(end_seconds=0.3) as trackers, start_run(folder) as run:
            run.enter_stage("align")
            trackers.start(folder, sections)
            slowest = 0.0
            deadline = time.monotonic() + 30
            for step in range(400):
                before = time.monotonic()
                write_steps(run, [step])
                slowest = max(slowest, time.monotonic() - before)
                while kill and step == 200 and not lines(tmp_path / kill) and time.monotonic() < deadline:
                    time.sleep(0.02)
                if kill and step == 200:
                    os.kill(lines(tmp_path / kill)[0][2], signal.SIGKILL)
        return (folder / "metrics.jsonl").read_bytes(), trackers.notes, time.monotonic() - start

    plain, notes, _ = metrics(tmp_path / "plain", [])
    assert notes == []
    sections = [
        notebook(tmp_path, "killed"),
        notebook(tmp_path, "raises", "raise"),
        notebook(tmp_path, "hangs", "hang"),
    ]
    tracked, notes, _ = metrics(tmp_path / "tracked", sections, kill="killed.jsonl")
    try:
        assert tracked == plain
        assert [note.partition(": ")[0] for note in notes[:1]] == ["warning"]
        text = "\n".join(notes)
        assert "tracker python stopped: exit code -9" in text
        assert "paretune track" in text
        assert "python-3" in text, "the hanging one is left alone"
    finally:
        for name in ("hangs", "raises"):
            for line in lines(tmp_path / f"{name}.jsonl")[:1]:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(line[2], signal.SIGKILL)


def test_a_process_follows_a_run_to_its_end(tmp_path):
    with TrackerProcesses(end_seconds=30.0) as trackers, start_run(tmp_path / "r") as run:
        run.enter_stage("align")
        trackers.start(tmp_path / "r", [notebook(tmp_path, "one"), notebook(tmp_path, "two", "raise")])
        write_steps(run, range(3))
    calls = lines(tmp_path / "one.jsonl")
    assert [c[1] for c in calls if c[0] == "metrics" and "align/loss/total" in c[2]] == [0, 1, 2]
    assert calls[-1] == ["finish", "done"]
    (note,) = trackers.notes
    assert "tracker python-2 stopped: ValueError: no; fix: see " in note
    assert (tmp_path / "r" / "trackers" / "python.json").exists()


def test_the_end_of_a_log_of_any_size_is_told(tmp_path):
    log = tmp_path / "python.log"
    assert process._last_line(log) == ""
    log.write_bytes(b"x" * 10_000 + b"\nValueError: \xff no\n")
    assert process._last_line(log) == "ValueError: \ufffd no"
    log.write_bytes(b"y" * 10_000)
    assert len(process._last_line(log)) == process.MAX_LINE_BYTES


def test_a_tracker_that_ends_before_the_run_with_exit_code_0_is_told(tmp_path):
    with TrackerProcesses(end_seconds=30.0) as trackers, start_run(tmp_path / "r") as run:
        run.enter_stage("align")
        trackers.start(tmp_path / "r", [notebook(tmp_path, "one", "leave")])
        write_steps(run, range(3))
    (note,) = trackers.notes
    assert "tracker python stopped: exit code 0; fix: see " in note


def test_ranks_but_the_first_start_no_tracker(tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    with TrackerProcesses() as trackers:
        trackers.start(tmp_path, [notebook(tmp_path, "one")])
    assert not (tmp_path / "trackers").exists()


def test_a_library_that_hangs_is_given_up(monkeypatch):
    ended = threading.Event()
    monkeypatch.setattr(process.os, "_exit", lambda code: (ended.set(), stopped.set()))
    with process.Watchdog(0.02) as watchdog:
        stopped = watchdog._stop
        assert ended.wait(10)
    ended.clear()
    with process.Watchdog(0.02):
        pass
    assert not ended.wait(0.1), "not after the context"


def test_recipes_name_trackers_by_type_or_section(tmp_path):
    def config(text):
        (tmp_path / "r.yaml").write_text(RECIPE + text)
        return load_config(tmp_path / "r.yaml")

    plain = config("")
    named = config("trackers: [tensorboard, {type: wandb, project: a}, {type: wandb}]\n")
    assert named.trackers[:2] == (
        TensorboardSection(type="tensorboard"),
        WandbSection(type="wandb", project="a"),
    )
    assert tracker_names(named.trackers) == ["tensorboard", "wandb", "wandb-2"]
    assert config_hash(named) == config_hash(plain), "the same run, shown elsewhere"
    for text, problem in (
        ("[tensorbord]", 'trackers[0].type: "tensorbord" is none of tensorboard, wandb'),
        (
            "[{type: wandb, projct: a}]",
            'trackers[0].projct: unknown key; did you mean "trackers[0].project"?',
        ),
        ("[{type: python}]", "trackers[0].tracker: is missing"),
    ):
        with pytest.raises(ConfigError) as error:
            config(f"trackers: {text}\n")
        assert problem in str(error.value)


def test_a_missing_package_is_told_with_its_pip_command(monkeypatch):
    monkeypatch.setattr(loading, "find_spec", lambda _: None)
    with pytest.raises(
        MissingDependencyError, match="mlflow-skinny is not installed; fix: pip install mlflow-skinny"
    ):
        require_tracker(MlflowSection(type="mlflow"))


def test_missing_packages_are_told_all_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(loading, "find_spec", lambda _: None)
    (tmp_path / "r.yaml").write_text(RECIPE + "trackers: [wandb, trackio]\n")
    with pytest.raises(MissingDependencyError, match=r"(?s)trackers\[0\]: wandb.*\n.*trackers\[1\]: trackio"):
        check_trackers(resolve(load_config(tmp_path / "r.yaml")))


@pytest.mark.parametrize(
    ("entry", "problem"),
    [
        ("notebook.py:Half", '"notebook.py:Half" has no log_metrics, log_table, finish; fix: give it the'),
        ("notebok.py:Notebook", 'there is no file "notebok.py"; did you mean'),
        ("notebook.py:json", '"notebook.py:json" has no start'),
    ],
)
def test_a_class_that_is_no_tracker_is_told_at_its_line(tmp_path, monkeypatch, entry, problem):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notebook.py").write_text(NOTEBOOK)
    (tmp_path / "r.yaml").write_text(f"{RECIPE}trackers:\n  - {{type: python, tracker: '{entry}'}}\n")
    with pytest.raises(ConfigError) as error:
        check_trackers(resolve(load_config("r.yaml")))
    assert str(error.value).startswith(f"r.yaml:8: trackers[0]: {problem}")


def test_a_finished_run_is_tracked_by_command(tmp_path, capsys):
    with start_run(tmp_path / "r") as run:
        run.enter_stage("align")
        write_steps(run, range(3))
    section = notebook(tmp_path, "one").model_dump()
    recipe = {**yaml.safe_load(RECIPE), "trackers": [section]}
    (tmp_path / "r" / "config" / "resolved.yaml").write_text(yaml.safe_dump(recipe))

    def track(*arguments):
        with pytest.raises(SystemExit) as end:
            main(["track", str(tmp_path / "r"), *arguments])
        return end.value.code or 0, *capsys.readouterr()

    assert track() == (0, "python: 9 lines sent\n", "")
    assert track() == (0, "python: 0 lines sent\n", "")
    assert lines(tmp_path / "one.jsonl")[-1] == ["finish", "done"]
    with start_run(tmp_path / "r"):
        code, _, error = track()
        assert (code, "is at work in it" in error) == (2, True)
    code, _, error = track("--to", "tensorbord")
    assert (code, 'did you mean "tensorboard"?' in error) == (2, True)


def test_tables_of_tensorboard_are_plain_text():
    text = packages._markdown([{"a": "x|<b>\ny", "b": None}, {"b": 1.5}])
    assert text.splitlines() == ["| a | b |", "| --- | --- |", "| x\\|&lt;b> y |  |", "|  | 1.5 |"]


def test_wandb_keeps_its_run_and_gives_each_stage_its_steps(tmp_path, monkeypatch):
    calls = []

    class FakeRun:
        def __getattr__(self, name):
            return lambda *args, **kwargs: calls.append((name, args, kwargs))

    fake = types.ModuleType("wandb")
    fake.init = lambda **kwargs: calls.append(("init", (), kwargs)) or FakeRun()
    fake.Table = lambda columns, data, **_: (columns, data)
    monkeypatch.setitem(sys.modules, "wandb", fake)
    monkeypatch.setattr(loading, "find_spec", lambda _: types.SimpleNamespace(origin="here"))
    run = TrackedRun(name="mine", folder=tmp_path, config={"run": {"seed": 1, "x": None}})
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "false")  # of a person's own; restores all three
    for name in ("WANDB_ERROR_REPORTING", "HF_HUB_DISABLE_TELEMETRY"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    tracker = make_tracker(WandbSection(type="wandb", mode="offline"))
    assert os.environ["WANDB_ERROR_REPORTING"] == "false"
    assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == "false"
    assert isinstance(tracker, Tracker)
    tracker.start(run)
    tracker.log_metrics(4, {"align/loss": 1.0})
    tracker.log_table("t", 4, [{"a": 1}, {"b": 2}])
    tracker.finish("failed")
    names = [name for name, _, _ in calls]
    assert names == ["init", "define_metric", "define_metric", "log", "log", "finish"]
    init = calls[0][2]
    assert (init["resume"], init["mode"], init["config"]) == ("allow", "offline", {"run.seed": 1})
    assert run.memory == {"id": init["id"]}
    assert calls[3][1] == ({"align/loss": 1.0, "align/step": 4},)
    assert calls[4][1] == ({"t": (["a", "b"], [[1, None], [None, 2]])},)
    assert calls[5][2] == {"exit_code": 1}


def test_responses_of_the_training_are_kept_with_their_scores():
    samples = [
        Sample(prompt=Prompt(messages=(Message("user", f"p{i // 3}"),)), response=f"r{i}") for i in range(9)
    ]
    batch = collate([[1]] * 9, [[2]] * 9, [i // 3 for i in range(9)], [False] * 9, ("safety", "help"), 0)
    scores = torch.arange(18.0).reshape(9, 2)
    scores[1, 1] = torch.nan
    rows = rollout_rows(batch.replace(scores=scores), samples)
    assert [row["response"] for row in rows] == ["r0", "r1", "r2", "r3", "r4", "r5"], (
        "of the first two prompts"
    )
    assert rows[1] == {"prompt": "p0", "response": "r1", "safety": 2.0, "help": None}


def test_what_trackers_know_is_no_result_of_a_run(tmp_path):
    folder = tmp_path / "r"
    run = start_run(folder)
    Feed(folder, "python").save()
    run.release()
    with Run.start_or_resume(folder, name="mine", config_hash="another"):
        assert not (folder / "trackers").exists(), "another run, which knows nothing of it"
