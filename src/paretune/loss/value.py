"""What a critic is fitted with: returns, head by head."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from paretune.batch import Batch, Outputs
from paretune.errors import WiringError
from paretune.loss.term import Loss


def squared_error(values: Float[Tensor, "*n"], returns: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
    """(V - R)^2 / 2."""
    return (values - returns).square() / 2


def clipped_squared_error(
    values: Float[Tensor, "*n"],
    old_values: Float[Tensor, "*n"],
    returns: Float[Tensor, "*n"],
    clip_range: float,
) -> Float[Tensor, "*n"]:
    """max((V - R)^2, (clip(V, old - clip, old + clip) - R)^2) / 2.

    A value that has moved further than `clip_range` towards its return is held back; one that moved away is not.

    Source: the PPO implementation of OpenAI baselines, as in Huang et al. 2022, "The 37 implementation
    details of PPO", detail 9.
    """
    held = old_values + (values - old_values).clamp(-clip_range, clip_range)
    return torch.maximum(squared_error(values, returns), squared_error(held, returns))


@dataclass(frozen=True)
class SquaredValueLoss(Loss):
    """Half the squared error of the critic, summed over its heads.

    Reads: returns, loss_weights. Writes: nothing.

    Source: Schulman et al. 2017, eq. 9 (arXiv:1707.06347). Differs: the half.
    """

    requires: ClassVar[frozenset[str]] = frozenset({"values"})

    def __call__(self, out: Outputs, batch: Batch) -> Float[Tensor, ""]:
        """The loss of these rows."""
        each = squared_error(require_values(out), batch.require("returns"))
        return (each.sum(-1) * batch.require("loss_weights")).sum()


@dataclass(frozen=True)
class ClippedValueLoss(Loss):
    """Half the squared error of the critic, summed over its heads, no value moving far in one training step.

    Reads: returns, values, loss_weights. Writes: nothing.
    Logs: the share of values that were held back.

    Source: as `clipped_error`. Differs: the range is in the units of the return, as everywhere.
    """

    clip_range: float = 0.2
    requires: ClassVar[frozenset[str]] = frozenset({"values"})

    def __post_init__(self) -> None:
        if not self.clip_range > 0:
            raise WiringError(f"the range of the clipped value loss is {self.clip_range}; it must be > 0")

    def __call__(self, out: Outputs, batch: Batch) -> Float[Tensor, ""]:
        """The loss of these rows."""
        each = clipped_squared_error(
            require_values(out), batch.require("values"), batch.require("returns"), self.clip_range
        )
        return (each.sum(-1) * batch.require("loss_weights")).sum()

    def metrics(self, out: Outputs, batch: Batch) -> Mapping[str, Float[Tensor, "B T"]]:
        """Which values were held back; the mean over the heads."""
        values, returns = require_values(out).detach(), batch.require("returns")
        held = clipped_squared_error(values, batch.require("values"), returns, self.clip_range)
        return {"clip_fraction/value": (held > squared_error(values, returns)).to(values.dtype).mean(-1)}


def require_values(out: Outputs) -> Float[Tensor, "B T H"]:
    """The critic's answer.

    Raises:
        WiringError: The forward pass had no critic.
    """
    if out.values is None:
        raise WiringError("a loss reads the critic's values, and the forward pass had no critic")
    return out.values
