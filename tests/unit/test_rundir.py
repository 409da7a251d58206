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
from paretune.run.compat import RESOLVED_CONFIG_FILE
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

CLAIM = """
import sys, time
from paretune.errors import ConfigError
from paretune.rundir import Run
while time.time() < float(sys.argv[3]):
    pass
try:
    run = Run.claim(sys.argv[1], name="a", config_hash=sys.argv[2])
except ConfigError as error:
    print(error)
    sys.exit(error.exit_code)
print("won", flush=True)
time.sleep(float(sys.argv[4]))
"""


def start(folder, config_hash="h", at=0.0, hold=60.0):
    command = [sys.executable, "-c", CLAIM, str(folder), config_hash, str(at), str(hold)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_every_metric_has_unit_and_meaning():
    for key, entry in METRICS.items():
        assert entry.unit
        assert entry.description
        assert entry.direction in ("up", "down", "")
        assert find_metric(key.replace("{objective}", "a/b").replace("{term}", "policy")) is entry


def test_write_refuses_a_key_that_is_not_in_the_dictionary(tmp_path):
    run = Run(tmp_path)
    with pytest.raises(WiringError, match=r'"scores/help/mean".*nearest is "score/{objective}/mean"'):
        run.log_metrics(1, {"scores/help/mean": 1.0})
    assert not (tmp_path / "metrics.jsonl").exists()


def test_lines_are_json_and_nothing_in_them_depends_on_the_clock(tmp_path):
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
        "stage": "align", "step": 1, "score/help/mean": 0.25, "score/help/unscored_fraction": None, "grad_norm": None,
    }  # fmt: skip
    assert read_jsonl(tmp_path / "a" / "metrics.jsonl")[1]["stage"] == "reward"
    assert read_json(tmp_path / "a" / "run.json")["stage"] == "reward"


def test_a_timing_that_is_not_in_the_dictionary_is_refused(tmp_path):
    Run(tmp_path).log_timing(0, **{"seconds": 1.0, "flops/learn": 2.0, "tokens_per_second/sample": 3.0})
    with pytest.raises(WiringError, match='"flop/learn" is not in the dictionary; the nearest is "learn"'):
        Run(tmp_path).log_timing(1, **{"flop/learn": 2.0})
    assert len(read_jsonl(tmp_path / "timing.jsonl")) == 1


def test_cut_back_forgets_what_came_after_the_checkpoint_and_keeps_the_events(tmp_path):
    run = Run(tmp_path)
    run.log_metrics(1, {"lr": 0.1})
    run.log_timing(1, seconds=0.5)
    kept = run.log_offsets()
    before = (tmp_path / "metrics.jsonl").read_bytes()
    run.log_metrics(2, {"lr": 0.2})
    run.log_timing(2, seconds=0.5)
    run.log_event("warning", "slow")
    run.truncate_logs(kept)
    assert (tmp_path / "metrics.jsonl").read_bytes() == before
    assert [line["step"] for line in read_jsonl(tmp_path / "timing.jsonl")] == [1]
    assert len(read_jsonl(tmp_path / "events.jsonl")) == 1
    with pytest.raises(DataError, match="the checkpoint says"):
        run.truncate_logs({"metrics.jsonl": 10_000})


def test_restart_forgets_a_stage_that_has_no_checkpoint(tmp_path):
    run = Run(tmp_path, stage="reward")
    run.log_metrics(1, {"fit/loss": 1.0})
    run.enter_stage("align")
    run.log_metrics(1, {"lr": 0.1})
    run.discard_stage("align")
    assert [line["stage"] for line in read_jsonl(tmp_path / "metrics.jsonl")] == ["reward"]
    run.discard_stage("evaluate")
    assert len(read_jsonl(tmp_path / "metrics.jsonl")) == 1


