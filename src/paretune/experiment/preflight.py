"""Whether a critic can start from a reward model that was made elsewhere.

Whether what learns has layers that can be worked out again, asked of configurations alone.

Options of a recipe that save memory: whether this machine has what they need, asked before all else.

Models that a recipe names: what their configurations alone show, asked before anything else is done.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from paretune.config import Config, location_of
from paretune.config.build import build_spec
from paretune.config.data_schema import LoraSection as LoraSection
from paretune.config.issues import closest_match
from paretune.config.validate import WORLD, reward_sections
from paretune.config.yaml import KeyPath
from paretune.core.errors import ConfigError, DataError, WiringError, format_issue
from paretune.core.types import PreTrainedTokenizerBase
from paretune.models.forward.checkpointing import checkpointable_layers
from paretune.models.load import (
    is_local_folder,
    load_model_config,
    load_tokenizer,
    require_safetensors,
    resolve_device,
)
from paretune.models.lora import (
    LoraSpec,
    TaskType,
    add_lora,
    lora_target_names,
    meta_model,
    unmatched_targets,
)
from paretune.reward.checkpoint import read_objectives
from paretune.rl.algorithm_spec import AlgorithmSpec
from paretune.training.optimizer import import_bitsandbytes
from paretune.worlds.helpdesk.model import helpdesk_tokenizer as world_tokenizer
from paretune.worlds.helpdesk.model import policy_config


def pretrained_critic_path(config: Config) -> str | None:
    """Folder or hub name of the ready-made reward that a critic starts from; None where none does."""
    recipe = build_spec(config)
    if (
        not isinstance(recipe, AlgorithmSpec)
        or "values" not in recipe.requires()
        or recipe.critic.init_from != "reward"
    ):
        return None
    return config.reward.path


def critic_tokenizer_issues(
    config: Config, load_policy_tokenizer: Callable[[Config], PreTrainedTokenizerBase]
) -> Iterator[str]:
    """One line where the ready-made reward that a critic starts from reads other tokens than the policy.

    A critic is asked at every token of the policy's responses, so both must mean the same by each number.

    Args:
        config: The recipe; its models can be read.
        load_policy_tokenizer: The policy's tokenizer.

    Raises:
        ConfigError: One of the two has no tokenizer that can be read.
    """
    path = pretrained_critic_path(config)
    if path is None:
        return
    with as_config_error(config, ("reward", "path")):
        known = load_tokenizer(path, revision=config.reward.revision).get_vocab()
    with as_config_error(config, ("policy", "path")):
        spoken = load_policy_tokenizer(config).get_vocab()
    if known != spoken:
        where, key = location_of(config, ("reward", "path")), "reward.path"
        wrong = "reads other tokens than the policy, and the critic is to start from it"
        yield format_issue(where, None, None, key, wrong, fix="write algorithm.critic_init_from: policy")


def gradient_checkpointing_issues(config: Config) -> Iterator[str]:
    """One line for every model whose layers `training.gradient_checkpointing: recompute` could not work out again.

    The policy of the built-in world has such layers, and so has a critic that starts from the policy, if the
    policy has.

    Args:
        config: The recipe; the configurations of its models can be read.
    """
    if config.training.gradient_checkpointing != "recompute":
        return
    for path, revision, task in _trained_models(config):
        try:
            checkpointable_layers(meta_model(load_model_config(path, revision=revision), task))
        except WiringError as error:
            key = "training.gradient_checkpointing"
            wrong, _, fix = str(error).removeprefix(f"{key}: ").partition("; fix: ")
            yield format_issue(
                location_of(config, ("training", "gradient_checkpointing")), None, None, key, wrong, fix=fix
            )
        except ValueError:
            continue  # there is no such network: whoever loads it, or puts an adapter on it, says so


def _trained_models(config: Config) -> Iterator[tuple[str, str | None, TaskType]]:
    """Models that are named and learn: folder or hub name, revision, and what the network does."""
    if config.policy.path != WORLD:
        yield config.policy.path, config.policy.revision, "CAUSAL_LM"
    critic = pretrained_critic_path(config)
    if critic is not None:
        yield critic, config.reward.revision, "SEQ_CLS"


def check_memory_options(config: Config) -> None:
    """See that the device is there, and that what `learn` says of memory can be done with it.

    Raises:
        ResourceError: The machine lacks the device.
        ConfigError: Activations would be moved from the main memory to the main memory.
        MissingExtra: The package that 8-bit moments need is not installed.
    """
    device = resolve_device(config.run.device)
    if config.training.optim == "int8":
        import_bitsandbytes()
    if config.training.gradient_checkpointing == "offload" and device.type == "cpu":
        where = location_of(config, ("training", "gradient_checkpointing"))
        wrong = "offload has no effect: run.device: auto is the CPU on this machine"
        fix = "leave it out, or write recompute"
        raise ConfigError(format_issue(where, None, None, "training.gradient_checkpointing", wrong, fix=fix))


ModelReference = tuple[KeyPath, str, str | None]
"""Where the recipe names a model, its folder or hub name, and its revision."""


def model_references(config: Config) -> Iterator[ModelReference]:
    """Every model that the recipe names and the built-in world does not bring."""
    if config.policy.path != WORLD:
        yield ("policy", "path"), config.policy.path, config.policy.revision
    for name, section in reward_sections(config):
        if section.path is not None:
            yield (name, "path"), section.path, section.revision
        elif section.init_from != "policy":
            yield (name, "body"), section.init_from, section.revision


def hub_model_notes(config: Config) -> list[str]:
    """One line for every name that is no folder here, and is therefore looked for on the hub."""
    return [
        f"{'.'.join(map(str, key))}: {path} is no folder here: taken as a hub name"
        for key, path, _ in model_references(config)
        if not is_local_folder(path)
    ]


def model_config_issues(config: Config) -> list[str]:
    """What is wrong with the models as far as it shows without their weights, one line for each mistake.

    A ready-made reward scores every objective, and a ready-made judge at least one; every adapter fits the
    network it is put on.

    Raises:
        ConfigError: One line for each model without a configuration, and for each folder without weights that
            can be read safely: nothing more can be asked then.
    """
    lines: list[str] = []
    configs: dict[KeyPath, Any] = {}
    for key, path, revision in model_references(config):
        try:
            configs[key] = load_model_config(path, revision=revision)
            require_safetensors(path)
        except DataError as error:
            lines.append(_model_issue(config, key, str(error)))
    if lines:
        raise ConfigError("\n".join(lines))
    for name, section in reward_sections(config):
        if section.path is not None:
            lines += _objective_issues(config, name, section.path, section.revision)
    for name, key, task in _lora_sections(config):
        if key not in configs:
            configs[key] = policy_config(len(world_tokenizer()))
        lines += _lora_target_issues(config, name, configs[key], task)
    return lines


@contextmanager
def as_config_error(config: Config, key: KeyPath) -> Iterator[None]:
    """Tells of a model that cannot be read where the recipe names it.

    Raises:
        ConfigError: A DataError came.
    """
    try:
        yield
    except DataError as error:
        raise ConfigError(_model_issue(config, key, str(error))) from error


def _objective_issues(config: Config, name: str, path: str, revision: str | None) -> Iterator[str]:
    names = read_objectives(path, revision=revision)
    fix = f"the model in {name}.path has {', '.join(names) or 'no names'}"
    lacking = [name for name, o in config.objectives.items() if (o.scores_from or name) not in names]
    if name == "reward":
        for objective in lacking:
            wrong = "no model provides it"
            yield _model_issue(
                config, ("objectives", objective), wrong, suggestion=closest_match(objective, names), fix=fix
            )
    elif len(lacking) == len(config.objectives):
        yield _model_issue(config, (name, "path"), "scores none of the objectives", fix=fix)


def _lora_sections(config: Config) -> Iterator[tuple[str, KeyPath, TaskType]]:
    """Every section with an adapter, where the network under it is named, and what that network does."""
    if config.policy.lora is not None:
        yield "policy", ("policy", "path"), "CAUSAL_LM"
    for name, section in reward_sections(config):
        if section.lora is not None and section.path is None:
            yield name, ("policy", "path") if section.init_from == "policy" else (name, "body"), "SEQ_CLS"


def _lora_target_issues(config: Config, name: str, model_config: Any, task: TaskType) -> Iterator[str]:
    """Targets of an adapter that fit nothing, or nothing that an adapter can be put on."""
    section: LoraSection = getattr(config, name).lora
    key, lora = (name, "lora", "targets"), LoraSpec(**section.model_dump())
    try:
        network = meta_model(model_config, task)
    except ValueError:
        purpose = "generate text" if task == "CAUSAL_LM" else "classify sequences"
        yield _model_issue(
            config, (name,), f"models of type {model_config.model_type} cannot {purpose}", fix="name another"
        )
        return
    names = lora_target_names(network)
    fix = f'write "all-linear", or a list of {", ".join(names)}'
    wrong = unmatched_targets(network, lora)
    for target in wrong:
        meant = f"[{target}]" if target in names else closest_match(target, names)
        yield _model_issue(
            config,
            key,
            f'"{target}" fits no module of a {model_config.model_type} model',
            suggestion=meant,
            fix=fix,
        )
    if not wrong:
        try:
            add_lora(network, lora, 0, task)
        except WiringError as error:
            said = str(error).removeprefix("policy.lora.target_modules: ").partition("; fix: ")[0]
            yield _model_issue(config, key, said, fix=fix)


def _model_issue(config: Config, path: KeyPath, problem: str, suggestion: str = "", fix: str = "") -> str:
    key = ".".join(map(str, path))
    return format_issue(location_of(config, path), None, None, key, problem, suggestion=suggestion, fix=fix)
