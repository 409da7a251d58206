import json
import os
import signal
import subprocess
import sys
import time

import pytest

from paretune.core.errors import (
    ConfigError,
    DataError,
    NonFiniteError,
    ResourceError,
    RunInterrupted,
    WiringError,
)
from paretune.evaluate.warnings import event_warnings
from paretune.run.compat import RESOLVED_CONFIG_FILE, check_resumable
from paretune.run.folder import (
    METRICS,
    Run,
    environment_info,
    find_metric,
    read_json,
    read_jsonl,
    to_json,
    write_atomic,
)

LOCKING_PROGRAM = """
import sys, time
from paretune.core.errors import ConfigError
from paretune.run.folder import Run
while time.time() < float(sys.argv[3]):
    pass
try:
    run = Run.start_or_resume(sys.argv[1], name="a", config_hash=sys.argv[2])
except ConfigError as error:
    print(error)
    sys.exit(error.exit_code)
print("won", flush=True)
time.sleep(float(sys.argv[4]))
"""


def start(folder, config_hash="h", at=0.0, hold=60.0):
    command = [sys.executable, "-c", LOCKING_PROGRAM, str(folder), config_hash, str(at), str(hold)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_every_metric_has_unit_and_meaning():
    for key, entry in METRICS.items():
        assert entry.unit
        assert entry.description
        assert entry.direction in ("up", "down", "")
        assert find_metric(key.replace("{objective}", "a/b").replace("{term}", "policy")) is entry


def test_log_metrics_rejects_an_unknown_key(tmp_path):
    run = Run(tmp_path)
    with pytest.raises(
        WiringError, match=r'"scores/help/mean".*nearest known one is "score/{objective}/mean"'
    ):
        run.log_metrics(1, {"scores/help/mean": 1.0})
    assert not (tmp_path / "metrics.jsonl").exists()


def test_metric_lines_are_json_without_timestamps(tmp_path):
    for name in ("a", "b"):
        run = Run(tmp_path / name)
        run.log_metrics(
            1,
            {
                "score/help/mean": 0.25,
                "score/help/unscored_fraction": float("nan"),
                "grad_norm": float("inf"),
            },
        )
        run.enter_stage("reward")
        run.log_metrics(1, {"fit/loss": 1})
    text = (tmp_path / "a" / "metrics.jsonl").read_text()
    assert text == (tmp_path / "b" / "metrics.jsonl").read_text()
    assert json.loads(text.splitlines()[0]) == {
        "stage": "align",
        "step": 1,
        "score/help/mean": 0.25,
        "score/help/unscored_fraction": None,
        "grad_norm": None,
    }
    assert read_jsonl(tmp_path / "a" / "metrics.jsonl")[1]["stage"] == "reward"
    assert read_json(tmp_path / "a" / "run.json")["stage"] == "reward"


def test_log_timing_rejects_an_unknown_key(tmp_path):
    Run(tmp_path).log_timing(0, **{"seconds": 1.0, "flops/update": 2.0, "tokens_per_second/rollout": 3.0})
    with pytest.raises(WiringError, match='"flop/update"; the nearest known one is "update"'):
        Run(tmp_path).log_timing(1, **{"flop/update": 2.0})
    assert len(read_jsonl(tmp_path / "timing.jsonl")) == 1


def test_truncate_logs_removes_lines_after_the_checkpoint_and_keeps_events(tmp_path):
    run = Run(tmp_path)
    run.log_metrics(1, {"learning_rate": 0.1})
    run.log_timing(1, seconds=0.5)
    offsets = run.log_offsets()
    before = (tmp_path / "metrics.jsonl").read_bytes()
    run.log_metrics(2, {"learning_rate": 0.2})
    run.log_timing(2, seconds=0.5)
    run.log_event("warning", "slow")
    run.truncate_logs(offsets)
    assert (tmp_path / "metrics.jsonl").read_bytes() == before
    assert [line["step"] for line in read_jsonl(tmp_path / "timing.jsonl")] == [1]
    assert len(read_jsonl(tmp_path / "events.jsonl")) == 1
    with pytest.raises(DataError, match="the checkpoint was made at 10000 bytes"):
        run.truncate_logs({"metrics.jsonl": 10_000})


def test_discard_stage_removes_its_lines(tmp_path):
    run = Run(tmp_path, stage="reward")
    run.log_metrics(1, {"fit/loss": 1.0})
    run.enter_stage("align")
    run.log_metrics(1, {"learning_rate": 0.1})
    run.discard_stage("align")
    assert [line["stage"] for line in read_jsonl(tmp_path / "metrics.jsonl")] == ["reward"]
    run.discard_stage("evaluate")
    assert len(read_jsonl(tmp_path / "metrics.jsonl")) == 1


def test_discard_stage_keeps_the_lines_of_later_stages(tmp_path):
    run = Run(tmp_path, stage="judge")
    run.log_metrics(1, {"fit/loss": 1.0})
    run.enter_stage("align")
    run.log_metrics(1, {"learning_rate": 0.1})
    run.enter_stage("judge")
    run.discard_stage("judge")
    assert [line["stage"] for line in read_jsonl(tmp_path / "metrics.jsonl")] == ["judge", "align"]
    run.log_metrics(1, {"fit/loss": 2.0})
    run.discard_stage("judge")
    assert [line["stage"] for line in read_jsonl(tmp_path / "metrics.jsonl")] == ["judge", "align"]


EVALUATION_ENTRIES = {"records": ["judge train"], "models": ["./judge"], "judge": [""]}


def evaluated(folder, judge="a", evaluate="a", model="1", prompts="1"):
    """A run with results of its training, of this judge with these files."""
    manifest = {
        "records": {"train_prompts": prompts, "judge train": judge},
        "models": {"./judge": model},
        "evaluation": EVALUATION_ENTRIES,
    }
    with Run.start_or_resume(
        folder,
        name="a",
        config_hash="h",
        files={RESOLVED_CONFIG_FILE: f"judge: {{path: {judge}}}\nevaluate: {{temperature: {evaluate}}}\n"},
        data_manifest=manifest,
        evaluation={"judge": judge + model, "evaluate": evaluate},
    ) as run:
        run.log_metrics(0, {"reward/mean": 0.5})
        (run.path / "judge").mkdir(exist_ok=True)
    return folder


def test_a_judge_may_change_as_long_as_nothing_was_judged(tmp_path):
    folder = evaluated(tmp_path / "r")
    (folder / "checkpoints" / "judge").mkdir(parents=True)
    (folder / "judge" / "report.json").write_text("{}")
    evaluated(folder)
    assert (folder / "judge" / "report.json").exists()
    evaluated(folder, evaluate="b")
    assert (folder / "judge" / "report.json").exists(), "the judge is the same"
    evaluated(folder, judge="b", evaluate="b", model="2")
    assert not (folder / "judge" / "report.json").exists()
    assert not (folder / "checkpoints" / "judge").exists()
    assert "path: b" in (folder / RESOLVED_CONFIG_FILE).read_text()
    assert read_json(folder / "data" / "manifest.json")["records"]["judge train"] == "b"
    texts = [e["text"] for e in read_jsonl(folder / "events.jsonl") if e["type"] == "evaluation_replaced"]
    assert texts == ["nothing was judged yet: other evaluate", "nothing was judged yet: other judge"]
    with pytest.raises(ConfigError, match=r"the data changed .*\(records: train_prompts\)"):
        evaluated(folder, judge="b", evaluate="b", model="2", prompts="2")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"judge": "b"},
            r"judge: this run was evaluated .*\(judge.path is a there, b here\); fix: rename .*eval to .*-1,",
        ),
        ({"model": "2"}, r"judge: this run was evaluated .*\(the files of judge changed\)"),
        ({"evaluate": "b"}, r"evaluate: this run .*\(evaluate.temperature is a there, b here\)"),
    ],
)
def test_a_judge_of_judgments_may_not_change(tmp_path, change, message):
    folder = evaluated(tmp_path / "r")
    (folder / "eval" / "final").mkdir(parents=True)
    (folder / "eval" / "final" / "eval.json").write_text("{}")
    evaluated(folder)
    with pytest.raises(ConfigError, match=message) as raised:
        evaluated(folder, **change)
    assert "\n" not in str(raised.value)
    assert (folder / "judge").exists()
    (folder / "eval").rename(folder / "eval-1")
    evaluated(folder, **change)