def test_a_torn_last_line_is_ignored_and_then_cut(tmp_path):
    with Run.start_or_resume(tmp_path / "r", name="r", config_hash="h") as run:
        run.log_metrics(1, {"lr": 0.1})
    with (tmp_path / "r" / "metrics.jsonl").open("a") as file:
        file.write('{"stage": "align", "st')
    assert len(read_jsonl(tmp_path / "r" / "metrics.jsonl")) == 1
    with Run.start_or_resume(tmp_path / "r", name="r", config_hash="h") as run:
        run.log_metrics(2, {"lr": 0.2})
    assert [line["step"] for line in read_jsonl(tmp_path / "r" / "metrics.jsonl")] == [1, 2]


def test_a_broken_line_in_the_middle_is_named(tmp_path):
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
def test_a_run_says_how_it_ended(tmp_path, error, status, code):
    def work():
        with Run.start_or_resume(tmp_path / "r", name="r", config_hash="h"):
            if error is not None:
                raise error

    if error is None:
        work()
    else:
        with pytest.raises(type(error)):
            work()
    book = read_json(tmp_path / "r" / "run.json")
    assert (book["status"], book["exit_code"], book["attempt"]) == (status, code, 1)
    assert not (tmp_path / "r" / "LOCK").exists()


def test_a_folder_is_never_shared_by_two_configurations(tmp_path):
    with Run.start_or_resume(
        tmp_path / "r", name="r", config_hash="one", files={"config/run.yaml": "a: 1\n"}
    ):
        pass
    with pytest.raises(ConfigError, match="holds another run") as caught:
        Run.start_or_resume(tmp_path / "r", name="r", config_hash="two", files={"config/run.yaml": "a: 2\n"})
    assert caught.value.exit_code == 2
    assert (tmp_path / "r" / "config" / "run.yaml").read_text() == "a: 1\n"
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("x")
    with pytest.raises(ConfigError, match=r'no run, such as "thesis.tex"'):
        Run.start_or_resume(tmp_path / "mine", name="r", config_hash="one")
    assert sorted(p.name for p in (tmp_path / "mine").iterdir()) == ["thesis.tex"]
    (tmp_path / "file").write_text("x")
    with pytest.raises(ConfigError, match="is a file"):
        Run.start_or_resume(tmp_path / "file", name="r", config_hash="one")


def begun(folder, **made_from):
    """A folder whose run failed before its first stage."""
    files = {"config/run.yaml": "a: 1\n", RESOLVED_CONFIG_FILE: "a: 1\n", "env.json": "{}"}
    claim = Run.start_or_resume(
        folder, name="r", config_hash="one", files=files, data_manifest=made_from or {"test": 1}
    )
    with pytest.raises(ConfigError, match="gone"), claim:
        raise ConfigError("gone")


def test_a_folder_in_which_nothing_was_made_is_taken_over_by_another_recipe(tmp_path):
    begun(tmp_path / "r")
    later = {"config_hash": "two", "files": {"config/run.yaml": "a: 2\n"}, "made_from": {"test": 2}}
    with Run.start_or_resume(tmp_path / "r", name="later", **later) as run:
        assert run.previous_state is None
        book = read_json(tmp_path / "r" / "run.json")
    assert (book["name"], book["config_hash"], book["attempt"]) == ("later", "two", 1)
    assert (tmp_path / "r" / "config" / "run.yaml").read_text() == "a: 2\n"
    assert not (tmp_path / "r" / RESOLVED_CONFIG_FILE).exists()
    assert read_json(tmp_path / "r" / "data" / "manifest.json") == {"test": 2}
    (line,) = read_jsonl(tmp_path / "r" / "events.jsonl")
    assert (line["kind"], line["text"]) == ("anew", "in the folder of a run that had made nothing")


def test_a_folder_in_which_nothing_was_made_may_have_other_data_and_may_be_gone_on_in(tmp_path):
    begun(tmp_path / "r")
    with Run.start_or_resume(tmp_path / "r", name="r", config_hash="one", data_manifest={"test": 1}) as run:
        assert run.previous_state is not None
        run.update_state(status="failed")
    begun(tmp_path / "s")
    with Run.start_or_resume(tmp_path / "s", name="r", config_hash="one", data_manifest={"test": 2}) as run:
        assert run.previous_state is None


