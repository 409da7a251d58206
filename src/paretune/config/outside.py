"""What a recipe names outside itself: files of data and folders of models."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

from paretune.config.faults import ConfigIssue, closest_match
from paretune.config.rules import WORLD, data_sources, reward_sections
from paretune.config.schema import Config
from paretune.config.tree import KeyPath, short_repr

HUB_PREFIX = "hf:"
_HUB_NAME_PATTERN = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def file_issues(config: Config) -> Iterator[ConfigIssue]:
    """Data files that are not there."""
    root = Path(config.data.root)
    if (
        any(not source.file.startswith(HUB_PREFIX) for _, _, source in data_sources(config))
        and not root.is_dir()
    ):
        fix = "name a folder, relative to the one you are in"
        yield ConfigIssue(
            ("data", "root"), f"there is no folder {short_repr(config.data.root)}", fix=fix, standalone=True
        )
        return
    for path, _, source in data_sources(config):
        file = root / source.file
        if source.file.startswith(HUB_PREFIX) or file.is_file():
            continue
        beside = [p.name for p in file.parent.iterdir()] if file.parent.is_dir() else []
        meant = closest_match(file.name, beside)
        meant = str(Path(source.file).with_name(meant)) if meant else ""
        fix = f"files are looked for below data.root, which is {short_repr(config.data.root)}"
        yield ConfigIssue(
            (*path, "file"),
            f"there is no file {short_repr(source.file)}",
            suggestion=meant,
            fix=fix,
            standalone=True,
        )


def model_issues(config: Config) -> Iterator[ConfigIssue]:
    """Models that are neither a folder nor a hub name, and ready-made ones that lack an objective."""
    if config.policy.path != WORLD:
        yield from _model_path_issues(("policy", "path"), config.policy.path)
    for name, section in reward_sections(config):
        if section.path is not None:
            yield from _model_path_issues((name, "path"), section.path)
            yield from _label_issues(config, name, Path(section.path))
        elif section.init_from != "policy":
            yield from _model_path_issues((name, "body"), section.init_from)


def is_hub_name(name: str) -> bool:
    """Whether the name of a model is meant for the hub: owner/name, and no such folder here."""
    path = Path(name)
    return bool(_HUB_NAME_PATTERN.fullmatch(name)) and not path.exists() and not path.parent.exists()


def _model_path_issues(path: KeyPath, name: str) -> Iterator[ConfigIssue]:
    if is_hub_name(name):
        return
    fix = "name a folder with config.json, or a hub name like owner/model"
    folder = Path(name)
    if not folder.is_dir():
        beside = [str(p) for p in folder.parent.iterdir() if p.is_dir()] if folder.parent.is_dir() else []
        yield ConfigIssue(
            path,
            f"there is no folder {short_repr(name)}",
            suggestion=closest_match(name, beside),
            fix=fix,
            standalone=True,
        )
    elif not (folder / "config.json").is_file():
        yield ConfigIssue(path, f"{short_repr(name)} holds no config.json", fix=fix, standalone=True)


def _label_issues(config: Config, name: str, folder: Path) -> Iterator[ConfigIssue]:
    """The names in a ready-made model's config.json must hold the objectives that the reward is asked for."""
    file = folder / "config.json"
    if name != "reward" or not file.is_file():
        return
    names = read_label_names(folder)
    if names is None:
        yield ConfigIssue(
            (name, "path"), f"{short_repr(str(file))} is not the configuration of a model", standalone=True
        )
        return
    if not names:
        example = json.dumps({"id2label": dict(enumerate(config.objectives))})
        wrong = f"{short_repr(str(file))} does not say which objective each output of the model is"
        yield ConfigIssue((name, "path"), wrong, fix=f"write into it, in the order of the outputs: {example}")
        return
    for objective, section in config.objectives.items():
        if (section.scores_from or objective) not in names:
            fix = f"the model in reward.path has {', '.join(names)}"
            yield ConfigIssue(
                ("objectives", objective),
                "no model provides it",
                suggestion=closest_match(objective, names),
                fix=fix,
            )


def read_label_names(folder: Path) -> list[str] | None:
    """The names in a ready-made model's config.json; None where there is none that can be read."""
    try:
        labels = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("id2label") or {}
        return [str(label) for label in labels.values()]
    except (OSError, ValueError, AttributeError, RecursionError):
        return None
