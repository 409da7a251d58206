"""Names that TRL, transformers, verl and OpenRLHF have for keys of a recipe."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from paretune.config.trl.fields import DPO, GRPO, REWARD, reasons_without_effect, refused_values
from paretune.config.yaml import KeyPath, dotted_key

_TRL: Mapping[str, str] = {
    "per_device_train_batch_size": "training.prompts_per_step",
    "gradient_accumulation_steps": "training.prompts_per_step",
    "generation_batch_size": "training.prompts_per_step",
    "steps_per_generation": "training.prompts_per_step",
    "num_train_epochs": "run.max_steps",
    "warmup_steps": "training.warmup_ratio",
    "max_completion_length": "algorithm.max_new_tokens",
    "max_prompt_length": "data.prompts.NAME.max_length",
    "max_length": "max_length of a file, such as data.prompts.NAME.max_length",
    "beta": "algorithm.kl_coef algorithm.beta",
    "epsilon": "algorithm.clip_range algorithm.epsilon",
    "num_generations_eval": "evaluate.num_generations",
    "load_best_model_at_end": "evaluate.select_checkpoint",
    "metric_for_best_model": "evaluate.select_checkpoint",
    "reward_weights": "objectives.NAME.weight",
    "reward_funcs": "scorers",
    "reward_model_name_or_path": "scorers.NAME.path",
    "model_name_or_path": "policy.path",
    "model_revision": "policy.revision",
    "bf16": "policy.dtype",
    "torch_dtype": "policy.dtype",
    "use_peft": "policy.lora",
    "lora_r": "policy.lora.r",
    "lora_alpha": "policy.lora.alpha",
    "lora_target_modules": "policy.lora.target_modules",
    "use_cpu": "run.device",
    "logging_dir": "run.output_dir",
    "dataset_name": "data.prompts.NAME.file",
    "dataset_test_split": "data.test_prompts.NAME.file",
    "test_split_size": "data.holdout_fraction",
    "ref_model": "policy.path",
}
_VERL: Mapping[str, str] = {
    "rollout.n": "algorithm.num_generations",
    "rollout.temperature": "algorithm.temperature",
    "rollout.val_kwargs.temperature": "evaluate.temperature",
    "val_kwargs.n": "evaluate.num_generations",
    "optim.lr": "training.learning_rate",
    "lr": "training.learning_rate",
    "lr_warmup_steps_ratio": "training.warmup_ratio",
    "adv_estimator": "algorithm.name",
    "train_batch_size": "training.prompts_per_step",
    "ppo_mini_batch_size": "algorithm.minibatch_size",
    "ppo_micro_batch_size_per_gpu": "training.max_tokens_per_pass",
    "ppo_max_token_len_per_gpu": "training.max_tokens_per_pass",
    "ppo_epochs": "algorithm.num_iterations",
    "max_response_length": "algorithm.max_new_tokens",
    "kl_loss_coef": "algorithm.kl_coef",
    "clip_ratio": "algorithm.clip_range",
    "grad_clip": "training.max_grad_norm",
    "train_files": "data.prompts.NAME.file",
    "val_files": "data.test_prompts.NAME.file",
    "model.path": "policy.path",
    "total_epochs": "run.max_steps",
    "total_training_steps": "run.max_steps",
    "save_freq": "run.save_steps",
    "default_local_dir": "run.output_dir",
    "custom_reward_function": "scorers",
}
_OPENRLHF: Mapping[str, str] = {
    "pretrain": "policy.path",
    "reward_pretrain": "scorers.NAME.path",
    "remote_rm_url": "scorers",
    "prompt_data": "data.prompts.NAME.file",
    "input_key": "data.prompts.NAME.columns.prompt",
    "actor_learning_rate": "training.learning_rate",
    "n_samples_per_prompt": "algorithm.num_generations",
    "rollout_batch_size": "training.prompts_per_step",
    "micro_train_batch_size": "training.max_tokens_per_pass",
    "generate_max_len": "algorithm.max_new_tokens",
    "prompt_max_len": "data.prompts.NAME.max_length",
    "init_kl_coef": "algorithm.kl_coef",
    "eps_clip": "algorithm.clip_range",
    "advantage_estimator": "algorithm.name",
    "num_episodes": "run.max_steps",
    "save_path": "run.output_dir",
    "lora_rank": "policy.lora.r",
}
LIBRARIES: Mapping[str, Mapping[str, str]] = {"TRL": _TRL, "verl": _VERL, "OpenRLHF": _OPENRLHF}
"""Library -> its name of a setting -> the key here, or several of which the algorithm has one."""
_BY_SPELLING = {
    library: {name.replace(".", "_"): keys for name, keys in names.items()}
    for library, names in LIBRARIES.items()
}
"""The same, with names such as rollout_n for rollout.n."""
_MAX_NAMES = 4


def other_name_key(path: KeyPath, values: Mapping[str, Any]) -> tuple[str, str]:
    """The library that a key's name is from, and the key here; "" and "" for any other name.

    Args:
        path: Path of the key.
        values: The recipe: the name of the KL coefficient depends on the algorithm.
    """
    for library, names in _BY_SPELLING.items():
        for start in range(len(path)):
            keys = names.get(re.sub(r"[.-]", "_", "_".join(map(str, path[start:]))), "")
            choices = [keys] if " of " in keys else [key for key in keys.split() if _is_key(key, values)]
            choices = [key for key in choices if key != ".".join(map(str, path))]
            if choices:
                return library, choices[0]
    return "", ""


def other_name_fix(path: KeyPath, value: object, values: Mapping[str, Any]) -> str:
    """What to write for a key, or a section of keys, with names of another library; "" for any other."""
    found = {inner: other_name_key(inner, values) for inner in _leaves(path, value)}
    found = {inner: pair for inner, pair in found.items() if pair[0]}
    if list(found) == [path]:
        library, key = found[path]
        return f"this is {library}'s name; here: {key}"
    pairs = [
        f"{dotted_key(inner[len(path) - 1 :])} is {key}"
        for inner, (_, key) in list(found.items())[:_MAX_NAMES]
    ]
    if pairs:
        return f"these are {next(iter(found.values()))[0]}'s names; here: {', '.join(pairs)}"
    return _reason_without_key(str(path[-1])) if value is not None or path else ""


def _leaves(path: KeyPath, value: object) -> Iterator[KeyPath]:
    yield path
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _leaves((*path, key), inner)


def _reason_without_key(name: str) -> str:
    """Why there is no key for a field of TRL."""
    for config in (GRPO, DPO, REWARD):
        reason = reasons_without_effect(config).get(name)
        if reason is not None:
            return f"remove TRL's {name}: {reason}"
        if name in refused_values(config):
            return f"remove TRL's {name}: {refused_values(config)[name][1].removesuffix('; remove it')}"
    return ""


def _is_key(key: str, values: Mapping[str, Any]) -> bool:
    """False for an argument that the algorithm of the recipe does not have."""
    if not key.startswith("algorithm.") or key == "algorithm.name":
        return True
    from paretune.config.arguments import algorithm_arguments, section_function  # imports torch

    section = values.get("algorithm")
    name = section.get("name") if isinstance(section, Mapping) else None
    function = section_function("algorithm", name) if isinstance(name, str) else None
    return function is None or key.removeprefix("algorithm.") in algorithm_arguments(function)