@pytest.mark.parametrize(
    ("change", "how"), [({"judge": "b"}, "by another judge"), ({"evaluate": "b"}, "with other settings")]
)
def test_an_earlier_evaluation_is_told_of(tmp_path, change, how):
    folder = evaluated(tmp_path / "r")
    run = Run(folder)
    run.update_state(judged=True)
    evaluated(folder)
    assert not [e for e in read_jsonl(folder / "events.jsonl") if e["type"] != "resumed"]
    evaluated(folder, **change)
    (event,) = [e for e in read_jsonl(folder / "events.jsonl") if e["type"] != "resumed"]
    assert event["text"].startswith(f"Judged again: an earlier evaluation of this policy {how}")
    assert event_warnings([event, event, {"type": "resumed", "text": "attempt 2"}]) == [event["text"]]


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ({"a": 1}, {"a": 2}, "a is 1 there, 2 here"),
        ({}, {"a": {"loss": "mse"}}, "a (added)"),
        ({"a": {"loss": "mse"}}, {}, "a (removed)"),
        ({"a": "x" * 31}, {"a": "y"}, "a (changed)"),
        (
            {"d": 1},
            {"n": None, "a": 1, "b": "x", "c": [2], "d": 2},
            "a (added); b (added); c (added) and 2 more",
        ),
    ],
)
def test_differences_name_keys_and_only_short_values(tmp_path, old, new, expected):
    (tmp_path / "config").mkdir()
    (tmp_path / RESOLVED_CONFIG_FILE).write_text(json.dumps(old))
    write_atomic(tmp_path / "run.json", json.dumps({"config_hash": "one", "status": "done"}))
    with pytest.raises(ConfigError) as caught:
        check_resumable(tmp_path, "two", json.dumps(new))
    assert f"holds another run ({expected}); fix: " in str(caught.value)


