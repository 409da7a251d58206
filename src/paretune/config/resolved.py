"""The recipe with every key filled in, and behind each value where it came from."""

from collections.abc import Iterator, Mapping
from typing import Any

import yaml

from paretune.config.schema import Config
from paretune.config.tree import KeyPath


def resolved_yaml(config: Config) -> str:
    """YAML that `load` reads back to an equal experiment."""
    values = config.model_dump(by_alias=True, mode="json")
    return "\n".join(_section_lines(values, (), config._origins, "")) + "\n"


def _section_lines(
    values: Mapping[str, Any], path: KeyPath, origins: Mapping[KeyPath, str], indent: str
) -> Iterator[str]:
    for key, value in values.items():
        here = (*path, key)
        if isinstance(value, dict) and value:
            yield f"{indent}{_inline_yaml(key)}:"
            yield from _section_lines(value, here, origins, indent + "  ")
        else:
            yield f"{indent}{_inline_yaml(key)}: {_inline_yaml(value)}  # {_origin(here, origins)}"


def location_of(config: Config, path: KeyPath) -> str:
    """The place of a value, as `file:line`, or else of the nearest section around it."""
    origins = config._origins
    near = next((path[:end] for end in range(len(path), -1, -1) if path[:end] in origins), None)
    found = config.name if near is None else origins[near]
    return "(override)" if found == "override" else found


def _origin(path: KeyPath, origins: Mapping[KeyPath, str]) -> str:
    """Where the value was written; a value inside an overridden section came with it."""
    if path in origins:
        return origins[path]
    above = next((path[:end] for end in range(len(path) - 1, 0, -1) if path[:end] in origins), ())
    return "override" if above and origins[above] == "override" else "default"


def _inline_yaml(value: Any) -> str:
    """A value, or a key, on one line."""
    if isinstance(value, list):
        return f"[{', '.join(map(_inline_yaml, value))}]"
    if isinstance(value, str):
        quoted = yaml.safe_dump(value, default_style='"', allow_unicode=True, width=float("inf"))
        return value if _is_word(value) else quoted.strip()
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    return repr(value)


def _is_word(text: str) -> bool:
    return (
        text.replace("_", "").isalpha() and text.isascii() and text.lower() not in {"true", "false", "null"}
    )
