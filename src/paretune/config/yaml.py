"""Parses YAML text into plain values and records the location of each one.

Only the subset of YAML that a recipe needs: mappings, lists, strings, YAML 1.2 scalars (1e-5 is a number;
no and 1:30 are strings) and a limited number of anchors. No tags, no merge keys, no interpolation: parsing
never executes or expands anything.
"""

import re
import stat
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from paretune.core.errors import format_issue

# Limits against hostile files ("billion laughs": nested aliases grow exponentially). The longest shipped
# recipe is under 10,000 bytes, 10 levels deep and has a few hundred nodes.
MAX_BYTES = 200_000
MAX_DEPTH = 50
MAX_ALIASES = 100
MAX_NODES = 5_000
EMPTY_FIX = "see `paretune recipes demo` for a complete recipe"
MAX_NUMBER = 2**63 - 1

_ESCAPE_PATTERN = re.compile(r"\\U([0-9A-Fa-f]{8})")
_UNUSABLE_PATTERN = re.compile("[\0\ud800-\udfff]")
"""Characters that neither file names nor UTF-8 files can have; YAML can spell them in an escape."""

KeyPath = tuple[str | int, ...]
"""Path to a value: its keys and list indices from the top."""


@dataclass(frozen=True, slots=True)
class SourceLocation:
    """Location of a value in its file; line and column count from 1."""

    file: str
    line: int
    column: int | None = None

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


@dataclass(slots=True)
class ConfigTree:
    """Values of a recipe, the location of each, and the errors found while parsing."""

    values: dict[str, Any] = field(default_factory=dict)
    locations: dict[KeyPath, SourceLocation] = field(default_factory=dict)
    issues: list[str] = field(default_factory=list)
    unreadable: bool = False
    """The text could not be parsed at all, so missing keys must not be reported."""

    def location(self, path: KeyPath) -> SourceLocation:
        """Location of a value, or of its nearest enclosing section."""
        while path and path not in self.locations:
            path = path[:-1]
        return self.locations[path]


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader with the scalar rules of the YAML 1.2 core schema."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012  (PyYAML reads this class attribute)


for _tag, _pattern, _first in (
    ("null", r"(?:~|null|Null|NULL|)", "~nN"),
    ("bool", r"(?:true|True|TRUE|false|False|FALSE)", "tTfF"),
    ("int", r"(?:[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+)", "-+0123456789"),
    (
        "float",
        r"(?:[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))",
        "-+.0123456789",
    ),
):
    _firsts = [*_first, ""] if _tag == "null" else [*_first]
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"^{_pattern}$"), _firsts)


class _Loader11(_Loader):
    """The same with the booleans of YAML 1.1, as PyYAML and thus TRL reads them: yes, no, on and off."""


_Loader11.add_implicit_resolver(
    "tag:yaml.org,2002:bool",
    re.compile(r"^(?:yes|Yes|YES|no|No|NO|on|On|ON|off|Off|OFF)$"),
    [*"yYnNoO"],
)


class _ParseError(Exception):
    """The text cannot be parsed at all; holds the single formatted issue."""


def read_text(path: Path, display_name: str, *, allow_pipe: bool = True) -> tuple[str, str]:
    """The text of a file and "", or "" and the issue that explains why it cannot be read.

    Never reads more than a recipe may have. `allow_pipe`: a named pipe, such as bash's <(...), is read too.
    """
    try:
        mode = path.stat().st_mode
        if not (stat.S_ISREG(mode) or (allow_pipe and stat.S_ISFIFO(mode)) or stat.S_ISDIR(mode)):
            return "", format_issue(display_name, 1, None, "", "cannot be read: it is no regular file")
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:  # ValueError: a character that no file name can have
        reason = (error.strerror if isinstance(error, OSError) else None) or "it is no file name"
        return "", format_issue(display_name, 1, None, "", f"cannot be read: {reason}")
    if len(raw) > MAX_BYTES:
        return "", format_issue(
            display_name, 1, None, "", f"is too long; a recipe has at most {MAX_BYTES:,} bytes"
        )
    try:
        return raw.decode("utf-8-sig"), ""
    except UnicodeDecodeError as error:
        prefix = raw[: error.start]
        line, col = prefix.count(b"\n") + 1, error.start - (prefix.rfind(b"\n") + 1) + 1
        return "", format_issue(
            display_name, line, col, "", "is not UTF-8 text", fix="save the file as UTF-8"
        )