def test_incomplete_last_line_is_ignored_and_removed_on_resume(tmp_path):
    with Run.start_or_resume(tmp_path / "r", name="r", config_hash="h") as run:
        run.log_metrics(1, {"learning_rate": 0.1})
    with (tmp_path / "r" / "metrics.jsonl").open("a") as file:
        file.write('{"stage": "align", "st')
    assert len(read_jsonl(tmp_path / "r" / "metrics.jsonl")) == 1
    with Run.start_or_resume(tmp_path / "r", name="r", config_hash="h") as run:
        run.log_metrics(2, {"learning_rate": 0.2})
    assert [line["step"] for line in read_jsonl(tmp_path / "r" / "metrics.jsonl")] == [1, 2]


def test_broken_line_in_the_middle_is_an_error_with_its_number(tmp_path):
    (tmp_path / "m.jsonl").write_text('{"a": 1}\nnot json\n{"a": 2}\n')
    with pytest.raises(DataError, match=r"m.jsonl:2: not JSON"):
        read_jsonl(tmp_path / "m.jsonl")
    (tmp_path / "m.json").write_text("[1]")
    with pytest.raises(DataError, match="expected an object, got list"):
        read_json(tmp_path / "m.json")


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (None, "done", 0),
        (KeyboardInterrupt(), "stopped", 130),
        (RunInterrupted("SIGTERM"), "stopped", 75),
        (NonFiniteError("NaN"), "failed", 4),
        (ZeroDivisionError(), "failed", 1),
    ],
)
def test_run_json_records_status_and_exit_code(tmp_path, error, status, code):
    def run_and_raise():
        with Run.start_or_resume(tmp_path / "r", name="r", config_hash="h"):
            if error is not None:
                raise error

    if error is None:
        run_and_raise()
    else:
        with pytest.raises(type(error)):
            run_and_raise()
    state = read_json(tmp_path / "r" / "run.json")
    assert (state["status"], state["exit_code"], state["attempt"]) == (status, code, 1)
    assert not (tmp_path / "r" / "LOCK").exists()


