"""The commands: their output, and the exit codes that scripts rely on."""

import os
import subprocess
import sys
import types
from pathlib import Path

import pytest

import paretune
from paretune.cli import main
from paretune.core import errors

WORLD = """\
data: {world: {num_prompts: 24, num_test_prompts: 12, num_ratings: 64, num_demonstrations: 64}}
policy: {path: world, sft: {}}
reward: {objectives: {safety: {}}}
objectives: {safety: {weight: 1}}
algorithm: {name: grpo}
"""


def leave(*arguments: str) -> int:
    with pytest.raises(SystemExit) as end:
        main(list(arguments))
    return int(end.value.code or 0)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text(WORLD)
    return tmp_path


@pytest.fixture
def stages(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """A fake pipeline module."""
    module = types.ModuleType("paretune.experiment.pipeline")
    monkeypatch.setitem(sys.modules, "paretune.experiment.pipeline", module)
    return module


def test_help_fits_on_a_screen(capsys: pytest.CaptureFixture[str]) -> None:
    assert leave("--help") == 0
    text = capsys.readouterr().out
    assert text.count("\n") <= 42
    for command in (
        "demo",
        "run",
        "compare",
        "check",
        "recipes",
        "report",
        "reward-filtering",
        "merge",
        "doctor",
        "sample",
        "score",
        "rate",
        "evaluate",
        "export",
        "chat",
        "track",
    ):
        assert f"  {command} " in text
    assert "..." not in text.replace("[ARGS]...", "")


def test_run_passes_the_config_to_the_pipeline(folder: Path, stages: types.ModuleType) -> None:
    seen = []
    stages.run_pipeline = lambda experiment, console, command="", **_: seen.append(experiment)
    assert leave("run", "mine.yaml", "run.max_steps=3") == 0
    assert leave("demo", "--seed", "5", "run.max_steps=2") == 0
    assert [(e.name, e.run.max_steps, e.run.seed) for e in seen] == [("mine", 3, 0), ("demo", 2, 5)]


def test_an_invalid_recipe_exits_with_2_and_writes_nothing(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert leave("run", "mine.yaml", "run.stpes=3", "training.learning_rate=fast") == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [
        '(override):1: run.stpes: unknown key; did you mean "run.max_steps"?; '
        "fix: this section has output_dir, max_steps, budget, ... (9; see docs/recipe.md)",
        '(override):2: training.learning_rate: "fast" is not a number',
        "mine.yaml:5: algorithm.max_new_tokens: 256 tokens leave no room for a prompt: the policy's context "
        "has 192; fix: lower it",
    ]
    assert [path.name for path in folder.iterdir()] == ["mine.yaml"]


def test_a_missing_recipe_is_reported(capsys: pytest.CaptureFixture[str]) -> None:
    assert leave("check", "dmo") == 2
    assert 'dmo:1: no such recipe; did you mean "demo"?' in capsys.readouterr().err


def test_a_folder_is_not_a_recipe(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert leave("run", ".") == 2
    assert capsys.readouterr().err == ".:1: is a folder; fix: name a recipe file in it, such as mine.yaml\n"


def test_typing_errors(capsys: pytest.CaptureFixture[str]) -> None:
    assert leave("chekc", "demo") == 2
    assert "Did you mean 'check'" in capsys.readouterr().err
    assert leave("demo", "--sed", "3") == 2
    assert "--seed" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.WiringError("x"), 2),
        (errors.DataError("x"), 2),
        (errors.MissingDependencyError("x"), 3),
        (errors.ResourceError("x"), 3),
        (errors.NonFiniteError("x"), 4),
        (errors.RunInterrupted("x"), 75),
        (KeyboardInterrupt(), 130),
    ],
)
def test_exit_codes(
    folder: Path,
    stages: types.ModuleType,
    capsys: pytest.CaptureFixture[str],
    error: BaseException,
    code: int,
) -> None:
    def run(experiment: object, console: object, *, command: str = "", **_: object) -> None:
        raise error

    stages.run_pipeline = run
    assert leave("run", "mine.yaml") == code
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_an_interrupt_reports_what_was_saved(
    folder: Path, stages: types.ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    """A training loop has its own message; else it depends on whether the folder holds a run."""
    messages = []

    def run(experiment: object, console: object, *, command: str = "", **_: object) -> None:
        raise KeyboardInterrupt(*messages)

    stages.run_pipeline = run
    assert leave("run", "mine.yaml") == 130
    not_saved = "interrupted before anything was saved; the same command starts again\n"
    assert capsys.readouterr().err == not_saved
    (folder / "runs" / "mine").mkdir(parents=True)
    assert leave("run", "mine.yaml") == 130
    assert capsys.readouterr().err == not_saved
    (folder / "runs" / "mine" / "run.json").touch()
    assert leave("run", "mine.yaml") == 130
    saved = "interrupted; the same command resumes from the last checkpoint in runs/mine\n"
    assert capsys.readouterr().err == saved
    messages.append("interrupted after step 3 of 9")
    assert leave("run", "mine.yaml") == 130
    assert capsys.readouterr().err == "interrupted after step 3 of 9\n"


def test_a_bug_is_reported_in_one_line_and_a_file(
    folder: Path,
    stages: types.ModuleType,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def run(experiment: object, console: object, *, command: str = "", **_: object) -> None:
        raise KeyError("boo")

    stages.run_pipeline = run
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    assert leave("run", "mine.yaml") == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("bug in paretune: KeyError; the traceback is in ")
    assert "KeyError: 'boo'" in Path(line.split(" is in ")[1]).read_text()


def test_control_characters_do_not_reach_the_terminal(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert leave("run", "mine.yaml", "run.\x1b]0;owned\x07=3", "name=\u202ereversed") == 2
    err = capsys.readouterr().err
    assert not {"\x1b", "\x07", "\u202e"} & set(err)


def test_check_describes_the_run(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert leave("check", "mine.yaml", "algorithm.max_new_tokens=64") == 0
    assert capsys.readouterr().out.startswith("mine: ok")
    assert leave("check", "mine.yaml") == 2
    problem = "256 tokens leave no room for a prompt: the policy's context has 192; fix: lower it"
    assert capsys.readouterr().err == f"mine.yaml:5: algorithm.max_new_tokens: {problem}\n"
    assert [path.name for path in folder.iterdir()] == ["mine.yaml"]


def test_recipes_are_listed_and_printed(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert leave("recipes") == 0
    listed = capsys.readouterr().out.splitlines()
    assert {line[len("compare-confidence") :][:2] for line in listed} == {"  "}, "one column of summaries"
    assert not any(line[len("compare-confidence") + 2].isspace() for line in listed)
    assert [line.split()[0] for line in listed] == [
        "compare-confidence",
        "compare-methods",
        "compare-real-small",
        "compare-thinking",
        "compare-world",
        "confidence",
        "demo",
        "evolution",
        "paper-0.5b",
        "paper-14b",
        "paper-7b",
        "paper",
        "real-small",
        "thinking",
    ]
    assert leave("recipes", "demo") == 0
    Path("copy.yaml").write_text(capsys.readouterr().out)
    small = ("num_prompts=24", "num_ratings=64", "num_demonstrations=64")
    assert leave("check", "copy.yaml", *(f"data.world.{size}" for size in small)) == 0


def test_doctor(capsys: pytest.CaptureFixture[str]) -> None:
    assert leave("doctor") == 0
    text = capsys.readouterr().out
    assert "torch 2." in text
    assert "paretune demo" in text


def test_a_report_without_results_is_rejected(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "run").mkdir()
    (folder / "run" / "run.json").write_text('{"status": "failed", "stage": "sft"}')
    (folder / "run" / "metrics.jsonl").touch()
    for name, wrong in (
        ("nowhere", "there is no such folder; fix: name a run folder"),
        ("mine.yaml", "is a file; fix: name a run folder"),
        (".", "no run.json, so this is not a run folder; fix: name the folder of a run"),
        ("run", "has no results yet (failed, stage sft); fix: resume the run first"),
    ):
        assert leave("report", name) == 2
        assert capsys.readouterr().err == f"{name}: {wrong}\n"
    assert not (folder / "run" / "report.html").exists()


def test_a_closed_pipe_is_not_a_bug(folder: Path) -> None:
    code = "from paretune.cli import main; main(['recipes', 'real-small'])"
    environment = {**os.environ, "PYTHONPATH": str(Path(paretune.__file__).parents[1])}
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment
    ) as child:
        assert child.stdout is not None
        assert child.stderr is not None
        child.stdout.close()
        assert b"bug" not in child.stderr.read()


def test_the_version_is_that_of_the_package(capsys: pytest.CaptureFixture[str]) -> None:
    assert leave("--version") == 0
    assert capsys.readouterr().out == f"paretune {paretune.__version__}\n"


def test_an_invalid_arm_is_rejected(capsys: pytest.CaptureFixture[str]) -> None:
    assert leave("reward-filtering", "run", "--arm", "middle") == 2
    error = capsys.readouterr().err
    assert error.startswith("--arm: middle is not before or after; fix: ")
    assert error.count("\n") == 1


def test_a_merge_needs_two_folders(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for folders in (["a"], ["a", "./a"]):
        assert leave("merge", *folders) == 2
        assert capsys.readouterr().err == (
            "a merge needs two or more different runs; fix: name at least two folders\n"
        )
