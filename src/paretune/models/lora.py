"""LoRA through peft, and the start of training read from the same weights with the adapter off.

Whether an adapter fits a model, asked of its architecture alone: no weight is read, and none is made.
"""

import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from paretune.core.errors import WiringError
from paretune.core.types import PeftModel, PreTrainedModel
from paretune.models.save import silence_transformers


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraSpec:
    """A low-rank update of linear layers, W + alpha/r B A, with B = 0 at the start.

    Source: Hu et al. 2021, eq. 3 (arXiv:2106.09685).
    """

    r: int = 16
    alpha: int = 32
    target_modules: str | tuple[str, ...] = "all-linear"


def add_lora(
    model: PreTrainedModel,
    lora: LoraSpec,
    seed: int,
    task_type: Literal["CAUSAL_LM", "SEQ_CLS"] = "CAUSAL_LM",
) -> PeftModel:
    """The model with a fresh adapter, the only part of it that is trained; float32 whatever the base is.

    Args:
        model: The base; its layers are replaced in place.
        lora: Size and place of the adapter.
        seed: Draws A; nobody else's chance moves.
        task_type: "SEQ_CLS" trains the scoring head beside the adapter.

    Raises:
        WiringError: No layer has a name in `targets`, or the output head is among them.
    """
    from peft import LoraConfig, get_peft_model

    targets = lora.target_modules if isinstance(lora.target_modules, str) else list(lora.target_modules)
    config = LoraConfig(
        r=lora.r,
        lora_alpha=lora.alpha,
        target_modules=targets,
        fan_in_fan_out=model.config.model_type == "gpt2",
        task_type=task_type,
    )
    with torch.random.fork_rng(devices=[]), suppress_peft_warning():
        torch.manual_seed(seed)
        try:
            adapted = get_peft_model(model, config)
        except ValueError as error:
            raise WiringError(
                f"policy.lora.target_modules: {lora.target_modules!r} fits no layer of a {model.config.model_type} model; "
                f'fix: use "all-linear" or names of its linear layers ({str(error).splitlines()[0]})'
            ) from error
    head = adapted.get_base_model().get_output_embeddings()
    if head is not None and hasattr(head, "lora_A"):
        raise WiringError(
            'policy.lora.target_modules: the output head cannot be adapted; fix: use "all-linear"'
        )
    return adapted.eval()


@contextmanager
def suppress_peft_warning() -> Iterator[None]:
    """Hides the warning that peft asks models for a property which transformers has renamed."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        yield


class AdapterDisabledModel(nn.Module):
    """The base of an adapted model as a model of its own: same weights, adapter off while it is asked."""

    def __init__(self, peft_model: PeftModel) -> None:
        super().__init__()
        # A tuple hides the network from `parameters()`: this module owns nothing and saves nothing.
        self._peft_model: tuple[Any, ...] = (peft_model,)

    @property
    def peft_model(self) -> PeftModel:
        """The model whose adapter is switched."""
        return self._peft_model[0]


def unwrap_model(model: nn.Module) -> Any:
    """The transformers model inside, to look at: whether an adapter acts in it is not settled."""
    adapted = model.peft_model if isinstance(model, AdapterDisabledModel) else model
    return adapted.get_base_model() if isinstance(adapted, PeftModel) else adapted


@contextmanager
def unwrap_model_for_forward(model: nn.Module) -> Iterator[Any]:
    """The transformers model inside, to ask: it behaves as `model` says while the context lasts."""
    if isinstance(model, AdapterDisabledModel):
        with model.peft_model.disable_adapter():
            yield unwrap_model(model)
    else:
        yield unwrap_model(model)


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
