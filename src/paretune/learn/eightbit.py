"""AdamW whose two moments take a byte a weight instead of four, by the package bitsandbytes."""

import logging
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from paretune.errors import MissingDependencyError

SLICE_SIZE = 2**20
"""Weights that are updated at one time: on a CPU the update holds their moments in float32 meanwhile."""


class AdamW8bit:
    """AdamW with moments in 8 bits, each block of 256 scaled by its largest.

    Behaves as `torch.optim.AdamW` as far as `Optimizer` asks. Tensors, and rests of them, below 4,096 weights
    keep moments in float32.

    Source: Dettmers et al. 2022, sections 2 and 3 (arXiv:2110.02861). Differs: the embedding is no exception.
    """

    def __init__(self, param_groups: Sequence[dict[str, Any]], **hyperparameters: Any) -> None:
        """Take over the weights.

        Args:
            param_groups: As of `torch.optim.AdamW`; weights in one piece of memory, whole or views of it.
            **how: lr, betas, eps and weight_decay.

        Raises:
            MissingExtra: The package is not installed.
        """
        self._params = [list(group["params"]) for group in param_groups]
        # Slices of a weight are weights of their own to the package: views of the same memory.
        self._param_slices = [
            [x.detach().view(-1).split(SLICE_SIZE) for x in params] for params in self._params
        ]
        cut = [{"params": [part for parts in group for part in parts]} for group in self._param_slices]
        self._adamw = import_bitsandbytes().optim.AdamW8bit(cut, **hyperparameters)

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """What may be set anew before a step, such as `lr`; the weights in it are slices."""
        groups: list[dict[str, Any]] = self._adamw.param_groups
        return groups

    @torch.no_grad()
    def step(self) -> None:
        """Move every weight that has a gradient."""
        for group, cut in zip(self._params, self._param_slices, strict=True):
            for weight, parts in zip(group, cut, strict=True):
                grads: Sequence[Tensor | None] = [None] * len(parts)
                if weight.grad is not None:
                    grads = weight.grad.reshape(-1).split(SLICE_SIZE)
                for part, grad in zip(parts, grads, strict=True):
                    part.grad = grad
        self._adamw.step()
        self._adamw.zero_grad()

    def state_dict(self) -> dict[str, Any]:
        """Plain tensors and numbers: codes, the scale of each block, and what each code means."""
        state: dict[str, Any] = self._adamw.state_dict()
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go back to a stored state."""
        self._adamw.load_state_dict(state)


def import_bitsandbytes() -> Any:
    """The package `bitsandbytes`.

    Raises:
        MissingExtra: It is not installed.
    """
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it tells of kernels that nobody asked for
    try:
        import bitsandbytes
    except ImportError as error:
        raise MissingDependencyError(
            "training.optim: int8 needs the package bitsandbytes; "
            'fix: pip install "paretune[low-memory]", or training.optim: float32'
        ) from error
    return bitsandbytes