def test_folder_of_another_configuration_or_of_no_run_is_rejected(tmp_path):
    with Run.start_or_resume(
        tmp_path / "r", name="r", config_hash="one", files={"config/recipe.yaml": "a: 1\n"}
    ):
        pass
    with pytest.raises(ConfigError, match="holds another run") as caught:
        Run.start_or_resume(
            tmp_path / "r", name="r", config_hash="two", files={"config/recipe.yaml": "a: 2\n"}
        )
    assert caught.value.exit_code == 2
    assert (tmp_path / "r" / "config" / "recipe.yaml").read_text() == "a: 1\n"
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("x")
    with pytest.raises(ConfigError, match=r'files of no run, such as "thesis.tex"'):
        Run.start_or_resume(tmp_path / "mine", name="r", config_hash="one")
    assert sorted(p.name for p in (tmp_path / "mine").iterdir()) == ["thesis.tex"]
    (tmp_path / "file").write_text("x")
    with pytest.raises(ConfigError, match="is a file"):
        Run.start_or_resume(tmp_path / "file", name="r", config_hash="one")


def failed_run(folder, **data_manifest):
    """A folder whose run failed before its first stage."""
    files = {"config/recipe.yaml": "a: 1\n", RESOLVED_CONFIG_FILE: "a: 1\n", "env.json": "{}"}
    run = Run.start_or_resume(
        folder, name="r", config_hash="one", files=files, data_manifest=data_manifest or {"test": 1}
    )
    with pytest.raises(ConfigError, match="gone"), run:
        raise ConfigError("gone")


def test_folder_without_results_is_reset_for_another_recipe(tmp_path):
    failed_run(tmp_path / "r")
    later = {"config_hash": "two", "files": {"config/recipe.yaml": "a: 2\n"}, "data_manifest": {"test": 2}}
    with Run.start_or_resume(tmp_path / "r", name="later", **later) as run:
        assert run.previous_state is None
        state = read_json(tmp_path / "r" / "run.json")
    assert (state["name"], state["config_hash"], state["attempt"]) == ("later", "two", 1)
    assert (tmp_path / "r" / "config" / "recipe.yaml").read_text() == "a: 2\n"
    assert not (tmp_path / "r" / RESOLVED_CONFIG_FILE).exists()
    assert read_json(tmp_path / "r" / "data" / "manifest.json") == {"test": 2}
    (line,) = read_jsonl(tmp_path / "r" / "events.jsonl")
    assert (line["type"], line["text"]) == (
        "restarted_empty",
        "the folder held a run without results; it was emptied",
    )


def test_folder_without_results_resumes_on_the_same_data_and_resets_on_other_data(tmp_path):
    failed_run(tmp_path / "r")
    with Run.start_or_resume(tmp_path / "r", name="r", config_hash="one", data_manifest={"test": 1}) as run:
        assert run.previous_state is not None
        run.update_state(status="failed")
    failed_run(tmp_path / "s")
    with Run.start_or_resume(tmp_path / "s", name="r", config_hash="one", data_manifest={"test": 2}) as run:
        assert run.previous_state is None


@pytest.mark.parametrize(
    "file", ["metrics.jsonl", "sft/model.safetensors", "checkpoints/a/state.json", "notes.txt", "config/x"]
)
def test_folder_with_any_result_of_another_recipe_is_rejected(tmp_path, file):
    failed_run(tmp_path / "r")
    (tmp_path / "r" / file).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / "r" / file).write_text("{}\n")
    with pytest.raises(ConfigError, match="holds another run"):
        Run.start_or_resume(tmp_path / "r", name="r", config_hash="two")
    assert (tmp_path / "r" / "config" / "recipe.yaml").read_text() == "a: 1\n"


