"""Whether an adapter fits a model, asked of its architecture alone: no weight is read, and none is made."""

import re
from typing import Any, Literal

import torch
from torch import nn

from paretune.elsewhere import PreTrainedModel
from paretune.models.adapt import LoraSpec
from paretune.models.store import silence_transformers

TaskType = Literal["CAUSAL_LM", "SEQ_CLS"]


def meta_model(config: Any, task_type: TaskType) -> PreTrainedModel:
    """The network that a configuration describes, on the meta device.

    Raises:
        ValueError: transformers has no network of this family for the task.
    """
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    kind: Any = AutoModelForCausalLM if task_type == "CAUSAL_LM" else AutoModelForSequenceClassification
    with silence_transformers(), torch.device("meta"), torch.random.fork_rng(devices=[]):
        return kind.from_config(config)


def lora_target_names(model: PreTrainedModel) -> list[str]:
    """The last names of the layers that an adapter can be put on, each once, in the order of the model."""
    found = (
        name.rpartition(".")[2] for name, module in model.base_model.named_modules() if _is_linear(module)
    )
    return list(dict.fromkeys(found))


def unmatched_targets(model: PreTrainedModel, lora: LoraSpec) -> list[str]:
    """Those of the targets that no module of the model is called by, as peft compares names.

    peft itself complains only where not one of a list fits.
    """
    if lora.target_modules == "all-linear":
        return []
    targets = [lora.target_modules] if isinstance(lora.target_modules, str) else lora.target_modules
    keys = [name for name, _ in model.named_modules()]
    return [
        target for target in targets if not _matches_any(target, isinstance(lora.target_modules, str), keys)
    ]


def _matches_any(target: str, is_pattern: bool, module_names: list[str]) -> bool:
    from peft import LoraConfig
    from peft.tuners.tuners_utils import check_target_module_exists

    config = LoraConfig(target_modules=target if is_pattern else [target])
    try:
        return any(check_target_module_exists(config, key) for key in module_names)
    except re.error:
        return False


def _is_linear(module: nn.Module) -> bool:
    from transformers.pytorch_utils import Conv1D

    return isinstance(module, nn.Linear | Conv1D)
