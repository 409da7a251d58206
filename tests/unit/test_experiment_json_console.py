"""Progress for machines: one JSON object per event."""

import io
import json
import types

import pytest

from paretune.cli import main
from paretune.core.errors import ConfigError, RunInterrupted
from paretune.experiment import json_console
from paretune.experiment.console import Console
from paretune.experiment.json_console import JsonConsole


@pytest.fixture
def console():
    return JsonConsole(io.StringIO())


def events(console):
    return [json.loads(line) for line in console.stream.stream.getvalue().splitlines()]


def test_a_run_from_start_to_end(console, tmp_path, monkeypatch):
    clock = types.SimpleNamespace(monotonic=lambda: clock.now, now=0.0)
    monkeypatch.setattr(json_console, "time", clock)
    assert isinstance(console, Console)
    values = {
        "before": 0.1,
        "after": 0.3,
        "change": 0.2,
        "low": 0.1,
        "high": None,
        "verdict": "better",
        "judge": "j",
    }
    (tmp_path / "eval" / "final").mkdir(parents=True)
    results = {"objectives": {"safety": values | {"std": 1.0}}, "warnings": ["w"]}
    (tmp_path / "eval" / "final" / "eval.json").write_text(json.dumps(results))
    with console:
        console.start("mine", tmp_path)
        console.start_stage("align", 2, 3)
        for step in range(3):
            clock.now += 0.6
            console.progress(step + 1, 3, "KL 0.1", ["safety 0.5"])
            console.step(step, {"reward/mean": 0.5, "entropy": float("nan")})
        console.log("warning: safety falls\nfine\n")
        console.finish_stage("grpo, 3 steps")
        console.finish(tmp_path)
    found = events(console)
    names = [event["event"] for event in found]
    assert names == [
        "start",
        "stage",
        "step",
        "progress",
        "step",
        "step",
        "warning",
        "log",
        "stage_end",
        "verdicts",
        "end",
    ]
    start = {"schema": "paretune/events/1", "name": "mine", "output_dir": str(tmp_path), "resumed": False}
    assert found[0] == {"event": "start"} | start
    assert found[2] == {
        "event": "step",
        "stage": "align",
        "step": 0,
        "metrics": {"reward/mean": 0.5, "entropy": None},
    }
    assert (found[3]["done"], found[3]["total"], found[3]["note"]) == (2, 3, "KL 0.1")
    assert found[6] == {"event": "warning", "stage": "align", "text": "safety falls"}
    assert found[8]["seconds"] == 1.8
    assert found[9] == {"event": "verdicts", "objectives": {"safety": values}, "warnings": ["w"]}
    assert found[10] == {"event": "end", "exit_code": 0, "output_dir": str(tmp_path), "report": None}


def test_control_characters_and_numbers_that_json_lacks(console):
    console.log("evil \x1b[2J\u202e")
    console.step(0, {"a": float("inf")})
    text = console.stream.stream.getvalue()
    assert text.isascii()
    assert not {"\x1b"} & set(text)
    assert "Infinity" not in text


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (ConfigError("a:1: wrong"), 2, "a:1: wrong"),
        (RunInterrupted("stopped at step 3"), 75, "stopped at step 3"),
        (KeyboardInterrupt("after step 3"), 130, "after step 3"),
        (KeyError("x"), 1, "bug in paretune: KeyError"),
    ],
)
def test_errors_are_the_last_event_and_go_to_standard_error_too(
    monkeypatch, tmp_path, capsys, error, code, message
):
    import sys

    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    module = types.ModuleType("paretune.experiment.all_issues")

    def load_or_tell_all(*_):
        raise error

    module.load_or_tell_all = load_or_tell_all
    monkeypatch.setitem(sys.modules, "paretune.experiment.all_issues", module)
    with pytest.raises(SystemExit) as end:
        main(["run", "demo", "--json"])
    out, err = capsys.readouterr()
    assert end.value.code == code
    assert json.loads(out) == {"event": "error", "exit_code": code, "message": message}
    assert message in err
