"""Checkpoints with quantized weights (bitsandbytes, GPTQ, AWQ, ...): the packages and hardware they need.

The quantized base stays frozen; an adapter is trained on top of it. Which methods can be loaded, and whether
gradients pass through their layers, is decided by transformers.
"""

import logging
from typing import Any

import torch

from paretune.core.errors import MissingDependencyError, ResourceError, first_line
from paretune.models.packages import asks_for_package, missing_package_error
from paretune.models.save import silence_transformers


def quantization_method(config: Any) -> str:
    """The method that a model configuration says its weights are quantized with, such as gptq; "" if none."""
    section = getattr(config, "quantization_config", None)
    if not section:
        return ""
    method = section.get("quant_method") if isinstance(section, dict) else section.quant_method
    if method is None and isinstance(section, dict) and {"load_in_4bit", "load_in_8bit"} & section.keys():
        method = "bitsandbytes"  # as older versions of transformers wrote it
    return str(getattr(method, "value", method) or "unknown")


def require_quantization_backend(path: str, config: Any, device: torch.device) -> bool:
    """Check that this machine can load a quantized checkpoint.

    Args:
        path: Folder or hub name, for the message.
        config: The model configuration, with `quantization_config`.
        device: Device that the weights are loaded to.

    Returns:
        True if gradients pass through its layers, so that an adapter can be trained on top.

    Raises:
        MissingDependencyError: A package is missing.
        ResourceError: The method is unknown, or does not run on this device.
    """
    from transformers.quantizers.auto import AutoHfQuantizer

    method, section = quantization_method(config), config.quantization_config
    settings = dict(section if isinstance(section, dict) else section.to_dict())
    settings.setdefault("quant_method", method)
    try:
        with silence_transformers():
            quantizer = AutoHfQuantizer.from_config(settings, pre_quantized=True)
            quantizer.validate_environment(device_map={"": str(device)}, dtype=torch.float32)
            return bool(quantizer.is_trainable)
    except (ImportError, RuntimeError, ValueError, TypeError) as error:
        raise quantization_error(path, method, device, error) from error


def loading_arguments(method: str, device: torch.device | None) -> dict[str, Any]:
    """Arguments of `from_pretrained` for weights of this quantization method: they are loaded in place."""
    if not method:
        return {}
    # It repeats in every 8-bit layer of every pass that float32 inputs are rounded, as they always are.
    logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
    return {"device_map": {"": str(device or "cpu")}}


def quantization_error(
    path: str, method: str, device: torch.device | str, error: BaseException
) -> ResourceError | MissingDependencyError:
    """The error to raise when a quantized checkpoint cannot be loaded.

    Args:
        path: Folder or hub name.
        method: The quantization method.
        device: Device that the weights were to be loaded to.
        error: The library's exception.
    """
    # Without a CUDA device transformers asks for one before it names the package that would run without.
    if method == "gptq" and isinstance(error, RuntimeError) and "GPU is required" in str(error):
        error = ImportError("GPTQ on this device needs gptqmodel: `pip install gptqmodel`")
    if asks_for_package(error):
        return missing_package_error(path, error, f": its weights are quantized ({method}), which")
    reason = first_line(error)
    problem = f"its weights are quantized ({method}), which cannot be loaded on {device} ({reason})"
    return ResourceError(f"{path}: {problem}; fix: name a checkpoint that is not quantized")
