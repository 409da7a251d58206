"""What a person can hold in mind: files and functions have a limit, and so have the things left undone."""

import ast
import re
import subprocess
from pathlib import Path

import pytest
from source import FILES, ROOT, functions, name, tree

MOST_LINES = 400
MOST_IN_A_FUNCTION = 60


@pytest.mark.parametrize("path", FILES, ids=name)
def test_length_of_files_and_functions(path: Path) -> None:
    assert path.read_text(encoding="utf-8").count("\n") <= MOST_LINES
    long = [(f.name, n) for f in functions(path) if (n := f.end_lineno - f.lineno + 1) > MOST_IN_A_FUNCTION]
    assert not long


@pytest.mark.parametrize("path", [path for path in FILES if path.name == "__init__.py"], ids=name)
def test_a_room_sign_is_a_paragraph(path: Path) -> None:
    """Imports and the table of contents are allowed; code is not."""
    body = tree(path).body
    assert ast.get_docstring(tree(path))
    allowed = ast.Expr | ast.Import | ast.ImportFrom | ast.Assign | ast.AnnAssign
    assert all(isinstance(node, allowed) for node in body)


def tracked() -> list[Path]:
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        check=False,
        capture_output=True,
        text=True,
    )
    if listed.returncode != 0:
        pytest.skip("not a git working tree")
    return [ROOT / line for line in listed.stdout.splitlines() if (ROOT / line).is_file()]


def test_nothing_is_left_for_later() -> None:
    words = re.compile(r"\b(TODO|FIXME|XXX)\b|\bNotImplementedError\b|pragma: no cover|mark\.(skip|xfail)\b")
    found = [
        f"{name(p)}:{i}"
        for p in [*FILES, *(ROOT / "tests").rglob("*.py")]
        if p != Path(__file__)
        for i, line in lines(p)
        if words.search(line)
    ]
    assert not found


def lines(path: Path) -> list[tuple[int, str]]:
    return list(enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1))


def test_no_paths_of_one_machine() -> None:
    """Anybody's clone is as good as ours."""
    machine = re.compile(r"(?<![\w.~-])/(?:work|root|home|Users|farm|opt|mnt)/")
    found = [
        f"{name(p)}:{i}"
        for p in tracked()
        if p != Path(__file__)
        for i, line in lines(p)
        if machine.search(line)
    ]
    assert not found


def test_no_big_files() -> None:
    assert not [name(path) for path in tracked() if path.stat().st_size > 500_000]
