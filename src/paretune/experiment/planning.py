"""`paretune plan`: memory and time of a recipe's training step on other hardware, and how it scales."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import torch

from paretune.config import Config
from paretune.config.build import build_spec
from paretune.config.data_schema import RewardSection
from paretune.config.rollout_schema import ServerVllmSection
from paretune.config.validate import WORLD
from paretune.core.errors import ConfigError, DataError
from paretune.core.requirements import Requirements
from paretune.experiment.model_sizes import folder_model_size, world_model_size
from paretune.experiment.settings import MAX_TOKENS_PER_PASS_CPU, MAX_TOKENS_PER_PASS_CUDA
from paretune.models.load import is_local_folder
from paretune.models.lora import format_count
from paretune.models.model_passes import ImplicitReward, ModelPass, OldLogprobs
from paretune.models.model_size import ModelSize, config_model_size
from paretune.models.sharding import ShardingMode
from paretune.models.throughput import layer_throughput
from paretune.plan.devices import DEVICES, GPUS_PER_NODE, Device, cpu_device
from paretune.plan.published_models import PUBLISHED_CONFIGS, published_config
from paretune.plan.roofline import StepTime, estimate_step
from paretune.plan.scaling import (
    MIN_EFFICIENCY,
    Placement,
    ScalingCurve,
    choose_sharding,
    placements,
    scaling_curve,
)
from paretune.plan.workload import Workload
from paretune.rl.algorithm_spec import AlgorithmSpec
from paretune.rl.evolution.spec import EvolutionSpec
from paretune.rl.validate import check_spec

DEFAULT_PROMPT_TOKENS = 256
"""Length of the prompts where the recipe limits none."""


def step_workload(
    config: Config,
    spec: AlgorithmSpec | EvolutionSpec,
    requirements: Requirements,
    policy: ModelSize,
    scorers: tuple[ModelSize, ...],
    *,
    scorer_bytes: float,
    prompt_tokens: int,
    response_tokens: int,
    max_tokens_per_pass: int,
) -> Workload:
    """What a training step of a recipe computes.

    Args:
        config: The recipe.
        spec: Its algorithm.
        requirements: What the algorithm needs.
        policy: Size of the policy, with what is trained.
        scorers: Sizes of the models that score in this process.
        scorer_bytes: Bytes of their weights.
        prompt_tokens: Tokens of a prompt.
        response_tokens: Tokens of a response.
        max_tokens_per_pass: Tokens of a pass with gradients.
    """
    lora = config.policy.lora is not None
    others = [role for role in requirements.frozen_roles if role != "reference"]
    generations = (getattr(spec.rollout, "num_generations", None) or 2) * spec.candidates_per_step
    passes = () if isinstance(spec, EvolutionSpec) else spec.model_passes
    fsdp = config.training.fsdp
    return Workload(
        policy=policy,
        lora=lora,
        weight_bytes=_weight_bytes(config),
        moment_bytes=2 if config.training.optim == "adamw_8bit" else 8,
        # Under an adapter the reference is the policy with the adapter disabled.
        references=len(others) + (0 if lora else 1),
        scorers=scorers,
        scorer_bytes=scorer_bytes,
        critic=spec.uses_critic,
        prompts=config.training.prompts_per_step,
        generations=generations,
        prompt_tokens=max(prompt_tokens, 1),
        response_tokens=max(response_tokens, 1),
        max_tokens_per_pass=max_tokens_per_pass,
        gradient_checkpointing=config.training.gradient_checkpointing,
        model_passes=sum(_num_forward_passes(each) for each in passes),
        iterations=0 if isinstance(spec, EvolutionSpec) else spec.num_iterations,
        generates=spec.rollout.generates,
        fsdp=None if fsdp == "auto" else fsdp,
        engine="local" if config.rollout.engine == "local" else config.rollout.mode,
        engine_fraction=getattr(config.rollout, "gpu_memory_utilization", 0.0),
        overlaps=bool(config.rollout.max_staleness) and isinstance(config.rollout, ServerVllmSection),
    )


def _weight_bytes(config: Config) -> int:
    return 2 if config.policy.dtype == "bfloat16" else 4


def _num_forward_passes(model_pass: ModelPass) -> int:
    """Forward passes over the rows that a model pass makes."""
    if isinstance(model_pass, OldLogprobs):
        return int(model_pass.source == "policy")
    return 2 if isinstance(model_pass, ImplicitReward) else 1


def plan(
    config: Config, *, num_gpus: int, device_name: str, config_file: Path | None = None
) -> dict[str, Any]:
    """The plan of a recipe as plain values, which the page and the terminal show.

    No data are read: prompts are as long as the recipe allows, and responses end at their limit.

    Args:
        config: The recipe.
        num_gpus: Processes, one per GPU.
        device_name: A name of the device table, or cpu.
        config_file: The policy's config.json, where its folder is not here.

    Raises:
        ConfigError: The shape of a model is not known, or the policy is of a family that is not counted.
    """
    workload, policy, source = _recipe_workload(config, config_file, on_cpu=device_name == "cpu")
    device = _device(device_name, policy, workload.max_tokens_per_pass)
    ways = placements(workload, device, num_gpus)
    chosen = choose_sharding(ways)
    time = None if chosen is None else estimate_step(workload, device, num_gpus, chosen.sharding)
    return {
        "name": config.name,
        "num_gpus": num_gpus,
        "device": _device_values(device),
        "policy": _policy_values(config, policy, source),
        "workload": _workload_values(workload),
        "ways": [_way_values(way) for way in ways],
        "chosen": None if chosen is None else chosen.sharding,
        "step": None if time is None else _time_values(time),
        "scaling": [
            _curve_values(scaling_curve(workload, device, weak=weak, base_ranks=num_gpus))
            for weak in (True, False)
        ],
        "min_efficiency": MIN_EFFICIENCY,
    }


def choose_fsdp(config: Config, num_ranks: int, device_bytes: float) -> ShardingMode:
    """The first way to hold the weights that fits into a device: the meaning of `training.fsdp: auto`.

    Args:
        config: The recipe.
        num_ranks: Processes, one per device.
        device_bytes: Memory of a device.

    Raises:
        ConfigError: No way fits, or the shape of a model is not known.
    """
    workload, _, _ = _recipe_workload(config, None, on_cpu=False)
    ways = placements(workload, replace(DEVICES["h200"], memory=device_bytes), num_ranks)
    chosen = choose_sharding(ways)
    if chosen is None:
        least = min(way.memory.peak for way in ways)
        raise ConfigError(
            f"training.fsdp: the run needs {least / 1e9:.0f} GB on each of {num_ranks} devices, which have "
            f"{device_bytes / 1e9:.0f} GB; fix: training.gradient_checkpointing=recompute, LoRA, or more "
            "devices; training.fsdp=full_shard tries it nevertheless"
        )
    return chosen.sharding


def _recipe_workload(
    config: Config, config_file: Path | None, *, on_cpu: bool
) -> tuple[Workload, ModelSize, str]:
    """The step of a recipe with the longest prompts and responses, the policy, and its source."""
    spec = build_spec(config)
    requirements = check_spec(spec, tuple(config.objectives))
    size, source = _policy_size(config, config_file)
    policy = size.with_lora(config.policy.lora.r if config.policy.lora is not None else None)
    scorers = _scorer_sizes(config, size)
    workload = step_workload(
        config,
        spec,
        requirements,
        policy,
        scorers,
        scorer_bytes=float(sum(each.num_params for each in scorers) * _weight_bytes(config)),
        prompt_tokens=_prompt_limit(config),
        response_tokens=int(config.algorithm.arguments.get("max_new_tokens", 256)),
        max_tokens_per_pass=config.training.max_tokens_per_pass
        or (MAX_TOKENS_PER_PASS_CPU if on_cpu else MAX_TOKENS_PER_PASS_CUDA),
    )
    return workload, policy, source


def _policy_size(config: Config, config_file: Path | None) -> tuple[ModelSize, str]:
    path = config.policy.path
    if config_file is not None:
        fields = _read_config(config_file)
        return _size_of_fields(fields, str(config_file)), str(config_file)
    if path == WORLD:
        world = config.data.world
        return world_model_size(world.prompt_format if world is not None else ""), "the built-in world"
    return _model_size(path, config.policy.revision, "policy.path"), _source(path)


def _read_config(file: Path) -> dict[str, Any]:
    try:
        fields = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"--config: {file}: cannot be read ({error}); fix: name a config.json") from error
    if not isinstance(fields, dict) or not isinstance(fields.get("model_type"), str):
        raise ConfigError(f"--config: {file}: has no model_type; fix: name the config.json of a model")
    return fields


def _size_of_fields(fields: Mapping[str, Any], name: str) -> ModelSize:
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig

    values = {key: value for key, value in fields.items() if key != "transformers_version"}
    try:
        size = config_model_size(AutoConfig.for_model(**values))
    except (ArithmeticError, ValueError, TypeError, AttributeError, KeyError, StrictDataclassError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"{name}: no causal model of these values ({reason}); fix: correct it") from error
    if size is None:
        kind = fields["model_type"]
        raise ConfigError(f"{name}: {kind} models are not counted; fix: plan a model like it")
    return size


def _model_size(path: str, revision: str | None, key: str) -> ModelSize:
    """Size of a folder, or of a hub name in the table; the network is not used."""
    published = published_config(path)
    try:
        local = is_local_folder(path)
    except DataError as error:
        raise ConfigError(f"{key}: {error}") from error
    if local or (published is None and _is_cached(path, revision)):
        size = folder_model_size(path, revision)
        if size is None:
            raise ConfigError(f"{key}: {path}: its family is not counted; fix: plan a model like it")
        return size
    if published is None:
        raise ConfigError(
            f"{key}: {path} is not on this machine, and its shape is not known; fix: write --config FILE "
            f"with its config.json, or plan one of {', '.join(PUBLISHED_CONFIGS)}"
        )
    return _size_of_fields(published, path)


def _is_cached(path: str, revision: str | None) -> bool:
    from huggingface_hub import try_to_load_from_cache

    return isinstance(try_to_load_from_cache(path, "config.json", revision=revision), str)


def _source(path: str) -> str:
    return "its config.json" if published_config(path) is None or Path(path).is_dir() else "published shape"


def _scorer_sizes(config: Config, policy: ModelSize) -> tuple[ModelSize, ...]:
    """Models that score during training: the reward model; the judge is loaded for the evaluation only."""
    section = config.reward
    if not isinstance(section, RewardSection):
        return ()
    if section.pretrained_model is None:
        return (policy,)
    key, path = section.pretrained_model
    return (_model_size(path, section.revision, f"reward.{key}"),)


def _prompt_limit(config: Config) -> int:
    limits = [getattr(source, "max_length", None) for source in config.data.prompts.values()]
    known = [limit for limit in limits if limit]
    return max(known) if known and len(known) == len(limits) else DEFAULT_PROMPT_TOKENS


def _device(name: str, policy: ModelSize, tokens_per_pass: int) -> Device:
    if name != "cpu":
        return DEVICES[name]
    rate = layer_throughput(policy.width, policy.ffn_width, tokens_per_pass, torch.device("cpu"))
    return cpu_device(rate, float(psutil.virtual_memory().total))


def _device_values(device: Device) -> dict[str, Any]:
    return {
        "name": device.name,
        "teraflops": device.flops / 1e12,
        "bandwidth": device.bandwidth / 1e9,
        "memory": device.memory / 1e9,
        "node_link": device.node_link / 1e9,
        "network_link": device.network_link / 1e9,
        "gpus_per_node": GPUS_PER_NODE,
        "compute_fraction": device.compute_fraction,
        "source": device.source,
    }


def _policy_values(config: Config, policy: ModelSize, source: str) -> dict[str, Any]:
    lora = config.policy.lora
    return {
        "path": config.policy.path,
        "parameters": format_count(policy.num_params),
        "trained": format_count(policy.num_trainable),
        "how": "all weights" if lora is None else f"LoRA of rank {lora.r}",
        "dtype": config.policy.dtype,
        "source": source,
    }


def _workload_values(workload: Workload) -> dict[str, Any]:
    names = ("prompts", "generations", "prompt_tokens", "response_tokens", "max_tokens_per_pass")
    return {
        **{name: getattr(workload, name) for name in names},
        "gradient_checkpointing": workload.gradient_checkpointing,
    }


def _way_values(way: Placement) -> dict[str, Any]:
    return {
        "name": way.sharding,
        "components": {name: size / 1e9 for name, size in way.memory.components().items()},
        "peak": way.memory.peak / 1e9,
        "peak_phase": way.memory.peak_phase,
        "fits": way.fits,
    }


def _time_values(time: StepTime) -> dict[str, Any]:
    return {
        "total": time.total,
        "overlaps": time.overlaps,
        "phases": {
            name: {"seconds": phase.seconds, "bound": phase.bound} for name, phase in time.phases.items()
        },
    }


def _curve_values(curve: ScalingCurve) -> dict[str, Any]:
    return {
        "kind": curve.kind,
        "break_at": curve.break_ranks,
        "reason": curve.reason,
        "points": [
            {
                "gpus": point.num_ranks,
                "prompts": point.prompts,
                "way": point.sharding,
                "seconds": None if point.time is None else point.time.total,
                "responses_per_second": point.responses_per_second if point.time else None,
                "efficiency": point.efficiency if point.time else None,
            }
            for point in curve.points
        ],
    }
