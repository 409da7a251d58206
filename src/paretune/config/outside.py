"""What a recipe names outside itself: files of data and folders of models."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

from paretune.config.faults import Fault, nearest
from paretune.config.rules import WORLD, sections, sources
from paretune.config.schema import Experiment
from paretune.config.tree import PathKey, short

HUB = "hf:"
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def file_faults(e: Experiment) -> Iterator[Fault]:
    """Data files that are not there."""
    root = Path(e.data.root)
    if any(not source.file.startswith(HUB) for _, _, source in sources(e)) and not root.is_dir():
        fix = "name a folder, relative to the one you are in"
        yield Fault(("data", "root"), f"there is no folder {short(e.data.root)}", fix=fix, alone=True)
        return
    for path, _, source in sources(e):
        file = root / source.file
        if source.file.startswith(HUB) or file.is_file():
            continue
        beside = [p.name for p in file.parent.iterdir()] if file.parent.is_dir() else []
        meant = nearest(file.name, beside)
        meant = str(Path(source.file).with_name(meant)) if meant else ""
        fix = f"files are looked for below data.root, which is {short(e.data.root)}"
        yield Fault(
            (*path, "file"), f"there is no file {short(source.file)}", meant=meant, fix=fix, alone=True
        )


def model_faults(e: Experiment) -> Iterator[Fault]:
    """Models that are neither a folder nor a hub name, and ready-made ones that lack an objective."""
    if e.policy.path != WORLD:
        yield from _model(("policy", "path"), e.policy.path)
    for name, section in sections(e):
        if section.path is not None:
            yield from _model((name, "path"), section.path)
            yield from _labels(e, name, Path(section.path))
        elif section.body != "policy":
            yield from _model((name, "body"), section.body)


def is_hub_name(name: str) -> bool:
    """Whether the name of a model is meant for the hub: owner/name, and no such folder here."""
    path = Path(name)
    return bool(_HUB_NAME.fullmatch(name)) and not path.exists() and not path.parent.exists()


def _model(path: PathKey, name: str) -> Iterator[Fault]:
    if is_hub_name(name):
        return
    fix = "name a folder with config.json, or a hub name like owner/model"
    folder = Path(name)
    if not folder.is_dir():
        beside = [str(p) for p in folder.parent.iterdir() if p.is_dir()] if folder.parent.is_dir() else []
        yield Fault(
            path, f"there is no folder {short(name)}", meant=nearest(name, beside), fix=fix, alone=True
        )
    elif not (folder / "config.json").is_file():
        yield Fault(path, f"{short(name)} holds no config.json", fix=fix, alone=True)


def _labels(e: Experiment, name: str, folder: Path) -> Iterator[Fault]:
    """The names in a ready-made model's config.json must hold the objectives that the reward is asked for."""
    file = folder / "config.json"
    if name != "reward" or not file.is_file():
        return
    names = labels_of(folder)
    if names is None:
        yield Fault((name, "path"), f"{short(str(file))} is not the configuration of a model", alone=True)
        return
    if not names:
        example = json.dumps({"id2label": dict(enumerate(e.objectives))})
        wrong = f"{short(str(file))} does not say which objective each output of the model is"
        yield Fault((name, "path"), wrong, fix=f"write into it, in the order of the outputs: {example}")
        return
    for objective, section in e.objectives.items():
        if (section.of or objective) not in names:
            fix = f"the model in reward.path has {', '.join(names)}"
            yield Fault(
                ("objectives", objective), "no model provides it", meant=nearest(objective, names), fix=fix
            )


def labels_of(folder: Path) -> list[str] | None:
    """The names in a ready-made model's config.json; None where there is none that can be read."""
    try:
        labels = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("id2label") or {}
        return [str(label) for label in labels.values()]
    except (OSError, ValueError, AttributeError, RecursionError):
        return None
