"""The recipe with every key filled in, and behind each value where it came from."""

from collections.abc import Iterator, Mapping
from typing import Any

import yaml

from paretune.config.schema import Experiment
from paretune.config.tree import PathKey


def resolved(experiment: Experiment) -> str:
    """YAML that `load` reads back to an equal experiment."""
    values = experiment.model_dump(by_alias=True, mode="json")
    return "\n".join(_section(values, (), experiment._origins, "")) + "\n"


def _section(
    values: Mapping[str, Any], path: PathKey, origins: Mapping[PathKey, str], indent: str
) -> Iterator[str]:
    for key, value in values.items():
        here = (*path, key)
        if isinstance(value, dict) and value:
            yield f"{indent}{_plain(key)}:"
            yield from _section(value, here, origins, indent + "  ")
        else:
            yield f"{indent}{_plain(key)}: {_plain(value)}  # {_origin(here, origins)}"


def written_at(experiment: Experiment, path: PathKey) -> str:
    """The place of a value, as `file:line`, or else of the nearest section around it."""
    origins = experiment._origins
    near = next((path[:end] for end in range(len(path), -1, -1) if path[:end] in origins), None)
    found = experiment.name if near is None else origins[near]
    return "(override)" if found == "override" else found


def _origin(path: PathKey, origins: Mapping[PathKey, str]) -> str:
    """Where the value was written; a value inside an overridden section came with it."""
    if path in origins:
        return origins[path]
    above = next((path[:end] for end in range(len(path) - 1, 0, -1) if path[:end] in origins), ())
    return "override" if above and origins[above] == "override" else "default"


def _plain(value: Any) -> str:
    """A value, or a key, on one line."""
    if isinstance(value, list):
        return f"[{', '.join(map(_plain, value))}]"
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
