"""Models that a recipe names: what their configurations alone show, asked before anything else is done."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from paretune.config import Experiment, written_at
from paretune.config.faults import nearest
from paretune.config.rules import WORLD, sections
from paretune.config.sources import Lora as LoraSection
from paretune.config.tree import PathKey
from paretune.data.world_model import policy_config
from paretune.data.world_model import tokenizer as world_tokenizer
from paretune.errors import ConfigError, DataError, WiringError, complaint
from paretune.models.adapt import Lora, add_lora
from paretune.models.load import config_of, is_folder, weights_there
from paretune.models.targets import Task, adaptable, skeleton, strangers
from paretune.objectives.reward_store import objectives_of

Named = tuple[PathKey, str, str | None]
"""Where the recipe names a model, its folder or hub name, and its revision."""


def named(e: Experiment) -> Iterator[Named]:
    """Every model that the recipe names and the built-in world does not bring."""
    if e.policy.path != WORLD:
        yield ("policy", "path"), e.policy.path, e.policy.revision
    for name, section in sections(e):
        if section.path is not None:
            yield (name, "path"), section.path, section.revision
        elif section.body != "policy":
            yield (name, "body"), section.body, section.revision


def from_hub(e: Experiment) -> list[str]:
    """One line for every name that is no folder here, and is therefore looked for on the hub."""
    return [
        f"{'.'.join(map(str, key))}: {path} is no folder here: taken as a hub name"
        for key, path, _ in named(e)
        if not is_folder(path)
    ]


def ready(e: Experiment) -> list[str]:
    """What is wrong with the models as far as it shows without their weights, one line for each mistake.

    A ready-made reward scores every objective, and a ready-made judge at least one; every adapter fits the
    network it is put on.

    Raises:
        ConfigError: One line for each model without a configuration, and for each folder without weights that
            can be read safely: nothing more can be asked then.
    """
    lines: list[str] = []
    configs: dict[PathKey, Any] = {}
    for key, path, revision in named(e):
        try:
            configs[key] = config_of(path, revision=revision)
            weights_there(path)
        except DataError as error:
            lines.append(_line(e, key, str(error)))
    if lines:
        raise ConfigError("\n".join(lines))
    for name, section in sections(e):
        if section.path is not None:
            lines += _strange(e, name, section.path, section.revision)
    for name, key, task in _adapters(e):
        if key not in configs:
            configs[key] = policy_config(len(world_tokenizer()))
        lines += _unfit(e, name, configs[key], task)
    return lines


@contextmanager
def placed(e: Experiment, key: PathKey) -> Iterator[None]:
    """Tells of a model that cannot be read where the recipe names it.

    Raises:
        ConfigError: A DataError came.
    """
    try:
        yield
    except DataError as error:
        raise ConfigError(_line(e, key, str(error))) from error


def _strange(e: Experiment, name: str, path: str, revision: str | None) -> Iterator[str]:
    names = objectives_of(path, revision=revision)
    fix = f"the model in {name}.path has {', '.join(names) or 'no names'}"
    lacking = [name for name, o in e.objectives.items() if (o.of or name) not in names]
    if name == "reward":
        for objective in lacking:
            wrong = "no model provides it"
            yield _line(e, ("objectives", objective), wrong, meant=nearest(objective, names), fix=fix)
    elif len(lacking) == len(e.objectives):
        yield _line(e, (name, "path"), "scores none of the objectives", fix=fix)


def _adapters(e: Experiment) -> Iterator[tuple[str, PathKey, Task]]:
    """Every section with an adapter, where the network under it is named, and what that network does."""
    if e.policy.lora is not None:
        yield "policy", ("policy", "path"), "CAUSAL_LM"
    for name, section in sections(e):
        if section.lora is not None and section.path is None:
            yield name, ("policy", "path") if section.body == "policy" else (name, "body"), "SEQ_CLS"


def _unfit(e: Experiment, name: str, config: Any, task: Task) -> Iterator[str]:
    """Targets of an adapter that fit nothing, or nothing that an adapter can be put on."""
    section: LoraSection = getattr(e, name).lora
    key, lora = (name, "lora", "targets"), Lora(**section.model_dump())
    try:
        network = skeleton(config, task)
    except ValueError:
        purpose = "generate text" if task == "CAUSAL_LM" else "classify sequences"
        yield _line(e, (name,), f"models of type {config.model_type} cannot {purpose}", fix="name another")
        return
    names = adaptable(network)
    fix = f'write "all-linear", or a list of {", ".join(names)}'
    wrong = strangers(network, lora)
    for target in wrong:
        meant = f"[{target}]" if target in names else nearest(target, names)
        yield _line(e, key, f'"{target}" fits no module of a {config.model_type} model', meant=meant, fix=fix)
    if not wrong:
        try:
            add_lora(network, lora, 0, task)
        except WiringError as error:
            said = str(error).removeprefix("policy.lora.targets: ").partition("; fix: ")[0]
            yield _line(e, key, said, fix=fix)


def _line(e: Experiment, path: PathKey, wrong: str, meant: str = "", fix: str = "") -> str:
    key = ".".join(map(str, path))
    return complaint(written_at(e, path), None, None, key, wrong, meant=meant, fix=fix)
