"""Checks before a run folder is reused: it must be empty, or hold the same run made from the same data.

A run has two identities. `config_hash` in run.json is that of the training: every setting that its numbers
follow from. `evaluation` holds the hashes of what only the evaluation reads: the judge with its data, and the
section `evaluate` with the test prompts. They may change as long as the run holds no judgment: a judge that
cannot be used must not cost the training. With judgments, another judge would mix two evaluations, and is an
error.
"""

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import yaml

from paretune.core.errors import ConfigError
from paretune.run.io import read_json, to_json
from paretune.run.lock import LOCK_FILES

MANIFEST_FILE = "data/manifest.json"
RECIPE_FILE = "config/recipe.yaml"
RESOLVED_CONFIG_FILE = "config/resolved.yaml"
SETUP_FILES = frozenset(
    {
        "run.json",
        "run.json.tmp",
        "env.json",
        "events.jsonl",
        RECIPE_FILE,
        RESOLVED_CONFIG_FILE,
        MANIFEST_FILE,
        *LOCK_FILES,
    }
)
"""Files of a run folder that are no results."""
TRACKERS_FOLDER = "trackers"
"""Folder of trackers, whose files are no results of the run either."""
LOG_FILES = frozenset({"metrics.jsonl", "timing.jsonl", "rollouts.jsonl"})
"""Files that are no results as long as they are empty."""
RESUME_MUTABLE_KEYS = (
    ("run", "output_dir"),
    ("run", "device"),
    ("run", "num_threads"),
    ("run", "save_steps"),
    ("run", "save_total_limit"),
    ("run", "num_workers"),
    ("training", "gradient_checkpointing"),
    ("training", "fsdp"),
    ("reward", "allow_weak_heads"),
    *(("rollout", key) for key in ("base_urls", "timeout", "shared_folder", "gpu_memory_utilization")),
)
"""Keys of a recipe that may change on resume: they decide where a run is computed, not its numbers."""

EVALUATION_SECTIONS = ("judge", "judges", "evaluate")
"""Sections of a recipe that only the evaluation reads."""
EVALUATION_ENTRIES_KEY = "evaluation"
"""Key of the manifest: names of its entries that only the evaluation reads, by key."""

JUDGED_KEY = "judged"
"""Key of run.json: true once an evaluation is complete."""
MISSING_VALUE = "not given"
"""Stands for the value of a key that one of two recipes does not have."""
_EMPTY_ADDITIONS = [{MISSING_VALUE, "null"}, {MISSING_VALUE, "{}"}, {MISSING_VALUE, "[]"}]
MAX_VALUE_CHARS = 30
"""An error shows no longer values: their beginnings may be equal."""

KeyPath = tuple[str, ...]
ConfigChange = tuple[KeyPath, str, str]
"""A key of the recipe, its value in the folder, and its value in this run."""


def check_resumable(path: Path, config_hash: str, resolved_config: str = "") -> None:
    """Raise an error unless the folder is new, empty, or holds this run.

    Args:
        path: The run folder; it need not exist.
        config_hash: Hash of this run's configuration.
        resolved_config: This run's recipe with every key filled in, for the error message; "" if unknown.

    Raises:
        ConfigError: The path is a file, or the folder holds other files or another run (the message names the
            keys that differ).
    """
    if path.exists() and not path.is_dir():
        raise ConfigError(f"{path}: run.output_dir: is a file; fix: name a folder")
    if not path.exists():
        return
    state = read_json(path / "run.json")
    if state is None:
        ignored = (*LOCK_FILES, "run.json.tmp")
        foreign = sorted(entry.name for entry in path.iterdir() if entry.name not in ignored)
        if foreign:
            raise ConfigError(
                f'{path}: run.output_dir: holds files of no run, such as "{foreign[0]}"; '
                "fix: choose another run.output_dir"
            )
    elif state.get("config_hash") != config_hash and not has_no_results(path):
        all_changes = [c for c in config_changes(path, resolved_config) if c[0] not in RESUME_MUTABLE_KEYS]
        # The evaluation's sections are never the reason; those of a merge, which has one identity, are.
        changes = [c for c in all_changes if c[0][0] not in EVALUATION_SECTIONS] or all_changes
        hashes = f"configuration {str(state.get('config_hash'))[:12]} there, {config_hash[:12]} here"
        raise ConfigError(
            f"{path}: run.output_dir: holds another run ({describe_changes(changes) or hashes}); "
            f"fix: write run.output_dir={free_folder(path)}, or remove this one"
        )