def parse_yaml(text: str, file: str, empty_fix: str = EMPTY_FIX, *, yes_is_true: bool = False) -> ConfigTree:
    """The tree of one recipe text; errors of the text are in `issues`, never raised.

    Args:
        text: Of the file.
        file: Its name, for messages.
        empty_fix: What to do if it is empty.
        yes_is_true: yes, no, on and off are booleans, as in YAML 1.1.
    """
    tree = ConfigTree(locations={(): SourceLocation(file, 1, 1)})
    try:
        node = _compose(text, file, _Loader11 if yes_is_true else _Loader)
        if not isinstance(node, yaml.MappingNode) or not node.value:
            is_empty = node is None or isinstance(node, yaml.MappingNode)
            problem = "is empty" if is_empty else "is not a mapping of keys to values"
            raise _ParseError(format_issue(file, 1, 1, "", problem, fix=empty_fix))
        tree.values = _Converter(file, tree).convert(node, ())
    except _ParseError as error:
        tree.issues.append(str(error))
        tree.unreadable = True
    return tree


def parse_value(text: str, file: str, line: int, path: KeyPath) -> tuple[Any, str]:
    """The value of one override and "", or None and the issue that explains why it cannot be parsed."""
    tree = ConfigTree(locations={(): SourceLocation(file, line)})
    try:
        node = _compose(text, file)
        value = (
            None if node is None else _Converter(file, tree, SourceLocation(file, line)).convert(node, path)
        )
    except _ParseError:
        problem = f"{short_repr(text)} is not a value"
        return None, format_issue(file, line, None, dotted_key(path), problem, fix="put it in quotes")
    return (None, tree.issues[0]) if tree.issues else (value, "")


def short_repr(value: object, max_length: int = 60) -> str:
    """A value as printable text on one line, for error messages."""
    text = f'"{value}"' if isinstance(value, str) else repr(value)
    text = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)
    return text if len(text) <= max_length else text[: max_length - 3] + "..."


def _compose(text: str, file: str, loader: type[_Loader] = _Loader) -> yaml.Node | None:
    """The node graph of the text; its size is checked first."""
    fix = ""
    try:
        _check_limits(text, file)
        return yaml.compose(text, Loader=loader)
    except yaml.MarkedYAMLError as error:
        line, col = _position(error.problem_mark or error.context_mark)
        problem = f"not YAML: {_one_line(error.problem or error.context)}"
        if repr("\t") in (error.problem or ""):
            problem, fix = "not YAML: a tab", "indent with spaces; tabs are allowed in quotes only"
    except yaml.reader.ReaderError as error:
        prefix = text[: int(error.position)]
        line, col = prefix.count("\n") + 1, len(prefix) - (prefix.rfind("\n") + 1) + 1
        problem = f"character U+{ord(text[len(prefix)]):04X} is not allowed"
    except (OverflowError, ValueError):  # PyYAML converts the digits of an escape without looking
        found = next(m for m in _ESCAPE_PATTERN.finditer(text) if int(m[1], 16) > sys.maxunicode)
        line = text.count("\n", 0, found.start()) + 1
        col = found.start() - text.rfind("\n", 0, found.start())
        problem = f"{found[0]} is no character"
    raise _ParseError(format_issue(file, line, col, "", problem, fix=fix))


def _check_limits(text: str, file: str) -> None:
    """Reject deep nesting, many aliases, and tags.

    Works on the event stream, because composing the node graph already expands the nesting.
    """
    depth = aliases = 0
    for event in yaml.parse(text, Loader=_Loader):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        aliases += isinstance(event, yaml.AliasEvent)
        problem = fix = ""
        if depth > MAX_DEPTH:
            problem = f"is more than {MAX_DEPTH} levels deep"
        elif aliases > MAX_ALIASES:
            problem = f"has more than {MAX_ALIASES} aliases"
        elif tag := getattr(event, "tag", None):
            problem, fix = f"has the tag {short_repr(tag)}", "remove it; a recipe holds plain values only"
        if problem:
            raise _ParseError(format_issue(file, *_position(event.start_mark), "", problem, fix=fix))


