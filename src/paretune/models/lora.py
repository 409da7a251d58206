"""LoRA adapters through peft: add them, disable them for the reference policy, check target modules."""

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
    """A low-rank update of linear layers, W + alpha/r B A, with B = 0 at initialization.

    Source: Hu et al. 2021, eq. 3 (arXiv:2106.09685).
    """

    r: int = 16
    alpha: int = 32
    target_modules: str | tuple[str, ...] = "all-linear"
    """Names of linear layers, a regular expression over full module names, or "all-linear"."""


def add_lora(
    model: PreTrainedModel,
    lora: LoraSpec,
    seed: int,
    task_type: Literal["CAUSAL_LM", "SEQ_CLS"] = "CAUSAL_LM",
) -> PeftModel:
    """Add a new LoRA adapter, the only trainable part; its weights are float32 for any base dtype.

    Args:
        model: The base model; its target layers are replaced in place.
        lora: Rank, scaling and target modules.
        seed: Seed of the initial A; the global random generator is not changed.
        task_type: "SEQ_CLS" also trains the classification head.

    Raises:
        WiringError: No layer matches `target_modules`, or the output head does.
    """
    from peft import LoraConfig, get_peft_model

    target_modules = (
        lora.target_modules if isinstance(lora.target_modules, str) else list(lora.target_modules)
    )
    config = LoraConfig(
        r=lora.r,
        lora_alpha=lora.alpha,
        target_modules=target_modules,
        fan_in_fan_out=model.config.model_type == "gpt2",  # its Conv1D layers store W transposed
        task_type=task_type,
    )
    with torch.random.fork_rng(devices=[]), suppress_peft_warning():
        torch.manual_seed(seed)
        try:
            peft_model = get_peft_model(model, config)
        except ValueError as error:
            raise WiringError(
                f"policy.lora.target_modules: {lora.target_modules!r} matches no layer of a "
                f'{model.config.model_type} model; fix: use "all-linear" or names of its linear layers '
                f"({str(error).splitlines()[0]})"
            ) from error
    head = peft_model.get_base_model().get_output_embeddings()
    # `LmHead` reads the head's plain weight and would ignore an adapter on it.
    if head is not None and hasattr(head, "lora_A"):
        raise WiringError(
            'policy.lora.target_modules: the output head cannot have an adapter; fix: use "all-linear"'
        )
    return peft_model.eval()


@contextmanager
def suppress_peft_warning() -> Iterator[None]:
    """Hide peft's warning about a model property that transformers has renamed."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        yield


class AdapterDisabledModel(nn.Module):
    """The base model of a peft model: the same weights, with the adapter disabled in every forward pass."""

    def __init__(self, peft_model: PeftModel) -> None:
        super().__init__()
        # The tuple hides the network from `parameters()`: this module owns nothing and saves nothing.
        self._peft_model: tuple[Any, ...] = (peft_model,)

    @property
    def peft_model(self) -> PeftModel:
        """The model whose adapter is disabled."""
        return self._peft_model[0]


def unwrap_model(model: nn.Module) -> Any:
    """The transformers model inside, for inspection only: the adapter's state is not set."""
    outer = model.peft_model if isinstance(model, AdapterDisabledModel) else model
    return outer.get_base_model() if isinstance(outer, PeftModel) else outer


@contextmanager
def unwrap_model_for_forward(model: nn.Module) -> Iterator[Any]:
    """The transformers model inside, for forward passes: the adapter is enabled or disabled as in `model`."""
    if isinstance(model, AdapterDisabledModel):
        with model.peft_model.disable_adapter():
            yield unwrap_model(model)
    else:
        yield unwrap_model(model)


TaskType = Literal["CAUSAL_LM", "SEQ_CLS"]


def meta_model(config: Any, task_type: TaskType) -> PreTrainedModel:
    """The network of a configuration on the meta device: its architecture without weights.

    Raises:
        ValueError: transformers has no network of this family for the task.
    """
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    auto_class: Any = AutoModelForCausalLM if task_type == "CAUSAL_LM" else AutoModelForSequenceClassification
    with silence_transformers(), torch.device("meta"), torch.random.fork_rng(devices=[]):
        return auto_class.from_config(config)


def lora_target_names(model: PreTrainedModel) -> list[str]:
    """Last name components of the layers that can have an adapter, without duplicates, in model order."""
    names = (
        name.rpartition(".")[2] for name, module in model.base_model.named_modules() if _is_linear(module)
    )
    return list(dict.fromkeys(names))


def unmatched_targets(model: PreTrainedModel, lora: LoraSpec) -> list[str]:
    """Target modules that match no module name of the model under peft's matching rules.

    peft itself raises an error only if no entry of the list matches.
    """
    if lora.target_modules == "all-linear":
        return []
    targets = [lora.target_modules] if isinstance(lora.target_modules, str) else lora.target_modules
    module_names = [name for name, _ in model.named_modules()]
    return [
        target
        for target in targets
        if not _matches_any(target, isinstance(lora.target_modules, str), module_names)
    ]


def _matches_any(target: str, is_pattern: bool, module_names: list[str]) -> bool:
    from peft import LoraConfig
    from peft.tuners.tuners_utils import check_target_module_exists

    # peft treats a string as a regular expression and a list as name suffixes.
    config = LoraConfig(target_modules=target if is_pattern else [target])
    try:
        return any(check_target_module_exists(config, name) for name in module_names)
    except re.error:
        return False


def _is_linear(module: nn.Module) -> bool:
    from transformers.pytorch_utils import Conv1D

    return isinstance(module, nn.Linear | Conv1D)
