"""What a forward pass keeps for its gradient: all of it, or less at the price of work on the way back."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.autograd.graph import save_on_cpu, saved_tensors_hooks
from torch.utils.checkpoint import checkpoint

from paretune.core.errors import WiringError

GradientCheckpointing = Literal["keep", "recompute", "offload"]
"""Keep them; work each layer out again on the way back; keep them in the main memory of the machine."""

_MODE: ContextVar[GradientCheckpointing] = ContextVar("paretune_activations", default="keep")

RecomputeContext = Callable[[], AbstractContextManager[Any]]
"""Opens what the forward pass stood in; a layer is worked out again within it."""


@contextmanager
def use_gradient_checkpointing(mode: GradientCheckpointing) -> Iterator[None]:
    """Forward passes with gradients keep their activations like this while the context lasts."""
    token = _MODE.set(mode)
    try:
        yield
    finally:
        _MODE.reset(token)


@contextmanager
def apply_gradient_checkpointing(base: Any, recompute_context: RecomputeContext) -> Iterator[None]:
    """For one forward pass of the body of a transformers model: what `saving` asked for.

    Args:
        base: The model, without an adapter around it.
        recompute_context: What the pass stands in, such as `attention.attending`: it is over on the way back, when layers
            are worked out again.
    """
    how = _MODE.get() if torch.is_grad_enabled() else "keep"
    frugal: dict[str, Callable[[], AbstractContextManager[None]]] = {
        "keep": nullcontext,
        "recompute": lambda: _recompute_layers(base, recompute_context),
        "offload": lambda: _offload_to_cpu(base),
    }
    with frugal[how]():
        yield


def checkpointable_layers(base: Any) -> list[nn.Module]:
    """The blocks that transformers itself can work out again.

    Raises:
        WiringError: There are none.
    """
    from transformers.modeling_layers import GradientCheckpointingLayer

    found = [module for module in base.modules() if isinstance(module, GradientCheckpointingLayer)]
    if not found:
        raise WiringError(
            f"training.gradient_checkpointing: recompute finds no layers in a {base.config.model_type} model; "
            "fix: write keep or offload"
        )
    return found


@contextmanager
def _recompute_layers(base: Any, recompute_context: RecomputeContext) -> Iterator[None]:
    """Keep what enters a layer and nothing of what happens in it.

    Not by the switch that transformers has for it: that one asks for training mode, and with it for dropout.
    """
    patched = [(layer, vars(layer).get("forward")) for layer in checkpointable_layers(base)]
    for layer, _ in patched:
        layer.forward = _checkpointed(layer.forward, recompute_context)
    try:
        yield
    finally:
        for layer, own in patched:
            if own is None:
                del layer.forward  # that of its class stands behind it
            else:
                layer.forward = own


def _checkpointed(forward: Callable[..., Any], recompute_context: RecomputeContext) -> Callable[..., Any]:
    def remade(*args: Any, **kwargs: Any) -> Any:
        return checkpoint(
            forward,
            *args,
            use_reentrant=False,
            preserve_rng_state=False,  # nothing is drawn in a layer: dropout is off
            context_fn=lambda: (nullcontext(), recompute_context()),
            **kwargs,
        )

    return remade


@contextmanager
def _offload_to_cpu(base: Any) -> Iterator[None]:
    """Move what is saved to the main memory; the weights among it stay, being there anyway."""
    own = {parameter.untyped_storage().data_ptr() for parameter in base.parameters()}
    mover = save_on_cpu(pin_memory=next(base.parameters()).device.type == "cuda")

    def pack(x: Tensor) -> Any:
        # Detached, lest a result hold itself alive through the graph that made it.
        return x.detach() if x.untyped_storage().data_ptr() in own else mover.pack_hook(x)

    def unpack(packed: Any) -> Tensor:
        found = packed if isinstance(packed, Tensor) else mover.unpack_hook(packed)
        assert isinstance(found, Tensor)
        return found

    with saved_tensors_hooks(pack, unpack):
        yield
