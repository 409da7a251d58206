"""The files that a function rests on, and its identity, which no spelling of its name changes."""

import sys
from importlib import import_module
from itertools import pairwise

import pytest

from paretune.reward.function_files import source_files
from paretune.reward.function_signatures import load_function
from paretune.reward.functions import PythonScorer

OK = "def ok(completions, **kwargs):\n    return [1.0] * len(completions)\n"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The working directory, on the path; modules of it are forgotten afterwards."""
    before = set(sys.modules)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[name]


def write(folder, files):
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def files_of(reference, folder):
    return [str(file.relative_to(folder)) for file in load_function(reference).files]


LATE = "def ok(completions):\n    import t_late\n    return [1.0]\n"
CASES = {
    "module": (["t_a:ok", "t_a.py:ok"], {"t_a.py": f"import t_b\n{OK}", "t_b.py": ""}, []),
    "package": (
        ["t_pk.rew:ok", "t_pk/rew.py:ok"],
        {
            "t_pk/rew.py": f"from t_pk.helper import K\n{OK}",
            "t_pk/helper.py": "K = 1",
            "t_pk/__init__.py": "",
        },
        ["t_pk/unused.py"],
    ),
    "namespace package": (
        ["t_c:ok", "t_c.py:ok"],
        {"t_c.py": f"from t_ns.deep.norm import N\n{OK}", "t_ns/deep/norm.py": "N = 1"},
        ["t_ns/unused.py"],
    ),
    "relative": (
        ["t_q.sub.rew:ok"],
        {
            "t_q/sub/rew.py": f"from ..one import X\nfrom . import two\n{OK}",
            "t_q/__init__.py": "",
            "t_q/one.py": "X = 1",
            "t_q/sub/__init__.py": "from .three import Y",
            "t_q/sub/three.py": "Y = 1",
            "t_q/sub/two.py": "",
        },
        ["t_q/unused.py"],
    ),
    "cycle": (
        ["t_d:ok", "t_d.py:ok"],
        {"t_d.py": f"import t_e\n{OK}", "t_e.py": "import t_f", "t_f.py": "import t_e, t_d"},
        [],
    ),
    "libraries": (["t_g:ok", "t_g.py:ok"], {"t_g.py": f"import json, numpy.linalg, paretune.core\n{OK}"}, []),
}


@pytest.mark.parametrize("case", CASES)
def test_files_that_a_function_rests_on(folder, case):
    references, files, others = CASES[case]
    write(folder, files | dict.fromkeys(others, "raise SystemExit"))
    for reference in references:
        assert sorted(files_of(reference, folder)) == sorted(files)


@pytest.mark.parametrize("reference", ["t_h:ok", "t_h.py:ok"])
def test_looking_for_files_runs_nothing(folder, reference):
    """What a function of another file imports when it is called is recorded, and not run."""
    broken = "raise SystemExit"
    write(
        folder,
        {"t_h.py": f"import t_lib.part\n{OK}", "t_lib/part.py": "def later():\n    import t_x.y, t_z\n"},
    )
    write(folder, {"t_x/__init__.py": broken, "t_x/y.py": broken, "t_z.py": broken})
    guard = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import t_types\n"
    write(folder, {"t_lib/__init__.py": guard, "t_types.py": broken})
    found = files_of(reference, folder)
    assert found == ["t_h.py", "t_lib/__init__.py", "t_lib/part.py", "t_x/__init__.py", "t_x/y.py", "t_z.py"]
    assert not list(folder.glob("ran *"))


def test_names_as_text_and_modules_that_are_missing(folder):
    write(folder, {"t_i.py": "from importlib import import_module\nimport_module('t_j')\nimport t_none.x\n"})
    write(folder, {"t_j.py": "__import__('t_k')\nfrom ....... import x\n", "t_k.py": "no Python"})
    assert [file.name for file in source_files(folder / "t_i.py")] == ["t_i.py", "t_j.py", "t_k.py"]


def test_an_import_inside_a_function_works_where_the_path_is_gone(folder, monkeypatch):
    write(folder, {"at/t_l.py": "def ok(completions):\n    from t_n.m import N\n    return [N]\n"})
    write(folder, {"at/t_n/m.py": "N = 3.0"})
    assert load_function("at/t_l.py:ok").function([""]) == [3.0]


def test_identity_is_of_the_code_and_not_of_its_spelling(folder):
    write(folder, {"t_r.py": f"import t_s\n{OK}other = lambda completions: [0.0]\n", "t_s.py": ""})
    write(folder, {"t_again.py": "from t_r import ok\n"})

    def identity(target, arguments=None):
        return PythonScorer(load_function(target, "trl", arguments), ("q",)).identity

    for name in ("ok", "other"):
        value = getattr(import_module("t_r"), name)
        targets = [f"t_r.py:{name}", f"./t_r.py:{name}", f"{folder}/t_r.py:{name}", f"t_r:{name}", value]
        targets += [f"t_again:{name}"] if name == "ok" else []
        identities = [identity(target) for target in targets]
        assert all(left == right for left, right in pairwise(identities))
    assert identity("t_r:ok") == identity("t_r.py:ok", {"scale": 2})
    before = identity("t_r:ok")
    assert before != identity("t_r:other")
    write(folder, {"t_s.py": "X = 2"})
    assert identity("t_r:ok") != before


def test_objects_of_one_class_differ_by_the_file_that_makes_them(folder):
    made = "from t_class import Reward\nok = Reward({})\n"
    text = "class Reward:\n    def __init__(self, x):\n        pass\n"
    text += "    def __call__(self, completions):\n        pass\n"
    write(folder, {"t_class.py": text, "t_u.py": made.format(1), "t_v.py": made.format(2)})
    hashes = {load_function(reference).hash for reference in ("t_u:ok", "t_u.py:ok", "t_v:ok")}
    assert len(hashes) == 2
