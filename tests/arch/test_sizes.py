"""Limits: length of files and functions, size of the repository's files, things left undone."""

import ast
import re
import subprocess
from pathlib import Path

import pytest
from source import FILES, ROOT, functions, listed, name, tree

MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60
MAX_FILE_BYTES = 500_000


def test_length_of_files() -> None:
    lengths = {name(path): path.read_text(encoding="utf-8").count("\n") for path in FILES}
    offenders = [f"{file}: {length} lines" for file, length in lengths.items() if length > MAX_FILE_LINES]
    assert not offenders, listed(offenders)


def test_length_of_functions() -> None:
    offenders = [
        f"{name(path)}:{f.lineno}: {f.name}: {length} lines"
        for path in FILES
        for f in functions(path)
        if (length := f.end_lineno - f.lineno + 1) > MAX_FUNCTION_LINES
    ]
    assert not offenders, listed(offenders)


def test_package_files_hold_no_code() -> None:
    """An `__init__.py` has a docstring, imports, also for type checkers, and `__all__`, nothing else."""
    allowed = ast.Expr | ast.Import | ast.ImportFrom | ast.Assign | ast.AnnAssign
    packages = [path for path in FILES if path.name == "__init__.py"]
    offenders = [name(path) for path in packages if not ast.get_docstring(tree(path))]
    offenders += [
        f"{name(path)}:{node.lineno}"
        for path in packages
        for node in tree(path).body
        if not isinstance(node, allowed)
        and not (isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
    ]
    assert not offenders, listed(offenders)


def repository_files() -> list[Path]:
    process = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        check=False,
        capture_output=True,
        text=True,
    )
    if process.returncode != 0:
        pytest.skip("not a git working tree")
    return [ROOT / line for line in process.stdout.splitlines() if (ROOT / line).is_file()]


def matching_lines(paths: list[Path], pattern: re.Pattern[str]) -> list[str]:
    """file:line of every match, this file left out."""
    return [
        f"{name(path)}:{number}"
        for path in paths
        if path != Path(__file__)
        for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1)
        if pattern.search(line)
    ]


def test_nothing_is_left_undone() -> None:
    pattern = re.compile(
        r"\b(TODO|FIXME|XXX)\b|\bNotImplementedError\b|pragma: no cover|mark\.(skip|xfail)\b"
    )
    offenders = matching_lines([*FILES, *(ROOT / "tests").rglob("*.py")], pattern)
    assert not offenders, listed(offenders)


def test_no_paths_of_one_machine() -> None:
    pattern = re.compile(r"(?<![\w.~-])/(?:work|root|home|Users|farm|opt|mnt)/")
    offenders = matching_lines(repository_files(), pattern)
    assert not offenders, listed(offenders)


def test_no_big_files() -> None:
    offenders = [name(path) for path in repository_files() if path.stat().st_size > MAX_FILE_BYTES]
    assert not offenders, listed(offenders)
