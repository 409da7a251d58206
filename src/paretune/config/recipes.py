"""The recipes that come with the package, by name."""

from pathlib import Path

from paretune.config.faults import nearest
from paretune.errors import ConfigError, complaint

_HERE = Path(__file__).resolve()
_FOLDERS = (_HERE.parents[1] / "recipes", _HERE.parents[3] / "recipes")


def shipped() -> dict[str, Path]:
    """Name -> file of every recipe that comes with the package."""
    folder = next((folder for folder in _FOLDERS if folder.is_dir()), None)
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))} if folder else {}


def summary(path: Path) -> str:
    """The first line of a recipe, which says what it is for."""
    with path.open(encoding="utf-8") as file:
        return file.readline().lstrip("# ").strip()


def find_recipe(name: str) -> Path:
    """The file of this path, or the shipped recipe of this name.

    Raises:
        ConfigError: Neither is there.
    """
    path, known = Path(name), shipped()
    if path.is_file() or (name not in known and path.suffix in {".yaml", ".yml"} and path.exists()):
        return path
    if name in known:
        return known[name]
    fix = f"name a file, or one of {', '.join(known)}"
    raise ConfigError(
        complaint(name, 1, None, "", "there is no such recipe", meant=nearest(name, known), fix=fix)
    )
