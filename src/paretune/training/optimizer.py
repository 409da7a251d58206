"""AdamW on float32 master parameters, with learning rate schedules, gradient clipping and 8-bit moments."""

import logging
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.nn import Parameter

from paretune.core import ranks
from paretune.core.errors import ConfigError, MissingDependencyError, WiringError
from paretune.models.sharding import like

SLICE_SIZE = 2**20
"""Weights per update call: on a CPU bitsandbytes dequantizes the moments of a whole call to float32."""


class AdamW8bit:
    """AdamW with 8-bit moments (package bitsandbytes): one byte per weight and moment instead of four.

    Each block of 256 moments is scaled by its largest. Has the part of the interface of `torch.optim.AdamW`
    that `Optimizer` uses. Tensors, and remainders of them, below 4,096 weights keep float32 moments.

    Source: Dettmers et al. 2022, sections 2 and 3 (arXiv:2110.02861). Differs: embeddings are quantized too.
    """

    def __init__(self, param_groups: Sequence[dict[str, Any]], **hyperparameters: Any) -> None:
        """Create the optimizer.

        Args:
            param_groups: As for `torch.optim.AdamW`; the weights are contiguous.
            **hyperparameters: lr, betas, eps and weight_decay.

        Raises:
            MissingDependencyError: The package is not installed.
        """
        self._params = [list(group["params"]) for group in param_groups]
        # bitsandbytes sees each slice as a parameter of its own; slices are views, so the weights change.
        self._param_slices = [
            [x.detach().view(-1).split(SLICE_SIZE) for x in params] for params in self._params
        ]
        groups = [{"params": [part for parts in group for part in parts]} for group in self._param_slices]
        self._adamw = import_bitsandbytes().optim.AdamW8bit(groups, **hyperparameters)

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """Parameter groups, for setting `lr`; their parameters are slices of the weights."""
        groups: list[dict[str, Any]] = self._adamw.param_groups
        return groups

    @torch.no_grad()
    def step(self) -> None:
        """Update every weight that has a gradient."""
        for params, param_slices in zip(self._params, self._param_slices, strict=True):
            for weight, slices in zip(params, param_slices, strict=True):
                grads: Sequence[Tensor | None] = [None] * len(slices)
                if weight.grad is not None:
                    grads = weight.grad.reshape(-1).split(SLICE_SIZE)
                for piece, grad in zip(slices, grads, strict=True):
                    piece.grad = grad
        self._adamw.step()
        self._adamw.zero_grad()

    def state_dict(self) -> dict[str, Any]:
        """Tensors and numbers: quantized moments, the scale of each block, and the quantization map."""
        state: dict[str, Any] = self._adamw.state_dict()
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load the result of `state_dict`."""
        self._adamw.load_state_dict(state)


def import_bitsandbytes() -> Any:
    """The package `bitsandbytes`.

    Raises:
        MissingDependencyError: It is not installed.
    """
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it warns of CUDA kernels that are not used
    try:
        import bitsandbytes
    except ImportError as error:
        raise MissingDependencyError(
            "training.optim: adamw_8bit needs the package bitsandbytes, which is not installed; "
            'fix: pip install "paretune[low-memory]", or training.optim: adamw_torch'
        ) from error
    return bitsandbytes


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW with linear warm-up, a constant, linear or cosine schedule, and gradient clipping.

    Source: Loshchilov and Hutter 2019, algorithm 2 (arXiv:1711.05101). Differs: weight decay is 0 by default,
    as usual in fine-tuning.
    """

    learning_rate: float = 1e-5
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0
    warmup_ratio: float = 0.03
    """Fraction of all steps over which the learning rate rises from 0."""
    lr_scheduler_type: Literal["constant", "linear", "cosine"] = "constant"
    """After the warm-up; linear and cosine fall to 0."""
    max_grad_norm: float = 1.0
    """Gradients of a larger norm are scaled down to it. Infinity: no clipping."""
    optim: Literal["adamw_torch", "adamw_8bit"] = field(default="adamw_torch", repr=False)
    """Precision of the moments: float32, or 8 bits (see `AdamW8bit`)."""
    # Not in the repr: it is the identity of supervised checkpoints, which always have float32 moments.

    def learning_rate_at_step(self, step: int, num_training_steps: int) -> float:
        """Learning rate of step number `step` (from 0) of `num_training_steps`."""
        warmup_steps = math.ceil(self.warmup_ratio * num_training_steps)
        if step < warmup_steps:
            # step + 1: the first step has a learning rate above 0, so that it is not wasted.
            return self.learning_rate * (step + 1) / warmup_steps
        progress = (step - warmup_steps) / max(num_training_steps - warmup_steps, 1)
        return self.learning_rate * self._decay(progress)

    def learning_rate_at_fraction(self, start_fraction: float, end_fraction: float) -> float:
        """Learning rate of a step during which the used fraction of a budget goes from start to end."""
        if start_fraction < self.warmup_ratio:
            return self.learning_rate * min(end_fraction / self.warmup_ratio, 1.0)
        # 1e-9: a warm-up over the whole budget leaves no fraction to divide by.
        progress = (min(start_fraction, 1.0) - self.warmup_ratio) / max(1.0 - self.warmup_ratio, 1e-9)
        return self.learning_rate * self._decay(progress)

    def _decay(self, progress: float) -> float:
        """Fraction of the learning rate after this fraction of the steps that follow the warm-up."""
        if self.lr_scheduler_type == "constant":
            return 1.0
        if self.lr_scheduler_type == "linear":
            return 1 - progress
        return 0.5 * (1 + math.cos(math.pi * progress))


