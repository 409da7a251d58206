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
from paretune.models.model_store import config_key, read_once
from paretune.models.packages import missing_package_as_error
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
    if lora.target_modules == "all-linear":
        config.exclude_modules = _unadaptable_layers(model) or None
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


def _unadaptable_layers(model: PreTrainedModel) -> list[str]:
    """Full names of linear layers that "all-linear" has to leave out.

    peft refuses the output projections of Mamba layers, whose weights fused kernels read directly. A subclass
    may return something else than a linear layer (the router of Phi-3.5-MoE: weights and chosen experts).
    """
    from peft import LoraConfig
    from peft.tuners.tuners_utils import _check_lora_target_modules_mamba as check_target

    config, names = LoraConfig(), []
    for name, module in model.named_modules():
        if not isinstance(module, nn.Linear):
            continue
        try:
            check_target(config, model, name.rpartition(".")[2])
        except ValueError:
            names.append(name)
            continue
        if type(module).__module__.startswith("transformers.models") and not _returns_a_tensor(module):
            names.append(name)
    return names


@torch.no_grad()
def _returns_a_tensor(linear: nn.Linear) -> bool:
    return isinstance(linear(linear.weight.new_zeros(1, linear.in_features)), torch.Tensor)


@contextmanager
def suppress_peft_warning() -> Iterator[None]:
    """Hide two warnings of peft about its own code: a renamed property, and ranks of fused experts."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"The following (rank|alpha)_pattern keys", RuntimeWarning)
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
        MissingDependencyError: A package that the family needs is missing.
    """
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    auto_class: Any = AutoModelForCausalLM if task_type == "CAUSAL_LM" else AutoModelForSequenceClassification
    with (
        missing_package_as_error(getattr(config, "name_or_path", "") or f"{config.model_type} models"),
        silence_transformers(),
        torch.device("meta"),
        torch.random.fork_rng(devices=[]),
    ):
        return auto_class.from_config(config)


def shared_network(config: Any, task_type: TaskType) -> PreTrainedModel:
    """As `meta_model`, built once per configuration: to be looked at, not to be changed."""
    return read_once(("network", task_type, config_key(config)), lambda: meta_model(config, task_type))


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


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterSummary:
    """Parameter counts of a model with an adapter, as peft builds it."""

    num_trainable: int
    num_frozen: int
    layer_names: tuple[str, ...]
    """Last name components of the layers with an adapter, in model order."""
    num_layers: int
    """Number of layers with an adapter."""
    frozen_parts: dict[str, int]
    """Part of the model that no adapter reaches, such as the embeddings -> its parameters."""

    def describe(self) -> str:
        """One sentence: what is trained, and what stays as it is."""
        parts = ", ".join(f"{name} {format_count(count)}" for name, count in self.frozen_parts.items())
        return (
            f"trains {format_count(self.num_trainable)} parameters, on {self.num_layers} layers "
            f"({', '.join(self.layer_names)}); the {format_count(self.num_frozen)} of the model stay frozen"
            + (f", and no adapter reaches {parts}" if parts else "")
        )


def format_count(count: int) -> str:
    """A number of parameters in three digits: 512, 6.95M, 1.24B."""
    for limit, suffix in ((1e9, "B"), (1e6, "M"), (1e3, "K")):
        if count >= limit:
            number = count / limit
            return f"{number:.3g}{suffix}" if number < 999.5 else f"{number:.0f}{suffix}"
    return str(count)


def adapter_summary(config: Any, lora: LoraSpec, task_type: TaskType) -> AdapterSummary:
    """Counts of what an adapter trains and what it leaves out, from the configuration alone.

    peft itself is asked, on a network without weights: which layers it adapts is its decision, such as for
    experts that are fused into one tensor.

    Raises:
        ValueError: transformers has no network of this family for the task.
        WiringError: As `add_lora`.
    """
    key = ("adapter", lora, task_type, config_key(config))
    return read_once(key, lambda: _count_adapter(config, lora, task_type))


def _count_adapter(config: Any, lora: LoraSpec, task_type: TaskType) -> AdapterSummary:
    peft_model: Any = add_lora(meta_model(config, task_type), lora, 0, task_type)
    base = peft_model.get_base_model()
    adapted = [name for name, module in base.named_modules() if hasattr(module, "lora_A")]
    reached = {id(p) for name in adapted for p in base.get_submodule(name).parameters()}
    head, embeddings = base.get_output_embeddings(), base.get_input_embeddings()
    parts: dict[str, int] = {}
    for name, parameter in base.named_parameters():
        if parameter.requires_grad or id(parameter) in reached or _is_copy(name):
            continue
        if parameter is embeddings.weight:
            part = "the embeddings"
        elif head is not None and parameter is head.weight:
            part = "the output head"
        elif {"experts", "expert"} & set(name.split(".")):
            part = "the experts"
        else:
            part = "norms and others"
        parts[part] = parts.get(part, 0) + parameter.numel()
    trainable = sum(p.numel() for p in peft_model.parameters() if p.requires_grad)
    frozen = sum(p.numel() for name, p in base.named_parameters() if not (p.requires_grad or _is_copy(name)))
    return AdapterSummary(
        num_trainable=trainable,
        num_frozen=frozen,
        layer_names=tuple(dict.fromkeys(_layer_name(base, name) for name in adapted)),
        num_layers=len(adapted),
        frozen_parts=dict(sorted(parts.items(), key=lambda item: -item[1])),
    )


def _layer_name(base: nn.Module, name: str) -> str:
    """Last name component of a layer with an adapter; of fused experts, with the name of the tensor."""
    tensor = getattr(base.get_submodule(name), "parameter_name", None)
    if tensor is None:
        return name.rpartition(".")[2]
    # peft wraps a module once per tensor: the inner wrapper is the outer one's `base_layer`.
    return f"{name.removesuffix('.base_layer').rpartition('.')[2]}.{tensor}"


def _is_copy(name: str) -> bool:
    """True for the frozen original that peft keeps beside a head that is trained as a whole."""
    return ".original_module." in name
