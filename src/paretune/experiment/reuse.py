"""Reuse of the stages before the alignment by several runs, and the resource usage of a run.

A run can be reused if its stages before the alignment are complete and its recipe agrees in what they read.
Its models are hard-linked into the new run and the log lines of these stages are copied, so that the new run
writes, byte for byte, what it would have written alone. Resource usage is read from timing.jsonl.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from paretune.config import load_config, resolved_yaml
from paretune.core.errors import ConfigError
from paretune.experiment.resolved import ResolvedRun, resolve
from paretune.rl.state import BUDGET_RESOURCES
from paretune.run.compat import (
    MANIFEST_FILE,
    RESOLVED_CONFIG_FILE,
    ConfigChange,
    config_changes,
    describe_changes,
)
from paretune.run.folder import Run
from paretune.run.io import fsync_tree, read_json, write_atomic

PRE_ALIGN_STAGES = ("sft", "reward", "judge")
"""Stages before the alignment; each fills the folder of its name."""
PRE_ALIGN_RECORDS = ("sft_demonstrations", "reward train", "reward test", "judge train", "judge test")
"""The records in the manifest that these stages read."""
DOWNSTREAM_SECTIONS = (
    "name",
    "objectives",
    "algorithm",
    "aggregate",
    "thinking",
    "training",
    "run",
    "evaluate",
    "trackers",
)
"""Sections of a recipe that only later stages read."""
SEED_AND_LIMIT_KEYS = (
    ("run", "seed"),
    ("algorithm", "max_new_tokens"),
    ("evaluate", "max_new_tokens"),
    ("evaluate", "max_prompts"),
)
"""Keys of those sections that earlier stages depend on too; see `reuse_key`."""
ALIGN_DATA_KEYS = ("stored_responses", "demonstrations")
"""Keys of the section `data` that only the alignment reads."""


def reuse_key(run: ResolvedRun) -> str:
    """Hash of all settings that determine the results of the stages before the alignment."""
    config = run.config
    values = config.model_dump(by_alias=True, mode="json", exclude=set(DOWNSTREAM_SECTIONS))
    for key in ALIGN_DATA_KEYS:
        del values["data"][key]
    if values["reward"] is not None:
        del values["reward"]["allow_weak_heads"]  # whether a run goes on, not what it computes
    # With files, long responses and format instructions exclude prompts that are then too long, and training
    # rows of test prompts are excluded too. The built-in world's splits are disjoint.
    prompt_limits = [
        config.algorithm.arguments.get("max_new_tokens"),
        config.evaluate.max_new_tokens,
        config.evaluate.max_prompts,
        run.algorithm.prompt_format,
    ]
    inputs = [values, config.run.seed, None if config.data.world is not None else prompt_limits]
    return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()


def reuse_stages(run: Run, source: Path, resolved: ResolvedRun) -> None:
    """Link the complete stages of `source` into a new run; a run that has log lines already is left alone.

    Raises:
        ConfigError: `source` has no complete stages, or its recipe or records differ.
    """
    if not is_fresh_run(run.path):
        return
    require_same_inputs(source, resolved)
    if _pre_align_inputs(source) != _pre_align_inputs(run.path):
        raise ConfigError(f"{source}: cannot be reused: its records differ; fix: remove --reuse-from")
    link_stages(source, run.path)
    for name in ("timing.jsonl", "metrics.jsonl"):
        if (source / name).exists():
            write_atomic(run.path / name, _pre_align_lines(source / name))
    run.log_event("stages_reused", f"reused the policy, the reward and the judge of {source}")


def is_fresh_run(run_dir: Path) -> bool:
    """True if the run folder has no log lines yet, so that it may reuse those of another run."""
    return not (run_dir / "metrics.jsonl").exists()


def require_same_inputs(source: Path, resolved: ResolvedRun) -> None:
    """Reject stages that cannot be reused, before any file of the recipe is read.

    Raises:
        ConfigError: `source` has no complete stages, or those of another recipe; the message names the keys
            that differ.
    """
    state = read_json(source / "run.json")
    problem, fix = "", "remove --reuse-from"
    if state is None:
        problem = "it holds no run"
    elif state.get("status") != "done" and state.get("stage") in (None, "data", *PRE_ALIGN_STAGES):
        problem, fix = "its stages are not complete", "resume that run first, or remove --reuse-from"
    # The hash of a run that ended before its alignment is this key; others are known by their recipe.
    elif state.get("config_hash") != reuse_key(resolved) and _stored_key(source) != reuse_key(resolved):
        differences = describe_changes(_upstream_changes(source, resolved))
        problem = f"its recipe differs ({differences or 'in data, policy, reward, judge or seed'})"
        if (source / "reward" / "model").is_dir():
            named = f"reward={{path: {source}/reward/model}}"
            fix = f"make these keys agree, or name its reward model alone: {named}"
    if problem:
        raise ConfigError(f"{source}: cannot be reused: {problem}; fix: {fix}")


def _stored_key(source: Path) -> str | None:
    """`reuse_key` of the recipe of a run; None if its folder has none that this version reads."""
    try:
        config = load_config(source / RESOLVED_CONFIG_FILE, check_files=False)
        return reuse_key(resolve(config))
    except ConfigError:
        return None


def _upstream_changes(source: Path, resolved: ResolvedRun) -> list[ConfigChange]:
    """Keys of the recipes that differ and that the stages before the alignment depend on."""
    changes = config_changes(source, resolved_yaml(resolved.config))
    upstream = [
        change
        for change in changes
        if change[0][0] not in DOWNSTREAM_SECTIONS
        and not (change[0][0] == "data" and change[0][1:2] and change[0][1] in ALIGN_DATA_KEYS)
    ]
    keys = SEED_AND_LIMIT_KEYS if resolved.config.data.world is None else SEED_AND_LIMIT_KEYS[:1]
    return upstream + [change for change in changes if change[0] in keys]


def _pre_align_lines(file: Path) -> bytes:
    """The lines of a log that the stages before the alignment wrote, as they are."""
    lines = file.read_bytes().splitlines(keepends=True)
    return b"".join(line for line in lines if json.loads(line).get("stage") in PRE_ALIGN_STAGES)


def link_stages(source: Path, target: Path) -> None:
    """Link the models of the stages before the alignment into another run folder."""
    for name in PRE_ALIGN_STAGES:
        if (source / name).is_dir() and not (target / name).exists():
            _link_tree(source / name, target / name)


def _link_tree(source: Path, target: Path) -> None:
    """A copy of the folder, atomically, with hard links to its files where the file system allows it."""
    temporary = target.with_name(f"{target.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    shutil.copytree(source, temporary, copy_function=_link_or_copy)
    fsync_tree(temporary)
    temporary.rename(target)


def _link_or_copy(source: str, target: str) -> str:
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without hard links
        shutil.copyfile(source, target)
    return target


def _pre_align_inputs(run_dir: Path) -> Mapping[str, Any]:
    manifest = read_json(run_dir / MANIFEST_FILE) or {}
    records = manifest.get("records", {})
    return {name: records.get(name) for name in PRE_ALIGN_RECORDS} | {"models": manifest.get("models")}


TimingLines = Iterable[Mapping[str, Any]]
"""Lines of timing.jsonl."""


def total_usage(lines: TimingLines, *, phases_only: bool = False) -> dict[str, int]:
    """Usage of each budget resource by the alignment and its phases.

    Args:
        lines: Lines of timing.jsonl.
        phases_only: Count the phases only.
    """
    counted = [line for line in _alignment_lines(lines) if not (phases_only and line["stage"] == "align")]
    return {resource: sum(int(line.get(resource, 0)) for line in counted) for resource in BUDGET_RESOURCES}


def time_and_peak_memory(lines: TimingLines) -> dict[str, float]:
    """Seconds in the steps of the alignment and its phases, and peak memory in bytes."""
    counted = _alignment_lines(lines)
    resources = {"seconds": float(sum(float(line.get("seconds", 0.0)) for line in counted))}
    for key in ("peak_memory", "peak_device_memory"):
        peaks = [float(line[key]) for line in counted if key in line]
        if peaks:
            resources[key] = max(peaks)
    return resources


def _alignment_lines(lines: TimingLines) -> list[Mapping[str, Any]]:
    return [line for line in lines if line["stage"] not in PRE_ALIGN_STAGES]
