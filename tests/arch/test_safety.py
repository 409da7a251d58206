"""Nothing unpickles, nothing seeds the world, nothing is rescued from an error that nobody understood."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
from source import FILES, name, tree

PICKLES = {"pickle", "cPickle", "dill", "joblib", "cloudpickle", "shelve", "marshal"}
CALLS = {
    "torch.load": "reads pickles; use safetensors",
    "torch.save": "writes pickles; use safetensors",
    "torch.manual_seed": "seeds everybody; use chance.generator, or torch.random.fork_rng around it",
    "np.random.seed": "seeds everybody; use chance.numpy_generator",
    "numpy.random.seed": "seeds everybody; use chance.numpy_generator",
    "random.seed": "seeds everybody; use chance.numpy_generator",
    "yaml.load": "builds objects; use config.load",
    "eval": "runs text",
    "exec": "runs text",
    "os.system": "runs text",
}


def calls(path: Path) -> Iterator[tuple[int, str, ast.Call]]:
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Call):
            yield node.lineno, ast.unparse(node.func), node


@pytest.mark.parametrize("path", FILES, ids=name)
def test_nothing_is_pickled_or_seeded_for_all(path: Path) -> None:
    imported = {
        alias.name.split(".")[0]
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Import)
        for alias in node.names
    } | {
        (node.module or "").split(".")[0] for node in ast.walk(tree(path)) if isinstance(node, ast.ImportFrom)
    }
    assert not imported & PICKLES
    text = path.read_text(encoding="utf-8")
    apart = "fork_rng" in text
    found = [
        f"line {line}: {function} {CALLS[function]}"
        for line, function, _ in calls(path)
        if function in CALLS and not (function == "torch.manual_seed" and apart)
    ]
    assert not found


@pytest.mark.parametrize("path", FILES, ids=name)
def test_no_foreign_code_and_no_pickled_arrays(path: Path) -> None:
    for line, function, call in calls(path):
        for word in call.keywords:
            if word.arg in {"trust_remote_code", "allow_pickle"}:
                given = isinstance(word.value, ast.Constant) and word.value.value is False
                assert given, f"line {line}: {function}({word.arg}=...)"


@pytest.mark.parametrize("path", FILES, ids=name)
def test_errors_are_caught_by_name(path: Path) -> None:
    """Only the command line, which turns a bug of ours into a crash file, keeps what it does not know."""
    wide = [
        node.lineno
        for node in ast.walk(tree(path))
        if isinstance(node, ast.ExceptHandler)
        and (node.type is None or ast.unparse(node.type) in {"Exception", "BaseException"})
        and not (isinstance(node.body[-1], ast.Raise) and node.body[-1].exc is None)
    ]
    assert len(wide) == (path.name == "cli.py" and path.parent.name == "paretune")
