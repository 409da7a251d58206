"""Jinja chat templates, rendered as transformers does, but within limits and without a clock or chance.

A template comes with a downloaded model. One that multiplies a text or loops without end would fill the
memory or hang; one that draws random numbers or reads the clock would give other rows in every run.
"""

import functools
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextvars import ContextVar
from typing import Any

from jinja2 import Template, TemplateError, nodes
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

FIXED_DATE = "26 Jul 2024"
"""What `strftime_now` gives, so that prompts do not depend on the day of the run."""

BASE_ALLOWANCE, ALLOWANCE_PER_CHARACTER = 100_000, 20
"""Characters of text, and turns of loops, that one rendering may take: a constant, and more by the length
of the messages. Templates of released models write a few thousand characters of their own."""

MAX_INT_BITS = 10_000
"""Longer integers take seconds to multiply."""

TEMPLATE_ERRORS = (ValueError, TypeError, ArithmeticError, LookupError, RecursionError, AttributeError)
"""What mistakes in the expressions of a template raise, besides jinja2's own errors."""

_WIDE_FORMAT = re.compile(r"%[^%a-zA-Z]*(?:\*|\d{5})|\{[^{}]*:[^{}]*(?:\d{5}|\{)")
# Of these, the length of the result may be the product of the length of the text and of an argument.
_GROWING = frozenset(
    {"join", "indent", "center", "ljust", "rjust", "zfill", "wordwrap", "expandtabs", "translate", "batch"}
    | {"slice", "tojson", "string", "replace"}
)

_STRIP_METHODS = frozenset({"strip", "lstrip", "rstrip"})


class TemplateRefusalError(TemplateError):
    """The template itself refuses the messages, by `raise_exception`."""


class TemplateLimitError(ValueError):
    """A rendering exceeds its limits, or asks for a random choice."""


class _Allowance:
    """What is left of the characters and loops of one rendering."""

    def __init__(self, total: int) -> None:
        self.total, self.characters, self.steps = total, total, total

    def use_steps(self, count: int) -> None:
        self.steps -= count
        if self.steps < 0:
            raise TemplateLimitError(f"it loops more than {self.total:,} times")

    def use_characters(self, count: int) -> None:
        self.characters -= count
        self.require_length(self.total - self.characters)

    def require_length(self, length: int) -> None:
        if length > self.total:
            raise TemplateLimitError(f"it makes more than {self.total:,} characters or list items")


_ALLOWANCE: ContextVar[_Allowance] = ContextVar("_ALLOWANCE")


def _size(value: Any) -> int:
    """Length of a text or list; the value of an integer; 1 for anything else."""
    if isinstance(value, int):
        return abs(value)
    return len(value) if isinstance(value, str | bytes | list | tuple | dict | range) else 1


def _length(value: Any) -> int:
    return 1 if isinstance(value, int) else _size(value)


