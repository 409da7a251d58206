"""Weights divided over the ranks by PyTorch's FSDP2 (`fully_shard`).

Both modes hold master weights and moments of the optimizer in parts, and give samplers and passes without
gradients the whole weights, since ranks make unequal numbers of those passes.

    shard_grad_op   the weights stay whole through the training step; gradients are added up after its last
                    pass (ZeRO-2)
    full_shard      each layer is gathered for its forward and its backward pass of an update and freed again
                    (ZeRO-3); every rank then makes as many passes as the one with most
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from paretune.core import ranks
from paretune.core.errors import WiringError
from paretune.models.forward.checkpointing import checkpointable_layers
from paretune.models.forward.lm_head import TIED_HEAD
from paretune.models.lora import unwrap_model

ShardingMode = Literal["no_shard", "shard_grad_op", "full_shard"]
"""How several ranks hold the weights; "no_shard": each has all of them."""

_MODE = "_paretune_sharding"


def shard_model(model: nn.Module, mode: ShardingMode) -> None:
    """Divide the body of a model over the ranks, in place; its head stays whole on each rank.

    The body, not the model, is the root of FSDP: forward passes call it, and read the head by themselves. An
    untied head and a critic's heads are therefore no part of what is divided.

    Raises:
        WiringError: The weights are quantized.
    """
    if mode == "no_shard" or not ranks.is_distributed():
        return
    base = _transformers_model(model)
    body = base.base_model
    if isinstance(body, FSDPModule):  # the model without its adapter is the same model
        return
    if not all(p.is_floating_point() for p in body.parameters()):
        raise WiringError("quantized weights cannot be sharded; fix: training.fsdp=no_shard")
    is_tied = _is_tied(base)
    mesh = init_device_mesh(next(body.parameters()).device.type, (ranks.world_size(),))
    # Gradients of half precision are accumulated and added up in float32.
    precision = MixedPrecisionPolicy(reduce_dtype=torch.promote_types(body.dtype, torch.float32))
    for layer in (*_layers(base), body):
        fully_shard(layer, mesh=mesh, reshard_after_forward=False, mp_policy=precision)
    if is_tied:  # FSDP replaces the parameter of the embedding, and knows nothing of the head
        base.get_output_embeddings().weight = base.get_input_embeddings().weight
        setattr(base, TIED_HEAD, True)
    for module in _sharded_modules([model]):
        # The head is read after the pass of the body, and a tied one is the body's embedding: it stays whole.
        setattr(module, _MODE, "shard_grad_op" if module is body else mode)
        # The weights of a loss are those of all ranks' rows, so gradients are summed, not averaged.
        module.set_gradient_divide_factor(1.0)
        module.set_force_sum_reduction_for_comms(True)  # gloo has no PREMUL_SUM


def _transformers_model(model: nn.Module) -> Any:
    """The model of transformers inside of a policy or a critic."""
    return unwrap_model(getattr(model, "network", model))


def _layers(base: Any) -> list[nn.Module]:
    try:
        return checkpointable_layers(base.base_model)
    except WiringError:  # the body as a whole is one unit then
        return []


def _is_tied(base: Any) -> bool:
    head = base.get_output_embeddings()
    return head is not None and head.weight is base.get_input_embeddings().weight


def is_sharded(models: Iterable[nn.Module]) -> bool:
    """Whether the weights of one of the models are divided over the ranks."""
    return any(True for _ in _sharded_modules(models))


def gather_weights(models: Iterable[nn.Module]) -> None:
    """Make the weights whole on every rank until the next update."""
    for module in _sharded_modules(models):
        module.set_reshard_after_forward(False, recurse=False)
        module.unshard()


def free_weights(models: Iterable[nn.Module]) -> None:
    """Before an update: with full_shard, keep only this rank's part of the weights between two passes."""
    for module in _sharded_modules(models):
        if getattr(module, _MODE) == "full_shard":
            module.set_reshard_after_forward(True, recurse=False)
            module.reshard()


def passes(
    parts: Sequence[Sequence[int]], models: Sequence[nn.Module]
) -> Iterator[tuple[Sequence[int], float]]:
    """The passes with gradients that this rank makes in an update, each with the factor of its loss.

    Where weights are divided, a rank without rows makes a pass with factor 0, and with full_shard every rank
    makes as many passes as the one with most: each gathers layers, or adds gradients up, on all ranks.

    Args:
        parts: The rows of each pass of this rank.
        models: The models with gradients.
    """
    count = len(parts)
    modes = {getattr(module, _MODE) for module in _sharded_modules(models)}
    if modes:
        count = max(1, ranks.largest(count) if "full_shard" in modes else count)
    for number in range(count):
        for module in _sharded_modules(models):
            _start_pass(module, is_last=number == count - 1)
        yield (parts[number], 1.0) if number < len(parts) else ([0], 0.0)


def _start_pass(module: FSDPModule, *, is_last: bool) -> None:
    """Gradients are added up over the ranks in the last pass of an update."""
    module.set_requires_gradient_sync(is_last, recurse=False)
    module.set_is_last_backward(is_last)
    if getattr(module, _MODE) == "shard_grad_op":
        module.set_reshard_after_backward(is_last, recurse=False)


def full_tensors(tree: Any) -> Any:
    """A tree of a checkpoint in which every divided tensor is whole; all ranks take part."""
    if isinstance(tree, DTensor):
        return tree.full_tensor().detach()
    if isinstance(tree, Mapping):
        return {key: full_tensors(value) for key, value in tree.items()}
    if isinstance(tree, list):
        return [full_tensors(value) for value in tree]
    return tree


def like(stored: Tensor, tensor: Tensor) -> Tensor:
    """A whole tensor, divided over the ranks as another one is; a divided one is returned as it is."""
    if not isinstance(tensor, DTensor) or isinstance(stored, DTensor):
        return stored
    # None: all ranks have the whole tensor, so that nothing needs to be sent.
    return distribute_tensor(
        stored.to(tensor.device), tensor.device_mesh, tensor.placements, src_data_rank=None
    )


@torch.no_grad()
def copy_full(stored: Mapping[str, Tensor], parameters: Mapping[str, Tensor]) -> None:
    """Copy tensors, whole or divided like the parameters, into parameters."""
    for name, parameter in parameters.items():
        parameter.copy_(like(stored[name], parameter))


@torch.no_grad()
def copy_to_first(tensors: Mapping[str, Tensor], parameters: Mapping[str, Tensor]) -> None:
    """Copy tensors that are divided over the ranks into whole parameters of the first rank.

    All ranks take part. One tensor at a time is whole, so that no rank holds another copy of all of them.

    Args:
        tensors: Divided ones, and whole ones.
        parameters: By the same names; not read on other ranks.
    """
    for name, tensor in tensors.items():
        whole = full_tensors(tensor)
        if ranks.is_first():
            parameters[name].copy_(whole)


def _sharded_modules(models: Iterable[nn.Module]) -> Iterable[FSDPModule]:
    seen: set[int] = set()
    for model in models:
        for module in _transformers_model(model).modules():
            if isinstance(module, FSDPModule) and id(module) not in seen:
                seen.add(id(module))
                yield module