def test_running_run_without_results_is_not_reset(tmp_path):
    with Run.start_or_resume(tmp_path / "r", name="r", config_hash="one"):
        with pytest.raises(ConfigError, match="is using this folder"):
            Run.start_or_resume(tmp_path / "r", name="r", config_hash="two")
        assert read_json(tmp_path / "r" / "run.json")["config_hash"] == "one"


def recipe(run="max_steps: 60", more=""):
    """A resolved recipe with the keys that these tests compare."""
    return f"name: r\nrun:\n  output_dir: r\n  {run}\n  num_threads: 1\n{more}"


def test_error_for_another_run_names_the_keys_that_differ(tmp_path):
    def start_run(config_hash, text):
        return Run.start_or_resume(
            tmp_path / "r", name="r", config_hash=config_hash, files={RESOLVED_CONFIG_FILE: text}
        )

    with start_run(
        "one", recipe(more="training:\n  learning_rate: 1e-05  # mine.yaml:3\npolicy:\n  lora: null\n")
    ):
        pass
    other = recipe(
        "max_steps: 80", more="training:\n  learning_rate: 2e-05  # override\npolicy:\n  lora: null\n"
    )
    with pytest.raises(ConfigError) as caught:
        start_run("two", other.replace("num_threads: 1", "num_threads: 4"))
    assert str(caught.value) == (
        f"{tmp_path / 'r'}: run.output_dir: holds another run (run.max_steps is 60 there, 80 here; "
        "training.learning_rate is 1e-05 there, 2e-05 here); "
        f"fix: write run.output_dir={tmp_path / 'r-2'}, or remove this one"
    )
    many = recipe(
        "max_steps: 80",
        more='training:\n  learning_rate: "a\\nb"\npolicy:\n  lora:\n    r: 4\nreward:\n  path: r\n',
    )
    with pytest.raises(ConfigError) as caught:
        start_run("two", many)
    assert "training.learning_rate is 1e-05 there, a b here" in str(caught.value)
    assert 'policy.lora is null there, {"r": 4} here and 1 more); fix' in str(caught.value)
    for text in ("{", "- a", "\x00"):
        (tmp_path / "r" / RESOLVED_CONFIG_FILE).write_text(text)
        with pytest.raises(ConfigError, match=r"another run \(configuration one there, two here\)"):
            start_run("two", other)


def test_resume_logs_changed_mutable_keys(tmp_path):
    for text in (recipe(), recipe().replace("num_threads: 1", "num_threads: 4")):
        with Run.start_or_resume(
            tmp_path / "r", name="r", config_hash="h", files={RESOLVED_CONFIG_FILE: text}
        ):
            pass
    (line,) = read_jsonl(tmp_path / "r" / "events.jsonl")
    assert (line["type"], line["text"]) == ("resumed", "attempt 2; run.num_threads was 1, is 4")


@pytest.mark.parametrize(
    ("stage", "step", "message"),
    [
        ("", 0, "no stage was started"),
        ("reward", 0, "stage reward"),
        ("align", 40, "stage align, step 40 of 60"),
    ],
)
def test_resume_message_names_stage_and_step(tmp_path, stage, step, message):
    def start_run():
        return Run.start_or_resume(tmp_path / "r", name="r", config_hash="h")

    def interrupted():
        with start_run() as run:
            assert run.resume_message(60) == ""
            if stage:
                run.enter_stage(stage)
                run.update_state(step=step)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    with start_run() as run:
        assert run.resume_message(60) == f"resuming {tmp_path / 'r'}: {message}"
    with start_run() as run:
        assert run.resume_message(60) == f"resuming {tmp_path / 'r'}: every stage is complete"


