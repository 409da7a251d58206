"""YAML text -> plain values, and for each of them the place it was written at.

Only the part of YAML a recipe needs: mappings, lists, text, numbers by the rules of YAML 1.2 (1e-5 is a
number, no and 1:30 are text), anchors in moderation. No tags, no merge keys, no interpolation: nothing here
runs or expands.
"""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from paretune.core.errors import format_issue

MAX_BYTES = 200_000
MAX_DEPTH = 50
MAX_ALIASES = 100
MAX_NODES = 5_000

KeyPath = tuple[str | int, ...]
"""Where a value stands: the keys and list positions that lead to it."""


@dataclass(frozen=True, slots=True)
class SourceLocation:
    """The place a value was written at; line and column count from 1."""

    file: str
    line: int
    column: int | None = None

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


@dataclass(slots=True)
class ConfigTree:
    """The values of a recipe, the place of each, and what was wrong while reading them."""

    values: dict[str, Any] = field(default_factory=dict)
    locations: dict[KeyPath, SourceLocation] = field(default_factory=dict)
    issues: list[str] = field(default_factory=list)
    unreadable: bool = False
    """The text as a whole could not be read, so that nothing can be said of what it lacks."""

    def location(self, path: KeyPath) -> SourceLocation:
        """The place of a value, or of the nearest section around it."""
        while path and path not in self.locations:
            path = path[:-1]
        return self.locations[path]


class _Loader(yaml.SafeLoader):
    """PyYAML's reader with the plain scalars of YAML 1.2's core schema."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012  (PyYAML's own place)


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


class _ParseError(Exception):
    """The text as a whole cannot be read; holds its one complaint."""


def read_text(path: Path, display_name: str) -> tuple[str, str]:
    """The text of a file, or "" and the complaint that says why there is none."""
    try:
        raw = path.read_bytes()
    except OSError as error:
        return "", format_issue(display_name, 1, None, "", f"cannot be read: {error.strerror or error}")
    if len(raw) > MAX_BYTES:
        return "", format_issue(
            display_name, 1, None, "", f"is {len(raw):,} bytes; a recipe has at most {MAX_BYTES:,}"
        )
    try:
        return raw.decode("utf-8-sig"), ""
    except UnicodeDecodeError as error:
        before = raw[: error.start]
        line, col = before.count(b"\n") + 1, error.start - (before.rfind(b"\n") + 1) + 1
        return "", format_issue(
            display_name, line, col, "", "is not UTF-8 text", fix="save the file as UTF-8"
        )


def parse_yaml(text: str, file: str) -> ConfigTree:
    """The tree of one recipe text; whatever is wrong with the text is in `wrong`, never raised."""
    tree = ConfigTree(locations={(): SourceLocation(file, 1, 1)})
    try:
        node = _compose(text, file)
        if not isinstance(node, yaml.MappingNode):
            what = "is empty" if node is None else "is not a mapping of keys to values"
            raise _ParseError(
                format_issue(file, 1, 1, "", what, fix="see `paretune recipes demo` for a whole recipe")
            )
        tree.values = _Converter(file, tree).convert(node, ())
    except _ParseError as refused:
        tree.issues.append(str(refused))
        tree.unreadable = True
    return tree


def parse_value(text: str, file: str, line: int, key: str) -> tuple[Any, str]:
    """The value of one override, or None and the complaint that says why there is none."""
    tree = ConfigTree(locations={(): SourceLocation(file, line)})
    try:
        node = _compose(text, file)
        value = None if node is None else _Converter(file, tree, SourceLocation(file, line)).convert(node, ())
    except _ParseError:
        tree.issues.append("")
    if tree.issues:
        return None, format_issue(
            file, line, None, key, f"{short_repr(text)} is not a value", fix="put it in quotes"
        )
    return value, ""


def short_repr(value: object, max_length: int = 60) -> str:
    """A value as one line of a message shows it."""
    shown = f'"{value}"' if isinstance(value, str) else repr(value)
    shown = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in shown)
    return shown if len(shown) <= max_length else shown[: max_length - 3] + "..."


def _compose(text: str, file: str) -> yaml.Node | None:
    """The node graph of the text, after its size is known to be bounded."""
    fix = ""
    try:
        _check_limits(text, file)
        return yaml.compose(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        line, col = _position(error.problem_mark or error.context_mark)
        wrong = f"not YAML: {_one_line(error.problem or error.context)}"
        if repr("\t") in (error.problem or ""):
            wrong, fix = "not YAML: a tab", "indent with spaces; a tab may stand in quotes only"
    except yaml.reader.ReaderError as error:
        before = text[: int(error.position)]
        line, col = before.count("\n") + 1, len(before) - (before.rfind("\n") + 1) + 1
        wrong = f"character U+{ord(text[len(before)]):04X} is not allowed"
    raise _ParseError(format_issue(file, line, col, "", wrong, fix=fix))


def _check_limits(text: str, file: str) -> None:
    """Refuse deep nesting, many aliases, and tags."""
    depth = aliases = 0
    for event in yaml.parse(text, Loader=_Loader):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        aliases += isinstance(event, yaml.AliasEvent)
        wrong = fix = ""
        if depth > MAX_DEPTH:
            wrong = f"is more than {MAX_DEPTH} levels deep"
        elif aliases > MAX_ALIASES:
            wrong = f"has more than {MAX_ALIASES} aliases"
        elif tag := getattr(event, "tag", None):
            wrong, fix = f"has the tag {short_repr(tag)}", "leave it out; a recipe holds plain values only"
        if wrong:
            raise _ParseError(format_issue(file, *_position(event.start_mark), "", wrong, fix=fix))


def _position(mark: Any) -> tuple[int, int]:
    """Line and column of one of PyYAML's marks, counted from 1."""
    return (1, 1) if mark is None else (mark.line + 1, mark.column + 1)


