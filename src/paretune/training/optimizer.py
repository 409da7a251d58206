"""AdamW whose two moments take a byte a weight instead of four, by the package bitsandbytes.

From gradients to weights: AdamW over float32 masters, a rate per step, the norm of the gradient.
"""

import logging
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import Parameter

from paretune.core.errors import ConfigError, MissingDependencyError, WiringError

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


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW with a linear warm-up, then a constant or a cosine rate, and a bound on the gradient's norm.

    Source: Loshchilov and Hutter 2019, algorithm 2 (arXiv:1711.05101). Differs: weight decay is 0 unless
    asked for, as fine-tuning usually has it.
    """

    learning_rate: float = 1e-5
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0
    warmup_ratio: float = 0.03
    """Share of all steps over which the rate rises from 0."""
    lr_scheduler_type: Literal["constant", "cosine"] = "constant"
    max_grad_norm: float = 1.0
    """Largest norm of the gradient; a larger one is scaled down to it. Infinity: never."""
    optim: Literal["float32", "int8"] = field(default="float32", repr=False)
    """What the running means of gradient and square are held in; see `EightBit`. Not shown: fits, which keep
    them in float32, know their checkpoints by what this class shows."""

    def learning_rate_at_step(self, step: int, num_training_steps: int) -> float:
        """Learning rate of step number `step` (from 0) of `num_training_steps`."""
        warm = math.ceil(self.warmup_ratio * num_training_steps)
        if step < warm:
            return self.learning_rate * (step + 1) / warm
        if self.lr_scheduler_type == "constant":
            return self.learning_rate
        return (
            self.learning_rate
            * 0.5
            * (1 + math.cos(math.pi * (step - warm) / max(num_training_steps - warm, 1)))
        )

    def learning_rate_at_fraction(self, start_fraction: float, end_fraction: float) -> float:
        """Learning rate of a step that takes the spent share of a budget from `start_fraction` to `end_fraction`."""
        if start_fraction < self.warmup_ratio:
            return self.learning_rate * min(end_fraction / self.warmup_ratio, 1.0)
        if self.lr_scheduler_type == "constant":
            return self.learning_rate
        done = (min(start_fraction, 1.0) - self.warmup_ratio) / max(1.0 - self.warmup_ratio, 1e-9)
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * done))


class Optimizer:
    """AdamW on the trainable parameters of one or more networks.

    Parameters below float32 get a float32 master: at the rates of reinforcement learning nearly every
    update is smaller than the spacing of bfloat16 and would be rounded away.
    """

    def __init__(
        self,
        config: OptimizerConfig,
        parameters: Iterable[Parameter],
        critic_parameters: Iterable[Parameter] = (),
        critic_lr_multiplier: float = 1.0,
    ) -> None:
        """Take over the parameters.

        Args:
            config: Rate, decay and bounds.
            parameters: Those of the policy, or of whatever else is fitted.
            critic_parameters: Those of a critic: its gradient is bounded apart, so that neither starves the other.
            critic_lr_multiplier: The critic's learning rate as a multiple of the policy's.
        """
        self.config = config
        self.parameters = [p for p in parameters if p.requires_grad]
        first = len(self.parameters)
        self.parameters += [p for p in critic_parameters if p.requires_grad]
        self.network_slices = (
            [slice(0, first), slice(first, None)] if first < len(self.parameters) else [slice(None)]
        )
        self.lr_multipliers = (1.0, critic_lr_multiplier)
        if not self.parameters:
            raise WiringError("nothing to train: every parameter is frozen; unfreeze some or add an adapter")
        self.master_params = [p if _is_full_precision(p) else p.detach().float() for p in self.parameters]
        groups = [{"params": self.master_params[network]} for network in self.network_slices]
        fused = all(
            master.device.type in {"cpu", "cuda"} for master in self.master_params
        )  # one sweep over memory
        said: dict[str, Any] = {
            "lr": config.learning_rate,
            "betas": config.betas,
            "eps": config.eps,
            "weight_decay": config.weight_decay,
        }
        self.adamw: torch.optim.AdamW | AdamW8bit = (
            AdamW8bit(groups, **said)
            if config.optim == "int8"
            else torch.optim.AdamW(groups, **said, fused=fused)
        )

    def zero_grad(self) -> None:
        """Forget the gradients."""
        for parameter, master in zip(self.parameters, self.master_params, strict=True):
            parameter.grad = master.grad = None

    def grad_norm(self) -> float:
        """Norm of the whole gradient as it stands; not finite when any entry is not."""
        return _global_norm(self.parameters)

    def step(
        self, learning_rate: float, grad_norm: float, critic_base_learning_rate: float | None = None
    ) -> None:
        """Move the weights along the gradient, scaled down where its `grad_norm` is above the bound.

        Args:
            learning_rate: Learning rate.
            grad_norm: Of the whole gradient.
            critic_base_learning_rate: What the critic's rate is a multiple of; None: of `learning_rate`.
        """
        rates = (
            learning_rate,
            learning_rate if critic_base_learning_rate is None else critic_base_learning_rate,
        )
        groups = zip(self.network_slices, rates, self.lr_multipliers, self.adamw.param_groups, strict=False)
        for network, rate, factor, group in groups:
            own = grad_norm if len(self.network_slices) == 1 else _global_norm(self.parameters[network])
            scale = min(1.0, self.config.max_grad_norm / own) if own > 0 else 1.0
            for parameter, master in zip(self.parameters[network], self.master_params[network], strict=True):
                if parameter.grad is not None:
                    master.grad = parameter.grad.to(master.dtype)
                    if scale < 1.0:
                        master.grad.mul_(scale)
            group["lr"] = rate * factor
        self.adamw.step()
        with torch.no_grad():
            for parameter, master in zip(self.parameters, self.master_params, strict=True):
                if master is not parameter:
                    parameter.copy_(master)
        self.zero_grad()

    def state_dict(self) -> dict[str, Any]:
        """Everything a checkpoint needs, as a tree of tensors and numbers."""
        kept = [m for p, m in zip(self.parameters, self.master_params, strict=True) if m is not p]
        return {"adamw": self.adamw.state_dict(), "masters": kept, "moments": self.config.optim}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go back to a stored state; the weights themselves are the caller's to load.

        Raises:
            ConfigError: Its moments are held in something else.
        """
        stored_in = state.get("moments", "float32")
        if stored_in != self.config.optim:
            raise ConfigError(
                f"the checkpoint holds moments in {stored_in}, and this run in {self.config.optim}; "
                "fix: choose another run.output_dir"
            )
        self.adamw.load_state_dict(state["adamw"])
        own = [m for p, m in zip(self.parameters, self.master_params, strict=True) if m is not p]
        with torch.no_grad():
            for master, stored in zip(own, state["masters"], strict=True):
                master.copy_(stored)


def _global_norm(parameters: Sequence[Parameter]) -> float:
    grads = [p.grad for p in parameters if p.grad is not None]
    if not grads:
        return 0.0
    return float(
        torch.stack([g.float().norm() if not _is_full_precision(g) else g.norm() for g in grads]).norm()
    )


def _is_full_precision(x: Tensor) -> bool:
    return x.dtype in {torch.float32, torch.float64}
