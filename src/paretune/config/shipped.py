"""Recipes that ship with the package, and the resolved recipe: every key with the origin of its value."""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from paretune.config.issues import closest_match, list_names
from paretune.config.paths import path_kind
from paretune.config.schema import Config
from paretune.config.yaml import KeyPath
from paretune.core.errors import ConfigError, format_issue

SUFFIXES = (".yaml", ".yml")
DATA_SUFFIXES = (".csv", ".tsv", ".jsonl", ".parquet", ".gz", ".txt", ".xlsx")
_HERE = Path(__file__).resolve()
# In an installed wheel the recipes are inside the package; in a checkout they are at the repository root.
_RECIPE_DIRS = (_HERE.parents[1] / "recipes", _HERE.parents[3] / "recipes")


DEFAULT_ORIGIN = "default: "
"""Start of the origin of a value that is not in the recipe and was resolved for a reason, which follows."""


def bundled_recipes() -> dict[str, Path]:
    """Name -> file of every recipe that ships with the package."""
    recipe_dir = next((path for path in _RECIPE_DIRS if path.is_dir()), None)
    return {path.stem: path for path in sorted(recipe_dir.glob("*.yaml"))} if recipe_dir else {}


def recipe_summary(path: Path) -> str:
    """The first line of a recipe, which describes it."""
    with path.open(encoding="utf-8") as file:
        return file.readline().lstrip("# ").strip()


def find_recipe(name: str) -> Path:
    """The file at this path, or the shipped recipe of this name.

    Raises:
        ConfigError: Neither exists.
    """
    path, shipped = Path(name), bundled_recipes()
    # A named pipe, such as bash's <(...), is no regular file but can be read.
    kind = path_kind(path)
    is_readable = kind == "other" and path.suffix in SUFFIXES
    if kind == "file" and path.suffix.lower() in DATA_SUFFIXES:
        problem = "is a data file, and a recipe is expected, which names it"
        fix = (
            "`paretune recipes real-small > mine.yaml`, put this file in the place of those in it, "
            "and `paretune check mine.yaml`"
        )
        raise ConfigError(format_issue(name, 1, None, "", problem, fix=fix))
    if kind == "file" or (is_readable and name not in shipped):
        return path
    if name in shipped:
        return shipped[name]
    if kind == "folder":
        example = next((f" in it, such as {file}" for file in _recipe_files(path)), "")
        raise ConfigError(format_issue(name, 1, None, "", "is a folder", fix=f"name a recipe file{example}"))
    fix = f"name a file, or one of {list_names(shipped)}"
    raise ConfigError(
        format_issue(name, 1, None, "", "no such recipe", suggestion=_suggest(path, shipped), fix=fix)
    )


def _recipe_files(folder: Path) -> list[Path]:
    return sorted(p for p in folder.glob("*.y*ml") if p.suffix in SUFFIXES and p.is_file())


def _suggest(path: Path, shipped: Iterable[str]) -> str:
    """The nearest shipped recipe or file of the same folder; of equal names, that of the requested kind."""
    files = {file.stem: str(file) for file in _recipe_files(path.parent)}
    names = {name: name for name in shipped}
    is_path = path.suffix in SUFFIXES or len(path.parts) > 1
    candidates = {**names, **files} if is_path else {**files, **names}
    return candidates.get(closest_match(path.stem if path.suffix in SUFFIXES else path.name, candidates), "")


def resolved_yaml(config: Config) -> str:
    """YAML with every key filled in; `load_config` reads it back into an equal `Config`."""
    values = config.model_dump(by_alias=True, mode="json")
    return "\n".join(_section_lines(values, (), config._origins, "")) + "\n"


def _section_lines(
    values: Mapping[str, Any], path: KeyPath, origins: Mapping[KeyPath, str], indent: str
) -> Iterator[str]:
    for key, value in values.items():
        key_path = (*path, key)
        if isinstance(value, dict) and value:
            yield f"{indent}{_inline_yaml(key)}:"
            yield from _section_lines(value, key_path, origins, indent + "  ")
        else:
            yield f"{indent}{_inline_yaml(key)}: {_inline_yaml(value)}  # {_origin(key_path, origins)}"


def location_of(config: Config, path: KeyPath) -> str:
    """`file:line` of a value, or of its nearest enclosing section; with the column in a scorer's section."""
    origins = config._origins
    ends = range(len(path), -1, -1)
    nearest = next(
        (path[:e] for e in ends if not origins.get(path[:e], DEFAULT_ORIGIN).startswith(DEFAULT_ORIGIN)), None
    )
    origin = config.name if nearest is None else origins[nearest]
    if origin == "override":
        return "(override)"
    in_scorer = nearest is not None and nearest[:1] in {("scorers",), ("judges",)}
    column = config._columns.get(nearest) if nearest is not None and in_scorer else None
    return origin if column is None else f"{origin}:{column}"


def _origin(path: KeyPath, origins: Mapping[KeyPath, str]) -> str:
    """Where a value comes from; a value inside an overridden section is part of the override."""
    if path in origins:
        return origins[path]
    parent = next((path[:end] for end in range(len(path) - 1, 0, -1) if path[:end] in origins), ())
    return "override" if parent and origins[parent] == "override" else "default"


def _inline_yaml(value: Any) -> str:
    """A value, or a key, as YAML on one line."""
    if isinstance(value, list):
        return f"[{', '.join(map(_inline_yaml, value))}]"
    if isinstance(value, dict):
        pairs = (f"{_inline_yaml(key)}: {_inline_yaml(item)}" for key, item in value.items())
        return f"{{{', '.join(pairs)}}}"
    if isinstance(value, str):
        quoted = yaml.safe_dump(value, default_style='"', allow_unicode=True, width=float("inf"))
        return value if _is_plain_word(value) else quoted.strip()
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    return repr(value)


def _is_plain_word(text: str) -> bool:
    """True if YAML reads the text as a string without quotes."""
    is_word = text.replace("_", "").isalpha() and text.isascii()
    return is_word and text.lower() not in {"true", "false", "null"}