class Optimizer:
    """AdamW on the trainable parameters of one or two networks.

    Parameters below float32 get a float32 master copy: at the learning rates of reinforcement learning nearly
    every update is smaller than the spacing of bfloat16 and would be rounded away.
    """

    def __init__(
        self,
        config: OptimizerConfig,
        parameters: Iterable[Parameter],
        critic_parameters: Iterable[Parameter] = (),
        critic_lr_multiplier: float = 1.0,
    ) -> None:
        """Create the optimizer.

        Args:
            config: Learning rate, weight decay and clipping.
            parameters: Parameters of the policy, or of another model.
            critic_parameters: Parameters of a critic. Its gradient is clipped separately: a large gradient of
                one network would otherwise scale down that of the other.
            critic_lr_multiplier: The critic's learning rate as a multiple of the policy's.

        Raises:
            WiringError: No parameter is trainable.
        """
        self.config = config
        self.parameters = [p for p in parameters if p.requires_grad]
        num_policy = len(self.parameters)
        self.parameters += [p for p in critic_parameters if p.requires_grad]
        self.network_slices = (
            [slice(0, num_policy), slice(num_policy, None)]
            if num_policy < len(self.parameters)
            else [slice(None)]
        )
        self.lr_multipliers = (1.0, critic_lr_multiplier)
        if not self.parameters:
            raise WiringError(
                "nothing to train: every parameter is frozen; fix: unfreeze some or add an adapter"
            )
        self.master_params = [p if _is_full_precision(p) else p.detach().float() for p in self.parameters]
        groups = [{"params": self.master_params[network]} for network in self.network_slices]
        # The fused kernel reads and writes the memory once; it exists for these devices only.
        fused = all(master.device.type in {"cpu", "cuda"} for master in self.master_params)
        # Weights of which only some are divided over the ranks cannot be updated by one call.
        is_mixed = len({isinstance(master, DTensor) for master in self.master_params}) > 1
        hyperparameters: dict[str, Any] = {
            "lr": config.learning_rate,
            "betas": config.betas,
            "eps": config.eps,
            "weight_decay": config.weight_decay,
        }
        self.adamw: torch.optim.AdamW | AdamW8bit = (
            AdamW8bit(groups, **hyperparameters)
            if config.optim == "adamw_8bit"
            else torch.optim.AdamW(
                groups,
                **hyperparameters,
                fused=fused and not is_mixed,
                foreach=False if is_mixed else None,
            )
        )

    def zero_grad(self) -> None:
        """Delete the gradients."""
        for parameter, master in zip(self.parameters, self.master_params, strict=True):
            parameter.grad = master.grad = None

    def sum_gradients(self) -> None:
        """Sum the gradients of all ranks; a weight that no row of a rank reached counts as 0 there.

        A weight that no rank reached keeps no gradient: the moments of AdamW must not see a 0 of it.
        """
        if not ranks.is_distributed():
            return
        reached = ranks.any_flags([parameter.grad is not None for parameter in self.parameters])
        for parameter, is_reached in zip(self.parameters, reached, strict=True):
            if is_reached and parameter.grad is None and not isinstance(parameter, DTensor):
                parameter.grad = torch.zeros_like(parameter)
        # FSDP has added up the gradients of divided weights.
        whole = [p for p in self.parameters if not isinstance(p, DTensor)]
        ranks.add_([p.grad for p in whole if p.grad is not None])

    def grad_norm(self) -> float:
        """Norm of the gradient of all networks, before clipping; not finite if any entry is not."""
        return _global_norm(self.parameters)

    def step(
        self, learning_rate: float, grad_norm: float, critic_base_learning_rate: float | None = None
    ) -> None:
        """Clip the gradients and update the weights.

        Args:
            learning_rate: Learning rate of the policy.
            grad_norm: Result of `grad_norm()`.
            critic_base_learning_rate: Multiplied for the critic; None: `learning_rate`.
        """
        rates = (
            learning_rate,
            learning_rate if critic_base_learning_rate is None else critic_base_learning_rate,
        )
        groups = zip(self.network_slices, rates, self.lr_multipliers, self.adamw.param_groups, strict=False)
        for network, rate, factor, group in groups:
            norm = grad_norm if len(self.network_slices) == 1 else _global_norm(self.parameters[network])
            scale = min(1.0, self.config.max_grad_norm / norm) if norm > 0 else 1.0
            for parameter, master in zip(self.parameters[network], self.master_params[network], strict=True):
                if parameter.grad is not None:
                    master.grad = parameter.grad.to(master.dtype)
                    if scale < 1.0:  # not by 1.0: that would cost a pass over the memory
                        master.grad.mul_(scale)
            group["lr"] = rate * factor
        self.adamw.step()
        with torch.no_grad():
            for parameter, master in zip(self.parameters, self.master_params, strict=True):
                if master is not parameter:
                    parameter.copy_(master)
        self.zero_grad()

    def state_dict(self) -> dict[str, Any]:
        """The state of a checkpoint, as a tree of tensors and numbers."""
        return {
            "adamw": self.adamw.state_dict(),
            "master_params": self._separate_masters(),
            "optim": self.config.optim,
        }

    def state_layout(self) -> dict[str, Any]:
        """How the tensors of `state_dict` are divided over the ranks, also before the first step."""
        moments = [{"exp_avg": master, "exp_avg_sq": master} for master in self.master_params]
        return {"adamw": {"state": dict(enumerate(moments))}, "master_params": self._separate_masters()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load the result of `state_dict`; the weights themselves are loaded by the caller.

        Args:
            state: Its tensors are whole, or divided like the weights.

        Raises:
            ConfigError: Its moments have another precision.
        """
        if state["optim"] != self.config.optim:
            raise ConfigError(
                f"cannot resume: the checkpoint was made with training.optim: {state['optim']}, this run has "
                f"{self.config.optim}; fix: set a new run.output_dir"
            )
        adamw = state["adamw"]
        for number, master in enumerate(self.master_params):
            if isinstance(master, DTensor) and number in adamw["state"]:
                moments = adamw["state"][number].items()
                adamw["state"][number] = {key: like(x, master) if x.ndim else x for key, x in moments}
        # The kernel is that of this run: the checkpoint's may not work where weights are divided otherwise.
        for stored, group in zip(adamw["param_groups"], self.adamw.param_groups, strict=True):
            stored.update({key: group[key] for key in ("fused", "foreach") if key in group})
        self.adamw.load_state_dict(adamw)
        with torch.no_grad():
            for master, stored in zip(self._separate_masters(), state["master_params"], strict=True):
                master.copy_(like(stored, master))

    def _separate_masters(self) -> list[Tensor]:
        """The master parameters that are not the parameters themselves."""
        return [m for p, m in zip(self.parameters, self.master_params, strict=True) if m is not p]


def _global_norm(parameters: Sequence[Parameter]) -> float:
    grads = [p.grad for p in parameters if p.grad is not None]
    if not grads:
        return 0.0
    if any(isinstance(grad, DTensor) for grad in grads):
        return _norm_over_ranks(grads)
    return float(
        torch.stack([g.float().norm() if not _is_full_precision(g) else g.norm() for g in grads]).norm()
    )


def _norm_over_ranks(grads: Sequence[Tensor]) -> float:
    """The norm of gradients some of which are divided over the ranks."""
    squares = [0.0, 0.0]
    for grad in grads:
        local = grad.to_local() if isinstance(grad, DTensor) else grad
        squares[isinstance(grad, DTensor)] += float(local.double().square().sum())
    return math.sqrt(squares[0] + sum(ranks.gather_json(squares[1])))


def _is_full_precision(x: Tensor) -> bool:
    return x.dtype in {torch.float32, torch.float64}
