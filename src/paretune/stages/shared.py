"""Stages that do not depend on the algorithm, made once and taken over by many runs.

The folder of such stages is a run of its own that ended before the alignment. Its models are linked into the
run that takes them over, its lines are copied, and what the run then does and writes is byte for byte what it
would have done alone.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from paretune.config import Experiment
from paretune.config.algorithm import recipe_of
from paretune.errors import ConfigError
from paretune.files import read_json, sync_tree, write_atomic
from paretune.foreign import MANIFEST
from paretune.rundir import Run

BEFORE_ALIGN = ("policy", "reward", "judge")
"""The stages, and the folders they fill."""
RECORDS = ("demonstrations", "reward train", "reward test", "judge train", "judge test")
"""Of the manifest, the records that these stages read."""
LATER = ("name", "objectives", "algorithm", "aggregate", "thinking", "learn", "run", "evaluate")
"""Sections of a recipe that only later stages read."""


def shared_key(e: Experiment) -> str:
    """Names everything of a recipe that decides what the stages before the alignment make."""
    values = e.model_dump(by_alias=True, mode="json", exclude=set(LATER))
    for key in ("stored", "demonstrations"):
        del values["data"][key]
    # Over files, longer responses leave out prompts, and so does what is asked beside them; with unseen
    # prompts go the rows that share them.
    room = [e.algorithm.arguments.get("max_new"), e.evaluate.max_new, e.evaluate.most, recipe_of(e).frame]
    said = [values, e.run.seed, None if e.data.world is not None else room]
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


def take_over(run: Run, source: Path, e: Experiment) -> None:
    """Link the finished stages of `source` into a new run; one that has lines of its own already keeps them.

    Raises:
        ConfigError: `source` holds no finished stages, or those of another recipe or of other records.
    """
    if not wanting(run.path):
        return
    refuse_unlike(source, e)
    if _read_by(source) != _read_by(run.path):
        raise ConfigError(f"{source}: cannot be taken over: made from other records; fix: leave out --shared")
    link_stages(source, run.path)
    for name in ("timing.jsonl", "metrics.jsonl"):
        if (source / name).exists():
            write_atomic(run.path / name, (source / name).read_bytes())
    run.event("shared", f"took over the policy, the reward and the judge of {source}")


def wanting(folder: Path) -> bool:
    """Whether a run folder has no lines of its own yet, and so would take over those of another."""
    return not (folder / "metrics.jsonl").exists()


def refuse_unlike(source: Path, e: Experiment) -> None:
    """Refuse, before anything of the recipe is read, stages that it could not take over.

    Raises:
        ConfigError: `source` holds no finished stages, or those of another recipe.
    """
    book = read_json(source / "run.json")
    if book is None or book.get("status") != "done" or book.get("config_hash") != shared_key(e):
        wrong = "its stages are not finished" if book and book.get("status") != "done" else "made otherwise"
        raise ConfigError(
            f"{source}: cannot be taken over: {wrong if book else 'holds no run'}; fix: leave out --shared"
        )


def link_stages(source: Path, target: Path) -> None:
    """Give a run folder the models that another one has of the stages before the alignment."""
    for name in BEFORE_ALIGN:
        if (source / name).is_dir() and not (target / name).exists():
            _linked(source / name, target / name)


def _linked(source: Path, target: Path) -> None:
    """The folder once more, its files linked or, on another disk, copied; there as a whole or not at all."""
    part = target.with_name(f"{target.name}.tmp")
    shutil.rmtree(part, ignore_errors=True)
    shutil.copytree(source, part, copy_function=_link)
    sync_tree(part)
    part.rename(target)


def _link(source: str, target: str) -> str:
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
    return target


def _read_by(folder: Path) -> Mapping[str, Any]:
    found = read_json(folder / MANIFEST) or {}
    records = found.get("records", {})
    return {name: records.get(name) for name in RECORDS} | {"models": found.get("models")}
