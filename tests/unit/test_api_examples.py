"""The examples of the public API run."""

import io
import re
import runpy
import sys
from contextlib import redirect_stdout

import pytest

from pages import ROOT

FOLDER = ROOT / "docs" / "examples" / "api"
PRINTED = {
    "own_scorer": r"\[1\.0, 0\.0, None\]",
    "own_judge": r"greeting judged by the support team - independent",
    "own_sampler": r"characters on average",
    "notebook": r"on the Pareto front: \[",
}


def printed(name, monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    monkeypatch.delitem(sys.modules, "tiny", raising=False)
    output = io.StringIO()
    with redirect_stdout(output):
        runpy.run_path(str(FOLDER / f"{name}.py"), run_name="__main__")
    return output.getvalue()


@pytest.mark.parametrize("name", PRINTED)
def test_example_runs(name, monkeypatch):
    assert re.search(PRINTED[name], printed(name, monkeypatch))


def test_every_example_is_run():
    assert {path.stem for path in FOLDER.glob("*.py")} == {*PRINTED, "tiny"}


def test_best_of_several_responses_is_shorter(monkeypatch):
    first, best = (float(line.split()[0]) for line in printed("own_sampler", monkeypatch).splitlines())
    assert best < first


@pytest.mark.parametrize(("name", "most"), [("own_scorer", 10), ("own_judge", 20), ("own_sampler", 40)])
def test_own_parts_are_short(name, most):
    """Lines of code of the part itself: without imports, docstrings, blank lines and the demonstration."""
    text = (FOLDER / f"{name}.py").read_text(encoding="utf-8").partition('if __name__ == "__main__"')[0]
    code = re.sub(r'"""(.|\n)*?"""', "", text)
    lines = [line for line in code.splitlines() if line.strip() and not line.startswith(("import ", "from "))]
    assert len(lines) <= most