def _limited(name: str, value: Any, arguments: Sequence[Any], call: Callable[[], Any]) -> Any:
    """The result of a function or filter, if it and the work for it stay within the allowance."""
    allowance = _ALLOWANCE.get()
    allowance.use_steps(1 + _length(value) // (64 if isinstance(value, str) else 1))
    if name in _GROWING:
        sizes = [_size(argument) for argument in arguments]
        count = value.count(arguments[0]) if name == "replace" and _is_replace(value, arguments) else None
        allowance.require_length(
            _length(value) * max(sizes, default=1) if count is None else count * sizes[1]
        )
    elif name in {"format", "format_map"} and isinstance(value, str) and _WIDE_FORMAT.search(value):
        raise TemplateLimitError("a format with a width of five digits, or with one that is computed")
    result = call()
    allowance.require_length(_length(result))
    return result


def _is_replace(value: Any, arguments: Any) -> bool:
    return isinstance(value, str) and len(arguments) > 1 and all(isinstance(x, str) for x in arguments[:2])


def _limited_filter(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    takes_context = hasattr(function, "jinja_pass_arg")

    @functools.wraps(function)
    def limited(*args: Any, **kwargs: Any) -> Any:
        value, *rest = args[1:] if takes_context else args
        return _limited(name, value, [*rest, *kwargs.values()], lambda: function(*args, **kwargs))

    return limited


def _refuse_random(*args: Any, **kwargs: Any) -> Any:
    raise TemplateLimitError("it makes a random choice, so that every rendering would differ")


def _raise_exception(message: str) -> None:
    raise TemplateRefusalError(message)


def _concat(pieces: Iterable[str]) -> str:
    pieces = list(pieces)
    _ALLOWANCE.get().require_length(sum(map(len, pieces)))
    return "".join(pieces)


def _finalize(value: Any) -> str:
    text = str(value)
    _ALLOWANCE.get().use_characters(len(text))
    return text


class _Counted(NodeTransformer):
    """Counts turns of loops and calls of macros, and joins texts by a filter, which is limited."""

    def _count(self, node: nodes.Node) -> nodes.EnvironmentAttribute:
        return nodes.EnvironmentAttribute("counted_step", lineno=node.lineno)

    def visit_For(self, node: nodes.For) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        if node.test is None:
            node.body.insert(0, nodes.ExprStmt(self._count(node), lineno=node.lineno))
        else:  # a condition may leave out every turn
            node.test = nodes.And(self._count(node), node.test, lineno=node.lineno)
        return node

    def visit_Macro(self, node: nodes.Macro) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        node.body.insert(0, nodes.ExprStmt(self._count(node), lineno=node.lineno))
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        items = nodes.List(node.nodes, lineno=node.lineno)
        return nodes.Filter(items, "join", [], [], None, None, lineno=node.lineno)


class _LimitedEnvironment(ImmutableSandboxedEnvironment):
    """The environment of transformers, whose operators, calls, filters and loops are counted."""

    intercepted_binops = frozenset({"*", "**", "+", "%"})
    concat = staticmethod(_concat)

    def __init__(self) -> None:
        # Imported here: recipes are read without transformers.
        from transformers.utils.chat_template_utils import _compile_jinja_template

        base = _compile_jinja_template("").environment
        extensions = [type(extension) for extension in base.extensions.values()]
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=extensions, finalize=_finalize)
        refused = {"lipsum": _refuse_random, "raise_exception": _raise_exception}
        self.globals = {**base.globals, **refused, "strftime_now": lambda format: FIXED_DATE}
        filters = {**base.filters, "random": _refuse_random}
        self.filters = {name: _limited_filter(name, function) for name, function in filters.items()}

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree: nodes.Template = _Counted().visit(super()._parse(source, name, filename))
        return tree

    @property
    def counted_step(self) -> bool:
        """Counts one turn of a loop, read by compiled templates; true, to stand before a loop's condition."""
        _ALLOWANCE.get().use_steps(1)
        return True

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """An operator, if its result stays within the allowance."""
        allowance = _ALLOWANCE.get()
        allowance.use_steps(1)
        if isinstance(left, int) and isinstance(right, int):
            bits = left.bit_length() * max(right, 1) if operator == "**" else 0
            if max(bits, left.bit_length() + right.bit_length()) > MAX_INT_BITS:
                raise TemplateLimitError(f"it computes an integer of more than {MAX_INT_BITS:,} bits")
        elif operator == "*":
            allowance.require_length(_size(left) * _size(right) if _is_repeated(left, right) else 0)
        elif operator == "+":
            allowance.require_length(_length(left) + _length(right))
        elif operator == "%" and isinstance(left, str):
            return _limited("format", left, [], lambda: left % right)
        return self.binop_table[operator](left, right)

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805
        """A function or method, if its result stays within the allowance."""
        method = getattr(__obj, "__wrapped__", __obj)  # jinja2 wraps `str.format`
        call = functools.partial(super().call, __context, __obj, *args, **kwargs)
        name = getattr(method, "__name__", "")
        return _limited(name, getattr(method, "__self__", None), [*args, *kwargs.values()], call)


def _is_repeated(left: Any, right: Any) -> bool:
    return any(isinstance(value, str | bytes | list | tuple) for value in (left, right))


@functools.lru_cache(maxsize=1)
def _environment() -> _LimitedEnvironment:
    return _LimitedEnvironment()


@functools.lru_cache(maxsize=16)
def compile_template(source: str) -> Template:
    """The compiled template.

    Raises:
        TemplateError: A syntax error.
    """
    return _environment().from_string(source)


def searched_texts(source: str) -> frozenset[str]:
    """Texts that a template may look for in contents: arguments of calls and filters, operands, variables.

    Raises:
        TemplateError: A syntax error.
    """
    tree = _environment().parse(source)
    found: set[str] = set()
    for node in tree.find_all(
        (nodes.Call, nodes.Filter, nodes.Test, nodes.Compare, nodes.Assign, nodes.Macro)
    ):
        if not _looks_at_contents(node):
            continue
        texts = {const.value for const in node.find_all(nodes.Const) if isinstance(const.value, str)}
        strips = isinstance(node, nodes.Call) and getattr(node.node, "attr", "") in _STRIP_METHODS
        found |= {text for text in texts if not (strips and text.isspace())}
    return frozenset(found - {""})


def _looks_at_contents(node: nodes.Node) -> bool:
    """False for comparisons of roles and types, for separators, and for texts of errors."""
    if isinstance(node, nodes.Call):
        name = node.node.name if isinstance(node.node, nodes.Name) else getattr(node.node, "attr", "")
        return name not in {"raise_exception", "join"}
    if isinstance(node, nodes.Filter):
        return node.name != "join"
    if not (isinstance(node, nodes.Compare) and all(operand.op in {"eq", "ne"} for operand in node.ops)):
        return True
    item = node.expr
    key = item.attr if isinstance(item, nodes.Getattr) else None
    if isinstance(item, nodes.Getitem) and isinstance(item.arg, nodes.Const):
        key = item.arg.value
    return key not in {"role", "type"}


def render_messages(
    template: Template, messages: Sequence[Mapping[str, Any]], variables: Mapping[str, Any]
) -> str:
    """The rendering of messages, as `apply_chat_template` of transformers gives it on the fixed date.

    Raises:
        TemplateError: The template fails, or refuses the messages (`TemplateRefusalError`).
        TemplateLimitError: It exceeds the limits, or asks for a random choice.
    """
    plain = [
        _with_reasoning({key: value for key, value in message.items() if value is not None})
        for message in messages
    ]
    length = sum(
        len(value) if isinstance(value, str) else len(str(value)) for m in plain for value in m.values()
    )
    token = _ALLOWANCE.set(_Allowance(BASE_ALLOWANCE + ALLOWANCE_PER_CHARACTER * length))
    try:
        return template.render({"tools": None, "documents": None, **variables, "messages": plain})
    finally:
        _ALLOWANCE.reset(token)


def _with_reasoning(message: dict[str, Any]) -> dict[str, Any]:
    """The message with its reasoning under each of the names that templates read."""
    names = ("reasoning_content", "thinking", "reasoning")
    reasoning = next((message[name] for name in names if message.get(name) is not None), None)
    if reasoning is None:
        return message
    return {"thinking": reasoning, **message, "reasoning_content": reasoning}


def failed_line(error: BaseException) -> int | None:
    """The line of the template at which it failed; None if unknown."""
    line = getattr(error, "lineno", None)
    traceback = error.__traceback__
    while traceback is not None:
        if traceback.tb_frame.f_code.co_filename in {"<template>", "<unknown>"}:
            line = traceback.tb_lineno
        traceback = traceback.tb_next
    return line if isinstance(line, int) else None
