"""Whether an adapter fits a model, asked of its architecture alone: no weight is read, and none is made."""

import re
from typing import Any, Literal

import torch
from torch import nn

from paretune.elsewhere import PreTrainedModel
from paretune.models.adapt import Lora
from paretune.models.store import quiet

Task = Literal["CAUSAL_LM", "SEQ_CLS"]


def skeleton(config: Any, task: Task) -> PreTrainedModel:
    """The network that a configuration describes, on the meta device.

    Raises:
        ValueError: transformers has no network of this family for the task.
    """
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    kind: Any = AutoModelForCausalLM if task == "CAUSAL_LM" else AutoModelForSequenceClassification
    with quiet(), torch.device("meta"), torch.random.fork_rng(devices=[]):
        return kind.from_config(config)


def adaptable(model: PreTrainedModel) -> list[str]:
    """The last names of the layers that an adapter can be put on, each once, in the order of the model."""
    found = (name.rpartition(".")[2] for name, module in model.base_model.named_modules() if _linear(module))
    return list(dict.fromkeys(found))


def strangers(model: PreTrainedModel, lora: Lora) -> list[str]:
    """Those of the targets that no module of the model is called by, as peft compares names.

    peft itself complains only where not one of a list fits.
    """
    if lora.targets == "all-linear":
        return []
    targets = [lora.targets] if isinstance(lora.targets, str) else lora.targets
    keys = [name for name, _ in model.named_modules()]
    return [target for target in targets if not _met(target, isinstance(lora.targets, str), keys)]


def _met(target: str, pattern: bool, keys: list[str]) -> bool:
    from peft import LoraConfig
    from peft.tuners.tuners_utils import check_target_module_exists

    config = LoraConfig(target_modules=target if pattern else [target])
    try:
        return any(check_target_module_exists(config, key) for key in keys)
    except re.error:
        return False


def _linear(module: nn.Module) -> bool:
    from transformers.pytorch_utils import Conv1D

    return isinstance(module, nn.Linear | Conv1D)