def test_exactly_one_of_several_racing_processes_gets_the_lock(tmp_path):
    at = time.time() + 1.0
    racers = [start(tmp_path / "r", at=at) for _ in range(4)]
    try:
        deadline = time.time() + 30
        while sum(r.poll() is not None for r in racers) < 3 and time.time() < deadline:
            time.sleep(0.02)
        lost = [r for r in racers if r.poll() is not None]
        (winner,) = [r for r in racers if r.poll() is None]
        assert [r.returncode for r in lost] == [2, 2, 2]
        assert all("is using this folder" in r.stdout.read() for r in lost)
        with pytest.raises(ConfigError, match=f"process {winner.pid} on "):
            Run.start_or_resume(tmp_path / "r", name="a", config_hash="h")
        os.kill(winner.pid, signal.SIGKILL)
        winner.wait()
        with Run.start_or_resume(tmp_path / "r", name="a", config_hash="h"):
            types = [line["type"] for line in read_jsonl(tmp_path / "r" / "events.jsonl")]
        assert types == ["stale_lock", "resumed"]
    finally:
        for racer in racers:
            racer.kill()
            racer.communicate()


def test_released_lock_leaves_no_files(tmp_path):
    with Run.start_or_resume(tmp_path / "r", name="r", config_hash="h"):
        assert {"LOCK", ".lock"} <= {p.name for p in (tmp_path / "r").iterdir()}
    assert [p.name for p in (tmp_path / "r").iterdir()] == ["run.json"]


def test_lock_of_another_host_is_respected(tmp_path):
    with Run.start_or_resume(tmp_path / "r", name="r", config_hash="h"):
        pass
    (tmp_path / "r" / "LOCK").write_text('{"pid": 7, "host": "elsewhere"}')
    with pytest.raises(ConfigError, match="process 7 on elsewhere is using"):
        Run.start_or_resume(tmp_path / "r", name="r", config_hash="h")
    assert (tmp_path / "r" / "LOCK").exists()
    (tmp_path / "r" / "LOCK").unlink()  # as the message says
    with Run.start_or_resume(tmp_path / "r", name="r", config_hash="h"):
        pass


def test_write_atomic_replaces_the_whole_file(tmp_path):
    path = tmp_path / "a.json"
    write_atomic(path, to_json({"a": float("nan"), "b": [1, 2.5], "c": "\ud800"}))
    assert json.loads(path.read_text()) == {"a": None, "b": [1, 2.5], "c": "\ud800"}
    write_atomic(path, b"x")
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]
    with pytest.raises(ResourceError, match="cannot be written") as caught:
        write_atomic(tmp_path / "none" / "a.json", "x")
    assert caught.value.exit_code == 3


def test_environment_info_has_versions_and_no_environment_variables(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_canary")
    text = json.dumps(environment_info())
    assert "torch" in text
    assert "hf_canary" not in text


def test_run_folder_imports_no_torch():
    code = "import sys, paretune.run.folder; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_resume_rejects_changed_data(tmp_path):
    manifest = {"prompts": {"a": 3}, "sha256": {"f": "1", "g": "2"}, "exclusions": ["one row"], "test": 5}
    run = {"name": "a", "config_hash": "h"}
    with Run.start_or_resume(tmp_path / "r", **run, data_manifest=manifest):
        pass
    assert read_json(tmp_path / "r" / "data" / "manifest.json") == manifest
    with Run.start_or_resume(
        tmp_path / "r", **run, data_manifest=manifest | {"exclusions": ["in other words"]}
    ):
        pass
    run_json = (tmp_path / "r" / "run.json").read_text()
    changed = manifest | {"sha256": {"f": "1", "g": "3", "h": "4"}, "test": 6}
    with pytest.raises(ConfigError, match=r"data changed .* \(sha256: g, sha256: h, test\); fix: restore it"):
        Run.start_or_resume(tmp_path / "r", **run, data_manifest=changed)
    assert (tmp_path / "r" / "run.json").read_text() == run_json
    assert not (tmp_path / "r" / "LOCK").exists()
