"""Whether a run folder may be gone on in: it holds this very run, made from these very data, or nothing."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from paretune.core.errors import ConfigError
from paretune.run.io import read_json, to_json

MANIFEST_FILE = "data/manifest.json"
RESOLVED_CONFIG_FILE = "config/resolved.yaml"
SETUP_FILES = frozenset(
    {
        "run.json",
        "run.json.tmp",
        "LOCK",
        "env.json",
        "events.jsonl",
        "config/run.yaml",
        RESOLVED_CONFIG_FILE,
        MANIFEST_FILE,
    }
)
"""What a run folder holds before anything was made in it."""
LOG_FILES = frozenset({"metrics.jsonl", "timing.jsonl"})
"""What it may hold besides, as long as nothing is in it."""
RESUME_MUTABLE_KEYS = (
    ("run", "output_dir"),
    ("run", "device"),
    ("run", "num_threads"),
    ("run", "save_steps"),
    ("run", "save_total_limit"),
    ("run", "num_workers"),
    ("training", "gradient_checkpointing"),
)
"""Keys of a recipe that say where and how a run is worked at, not what it is: a resume may change them."""

KeyPath = tuple[str, ...]
ConfigChange = tuple[KeyPath, str, str]
"""A key of the recipe, what the folder says of it, and what this run says."""


def check_resumable(path: Path, config_hash: str, resolved_config: str = "") -> None:
    """Refuse a folder of another run, or of something else.

    Args:
        path: The run folder; it need not exist.
        config_hash: Of this run.
        resolved_config: This run's recipe with every key filled in; "": not known.

    Raises:
        ConfigError: The folder is a file, holds foreign files, or another run; then with what differs.
    """
    if path.exists() and not path.is_dir():
        raise ConfigError(f"{path}: run.output_dir: is a file; fix: name a folder")
    if not path.exists():
        return
    book = read_json(path / "run.json")
    if book is None:
        foreign = sorted(entry.name for entry in path.iterdir() if entry.name not in ("LOCK", "run.json.tmp"))
        if foreign:
            raise ConfigError(
                f'{path}: run.output_dir: holds files that are no run, such as "{foreign[0]}"; '
                "fix: choose another run.output_dir"
            )
    elif book.get("config_hash") != config_hash and not has_no_results(path):
        found = [
            change for change in config_changes(path, resolved_config) if change[0] not in RESUME_MUTABLE_KEYS
        ]
        hashes = f"configuration {str(book.get('config_hash'))[:12]} there, {config_hash[:12]} here"
        differs = [f"{'.'.join(key)} is {there} there, {here} here" for key, there, here in found]
        raise ConfigError(
            f"{path}: run.output_dir: holds another run ({_first_three(differs, '; ') or hashes}); "
            "fix: choose another run.output_dir, or remove this one"
        )


def has_no_results(path: Path) -> bool:
    """Whether a run was begun in the folder, but ended before it had made anything.

    One that is done may have had nothing to make, and others take over what it says.
    """
    book = read_json(path / "run.json")
    if book is None or book.get("status") == "done":
        return False
    files = {str(file.relative_to(path)): file for file in path.rglob("*") if not file.is_dir()}
    return files.keys() <= SETUP_FILES | LOG_FILES and not any(
        file.stat().st_size for name, file in files.items() if name in LOG_FILES
    )


def reset_if_no_results(path: Path, config_hash: str, data_manifest: Mapping[str, Any]) -> bool:
    """Empty a locked folder whose run, begun by another recipe or from other data, has made nothing.

    Returns:
        Whether it was emptied.
    """
    book = read_json(path / "run.json")
    if book is None or not has_no_results(path):
        return False
    if book.get("config_hash") == config_hash and not _changed_data(path, data_manifest):
        return False
    for name in sorted(
        SETUP_FILES | LOG_FILES, key="run.json".__eq__
    ):  # last: until then it is a run's folder
        if name != "LOCK":
            (path / name).unlink(missing_ok=True)
    return True


def config_changes(path: Path, resolved_config: str) -> list[ConfigChange]:
    """Where the recipe the folder was begun with differs from this one; nothing where one is not known."""
    try:
        before = yaml.safe_load((path / RESOLVED_CONFIG_FILE).read_text(encoding="utf-8"))
        now = yaml.safe_load(resolved_config)
    except (OSError, ValueError, yaml.YAMLError):
        return []
    return list(_iter_changes(before, now, ())) if isinstance(before, dict) and isinstance(now, dict) else []


def _iter_changes(old: Mapping[Any, Any], new: Mapping[Any, Any], parent: KeyPath) -> Iterator[ConfigChange]:
    for key in dict.fromkeys([*new, *old]):
        there, here, at = old.get(key), new.get(key), (*parent, str(key))
        if isinstance(there, dict) and isinstance(here, dict):
            yield from _iter_changes(there, here, at)
        elif there != here or (key in old) != (key in new):
            yield at, _format_value(old, key), _format_value(new, key)


def _format_value(values: Mapping[Any, Any], key: Any, max_chars: int = 40) -> str:
    if key not in values:
        return "not given"
    value = values[key]
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    text = " ".join(text.split())
    return text if len(text) <= max_chars else f"{text[: max_chars - 3]}..."


def check_data_unchanged(path: Path, data_manifest: Mapping[str, Any]) -> None:
    """Refuse to go on with other data or models: it would mix two runs in one set of numbers.

    Raises:
        ConfigError: They changed since the run began.
    """
    changed = _changed_data(path, data_manifest)
    if changed:
        raise ConfigError(
            f"{path}: run.output_dir: the data changed since this run began ({_first_three(changed, ', ')}); "
            "fix: put it back, or choose another run.output_dir"
        )


def _changed_data(path: Path, data_manifest: Mapping[str, Any]) -> list[str]:
    """Names of what is not as it was when the run began; nothing where one of the two is not known."""
    before, now = read_json(path / MANIFEST_FILE), json.loads(to_json(data_manifest))
    if before is None or not now:
        return []
    return [
        f"{key}: {name}" if name else key
        for key in sorted(before.keys() | now.keys())
        for name in _changed_entries(before.get(key), now.get(key))
        if key != "left_out"
    ]


def _changed_entries(old: Any, new: Any) -> list[str]:
    """Names of the entries that differ; "" where the whole does."""
    if isinstance(old, dict) and isinstance(new, dict):
        return [k for k in sorted(old.keys() | new.keys()) if old.get(k) != new.get(k)]
    return [] if old == new else [""]


def _first_three(items: list[str], separator: str) -> str:
    """The first three, and how many more there are."""
    more = f" and {len(items) - 3} more" if len(items) > 3 else ""
    return separator.join(items[:3]) + more