@pytest.mark.parametrize(
    "made", ["metrics.jsonl", "policy/model.safetensors", "checkpoints/a/state.json", "notes.txt", "config/x"]
)
def test_a_folder_in_which_anything_was_made_is_refused(tmp_path, made):
    begun(tmp_path / "r")
    (tmp_path / "r" / made).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / "r" / made).write_text("{}\n")
    with pytest.raises(ConfigError, match="holds another run"):
        Run.start_or_resume(tmp_path / "r", name="r", config_hash="two")
    assert (tmp_path / "r" / "config" / "run.yaml").read_text() == "a: 1\n"


def test_a_run_at_work_that_has_made_nothing_yet_is_left_alone(tmp_path):
    with Run.start_or_resume(tmp_path / "r", name="r", config_hash="one"):
        with pytest.raises(ConfigError, match="is at work in this folder"):
            Run.start_or_resume(tmp_path / "r", name="r", config_hash="two")
        assert read_json(tmp_path / "r" / "run.json")["config_hash"] == "one"


def recipe(run="steps: 60", more=""):
    """A resolved recipe, as far as claims look at it."""
    return f"name: r\nrun:\n  folder: r\n  {run}\n  threads: 1\n{more}"


def test_a_refusal_names_what_differs(tmp_path):
    def claim(config_hash, text):
        return Run.start_or_resume(
            tmp_path / "r", name="r", config_hash=config_hash, files={RESOLVED_CONFIG_FILE: text}
        )

    with claim("one", recipe(more="learn:\n  lr: 1e-05  # mine.yaml:3\npolicy:\n  lora: null\n")):
        pass
    other = recipe("steps: 80", more="learn:\n  lr: 2e-05  # override\npolicy:\n  lora: null\n")
    with pytest.raises(ConfigError) as caught:
        claim("two", other.replace("threads: 1", "threads: 4"))
    assert str(caught.value) == (
        f"{tmp_path / 'r'}: run.output_dir: holds another run (run.max_steps is 60 there, 80 here; "
        "training.learning_rate is 1e-05 there, 2e-05 here); fix: choose another run.output_dir, or remove this one"
    )
    many = recipe("steps: 80", more='learn:\n  lr: "a\\nb"\npolicy:\n  lora:\n    r: 4\njudge: truth\n')
    with pytest.raises(ConfigError) as caught:
        claim("two", many)
    assert "training.learning_rate is 1e-05 there, a b here" in str(caught.value)
    assert 'policy.lora is null there, {"r": 4} here and 1 more); fix' in str(caught.value)
    for text in ("{", "- a", "\x00"):
        (tmp_path / "r" / RESOLVED_CONFIG_FILE).write_text(text)
        with pytest.raises(ConfigError, match=r"another run \(configuration one there, two here\)"):
            claim("two", other)


def test_a_resume_notes_what_it_may_change(tmp_path):
    for text in (recipe(), recipe().replace("threads: 1", "threads: 4")):
        with Run.start_or_resume(
            tmp_path / "r", name="r", config_hash="h", files={RESOLVED_CONFIG_FILE: text}
        ):
            pass
    (line,) = read_jsonl(tmp_path / "r" / "events.jsonl")
    assert (line["kind"], line["text"]) == ("resume", "attempt 2; run.num_threads was 1, is 4")


@pytest.mark.parametrize(
    ("stage", "step", "said"),
    [
        ("", 0, "no stage was begun"),
        ("reward", 0, "stage reward"),
        ("align", 40, "stage align, step 40 of 60"),
    ],
)
def test_a_run_says_where_it_goes_on(tmp_path, stage, step, said):
    def claim():
        return Run.start_or_resume(tmp_path / "r", name="r", config_hash="h")

    def interrupted():
        with claim() as run:
            assert run.resume_message(60) == ""
            if stage:
                run.enter_stage(stage)
                run.update_state(step=step)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    with claim() as run:
        assert run.resume_message(60) == f"goes on in {tmp_path / 'r'}: {said}"
    with claim() as run:
        assert run.resume_message(60) == f"goes on in {tmp_path / 'r'}: every stage was complete"


