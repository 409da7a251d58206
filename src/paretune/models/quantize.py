"""Frozen linear layers in int8; adapters and all other layers keep their precision."""

import copy

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from paretune.core.errors import ResourceError
from paretune.models.lora import unwrap_model

# Avoids a division by zero for rows of zeros; far below the largest magnitude of any real row.
MIN_ABS_MAX = 1e-12


def quantize_rows(x: Float[Tensor, "N I"]) -> tuple[Int[Tensor, "N I"], Float[Tensor, "N 1"]]:
    """Symmetric absmax quantization per row: int8 values, and the scale of each row (absmax / 127)."""
    scale = x.abs().amax(-1, keepdim=True).clamp(min=MIN_ABS_MAX) / 127
    return (x / scale).round().to(torch.int8), scale


class Int8Linear(nn.Module):
    """W x + b with W and x in int8, accumulated in int32.

        y_no = s_n t_o sum_i q_ni p_oi + b_o,   q = round(x / s),   p = round(W / t)

    One scale per row of x and per row of W. A row's result does not depend on the other rows of the batch,
    and the integer sums do not depend on the order of summation.
    Source: Dettmers et al. 2022, eq. 3 (arXiv:2208.07339). Differs: outlier columns are not kept in float.
    """

    weight: Tensor
    scale: Tensor

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        weight, scale = quantize_rows(linear.weight.detach().float())
        self.register_buffer("weight", weight)
        self.register_buffer("scale", scale[:, 0])
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.bias = None if linear.bias is None else nn.Parameter(linear.bias.detach(), requires_grad=False)

    def forward(self, x: Float[Tensor, "... I"]) -> Float[Tensor, "... O"]:
        """The layer's output, in the dtype of `x`."""
        quantized, scale = quantize_rows(x.reshape(-1, x.shape[-1]).float())
        y = torch._int_mm(quantized, self.weight.t()).float() * scale * self.scale
        y = y if self.bias is None else y + self.bias
        return y.to(x.dtype).reshape(*x.shape[:-1], -1)


def int8_copy(model: nn.Module) -> nn.Module:
    """A copy of the model with its linear layers in int8, except the output head and adapters.

    Args:
        model: In evaluation mode, with or without an adapter; it is not modified.

    Raises:
        ResourceError: The model is not on the CPU.
    """
    # torch._int_mm on CUDA has shape constraints that rows of arbitrary number do not meet.
    if any(p.device.type != "cpu" for p in model.parameters()):
        raise ResourceError(
            "algorithm.base_precision: int8 runs on the CPU only; "
            "fix: set run.device: cpu, or base_precision: full"
        )
    twin = copy.deepcopy(model)
    head = unwrap_model(twin).get_output_embeddings()
    for parent in list(twin.modules()):
        for name, child in list(parent.named_children()):
            is_adapter = isinstance(parent, nn.ModuleDict)  # peft keeps lora_A and lora_B in ModuleDicts
            if type(child) is nn.Linear and child is not head and not is_adapter:
                setattr(parent, name, Int8Linear(child))
    return twin
