"""What Python source sets on an object after it is made: `args.beta = 0.5`, `setattr(args, "beta", 0.5)`."""

import ast
from collections.abc import Iterator, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Change:
    """An attribute that is set."""

    name: str
    """The attribute; "**": the source computes which."""
    value: ast.expr | None
    """What it is set to; None: only a run can tell."""
    line: int
    code: str


def changes_of(tree: ast.Module, call: ast.Call, users: Sequence[ast.Call]) -> list[Change]:
    """The attributes that are set on what a call makes, in the order of the source.

    A change has no value where it depends on a condition, a loop or another function than the call does, or
    where it comes after the object was used.

    Args:
        tree: The source.
        call: The call that makes the object.
        users: Calls that take the object as `args` and read it, such as that of the trainer.
    """
    names = _names_of(tree, call, users)
    blocks = dict(_blocks(tree, ()))
    own, changes = set(blocks[call]), []
    for node in sorted((n for n in blocks if isinstance(n, ast.stmt | ast.Call)), key=_position):
        always = set(blocks[node]) <= own
        if always and node.lineno < call.lineno:  # on what the name stood for before
            continue
        is_certain = always and not any(use.lineno < node.lineno for use in users)
        for name, value in _set_by(node, names):
            code = ast.unparse(node)
            changes.append(Change(name, value if is_certain else None, node.lineno, code))
    return changes


def _position(node: ast.stmt | ast.Call) -> tuple[int, int]:
    return node.lineno, node.col_offset


def _names_of(tree: ast.Module, call: ast.Call, users: Sequence[ast.Call]) -> set[str]:
    """The expressions that stand for the object."""
    assigned = [(ast.unparse(target), value) for target, value in _assignments(tree)]
    names = {target for target, value in assigned if value is call}
    for user in users:
        names |= {ast.unparse(k.value) for k in user.keywords if k.arg == "args" and k.value is not call}
        names |= {f"{target}.args" for target, value in assigned if value is user}
    while True:
        others = {target for target, value in assigned if value is not None and ast.unparse(value) in names}
        if others <= names:
            return names
        names |= others


def _assignments(tree: ast.AST) -> Iterator[tuple[ast.expr, ast.expr | None]]:
    for node in ast.walk(tree):
        yield from _pairs(node)


def _pairs(node: ast.AST) -> Iterator[tuple[ast.expr, ast.expr | None]]:
    """Target and value of every assignment of a statement; None: only a run can tell the value."""
    if isinstance(node, ast.Assign):
        for target in node.targets:
            yield from _unpacked(target, node.value)
    elif isinstance(node, ast.AnnAssign | ast.NamedExpr) and node.value is not None:
        yield node.target, node.value
    elif isinstance(node, ast.AugAssign):
        yield node.target, None
    elif isinstance(node, ast.For | ast.AsyncFor):
        yield from _unpacked(node.target, None)


def _unpacked(target: ast.expr, value: ast.expr | None) -> Iterator[tuple[ast.expr, ast.expr | None]]:
    if not isinstance(target, ast.Tuple | ast.List):
        yield target, value
        return
    values: Sequence[ast.expr | None] = [None] * len(target.elts)
    if isinstance(value, ast.Tuple | ast.List) and len(value.elts) == len(target.elts):
        values = value.elts
    for each, part in zip(target.elts, values, strict=True):
        yield from _unpacked(each, part)


def _set_by(node: ast.AST, names: set[str]) -> Iterator[tuple[str, ast.expr | None]]:
    """Attribute and value of everything that one node sets."""
    insides = {text for name in names for text in (f"{name}.__dict__", f"vars({name})")}
    for target, value in _pairs(node):
        if isinstance(target, ast.Attribute) and ast.unparse(target.value) in names:
            yield target.attr, value
        elif isinstance(target, ast.Subscript) and ast.unparse(target.value) in insides:
            yield "**", None
    if isinstance(node, ast.Call):
        yield from _set_by_call(node, names, insides)


def _set_by_call(call: ast.Call, names: set[str], insides: set[str]) -> Iterator[tuple[str, ast.expr | None]]:
    function, arguments = call.func, [ast.unparse(argument) for argument in call.args]
    name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
    owner = ast.unparse(function.value) if isinstance(function, ast.Attribute) else ""
    is_first = bool(arguments) and arguments[0] in names
    if name in {"setattr", "__setattr__"} and (is_first or owner in names):
        key, value = call.args[-2:] if len(arguments) > 1 else (None, None)
        is_literal = isinstance(key, ast.Constant) and isinstance(key.value, str)
        yield (str(key.value), value) if isinstance(key, ast.Constant) and is_literal else ("**", None)
    elif name == "replace" and is_first:
        yield from ((keyword.arg or "**", keyword.value) for keyword in call.keywords)
    elif (owner in names and name.startswith("set_")) or (owner in insides and name == "update"):
        yield "**", None


_BLOCKS = (
    ast.If,
    ast.For,
    ast.AsyncFor,
    ast.While,
    ast.Try,
    ast.Match,
    ast.FunctionDef,
    ast.AsyncFunctionDef,
    ast.ClassDef,
    ast.Lambda,
    ast.IfExp,
    ast.BoolOp,
    ast.ListComp,
    ast.GeneratorExp,
    ast.DictComp,
    ast.SetComp,
)


def _blocks(
    node: ast.AST, outer: tuple[tuple[ast.AST, str], ...]
) -> Iterator[tuple[ast.AST, tuple[tuple[ast.AST, str], ...]]]:
    """Every node with the branches, loops and functions that it is in."""
    yield node, outer
    for field, value in ast.iter_fields(node):
        inner = (*outer, (node, field)) if isinstance(node, _BLOCKS) else outer
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST):
                yield from _blocks(child, inner)
