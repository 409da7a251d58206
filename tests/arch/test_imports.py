"""Imports go one way, and what needs no torch does not load it."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from source import ROOT, SOURCE

SLOW = {"torch", "transformers", "peft"}


def test_import_contracts() -> None:
    program = Path(sys.executable).with_name("lint-imports")
    found = str(program) if program.exists() else shutil.which("lint-imports")
    assert found, "import-linter is not installed"
    done = subprocess.run(
        [found, "--no-cache"],
        check=False,
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={"PYTHONPATH": str(SOURCE.parent)},
    )
    assert done.returncode == 0, done.stdout + done.stderr


def loaded_by(code: str) -> set[str]:
    """The slow packages that a fresh process has loaded after running this code."""
    code = f"import sys\n{code}\nprint('loaded', *sorted({SLOW!r} & sys.modules.keys()))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        check=False,
        capture_output=True,
        text=True,
        env={"PYTHONPATH": str(SOURCE.parent)},
    )
    assert done.returncode == 0, done.stderr
    return set(done.stdout.splitlines()[-1].split()[1:])


def command(arguments: list[str]) -> str:
    """Code that gives this command, and goes on if it ended well."""
    return (
        f"from paretune.cli import main\n"
        f"try:\n    main({arguments!r})\nexcept SystemExit as end:\n    assert not end.code"
    )


@pytest.mark.parametrize(
    "arguments", [["--help"], ["run", "--help"], ["recipes"], ["recipes", "demo"], ["doctor"]]
)
def test_light_commands_load_no_torch(arguments: list[str]) -> None:
    assert not loaded_by(command(arguments))


@pytest.mark.parametrize("arguments", [["check", "demo"], ["compare", "compare-world", "--check"]])
def test_what_opens_no_model_loads_neither_transformers_nor_peft(arguments: list[str]) -> None:
    assert loaded_by(command(arguments)) == {"torch"}


def test_what_a_run_is_made_of_can_be_read_without_transformers() -> None:
    assert loaded_by("import paretune.stages.pipeline") == {"torch"}


@pytest.mark.parametrize(
    "module", ["rundir", "config", "report.page", "report.table", "front", "evaluate.statistics"]
)
def test_what_a_report_needs_loads_no_torch(module: str) -> None:
    assert not loaded_by(f"import paretune.{module}")
