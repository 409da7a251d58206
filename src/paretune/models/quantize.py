"""A frozen network whose linear layers reckon in eight bits; adapters and everything else stay."""

import copy

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from paretune.core.errors import ResourceError
from paretune.models.lora import unwrap_model

MIN_ABS_MAX = 1e-12
"""Stands for the largest magnitude of a row of zeros."""


def quantize_rows(x: Float[Tensor, "N I"]) -> tuple[Int[Tensor, "N I"], Float[Tensor, "N 1"]]:
    """Every row in steps of a 127th of its largest magnitude: the steps, and how large one is."""
    step = x.abs().amax(-1, keepdim=True).clamp(min=MIN_ABS_MAX) / 127
    return (x / step).round().to(torch.int8), step


class Int8Linear(nn.Module):
    """W x + b with W and x in eight bits, added up in 32.

        y_no = s_n t_o sum_i q_ni p_oi + b_o,   q = round(x / s),   p = round(W / t)

    One step size for each row of x and for each row of W: a row's result depends on no row beside it, and the
    sums, being of integers, on no order.
    Source: Dettmers et al. 2022, eq. 3 (arXiv:2208.07339). Differs: no outlier columns are kept apart.
    """

    weight: Tensor
    scale: Tensor

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        steps, size = quantize_rows(linear.weight.detach().float())
        self.register_buffer("weight", steps)
        self.register_buffer("step", size[:, 0])
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.bias = None if linear.bias is None else nn.Parameter(linear.bias.detach(), requires_grad=False)

    def forward(self, x: Float[Tensor, "... I"]) -> Float[Tensor, "... O"]:
        """Rows as they come, in their own precision."""
        steps, size = quantize_rows(x.reshape(-1, x.shape[-1]).float())
        y = torch._int_mm(steps, self.weight.t()).float() * size * self.scale
        y = y if self.bias is None else y + self.bias
        return y.to(x.dtype).reshape(*x.shape[:-1], -1)


def int8_copy(model: nn.Module) -> nn.Module:
    """A copy of the model whose frozen linear layers are in eight bits, the output head and adapters apart.

    Args:
        model: In evaluation mode, with or without an adapter; it stays as it is.

    Raises:
        ResourceError: The model is not on the CPU.
    """
    if any(p.device.type != "cpu" for p in model.parameters()):
        raise ResourceError(
            "algorithm.base_precision: int8 works on the CPU; fix: run.device: cpu, or body: whole"
        )
    twin = copy.deepcopy(model)
    head = unwrap_model(twin).get_output_embeddings()
    for parent in list(twin.modules()):
        for name, child in list(parent.named_children()):
            adapter = isinstance(parent, nn.ModuleDict)  # of lora_A and lora_B
            if type(child) is nn.Linear and child is not head and not adapter:
                setattr(parent, name, Int8Linear(child))
    return twin
