"""Stages that do not depend on the algorithm, made once and taken over by many runs.

The folder of such stages is a run of its own that ended before the alignment. Its models are linked into the
run that takes them over, its lines are copied, and what the run then does and writes is byte for byte what it
would have done alone.

What a run took, read from its timing.jsonl: tokens, calls, seconds, memory.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from paretune.config import Config
from paretune.config.build import build_spec
from paretune.core.errors import ConfigError
from paretune.rl.state import BUDGET_RESOURCES
from paretune.run.compat import MANIFEST_FILE
from paretune.run.folder import Run
from paretune.run.io import fsync_tree, read_json, write_atomic

PRE_ALIGN_STAGES = ("policy", "reward", "judge")
"""The stages, and the folders they fill."""
PRE_ALIGN_RECORDS = ("demonstrations", "reward train", "reward test", "judge train", "judge test")
"""Of the manifest, the records that these stages read."""
DOWNSTREAM_SECTIONS = ("name", "objectives", "algorithm", "aggregate", "thinking", "learn", "run", "evaluate")
"""Sections of a recipe that only later stages read."""


def reuse_key(config: Config) -> str:
    """Names everything of a recipe that decides what the stages before the alignment make."""
    values = config.model_dump(by_alias=True, mode="json", exclude=set(DOWNSTREAM_SECTIONS))
    for key in ("stored", "demonstrations"):
        del values["data"][key]
    # Over files, longer responses leave out prompts, and so does what is asked beside them; with unseen
    # prompts go the rows that share them.
    room = [
        config.algorithm.arguments.get("max_new"),
        config.evaluate.max_new_tokens,
        config.evaluate.max_prompts,
        build_spec(config).prompt_format,
    ]
    said = [values, config.run.seed, None if config.data.world is not None else room]
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


def reuse_stages(run: Run, source: Path, config: Config) -> None:
    """Link the finished stages of `source` into a new run; one that has lines of its own already keeps them.

    Raises:
        ConfigError: `source` holds no finished stages, or those of another recipe or of other records.
    """
    if not is_fresh_run(run.path):
        return
    require_same_inputs(source, config)
    if _pre_align_inputs(source) != _pre_align_inputs(run.path):
        raise ConfigError(f"{source}: cannot be taken over: made from other records; fix: leave out --shared")
    link_stages(source, run.path)
    for name in ("timing.jsonl", "metrics.jsonl"):
        if (source / name).exists():
            write_atomic(run.path / name, (source / name).read_bytes())
    run.log_event("shared", f"took over the policy, the reward and the judge of {source}")


def is_fresh_run(run_dir: Path) -> bool:
    """Whether a run folder has no lines of its own yet, and so would take over those of another."""
    return not (run_dir / "metrics.jsonl").exists()


def require_same_inputs(source: Path, config: Config) -> None:
    """Refuse, before anything of the recipe is read, stages that it could not take over.

    Raises:
        ConfigError: `source` holds no finished stages, or those of another recipe.
    """
    book = read_json(source / "run.json")
    if book is None or book.get("status") != "done" or book.get("config_hash") != reuse_key(config):
        wrong = "its stages are not finished" if book and book.get("status") != "done" else "made otherwise"
        raise ConfigError(
            f"{source}: cannot be taken over: {wrong if book else 'holds no run'}; fix: leave out --shared"
        )


def link_stages(source: Path, target: Path) -> None:
    """Give a run folder the models that another one has of the stages before the alignment."""
    for name in PRE_ALIGN_STAGES:
        if (source / name).is_dir() and not (target / name).exists():
            _link_tree(source / name, target / name)


def _link_tree(source: Path, target: Path) -> None:
    """The folder once more, its files linked or, on another disk, copied; there as a whole or not at all."""
    part = target.with_name(f"{target.name}.tmp")
    shutil.rmtree(part, ignore_errors=True)
    shutil.copytree(source, part, copy_function=_link_or_copy)
    fsync_tree(part)
    part.rename(target)


def _link_or_copy(source: str, target: str) -> str:
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
    return target


def _pre_align_inputs(run_dir: Path) -> Mapping[str, Any]:
    found = read_json(run_dir / MANIFEST_FILE) or {}
    records = found.get("records", {})
    return {name: records.get(name) for name in PRE_ALIGN_RECORDS} | {"models": found.get("models")}


TimingLines = Iterable[Mapping[str, Any]]


def total_usage(lines: TimingLines, *, phases_only: bool = False) -> dict[str, int]:
    """What an alignment took in each currency, models that it made beforehand included.

    Args:
        lines: Of timing.jsonl.
        phases_only: Only what those models took.
    """
    counted = [line for line in _alignment_lines(lines) if not (phases_only and line["stage"] == "align")]
    return {currency: sum(int(line.get(currency, 0)) for line in counted) for currency in BUDGET_RESOURCES}


def time_and_peak_memory(lines: TimingLines) -> dict[str, float]:
    """Seconds in steps of an alignment and of what it made beforehand, and its peaks of memory in bytes."""
    counted = _alignment_lines(lines)
    found = {"seconds": float(sum(float(line.get("seconds", 0.0)) for line in counted))}
    for key in ("memory", "device_memory"):
        peaks = [float(line[key]) for line in counted if key in line]
        if peaks:
            found[f"peak_{key}"] = max(peaks)
    return found


def _alignment_lines(lines: TimingLines) -> list[Mapping[str, Any]]:
    return [line for line in lines if line["stage"] not in PRE_ALIGN_STAGES]
