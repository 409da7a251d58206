"""Imports go one way, and light commands and modules load no torch."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from source import ROOT, SOURCE

SLOW_PACKAGES = {"torch", "transformers", "peft"}


def test_import_contracts() -> None:
    beside = Path(sys.executable).with_name("lint-imports")
    program = str(beside) if beside.exists() else shutil.which("lint-imports")
    assert program, "import-linter is not installed"
    process = subprocess.run(
        [program, "--no-cache"],
        check=False,
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={"PYTHONPATH": str(SOURCE.parent)},
    )
    assert process.returncode == 0, process.stdout + process.stderr


def loaded_by(code: str) -> set[str]:
    """The slow packages that a fresh process has loaded after running this code."""
    code = f"import sys\n{code}\nprint('loaded', *sorted({SLOW_PACKAGES!r} & sys.modules.keys()))"
    process = subprocess.run(
        [sys.executable, "-c", code],
        check=False,
        capture_output=True,
        text=True,
        env={"PYTHONPATH": str(SOURCE.parent)},
    )
    assert process.returncode == 0, process.stderr
    return set(process.stdout.splitlines()[-1].split()[1:])


def command(arguments: list[str]) -> str:
    """Code that runs a command and continues if it succeeded."""
    return (
        f"from paretune.cli import main\n"
        f"try:\n    main({arguments!r})\nexcept SystemExit as end:\n    assert not end.code"
    )


@pytest.mark.parametrize(
    "arguments", [["--help"], ["run", "--help"], ["recipes"], ["recipes", "demo"], ["doctor"]]
)
def test_light_commands_load_no_torch(arguments: list[str]) -> None:
    assert not loaded_by(command(arguments))


@pytest.mark.parametrize("arguments", [["check", "demo"], ["compare", "compare-world", "--dry-run"]])
def test_checks_load_neither_transformers_nor_peft(arguments: list[str]) -> None:
    assert loaded_by(command(arguments)) == {"torch"}


def test_importing_the_pipeline_loads_no_transformers() -> None:
    assert loaded_by("import paretune.experiment.pipeline") == {"torch"}


@pytest.mark.parametrize(
    "module",
    ["run.folder", "config", "report.run_page", "report.tables", "core.pareto", "evaluate.statistics"],
)
def test_report_modules_load_no_torch(module: str) -> None:
    assert not loaded_by(f"import paretune.{module}")