def _one_line(text: str | None) -> str:
    return short_repr(" ".join((text or "").split()), 200).strip('"')


class _Converter:
    """Nodes -> plain values; notes the place of each value, duplicate keys and keys that are not text."""

    def __init__(self, file: str, tree: ConfigTree, location: SourceLocation | None = None) -> None:
        self.file, self.tree, self.at, self.nodes = file, tree, location, 0

    def convert(self, node: yaml.Node, path: KeyPath) -> Any:
        self.nodes += 1
        if self.nodes > MAX_NODES or len(path) > MAX_DEPTH:
            raise _ParseError(
                format_issue(*self._location(node), "", "grows without end through its aliases")
            )
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, path)
        if isinstance(node, yaml.SequenceNode):
            return [self._convert_child(item, (*path, i)) for i, item in enumerate(node.value)]
        return self._scalar(node, path)

    def _location(self, node: yaml.Node) -> tuple[str, int, int | None]:
        if self.at is not None:
            return self.at.file, self.at.line, self.at.column
        return self.file, *_position(node.start_mark)

    def _convert_child(self, node: yaml.Node, path: KeyPath) -> Any:
        self.tree.locations[path] = SourceLocation(*self._location(node))
        return self.convert(node, path)

    def _mapping(self, node: yaml.MappingNode, path: KeyPath) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key_node, value_node in node.value:
            place = self._location(key_node)
            if not isinstance(key_node, yaml.ScalarNode):
                self.tree.issues.append(
                    format_issue(*place, dotted_key(path), "a key must be one word of text")
                )
                continue
            key = str(key_node.value)
            if key in found:
                first = self.tree.locations[(*path, key)].line
                wrong = f"is given twice; the first one is in line {first}"
                self.tree.issues.append(
                    format_issue(*place, dotted_key((*path, key)), wrong, fix="keep one of them")
                )
                continue
            self.tree.locations[(*path, key)] = SourceLocation(*place)
            found[key] = self.convert(value_node, (*path, key))
        return found

    def _scalar(self, node: yaml.Node, path: KeyPath) -> Any:
        kind, text = node.tag.rsplit(":", 1)[-1], str(node.value)
        try:
            match kind:
                case "null":
                    return None
                case "bool":
                    return text.lower() == "true"
                case "int":
                    return int(text, 0) if text[:2] in {"0o", "0x"} else int(text)
                case "float":
                    return float(text.lower().replace(".", "") if text[-1:].isalpha() else text)
        except ValueError:
            self.tree.issues.append(
                format_issue(
                    *self._location(node), dotted_key(path), f"{short_repr(text)} is no number of this world"
                )
            )
            return None
        return text


def dotted_key(path: KeyPath) -> str:
    """The path as messages and overrides spell it; a key that is not a plain word stands in quotes."""
    return ".".join(
        str(part) if re.fullmatch(r"[\w-]+", str(part)) else short_repr(str(part)) for part in path
    )
