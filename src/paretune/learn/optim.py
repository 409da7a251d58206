"""From gradients to weights: AdamW over float32 masters, a rate per step, the norm of the gradient."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import Parameter

from paretune.errors import ConfigError, WiringError
from paretune.learn.eightbit import EightBit


@dataclass(frozen=True, kw_only=True)
class AdamW:
    """AdamW with a linear warm-up, then a constant or a cosine rate, and a bound on the gradient's norm.

    Source: Loshchilov and Hutter 2019, algorithm 2 (arXiv:1711.05101). Differs: weight decay is 0 unless
    asked for, as fine-tuning usually has it.
    """

    lr: float = 1e-5
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0
    warmup: float = 0.03
    """Share of all steps over which the rate rises from 0."""
    schedule: Literal["constant", "cosine"] = "constant"
    clip: float = 1.0
    """Largest norm of the gradient; a larger one is scaled down to it. Infinity: never."""
    moments: Literal["float32", "int8"] = field(default="float32", repr=False)
    """What the running means of gradient and square are held in; see `EightBit`. Not shown: fits, which keep
    them in float32, know their checkpoints by what this class shows."""

    def rate(self, step: int, steps: int) -> float:
        """Learning rate of step number `step` (from 0) of `steps`."""
        warm = math.ceil(self.warmup * steps)
        if step < warm:
            return self.lr * (step + 1) / warm
        if self.schedule == "constant":
            return self.lr
        return self.lr * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(steps - warm, 1)))

    def rate_at(self, before: float, after: float) -> float:
        """Learning rate of a step that takes the spent share of a budget from `before` to `after`."""
        if before < self.warmup:
            return self.lr * min(after / self.warmup, 1.0)
        if self.schedule == "constant":
            return self.lr
        done = (min(before, 1.0) - self.warmup) / max(1.0 - self.warmup, 1e-9)
        return self.lr * 0.5 * (1 + math.cos(math.pi * done))


class Optimizer:
    """AdamW on the trainable parameters of one or more networks.

    Parameters below float32 get a float32 master: at the rates of reinforcement learning nearly every
    update is smaller than the spacing of bfloat16 and would be rounded away.
    """

    def __init__(
        self, how: AdamW, parameters: Iterable[Parameter], critic: Iterable[Parameter] = (), rate: float = 1.0
    ) -> None:
        """Take over the parameters.

        Args:
            how: Rate, decay and bounds.
            parameters: Those of the policy, or of whatever else is fitted.
            critic: Those of a critic: its gradient is bounded apart, so that neither starves the other.
            rate: The critic's learning rate as a multiple of the policy's.
        """
        self.how = how
        self.parameters = [p for p in parameters if p.requires_grad]
        first = len(self.parameters)
        self.parameters += [p for p in critic if p.requires_grad]
        self.networks = (
            [slice(0, first), slice(first, None)] if first < len(self.parameters) else [slice(None)]
        )
        self.factors = (1.0, rate)
        if not self.parameters:
            raise WiringError("nothing to train: every parameter is frozen; unfreeze some or add an adapter")
        self.masters = [p if _precise(p) else p.detach().float() for p in self.parameters]
        groups = [{"params": self.masters[network]} for network in self.networks]
        fused = all(master.device.type in {"cpu", "cuda"} for master in self.masters)  # one sweep over memory
        said: dict[str, Any] = {
            "lr": how.lr,
            "betas": how.betas,
            "eps": how.eps,
            "weight_decay": how.weight_decay,
        }
        self.adamw: torch.optim.AdamW | EightBit = (
            EightBit(groups, **said)
            if how.moments == "int8"
            else torch.optim.AdamW(groups, **said, fused=fused)
        )

    def zero(self) -> None:
        """Forget the gradients."""
        for parameter, master in zip(self.parameters, self.masters, strict=True):
            parameter.grad = master.grad = None

    def norm(self) -> float:
        """Norm of the whole gradient as it stands; not finite when any entry is not."""
        return _norm(self.parameters)

    def step(self, lr: float, norm: float, critic: float | None = None) -> None:
        """Move the weights along the gradient, scaled down where its `norm` is above the bound.

        Args:
            lr: Learning rate.
            norm: Of the whole gradient.
            critic: What the critic's rate is a multiple of; None: of `lr`.
        """
        rates = (lr, lr if critic is None else critic)
        groups = zip(self.networks, rates, self.factors, self.adamw.param_groups, strict=False)
        for network, rate, factor, group in groups:
            own = norm if len(self.networks) == 1 else _norm(self.parameters[network])
            scale = min(1.0, self.how.clip / own) if own > 0 else 1.0
            for parameter, master in zip(self.parameters[network], self.masters[network], strict=True):
                if parameter.grad is not None:
                    master.grad = parameter.grad.to(master.dtype)
                    if scale < 1.0:
                        master.grad.mul_(scale)
            group["lr"] = rate * factor
        self.adamw.step()
        with torch.no_grad():
            for parameter, master in zip(self.parameters, self.masters, strict=True):
                if master is not parameter:
                    parameter.copy_(master)
        self.zero()

    def state(self) -> dict[str, Any]:
        """Everything a checkpoint needs, as a tree of tensors and numbers."""
        kept = [m for p, m in zip(self.parameters, self.masters, strict=True) if m is not p]
        return {"adamw": self.adamw.state_dict(), "masters": kept, "moments": self.how.moments}

    def load(self, state: dict[str, Any]) -> None:
        """Go back to a stored state; the weights themselves are the caller's to load.

        Raises:
            ConfigError: Its moments are held in something else.
        """
        stored_in = state.get("moments", "float32")
        if stored_in != self.how.moments:
            raise ConfigError(
                f"the checkpoint holds moments in {stored_in}, and this run in {self.how.moments}; "
                "fix: choose another run.folder"
            )
        self.adamw.load_state_dict(state["adamw"])
        own = [m for p, m in zip(self.parameters, self.masters, strict=True) if m is not p]
        with torch.no_grad():
            for master, stored in zip(own, state["masters"], strict=True):
                master.copy_(stored)


def _norm(parameters: Sequence[Parameter]) -> float:
    grads = [p.grad for p in parameters if p.grad is not None]
    if not grads:
        return 0.0
    return float(torch.stack([g.float().norm() if not _precise(g) else g.norm() for g in grads]).norm())


def _precise(x: Tensor) -> bool:
    return x.dtype in {torch.float32, torch.float64}