def test_of_processes_that_race_for_a_folder_exactly_one_wins(tmp_path):
    at = time.time() + 1.0
    racers = [start(tmp_path / "r", at=at) for _ in range(4)]
    try:
        deadline = time.time() + 30
        while sum(r.poll() is not None for r in racers) < 3 and time.time() < deadline:
            time.sleep(0.02)
        lost = [r for r in racers if r.poll() is not None]
        (winner,) = [r for r in racers if r.poll() is None]
        assert [r.returncode for r in lost] == [2, 2, 2]
        assert all("is at work in this folder" in r.stdout.read() for r in lost)
        with pytest.raises(ConfigError, match=f"process {winner.pid} on "):
            Run.start_or_resume(tmp_path / "r", name="a", config_hash="h")
        os.kill(winner.pid, signal.SIGKILL)
        winner.wait()
        with Run.start_or_resume(tmp_path / "r", name="a", config_hash="h"):
            kinds = [line["kind"] for line in read_jsonl(tmp_path / "r" / "events.jsonl")]
        assert kinds == ["stale_lock", "resume"]
    finally:
        for racer in racers:
            racer.kill()
            racer.communicate()


def test_a_lock_of_another_machine_is_not_stolen(tmp_path):
    with Run.start_or_resume(tmp_path / "r", name="r", config_hash="h"):
        pass
    (tmp_path / "r" / "LOCK").write_text('{"pid": 7, "host": "elsewhere"}')
    with pytest.raises(ConfigError, match="process 7 on elsewhere is at work"):
        Run.start_or_resume(tmp_path / "r", name="r", config_hash="h")
    assert (tmp_path / "r" / "LOCK").exists()


def test_whole_files_are_replaced_at_once(tmp_path):
    path = tmp_path / "a.json"
    write_atomic(path, to_json({"a": float("nan"), "b": [1, 2.5], "c": "\ud800"}))
    assert json.loads(path.read_text()) == {"a": None, "b": [1, 2.5], "c": "\ud800"}
    write_atomic(path, b"x")
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]
    with pytest.raises(ResourceError, match="cannot be written") as caught:
        write_atomic(tmp_path / "none" / "a.json", "x")
    assert caught.value.exit_code == 3


def test_environment_holds_versions_and_no_secrets(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_canary")
    found = json.dumps(environment_info())
    assert "torch" in found
    assert "hf_canary" not in found


def test_the_run_folder_needs_no_torch():
    code = "import sys, paretune.rundir; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_run_goes_on_from_the_data_it_began_with(tmp_path):
    made = {"prompts": {"a": 3}, "sha256": {"f": "1", "g": "2"}, "left_out": ["one row"], "test": 5}
    claim = {"name": "a", "config_hash": "h"}
    with Run.start_or_resume(tmp_path / "r", **claim, data_manifest=made):
        pass
    assert read_json(tmp_path / "r" / "data" / "manifest.json") == made
    with Run.start_or_resume(tmp_path / "r", **claim, data_manifest=made | {"left_out": ["in other words"]}):
        pass
    book = (tmp_path / "r" / "run.json").read_text()
    changed = made | {"sha256": {"f": "1", "g": "3", "h": "4"}, "test": 6}
    with pytest.raises(
        ConfigError, match=r"data changed .* \(sha256: g, sha256: h, test\); fix: put it back"
    ):
        Run.start_or_resume(tmp_path / "r", **claim, data_manifest=changed)
    assert (tmp_path / "r" / "run.json").read_text() == book
    assert not (tmp_path / "r" / "LOCK").exists()