def free_folder(path: Path) -> Path:
    """The path with the first number after its name that no file or folder has."""
    return next(free for n in count(2) if not (free := path.with_name(f"{path.name}-{n}")).exists())


def has_no_results(path: Path) -> bool:
    """True if a run was started in the folder and ended before it wrote any result.

    A run with status "done" may have had nothing to compute, and other runs reuse its record: it counts as a
    result.
    """
    state = read_json(path / "run.json")
    if state is None or state.get("status") == "done":
        return False
    files = {
        file.relative_to(path).as_posix(): file
        for file in path.rglob("*")
        if not file.is_dir() and not file.is_relative_to(path / TRACKERS_FOLDER)
    }
    return files.keys() <= SETUP_FILES | LOG_FILES and not any(
        file.stat().st_size for name, file in files.items() if name in LOG_FILES
    )


def has_judgments(path: Path) -> bool:
    """Whether the run holds results of an evaluation."""
    return any((path / "eval").glob("*/*.json"))


def replace_evaluation(path: Path, evaluation: Mapping[str, str], resolved_config: str) -> list[str]:
    """Make a locked run ready for another judge or other settings of the evaluation, if there are any.

    A judge that was fitted is removed if it is no longer this one. Recipe and manifest in the folder must be
    written again.

    Args:
        path: The run folder.
        evaluation: Hashes of what only the evaluation reads, by section.
        resolved_config: This run's recipe with every key filled in, for the error message.

    Returns:
        The sections that were replaced.

    Raises:
        ConfigError: They differ, and the run holds judgments.
    """
    previous = (read_json(path / "run.json") or {}).get("evaluation") or {}
    replaced = [name for name in evaluation if name in previous and previous[name] != evaluation[name]]
    if replaced and has_judgments(path):
        changes = _evaluation_changes(path, resolved_config)
        what = describe_changes(changes) or f"the files of {' and '.join(replaced)} changed"
        raise _judged_otherwise(path, replaced[0], what)
    if "judge" in replaced:
        for folder in (path / "judge", path / "checkpoints" / "judge"):
            shutil.rmtree(folder, ignore_errors=True)
    return replaced


def check_evaluation(path: Path, resolved_config: str) -> None:
    """Raise an error if the recipe alone shows that this run was judged with other settings.

    Raises:
        ConfigError: The run holds judgments, and the sections that only the evaluation reads differ.
    """
    changes = _evaluation_changes(path, resolved_config)
    if changes and has_judgments(path):
        raise _judged_otherwise(path, changes[0][0][0], describe_changes(changes))


def _evaluation_changes(path: Path, resolved_config: str) -> list[ConfigChange]:
    return [c for c in config_changes(path, resolved_config) if c[0][0] in EVALUATION_SECTIONS]


def _judged_otherwise(path: Path, section: str, what: str) -> ConfigError:
    new_folder = f"write run.output_dir={free_folder(path)}"
    if any((path / "eval").glob("step-*")):  # they decided where the training ended, or what it kept
        return ConfigError(
            f"{path}: {section}: this run was evaluated during its training with other settings ({what}); "
            f"fix: restore the settings, or {new_folder}"
        )
    results = path / "eval"
    kept = next(name for n in count(1) if not (name := path / f"eval-{n}").exists())
    return ConfigError(
        f"{path}: {section}: this run was evaluated with other settings ({what}); fix: rename {results} to "
        f"{kept}, which keeps its results, to evaluate the policy again; or restore the settings; or "
        f"{new_folder}"
    )


def judged_before(state: Mapping[str, Any] | None) -> bool:
    """Whether run.json says that an evaluation was complete once, even if its results were removed."""
    return state is not None and (bool(state.get(JUDGED_KEY)) or state.get("stage") == "report")


def reset_if_no_results(path: Path, config_hash: str, data_manifest: Mapping[str, Any]) -> bool:
    """Empty a locked folder that holds another run, or the same run on other data, without any result.

    Returns:
        True if the folder was emptied.
    """
    state = read_json(path / "run.json")
    if state is None or not has_no_results(path):
        return False
    if state.get("config_hash") == config_hash and not _changed_data(path, data_manifest):
        return False
    # run.json last: a kill in between must leave a folder that is still recognized as a run.
    for name in sorted(SETUP_FILES | LOG_FILES, key="run.json".__eq__):
        if name not in LOCK_FILES:
            (path / name).unlink(missing_ok=True)
    shutil.rmtree(path / TRACKERS_FOLDER, ignore_errors=True)
    return True