def _position(mark: Any) -> tuple[int, int]:
    """Line and column of a PyYAML mark, counted from 1."""
    return (1, 1) if mark is None else (mark.line + 1, mark.column + 1)


def _one_line(text: str | None) -> str:
    return short_repr(" ".join((text or "").split()), 200).strip('"')


class _Converter:
    """Converts nodes to plain values; records locations, duplicate keys and keys that are not strings."""

    def __init__(self, file: str, tree: ConfigTree, location: SourceLocation | None = None) -> None:
        self.file, self.tree, self.location, self.num_nodes = file, tree, location, 0

    def convert(self, node: yaml.Node, path: KeyPath) -> Any:
        self.num_nodes += 1
        if self.num_nodes > MAX_NODES or len(path) > MAX_DEPTH:
            raise _ParseError(
                format_issue(*self._location(node), "", "grows without end through recursive aliases")
            )
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, path)
        if isinstance(node, yaml.SequenceNode):
            return [self._convert_child(item, (*path, i)) for i, item in enumerate(node.value)]
        return self._scalar(node, path)

    def _location(self, node: yaml.Node) -> tuple[str, int, int | None]:
        if self.location is not None:
            return self.location.file, self.location.line, self.location.column
        return self.file, *_position(node.start_mark)

    def _convert_child(self, node: yaml.Node, path: KeyPath) -> Any:
        self.tree.locations[path] = SourceLocation(*self._location(node))
        return self.convert(node, path)

    def _mapping(self, node: yaml.MappingNode, path: KeyPath) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for key_node, value_node in node.value:
            location = self._location(key_node)
            if not isinstance(key_node, yaml.ScalarNode):
                self.tree.issues.append(
                    format_issue(*location, dotted_key(path), "a key must be a single word")
                )
                continue
            key = str(key_node.value)
            if key in values:
                first = self.tree.locations[(*path, key)].line
                problem = f"is given twice; the first one is in line {first}"
                self.tree.issues.append(
                    format_issue(*location, dotted_key((*path, key)), problem, fix="keep one of them")
                )
                continue
            self.tree.locations[(*path, key)] = SourceLocation(*location)
            values[key] = self.convert(value_node, (*path, key))
        return values

    def _scalar(self, node: yaml.Node, path: KeyPath) -> Any:
        tag, text = node.tag.rsplit(":", 1)[-1], str(node.value)
        try:
            match tag:
                case "null":
                    return None
                case "bool":
                    return text.lower() in {"true", "yes", "on"}
                case "int":
                    number = int(text, 0) if text[:2] in {"0o", "0x"} else int(text)
                    if abs(number) > MAX_NUMBER:
                        raise ValueError
                    return number
                case "float":
                    return float(text.lower().replace(".", "") if text[-1:].isalpha() else text)
        except ValueError:  # above 64 bits; Python refuses integers of more than 4,300 digits
            self.tree.issues.append(
                format_issue(
                    *self._location(node), dotted_key(path), f"{short_repr(text)} is too large a number"
                )
            )
            return None
        if found := _UNUSABLE_PATTERN.search(text):
            problem = f"has the character U+{ord(found[0]):04X}, which no file can hold"
            self.tree.issues.append(format_issue(*self._location(node), dotted_key(path), problem))
        return text


def dotted_key(path: KeyPath) -> str:
    """The path in the a.b[0].c form of messages and overrides; keys that are not plain words are quoted."""
    words = (f"[{part}]" if isinstance(part, int) else f".{_plain_key(part)}" for part in path)
    return "".join(words).removeprefix(".")


def _plain_key(key: str) -> str:
    return key if re.fullmatch(r"[\w-]+", key) else short_repr(key)
