"""Gradient checkpointing: less activation memory for more compute, without changing the gradients."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.autograd.graph import save_on_cpu, saved_tensors_hooks
from torch.utils.checkpoint import checkpoint

from paretune.core.errors import WiringError

GradientCheckpointing = Literal["none", "recompute", "offload"]
"""Keep activations; recompute each layer in the backward pass; move activations to CPU memory."""

_MODE: ContextVar[GradientCheckpointing] = ContextVar("paretune_gradient_checkpointing", default="none")

RecomputeContext = Callable[[], AbstractContextManager[Any]]
"""Returns a context manager that restores the surroundings of the forward pass when a layer is recomputed."""


@contextmanager
def use_gradient_checkpointing(mode: GradientCheckpointing) -> Iterator[None]:
    """Set the mode of forward passes with gradients within the context."""
    token = _MODE.set(mode)
    try:
        yield
    finally:
        _MODE.reset(token)


@contextmanager
def apply_gradient_checkpointing(base: Any, recompute_context: RecomputeContext) -> Iterator[None]:
    """Apply the mode of `use_gradient_checkpointing` to one forward pass of a transformers model's body.

    Args:
        base: The model, without an adapter around it.
        recompute_context: The context of the forward pass, such as `attention.use_custom_attention`. That
            context has ended by the time of the backward pass and is entered again to recompute a layer.
    """
    mode = _MODE.get() if torch.is_grad_enabled() else "none"
    contexts: dict[str, Callable[[], AbstractContextManager[None]]] = {
        "none": nullcontext,
        "recompute": lambda: _recompute_layers(base, recompute_context),
        "offload": lambda: _offload_to_cpu(base),
    }
    with contexts[mode]():
        yield


def checkpointable_layers(base: Any) -> list[nn.Module]:
    """The outermost blocks that transformers itself can checkpoint.

    Blocks within a block (Zamba2) are left out: with both, a block is recomputed without its inner one being
    checkpointed again, and gradients are wrong without an error.

    Raises:
        WiringError: There are none.
    """
    from transformers.modeling_layers import GradientCheckpointingLayer

    layers = [module for module in base.modules() if isinstance(module, GradientCheckpointingLayer)]
    if not layers:
        raise WiringError(
            "training.gradient_checkpointing: recompute finds no layers in a "
            f"{base.config.model_type} model; fix: set it to none or offload"
        )
    inner = {id(child) for layer in layers for child in layer.modules() if child is not layer}
    return [layer for layer in layers if id(layer) not in inner]


@contextmanager
def _recompute_layers(base: Any, recompute_context: RecomputeContext) -> Iterator[None]:
    """Store the input of each layer only.

    The layers' `forward` is patched instead of calling transformers' `gradient_checkpointing_enable`, which
    works in training mode only, where dropout would be active.
    """
    patched = [(layer, vars(layer).get("forward")) for layer in checkpointable_layers(base)]
    for layer, _ in patched:
        layer.forward = _checkpointed(layer.forward, recompute_context)
    try:
        yield
    finally:
        for layer, instance_forward in patched:
            if instance_forward is None:
                del layer.forward  # the method of the class becomes visible again
            else:
                layer.forward = instance_forward


def _checkpointed(forward: Callable[..., Any], recompute_context: RecomputeContext) -> Callable[..., Any]:
    def checkpointed_forward(*args: Any, **kwargs: Any) -> Any:
        return checkpoint(
            forward,
            *args,
            use_reentrant=False,
            preserve_rng_state=False,  # layers draw no random numbers: dropout is off
            context_fn=lambda: (nullcontext(), recompute_context()),
            **kwargs,
        )

    return checkpointed_forward


@contextmanager
def _offload_to_cpu(base: Any) -> Iterator[None]:
    """Move saved activations to CPU memory; saved weights stay, since the model holds them anyway."""
    weight_storages = {parameter.untyped_storage().data_ptr() for parameter in base.parameters()}
    offloader = save_on_cpu(pin_memory=next(base.parameters()).device.type == "cuda")

    def pack(x: Tensor) -> Any:
        # Detached, so that a saved result does not keep itself alive through the graph that computed it.
        return x.detach() if x.untyped_storage().data_ptr() in weight_storages else offloader.pack_hook(x)

    def unpack(packed: Any) -> Tensor:
        tensor = packed if isinstance(packed, Tensor) else offloader.unpack_hook(packed)
        assert isinstance(tensor, Tensor)
        return tensor

    with saved_tensors_hooks(pack, unpack):
        yield
