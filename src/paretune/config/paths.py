"""Checks of the files and model folders that a recipe names. Imports no torch, unlike `requirements`."""

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from paretune.config.data_schema import DataSource
from paretune.config.issues import ConfigIssue, closest_match, list_names
from paretune.config.schema import Config
from paretune.config.scorer_schema import ClassifierScorerSection, RewardModelScorerSection
from paretune.config.scorers import read_label_names, reward_model_objectives, scorer_sections
from paretune.config.sources import data_sources
from paretune.config.unknown import until_unknown
from paretune.config.validate import WORLD, reward_sections
from paretune.config.yaml import KeyPath, short_repr

HUB_PREFIX = "hf:"
_HUB_NAME_PATTERN = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def path_kind(path: Path) -> Literal["file", "folder", "other", ""]:
    """What stands at a path; "" if nothing does, or if no file can have this name."""
    try:
        if path.is_dir():
            return "folder"
        return "file" if path.is_file() else "other" if path.exists() else ""
    except (OSError, ValueError):  # a name that is too long, say
        return ""


def output_dir_issues(config: Config) -> Iterator[ConfigIssue]:
    """A run folder that cannot be made: a name that is too long, or a file in its place."""
    folder = Path(config.run.output_dir)
    try:
        existing = next((path for path in (folder, *folder.parents) if os.path.lexists(path)), Path())
        folder.exists()
    except OSError as error:
        problem = f"{short_repr(config.run.output_dir)} cannot be made: {error.strerror}"
        yield ConfigIssue(("run", "output_dir"), problem, fix="write another folder", standalone=True)
        return
    if path_kind(existing) in ("file", "other"):
        problem = f"cannot be made: {short_repr(str(existing))} is a file"
        yield ConfigIssue(("run", "output_dir"), problem, fix="write another folder", standalone=True)


def file_issues(config: Config) -> Iterator[ConfigIssue]:
    """Data files that do not exist."""
    root = config.data.root
    for path, _, source in data_sources(config):
        if path_kind(Path(root)) != "folder" and not source.file.startswith(HUB_PREFIX):
            fix = "name a folder, relative to the working directory"
            yield ConfigIssue(("data", "root"), f"there is no folder {short_repr(root)}", fix=fix)
            return
        yield from until_unknown(_source_issues(path, source, root))


def _source_issues(path: KeyPath, source: DataSource, root: str) -> Iterator[ConfigIssue]:
    file = Path(root) / source.file
    kind = path_kind(file)
    if source.file.startswith(HUB_PREFIX) or kind == "file":
        return
    if kind:
        what = "a folder" if kind == "folder" else "a device or a pipe, not a file"
        fix = "name a file in it" if kind == "folder" else "copy its content into a file, and name that"
        problem = f"{short_repr(source.file)} is {what}"
        yield ConfigIssue((*path, "file"), problem, fix=fix, standalone=True)
        return
    folder = file.parent
    siblings = [sibling.name for sibling in folder.iterdir()] if path_kind(folder) == "folder" else []
    match = closest_match(file.name, siblings)
    yield ConfigIssue(
        (*path, "file"),
        f"there is no file {short_repr(source.file)}",
        suggestion=str(Path(source.file).with_name(match)) if match else "",
        fix=f"files are relative to data.root, which is {short_repr(root)}",
        standalone=True,
    )


def model_issues(config: Config) -> Iterator[ConfigIssue]:
    """Models that are neither a folder nor a hub name, and pretrained rewards that lack an objective."""
    for issues in (_policy_model_issues, _scorer_model_issues, _reward_model_issues):
        yield from until_unknown(issues(config))


def _policy_model_issues(config: Config) -> Iterator[ConfigIssue]:
    if config.policy.path != WORLD:
        yield from _model_path_issues(("policy", "path"), config.policy.path)


def _scorer_model_issues(config: Config) -> Iterator[ConfigIssue]:
    for scorer_path, _, scorer in scorer_sections(config):
        if isinstance(scorer, ClassifierScorerSection | RewardModelScorerSection):
            yield from _model_path_issues((*scorer_path, "path"), scorer.path)


def _reward_model_issues(config: Config) -> Iterator[ConfigIssue]:
    for name, section in reward_sections(config):
        if section.pretrained_model is not None:
            key, path = section.pretrained_model
            yield from _model_path_issues((name, key), path)
        if section.path is not None:
            yield from _label_name_issues(config, name, Path(section.path))


def is_hub_name(name: str) -> bool:
    """True for owner/model, unless it, or its parent, is a folder here."""
    path = Path(name)
    return bool(_HUB_NAME_PATTERN.fullmatch(name)) and not path_kind(path) and not path_kind(path.parent)


def _model_path_issues(path: KeyPath, name: str) -> Iterator[ConfigIssue]:
    if is_hub_name(name):
        return
    fix = "name a folder with config.json, or a hub name like owner/model"
    folder = Path(name)
    if path_kind(folder) != "folder":
        parent = folder.parent
        siblings = [str(p) for p in parent.iterdir() if p.is_dir()] if path_kind(parent) == "folder" else []
        yield ConfigIssue(
            path,
            f"there is no folder {short_repr(name)}",
            # Of a short path half of the letters are those of any other: "/nope" is not "/opt".
            suggestion=closest_match(name, siblings, 0.7),
            fix=fix,
            standalone=True,
        )
    elif path_kind(folder / "config.json") != "file":
        problem = f"{short_repr(name)} has no config.json"
        if path_kind(folder / "adapter_config.json") == "file":
            problem = f"{short_repr(name)} is a LoRA adapter, not a whole model"
            fix = "merge it into its base model first (merge_and_unload of peft), and name that folder"
        yield ConfigIssue(path, problem, fix=fix, standalone=True)


def _label_name_issues(config: Config, name: str, folder: Path) -> Iterator[ConfigIssue]:
    """A pretrained reward model's id2label must name every objective."""
    file = folder / "config.json"
    if name != "reward" or path_kind(file) != "file":
        return
    label_names = read_label_names(folder)
    if label_names is None:
        problem = f"{short_repr(str(file))} is not a model configuration"
        yield ConfigIssue((name, "path"), problem, standalone=True)
        return
    if not label_names:
        example = json.dumps({"id2label": dict(enumerate(config.objectives))})
        problem = f"{short_repr(str(file))} does not name the objective of each output"
        yield ConfigIssue((name, "path"), problem, fix=f"add to it, in the order of the outputs: {example}")
        return
    for objective in reward_model_objectives(config):
        if (config.objectives[objective].scores_from or objective) not in label_names:
            yield ConfigIssue(
                ("objectives", objective),
                "no model provides it",
                suggestion=closest_match(objective, label_names),
                fix=f"the model in reward.path has {list_names(label_names)}",
            )