def config_changes(path: Path, resolved_config: str) -> list[ConfigChange]:
    """Keys in which the folder's recipe differs from this one; empty where one of the two is unknown."""
    try:
        old = yaml.safe_load((path / RESOLVED_CONFIG_FILE).read_text(encoding="utf-8"))
        new = yaml.safe_load(resolved_config)
    except (OSError, ValueError, yaml.YAMLError):
        return []
    return list(_iter_changes(old, new, ())) if isinstance(old, dict) and isinstance(new, dict) else []


def _iter_changes(old: Mapping[Any, Any], new: Mapping[Any, Any], parent: KeyPath) -> Iterator[ConfigChange]:
    for key in dict.fromkeys([*new, *old]):
        old_value, new_value, path = old.get(key), new.get(key), (*parent, str(key))
        if isinstance(old_value, dict) and isinstance(new_value, dict):
            yield from _iter_changes(old_value, new_value, path)
        elif old_value != new_value or (key in old) != (key in new):
            yield path, _format_value(old, key), _format_value(new, key)


def describe_changes(changes: Sequence[ConfigChange]) -> str:
    """At most three keys that differ, with their values where both are short, and the number of others."""
    parts = []
    # Last, keys that only one of two versions of paretune has, and that say nothing.
    for key, there, here in sorted(changes, key=lambda c: {c[1], c[2]} in _EMPTY_ADDITIONS):
        name = ".".join(key)
        if MISSING_VALUE in (there, here):
            parts.append(f"{name} ({'added' if there == MISSING_VALUE else 'removed'})")
        elif max(len(there), len(here)) > MAX_VALUE_CHARS:
            parts.append(f"{name} (changed)")
        else:
            parts.append(f"{name} is {there} there, {here} here")
    return _first_three(parts, "; ")


def _format_value(values: Mapping[Any, Any], key: Any, max_chars: int = 40) -> str:
    if key not in values:
        return MISSING_VALUE
    value = values[key]
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    text = " ".join(text.split())
    return text if len(text) <= max_chars else f"{text[: max_chars - 3]}..."


def check_data_unchanged(path: Path, data_manifest: Mapping[str, Any]) -> None:
    """Raise an error if data or models changed since the run started: its metrics would mix two runs.

    Raises:
        ConfigError: Entries of data/manifest.json differ.
    """
    changed = _changed_data(path, data_manifest)
    if changed:
        raise ConfigError(
            f"{path}: run.output_dir: the data changed since this run started "
            f"({_first_three(changed, ', ')}); fix: restore it, or choose another run.output_dir"
        )


def _changed_data(path: Path, data_manifest: Mapping[str, Any]) -> list[str]:
    """Names of the manifest entries that changed; empty where one of the two manifests is unknown."""
    # Through JSON, so that tuples and non-finite numbers compare as they were written.
    old, new = read_json(path / MANIFEST_FILE), json.loads(to_json(data_manifest))
    if old is None or not new:
        return []
    ignored = {
        (key, name)
        for manifest in (old, new)
        for key, names in manifest.get(EVALUATION_ENTRIES_KEY, {}).items()
        for name in names
    }
    return [
        f"{key}: {name}" if name else key
        for key in sorted(old.keys() | new.keys())
        for name in _changed_entries(old.get(key), new.get(key))
        # Exclusions are sentences for people; the rows themselves are in the hashes.
        if key not in {"exclusions", EVALUATION_ENTRIES_KEY} and not {(key, name), (key, "")} & ignored
    ]


def _changed_entries(old: Any, new: Any) -> list[str]:
    """Names of the entries that differ; "" for a value without entries."""
    if isinstance(old, dict) and isinstance(new, dict):
        return [k for k in sorted(old.keys() | new.keys()) if old.get(k) != new.get(k)]
    return [] if old == new else [""]


def _first_three(items: list[str], separator: str) -> str:
    more = f" and {len(items) - 3} more" if len(items) > 3 else ""
    return separator.join(items[:3]) + more
