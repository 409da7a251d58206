"""Checks before a run: models by their config.json alone, hardware and packages for memory options."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from paretune.config import Config
from paretune.config.data_schema import RewardSection
from paretune.config.issues import closest_match
from paretune.config.scorers import reward_model_objectives
from paretune.config.unknown import until_unknown
from paretune.config.validate import WORLD, reward_sections
from paretune.config.yaml import KeyPath, dotted_key
from paretune.core.errors import (
    ConfigError,
    DataError,
    MissingDependencyError,
    ResourceError,
    WiringError,
)
from paretune.experiment.data_limits import policy_tokenizer
from paretune.experiment.learning_rates import unresolved_learning_rates
from paretune.experiment.model_checks import ModelFiles, located_error, model_issues, model_notes
from paretune.experiment.resolved import ResolvedRun, as_config_error
from paretune.experiment.settings import lora_spec
from paretune.models.forward.checkpointing import checkpointable_layers
from paretune.models.load import (
    is_local_folder,
    load_model_config,
    load_tokenizer,
    require_safetensors,
    resolve_device,
)
from paretune.models.lora import (
    TaskType,
    adapter_summary,
    lora_target_names,
    shared_network,
    unmatched_targets,
)
from paretune.reward.checkpoint import read_objectives
from paretune.training.optimizer import import_bitsandbytes
from paretune.worlds import get_world

CHECKPOINTING_KEY: KeyPath = ("training", "gradient_checkpointing")

ModelReference = tuple[KeyPath, str, str | None]
"""Key of a model in the recipe, its folder or hub name, and its revision."""


def pretrained_critic_path(run: ResolvedRun) -> str | None:
    """The pretrained reward model that the critic is initialized from; None if there is none."""
    reward = run.config.reward
    return reward.path if reward is not None and run.algorithm.critic_init_from == "reward" else None


def critic_tokenizer_issues(run: ResolvedRun) -> Iterator[str]:
    """An error if the pretrained reward model of the critic has another vocabulary than the policy.

    A critic reads the policy's token ids, so they must mean the same tokens.

    Args:
        run: The resolved recipe; its models can be read.

    Raises:
        ConfigError: One of the two tokenizers cannot be read.
    """
    path, config = pretrained_critic_path(run), run.config
    if path is None or config.reward is None:
        return
    with as_config_error(run, ("reward", "path")):
        reward_vocabulary = load_tokenizer(path, revision=config.reward.revision).get_vocab()
    with as_config_error(run, ("policy", "path")):
        policy_vocabulary = policy_tokenizer(config).get_vocab()
    if reward_vocabulary != policy_vocabulary:
        problem = "has another vocabulary than the policy, and the critic is initialized from it"
        yield run.issue(("reward", "path"), problem, "write algorithm.critic_init_from: policy")


def gradient_checkpointing_issues(run: ResolvedRun) -> Iterator[str]:
    """One line per trained model that does not support `training.gradient_checkpointing: recompute`.

    The policy of the built-in world supports it, and a critic initialized from the policy does if the policy
    does.

    Args:
        run: The resolved recipe; the configurations of its models can be read.
    """
    if run.config.training.gradient_checkpointing != "recompute":
        return
    for path, revision, task in _trained_models(run):
        try:
            checkpointable_layers(shared_network(load_model_config(path, revision=revision), task))
        except WiringError as error:
            key = dotted_key(CHECKPOINTING_KEY)
            problem, _, fix = str(error).removeprefix(f"{key}: ").partition("; fix: ")
            yield run.issue(CHECKPOINTING_KEY, problem, fix)
        except ValueError:
            continue  # no such architecture: reported by the check of the adapter, or on loading


def _trained_models(run: ResolvedRun) -> Iterator[tuple[str, str | None, TaskType]]:
    """Pretrained models that are trained: folder or hub name, revision, and task."""
    config = run.config
    if config.policy.path != WORLD:
        yield config.policy.path, config.policy.revision, "CAUSAL_LM"
    critic_path = pretrained_critic_path(run)
    if critic_path is not None and config.reward is not None:
        yield critic_path, config.reward.revision, "SEQ_CLS"


def check_memory_options(run: ResolvedRun) -> None:
    """Check that the device exists and supports the memory options of the section `training`.

    Raises:
        ResourceError: The device does not exist.
        ConfigError: Activations would be offloaded from the CPU to the CPU.
        MissingDependencyError: The package for 8-bit optimizer states is not installed.
    """
    training = run.config.training
    device = resolve_device(run.config.run.device)
    if training.optim == "adamw_8bit":
        import_bitsandbytes()
    if training.gradient_checkpointing == "offload" and device.type == "cpu":
        problem = "offload has no effect: run.device: auto is the CPU on this machine"
        raise ConfigError(run.issue(CHECKPOINTING_KEY, problem, "remove it, or write recompute"))


def model_references(config: Config) -> Iterator[ModelReference]:
    """Every pretrained model that the recipe names."""
    yield from until_unknown(_policy_reference(config))
    for name, section in reward_sections(config):
        yield from until_unknown(_reward_reference(name, section))


def _policy_reference(config: Config) -> Iterator[ModelReference]:
    if config.policy.path != WORLD:
        yield ("policy", "path"), config.policy.path, config.policy.revision


def _reward_reference(name: str, section: RewardSection) -> Iterator[ModelReference]:
    if section.pretrained_model is not None:
        key, path = section.pretrained_model
        yield (name, key), path, section.revision


def hub_model_notes(config: Config) -> list[str]:
    """One line per model name that is not a local folder, and is therefore taken as a hub name."""
    return [
        f"{dotted_key(key)}: {path} is not a local folder: taken as a hub name"
        for key, path, _ in model_references(config)
        if not is_local_folder(path)
    ]


def model_config_issues(run: ResolvedRun) -> list[str]:
    """Errors of the models that are visible without their weights, one line each.

    Its sizes must fit together, its family must be supported, a pretrained reward must score every objective,
    a pretrained judge at least one, and every adapter must match modules of its base model.

    Raises:
        ConfigError: One line per model without a configuration or a tokenizer, and per folder without
            safetensors weights; nothing else can be checked then.
        MissingDependencyError: A package that a model needs is missing.
        ResourceError: Quantized weights cannot be loaded on the device of the run.
    """
    models = read_model_files(run)
    issues = [*model_issues(run, models)]
    if not issues:
        issues += _learning_rate_issues(run)
    return [*issues, *section_issues(run, models)]


def section_issues(run: ResolvedRun, models: Sequence[ModelFiles]) -> Iterator[str]:
    """Objectives that pretrained models lack, and adapters that match no module of their base model.

    Args:
        run: The resolved recipe.
        models: Those that can be read.
    """
    configs = {model.key: model.config for model in models}
    for name, section in reward_sections(run.config):
        if section.path is not None:
            yield from _objective_issues(run, name, section.path, section.revision)
    for name, key, task in _lora_sections(run.config):
        if key in configs or run.config.policy.path == WORLD:
            yield from _lora_target_issues(run, name, _base_config(configs, key), task)


def read_model_files(run: ResolvedRun) -> list[ModelFiles]:
    """Configuration and tokenizer of every pretrained model that the recipe names.

    Raises:
        ConfigError: One line per model without one of them, and per folder without safetensors weights.
        MissingDependencyError: A package that a tokenizer needs is missing.
    """
    models, issues = readable_models(run)
    if issues:
        raise ConfigError("\n".join(issues))
    return models


def readable_models(run: ResolvedRun) -> tuple[list[ModelFiles], list[str]]:
    """The models that `read_model_files` can read, and one line per other model."""
    issues: list[str] = []
    models: list[ModelFiles] = []
    for key, path, revision in model_references(run.config):
        try:
            model = ModelFiles(key, path, revision, load_model_config(path, revision=revision))
            require_safetensors(path)
            _ = model.tokenizer
            models.append(model)
        except DataError as error:
            issues.append(run.issue(key, str(error)))
        except (ResourceError, MissingDependencyError) as error:
            raise located_error(run, key, error) from error
    return models, issues


def model_descriptions(run: ResolvedRun) -> list[str]:
    """One line per adapter, per default learning rate, and per peculiarity of a model; all can be trained."""
    models = read_model_files(run)
    configs = {model.key: model.config for model in models}
    lines = []
    for name, key, task in _lora_sections(run.config):
        lora = lora_spec(getattr(run.config, name).lora)
        assert lora is not None
        summary = adapter_summary(_base_config(configs, key), lora, task)
        lines.append(f"{name}.lora {summary.describe()}")
    return [*lines, *run.learning_rate_notes, *model_notes(run, models)]


def _base_config(configs: Mapping[KeyPath, Any], key: KeyPath) -> Any:
    """The configuration of an adapter's base model; without a key it is the built-in world's policy."""
    if key in configs:
        return configs[key]
    world = get_world()
    return world.policy_config(len(world.tokenizer()))


def _learning_rate_issues(run: ResolvedRun) -> Iterator[str]:
    """Learning rates that the recipe leaves out and that have no default, since the size is unknown."""
    for path in unresolved_learning_rates(run.config, gradient_free=run.algorithm.gradient_free):
        yield run.issue(path, "is missing, and the size of the model is unknown", "write a number")


def _objective_issues(run: ResolvedRun, name: str, path: str, revision: str | None) -> Iterator[str]:
    """Objectives that a pretrained reward model or judge lacks."""
    objectives = run.config.objectives
    needed = reward_model_objectives(run.config) if name == "reward" else list(objectives)
    label_names = read_objectives(path, revision=revision)
    fix = f"the model in {name}.path has {', '.join(label_names) or 'no names'}"
    missing = [
        objective
        for objective in needed
        if (objectives[objective].scores_from or objective) not in label_names
    ]
    if name == "reward":
        for objective in missing:
            suggestion = closest_match(objective, label_names)
            yield run.issue(("objectives", objective), "no model provides it", fix, suggestion=suggestion)
    elif len(missing) == len(objectives):
        yield run.issue((name, "path"), "scores none of the objectives", fix)


def _lora_sections(config: Config) -> Iterator[tuple[str, KeyPath, TaskType]]:
    """Every section with an adapter, the key of its base model, and the task of the model."""
    if config.policy.lora is not None:
        yield "policy", ("policy", "path"), "CAUSAL_LM"
    for name, section in reward_sections(config):
        if section.lora is not None and section.path is None:
            base_key = ("policy", "path") if section.init_from == "policy" else (name, "init_from")
            yield name, base_key, "SEQ_CLS"


def _lora_target_issues(run: ResolvedRun, name: str, model_config: Any, task: TaskType) -> Iterator[str]:
    """Target modules of an adapter that the base model lacks, or that LoRA does not support."""
    key: KeyPath = (name, "lora", "target_modules")
    lora = lora_spec(getattr(run.config, name).lora)
    assert lora is not None
    try:
        network = shared_network(model_config, task)
    except ValueError:
        purpose = "generate text" if task == "CAUSAL_LM" else "classify sequences"
        problem = f"models of type {model_config.model_type} cannot {purpose}"
        yield run.issue((name,), problem, "name another model")
        return
    module_names = lora_target_names(network)
    fix = f'write "all-linear", or a list of {", ".join(module_names)}'
    unmatched = unmatched_targets(network, lora)
    for target in unmatched:
        # A single name is a pattern over full module paths, which a list would match by their last part.
        suggestion = f"[{target}]" if target in module_names else closest_match(target, module_names)
        problem = f'"{target}" matches no module of a {model_config.model_type} model'
        yield run.issue(key, problem, fix, suggestion=suggestion)
    if not unmatched:
        try:
            adapter_summary(model_config, lora, task)
        except WiringError as error:
            problem = str(error).removeprefix("policy.lora.target_modules: ").partition("; fix: ")[0]
            yield run.issue(key, problem, fix)
