"""One word for one thing: the names that definitions must not use, and the docstrings they must have."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from source import FILES, Function, name, tree

FORBIDDEN = {
    "logprob": "logp",
    "logprobs": "logp",
    "log_prob": "logp",
    "log_probs": "logp",
    "lp": "logp",
    "ref": "reference",
    "ref_model": "reference",
    "completion": "response",
    "completions": "response",
    "num_generations": "n",
    "reward_head": "objective",
    "cfg": "config, or what it is the configuration of",
    "hparams": "the fields of a part",
}
"""Forbidden word -> the word to use. Columns of files that users have are text, and free."""

NO_ROOM = {"utils", "util", "helpers", "misc", "common"}
"""Files of this name say nothing about what is in them."""

PARTS = re.compile(r"(?:^|_)(logprobs?|ref|completions?|cfg)(?:_|$)")


def definitions(path: Path) -> Iterator[tuple[int, str]]:
    """Line and name of every function, class, argument, variable and field of a file."""
    for node in ast.walk(tree(path)):
        if isinstance(node, Function | ast.ClassDef):
            yield node.lineno, node.name
        elif isinstance(node, ast.arg):
            yield node.lineno, node.arg
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.lineno, node.id


@pytest.mark.parametrize("path", FILES, ids=name)
def test_glossary(path: Path) -> None:
    assert path.stem not in NO_ROOM
    found = [
        f"line {line}: {word}; use {FORBIDDEN.get(word.lower(), 'the word of the glossary')}"
        for line, word in definitions(path)
        if word.lower() in FORBIDDEN or PARTS.search(word.lower())
    ]
    assert not found


def public(body: list[ast.stmt]) -> Iterator[Function | ast.ClassDef]:
    """Public functions and classes, and the public methods of those classes."""
    for node in body:
        if isinstance(node, Function | ast.ClassDef) and not node.name.startswith("_"):
            yield node
            if isinstance(node, ast.ClassDef):
                yield from public(node.body)


@pytest.mark.parametrize("path", FILES, ids=name)
def test_every_public_name_has_a_docstring(path: Path) -> None:
    module = tree(path)
    assert ast.get_docstring(module)
    assert not [
        f"line {node.lineno}: {node.name}" for node in public(module.body) if not ast.get_docstring(node)
    ]
