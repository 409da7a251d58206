"""Dense float32 copies of models with quantized layers, their adapters merged."""

import copy
from typing import Any

import torch
from torch import nn

from paretune.core.types import PeftModel

IDENTITY_ROWS = 1024
"""Rows of the identity that a layer reads at a time when its weight is read out: bounds the memory."""


QUANTIZATION_ATTRIBUTES = (
    "hf_quantizer",
    "quantization_method",
    "is_quantized",
    "is_loaded_in_4bit",
    "is_loaded_in_8bit",
)
"""Attributes of a transformers model that was loaded with quantized weights."""


def is_quantized(model: nn.Module) -> bool:
    """True if a loaded transformers model has quantized weights."""
    return getattr(model, "hf_quantizer", None) is not None


def dense_copy(model: nn.Module) -> nn.Module:
    """A float32 copy of a model with quantized layers, its adapter merged, as an ordinary transformers model.

    The weight of a quantized layer is read out by applying the layer to the identity, which works for every
    method and gives the weight that its forward pass uses. Merging into the quantized weights would round the
    adapter's update away.

    Args:
        model: With or without an adapter; it is not modified.
    """
    twin: Any = copy.deepcopy(model)
    if not isinstance(twin, PeftModel):
        return _as_unquantized(twin)
    # peft wraps a module with several adapted tensors, such as fused experts, once per tensor.
    updates = [
        (
            name.replace(".base_layer", ""),
            getattr(module, "parameter_name", "weight"),
            module.get_delta_weight("default").float(),
        )
        for name, module in twin.get_base_model().named_modules()
        if hasattr(module, "get_delta_weight") and hasattr(module, "lora_A")
    ]
    base = _as_unquantized(twin.unload())
    with torch.no_grad():
        for name, tensor, update in updates:
            getattr(base.get_submodule(name), tensor).add_(update)
    return base


def _as_unquantized(base: Any) -> Any:
    """The model with ordinary float32 linear layers; it forgets that it was quantized."""
    dtype = base.dtype  # not every kernel reads float32
    for parent in list(base.modules()):
        for name, child in list(parent.named_children()):
            if is_quantized_linear(child):
                setattr(parent, name, dense_linear(child, dtype))
    # The conversions of the loaded file name its packed tensors; without them the family's own are used.
    for attribute in (*QUANTIZATION_ATTRIBUTES, "_weight_conversions"):
        if attribute in vars(base):
            delattr(base, attribute)
    if hasattr(base.config, "quantization_config"):
        del base.config.quantization_config
    # `nn.Module.float`, since transformers refuses `float` for models that were loaded quantized.
    return nn.Module.float(base)


def is_quantized_linear(module: nn.Module) -> bool:
    """True if a linear layer's weight is quantized."""
    is_linear = hasattr(module, "in_features") and hasattr(module, "out_features")
    return is_linear and type(module) is not nn.Linear and type(module).__module__ != nn.Linear.__module__


@torch.no_grad()
def dense_linear(layer: Any, dtype: torch.dtype) -> nn.Linear:
    """A float32 layer with the weight that a quantized layer computes with.

    Args:
        layer: The quantized layer, with `in_features` and `out_features`.
        dtype: Precision of its inputs.
    """
    device = next((t.device for t in (*layer.parameters(), *layer.buffers())), torch.device("cpu"))
    bias = getattr(layer, "bias", None)
    dense = nn.Linear(layer.in_features, layer.out_features, bias=bias is not None, device=device)
    for start in range(0, layer.in_features, IDENTITY_ROWS):
        rows = torch.arange(start, min(start + IDENTITY_ROWS, layer.in_features), device=device)
        identity = torch.zeros(len(rows), layer.in_features, dtype=dtype, device=device)
        identity[torch.arange(len(rows), device=device), rows] = 1
        columns = layer(identity).float()
        dense.weight[:, rows] = (columns if bias is None else columns - bias.float()).t()
    if bias is not None:
        dense.bias.copy_(bias)
    return dense
