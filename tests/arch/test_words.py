"""Public names consist of glossary terms and ordinary English words, and have docstrings.

`docs/glossary.md` explains the terms and abbreviations; `words.txt` lists the ordinary English words in use.
A new word goes into one of the two, after a look at whether an existing one says the same.
"""

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from source import FILES, ROOT, Function, listed, name, tree

GLOSSARY = ROOT / "docs" / "glossary.md"
WORD_LIST = Path(__file__).with_name("words.txt")

FORBIDDEN = set(
    """
    aside asked attend behaviour conduct contest found hears held hired judgement ledger lacking lineage logp
    most newborn nobody nudge obey own place reckon respond said seen shown signal soup spoken stands stops
    thoughts told trace undecided unfair wanting waves worth utils util misc
    """.split()
)
"""Words with several meanings, or for how a value was obtained instead of what it is."""
ALLOWED_NAMES = {"at_most"}
"""The counterpart of `at_least` of a constraint."""

# Suffixes of inflected forms; "" first, so that a word that is listed itself needs no rule.
_SUFFIXES = ("", "s", "es", "ed", "d", "ing", "er", "ers", "r", "rs", "ly", "able", "ies", "ion", "ions")


def split_words(identifier: str) -> Iterator[str]:
    """The words of snake_case and CamelCase, in lower case; numbers and single letters left out."""
    for part in identifier.split("_"):
        for word in re.findall(r"[A-Z]+(?=[A-Z][a-z])|[A-Z]?[a-z]+|[A-Z]+", part):
            if len(word) > 1:
                yield word.lower()


def public_names(path: Path) -> Iterator[tuple[int, str]]:
    """Line and name of every public module, class, function, parameter, field and constant."""
    if not path.stem.startswith("_"):
        yield 1, path.stem
    yield from _public_names(tree(path).body)


def _public_names(body: list[ast.stmt]) -> Iterator[tuple[int, str]]:
    for node in body:
        if isinstance(node, Function | ast.ClassDef) and not node.name.startswith("_"):
            yield node.lineno, node.name
            if isinstance(node, ast.ClassDef):
                yield from _public_names(node.body)
            else:
                arguments = node.args
                for each in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs):
                    yield each.lineno, each.arg
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            for target in targets:
                if isinstance(target, ast.Name) and not target.id.startswith("_"):
                    yield node.lineno, target.id


@cache
def allowed_words() -> frozenset[str]:
    """Words of the word list, of the bold terms and of the code spans of the glossary."""
    glossary = GLOSSARY.read_text(encoding="utf-8")
    marked = re.findall(r"\*\*(.+?)\*\*|`([^`]+)`", glossary)
    terms = {word for pair in marked for text in pair for word in re.split(r"[\W\d]+|_", text) if word}
    terms |= {word for text in terms for word in split_words(text)}
    plain = WORD_LIST.read_text(encoding="utf-8").split()
    return frozenset(word.lower() for word in (*terms, *plain))


def is_allowed(word: str) -> bool:
    """Whether the word, or the word that it is an inflected form of, is in the glossary or the word list."""
    allowed = allowed_words()
    for suffix in _SUFFIXES:
        if not word.endswith(suffix):
            continue
        stem = word.removesuffix(suffix)
        candidates = {stem}
        if suffix:
            # Dropped e (scale, scaling), doubled consonant (clip, clipped), y (policy, policies).
            candidates |= {f"{stem}e", f"{stem}y"}
            if len(stem) > 2 and stem[-1] == stem[-2]:
                candidates.add(stem[:-1])
        if candidates & allowed:
            return True
    return False


def test_public_names_use_known_words() -> None:
    offenders = [
        f"{name(path)}:{line}: {identifier}: {word}"
        for path in FILES
        for line, identifier in public_names(path)
        for word in split_words(identifier)
        if identifier not in ALLOWED_NAMES and (word in FORBIDDEN or not is_allowed(word))
    ]
    assert not offenders, "explain in docs/glossary.md, or rename:" + listed(offenders)


def test_word_list_is_sorted_and_in_use() -> None:
    words = WORD_LIST.read_text(encoding="utf-8").split()
    assert words == sorted(set(words))
    assert not FORBIDDEN & set(words)
    used = {
        word for path in FILES for _, identifier in public_names(path) for word in split_words(identifier)
    }
    unused = [word for word in words if not any(each.startswith(word[:-1] or word) for each in used)]
    assert not unused, listed(unused)


def public_definitions(body: list[ast.stmt]) -> Iterator[Function | ast.ClassDef]:
    """Public functions and classes, and the public methods of those classes."""
    for node in body:
        if isinstance(node, Function | ast.ClassDef) and not node.name.startswith("_"):
            yield node
            if isinstance(node, ast.ClassDef):
                yield from public_definitions(node.body)


def test_modules_and_public_names_have_docstrings() -> None:
    offenders = [f"{name(path)}: no module docstring" for path in FILES if not ast.get_docstring(tree(path))]
    offenders += [
        f"{name(path)}:{node.lineno}: {node.name}"
        for path in FILES
        for node in public_definitions(tree(path).body)
        if not ast.get_docstring(node)
    ]
    assert not offenders, listed(offenders)
