"""The recipes that come with the package, by name."""

from collections.abc import Iterable
from pathlib import Path

from paretune.config.faults import closest_match
from paretune.errors import ConfigError, format_issue

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
