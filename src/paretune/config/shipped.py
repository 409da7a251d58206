"""The recipes that come with the package, by name.

The recipe with every key filled in, and behind each value where it came from.
"""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from paretune.config.issues import closest_match
from paretune.config.schema import Config
from paretune.config.yaml import KeyPath
from paretune.core.errors import ConfigError, format_issue

SUFFIXES = (".yaml", ".yml")
_HERE = Path(__file__).resolve()
_RECIPE_DIRS = (_HERE.parents[1] / "recipes", _HERE.parents[3] / "recipes")


def bundled_recipes() -> dict[str, Path]:
    """Name -> file of every recipe that comes with the package."""
    folder = next((folder for folder in _RECIPE_DIRS if folder.is_dir()), None)
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))} if folder else {}


def recipe_summary(path: Path) -> str:
    """The first line of a recipe, which says what it is for."""
    with path.open(encoding="utf-8") as file:
        return file.readline().lstrip("# ").strip()


def find_recipe(name: str) -> Path:
    """The file of this path, or the shipped recipe of this name.

    Raises:
        ConfigError: Neither is there.
    """
    path, known = Path(name), bundled_recipes()
    readable = path.exists() and not path.is_dir() and path.suffix in SUFFIXES
    if path.is_file() or (readable and name not in known):
        return path
    if name in known:
        return known[name]
    if path.is_dir():
        inside = next((f" in it, such as {file}" for file in _recipe_files(path)), "")
        raise ConfigError(format_issue(name, 1, None, "", "is a folder", fix=f"name a recipe file{inside}"))
    wrong, fix = "there is no such recipe", f"name a file, or one of {', '.join(known)}"
    raise ConfigError(format_issue(name, 1, None, "", wrong, suggestion=_suggest(path, known), fix=fix))


def _recipe_files(folder: Path) -> list[Path]:
    return sorted(p for p in folder.glob("*.y*ml") if p.suffix in SUFFIXES and p.is_file())


def _suggest(path: Path, known: Iterable[str]) -> str:
    """The nearest of the files beside and of the shipped recipes; of two that are alike, the same kind."""
    files = {file.stem: str(file) for file in _recipe_files(path.parent)}
    names = {name: name for name in known}
    written = path.suffix in SUFFIXES or len(path.parts) > 1
    words = {**names, **files} if written else {**files, **names}
    return words.get(closest_match(path.stem if path.suffix in SUFFIXES else path.name, words), "")


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
