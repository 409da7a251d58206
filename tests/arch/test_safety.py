"""Nothing unpickles, seeds globally, runs text as code, or catches errors it does not understand."""

import ast
from collections.abc import Iterator
from pathlib import Path

from source import FILES, SOURCE, listed, name, tree

PICKLES = {"pickle", "cPickle", "dill", "joblib", "cloudpickle", "shelve", "marshal"}
CALLS = {
    "torch.load": "reads pickles; use safetensors",
    "torch.save": "writes pickles; use safetensors",
    "torch.manual_seed": "seeds globally; use rng.torch_generator, or torch.random.fork_rng around it",
    "np.random.seed": "seeds globally; use rng.numpy_generator",
    "numpy.random.seed": "seeds globally; use rng.numpy_generator",
    "random.seed": "seeds globally; use rng.numpy_generator",
    "yaml.load": "builds objects; use config.load",
    "eval": "runs text as code",
    "exec": "runs text as code",
    "os.system": "runs text as code",
}
UNSAFE_KEYWORDS = {"trust_remote_code", "allow_pickle"}


def calls(path: Path) -> Iterator[tuple[int, str, ast.Call]]:
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Call):
            yield node.lineno, ast.unparse(node.func), node


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """Line and top-level package of every import."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name.split(".")[0]) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.lineno, (node.module or "").split(".")[0]


def test_no_pickles_are_imported() -> None:
    offenders = [
        f"{name(path)}:{line}: {package}"
        for path in FILES
        for line, package in imports(path)
        if package in PICKLES
    ]
    assert not offenders, listed(offenders)


def test_no_forbidden_calls() -> None:
    offenders = []
    for path in FILES:
        forked = "fork_rng" in path.read_text(encoding="utf-8")
        offenders += [
            f"{name(path)}:{line}: {function} {CALLS[function]}"
            for line, function, _ in calls(path)
            if function in CALLS and not (function == "torch.manual_seed" and forked)
        ]
    assert not offenders, listed(offenders)


def test_no_remote_code_and_no_pickled_arrays() -> None:
    offenders = [
        f"{name(path)}:{line}: {function}({keyword.arg}=...)"
        for path in FILES
        for line, function, call in calls(path)
        for keyword in call.keywords
        if keyword.arg in UNSAFE_KEYWORDS
        and not (isinstance(keyword.value, ast.Constant) and keyword.value.value is False)
    ]
    assert not offenders, listed(offenders)


def broad_handlers(path: Path) -> list[int]:
    """Lines of handlers that catch everything and do not raise it again."""
    return [
        node.lineno
        for node in ast.walk(tree(path))
        if isinstance(node, ast.ExceptHandler)
        and (node.type is None or ast.unparse(node.type) in {"Exception", "BaseException"})
        and not (isinstance(node.body[-1], ast.Raise) and node.body[-1].exc is None)
    ]


def test_errors_are_caught_by_name() -> None:
    """Only the command line catches everything: it turns a bug into a crash file."""
    cli = SOURCE / "cli.py"
    offenders = [f"{name(p)}:{line}" for p in FILES if p != cli for line in broad_handlers(p)]
    assert not offenders, listed(offenders)
    assert len(broad_handlers(cli)) == 1
