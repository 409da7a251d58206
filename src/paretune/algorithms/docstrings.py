"""What docstrings say of algorithms and parts: their summary, their arguments, their fields."""

import ast
import inspect
import re
import sys
from collections.abc import Callable, Mapping
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

_ARGS = re.compile(r"^Args:\n(.*?)(?=^\S|\Z)", re.DOTALL | re.MULTILINE)
_ENTRY = re.compile(r"^ {4}(\w+): (.*?)(?=^ {4}\w+: |\Z)", re.DOTALL | re.MULTILINE)


def summary(value: Any) -> str:
    """The first paragraph of a docstring, on one line; "" without one."""
    text = inspect.getdoc(value) or ""
    # A dataclass without a docstring gets its signature as one.
    if inspect.isclass(value) and text.startswith(f"{value.__name__}("):
        return ""
    return " ".join(text.partition("\n\n")[0].split())


def argument_descriptions(function: Callable[..., Any]) -> Mapping[str, str]:
    """Argument -> its entry under `Args:`, of the function or of the one that it inherits it from."""
    parent = getattr(function, "inherits_from", None)
    inherited = {} if parent is None else argument_descriptions(parent)
    section = _ARGS.search(inspect.getdoc(function) or "")
    own = (
        {} if section is None else {name: " ".join(text.split()) for name, text in _ENTRY.findall(section[1])}
    )
    return {**inherited, **own}


def field_descriptions(part: type) -> Mapping[str, str]:
    """Field -> the string literal below it, of a class and of the classes it inherits from."""
    bases = reversed(part.__mro__[:-1])
    return {
        name: text
        for base in bases
        for name, text in _docs_in(base.__module__).get(base.__name__, {}).items()
    }


@cache
def _docs_in(module: str) -> Mapping[str, Mapping[str, str]]:
    """Class -> field -> the string literal below it, of all classes of a module."""
    file = getattr(sys.modules.get(module), "__file__", None)
    if file is None or not file.endswith(".py"):
        return {}
    tree = ast.parse(Path(file).read_bytes())
    return {node.name: _docs_of(node.body) for node in tree.body if isinstance(node, ast.ClassDef)}


def _docs_of(body: list[ast.stmt]) -> dict[str, str]:
    return {
        statement.target.id: text
        for statement, below in pairwise(body)
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name)
        if (text := _text_of(below))
    }


def _text_of(statement: ast.stmt) -> str:
    is_text = isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)
    return " ".join(str(statement.value.value).split()) if is_text else ""  # type: ignore[attr-defined]
