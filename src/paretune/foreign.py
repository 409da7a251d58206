"""Whether a run folder may be gone on in: it holds this very run, made from these very data, or nothing."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from paretune.errors import ConfigError
from paretune.files import read_json, to_json

MANIFEST = "data/manifest.json"
RESOLVED = "config/resolved.yaml"
LAID = frozenset(
    {"run.json", "run.json.tmp", "LOCK", "env.json", "events.jsonl", "config/run.yaml", RESOLVED, MANIFEST}
)
"""What a run folder holds before anything was made in it."""
EMPTY = frozenset({"metrics.jsonl", "timing.jsonl"})
"""What it may hold besides, as long as nothing is in it."""
FREE = (
    ("run", "folder"),
    ("run", "device"),
    ("run", "threads"),
    ("run", "checkpoint_every"),
    ("run", "keep"),
    ("run", "workers"),
    ("learn", "activations"),
)
"""Keys of a recipe that say where and how a run is worked at, not what it is: a resume may change them."""

Keys = tuple[str, ...]
Change = tuple[Keys, str, str]
"""A key of the recipe, what the folder says of it, and what this run says."""


def refuse_foreign(path: Path, config_hash: str, resolved: str = "") -> None:
    """Refuse a folder of another run, or of something else.

    Args:
        path: The run folder; it need not exist.
        config_hash: Of this run.
        resolved: This run's recipe with every key filled in; "": not known.

    Raises:
        ConfigError: The folder is a file, holds foreign files, or another run; then with what differs.
    """
    if path.exists() and not path.is_dir():
        raise ConfigError(f"{path}: run.folder: is a file; fix: name a folder")
    if not path.exists():
        return
    book = read_json(path / "run.json")
    if book is None:
        foreign = sorted(entry.name for entry in path.iterdir() if entry.name not in ("LOCK", "run.json.tmp"))
        if foreign:
            raise ConfigError(
                f'{path}: run.folder: holds files that are no run, such as "{foreign[0]}"; '
                "fix: choose another run.folder"
            )
    elif book.get("config_hash") != config_hash and not unmade(path):
        found = [change for change in changes(path, resolved) if change[0] not in FREE]
        hashes = f"configuration {str(book.get('config_hash'))[:12]} there, {config_hash[:12]} here"
        differs = [f"{'.'.join(key)} is {there} there, {here} here" for key, there, here in found]
        raise ConfigError(
            f"{path}: run.folder: holds another run ({_three(differs, '; ') or hashes}); "
            "fix: choose another run.folder, or remove this one"
        )


def unmade(path: Path) -> bool:
    """Whether a run was begun in the folder, but ended before it had made anything.

    One that is done may have had nothing to make, and others take over what it says.
    """
    book = read_json(path / "run.json")
    if book is None or book.get("status") == "done":
        return False
    files = {str(file.relative_to(path)): file for file in path.rglob("*") if not file.is_dir()}
    return files.keys() <= LAID | EMPTY and not any(
        file.stat().st_size for name, file in files.items() if name in EMPTY
    )


def begin_anew(path: Path, config_hash: str, made_from: Mapping[str, Any]) -> bool:
    """Empty a locked folder whose run, begun by another recipe or from other data, has made nothing.

    Returns:
        Whether it was emptied.
    """
    book = read_json(path / "run.json")
    if book is None or not unmade(path):
        return False
    if book.get("config_hash") == config_hash and not _changed(path, made_from):
        return False
    for name in sorted(LAID | EMPTY, key="run.json".__eq__):  # last: until then it is a run's folder
        if name != "LOCK":
            (path / name).unlink(missing_ok=True)
    return True


def changes(path: Path, resolved: str) -> list[Change]:
    """Where the recipe the folder was begun with differs from this one; nothing where one is not known."""
    try:
        before = yaml.safe_load((path / RESOLVED).read_text(encoding="utf-8"))
        now = yaml.safe_load(resolved)
    except (OSError, ValueError, yaml.YAMLError):
        return []
    return list(_apart(before, now, ())) if isinstance(before, dict) and isinstance(now, dict) else []


def _apart(before: Mapping[Any, Any], now: Mapping[Any, Any], above: Keys) -> Iterator[Change]:
    for key in dict.fromkeys([*now, *before]):
        there, here, at = before.get(key), now.get(key), (*above, str(key))
        if isinstance(there, dict) and isinstance(here, dict):
            yield from _apart(there, here, at)
        elif there != here or (key in before) != (key in now):
            yield at, _shown(before, key), _shown(now, key)


def _shown(values: Mapping[Any, Any], key: Any, most: int = 40) -> str:
    if key not in values:
        return "not given"
    value = values[key]
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    text = " ".join(text.split())
    return text if len(text) <= most else f"{text[: most - 3]}..."


def refuse_changed(path: Path, made_from: Mapping[str, Any]) -> None:
    """Refuse to go on with other data or models: it would mix two runs in one set of numbers.

    Raises:
        ConfigError: They changed since the run began.
    """
    changed = _changed(path, made_from)
    if changed:
        raise ConfigError(
            f"{path}: run.folder: the data changed since this run began ({_three(changed, ', ')}); "
            "fix: put it back, or choose another run.folder"
        )


def _changed(path: Path, made_from: Mapping[str, Any]) -> list[str]:
    """Names of what is not as it was when the run began; nothing where one of the two is not known."""
    before, now = read_json(path / MANIFEST), json.loads(to_json(made_from))
    if before is None or not now:
        return []
    return [
        f"{key}: {name}" if name else key
        for key in sorted(before.keys() | now.keys())
        for name in _differing(before.get(key), now.get(key))
        if key != "left_out"
    ]


def _differing(before: Any, now: Any) -> list[str]:
    """Names of the entries that differ; "" where the whole does."""
    if isinstance(before, dict) and isinstance(now, dict):
        return [k for k in sorted(before.keys() | now.keys()) if before.get(k) != now.get(k)]
    return [] if before == now else [""]


def _three(parts: list[str], between: str) -> str:
    """The first three, and how many more there are."""
    more = f" and {len(parts) - 3} more" if len(parts) > 3 else ""
    return between.join(parts[:3]) + more
