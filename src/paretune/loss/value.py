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


def clipped_error(
    values: Float[Tensor, "*n"], old: Float[Tensor, "*n"], returns: Float[Tensor, "*n"], clip: float
) -> Float[Tensor, "*n"]:
    """max((V - R)^2, (clip(V, old - clip, old + clip) - R)^2) / 2.

    A value that has moved further than `clip` towards its return is held back; one that moved away is not.

    Source: the PPO implementation of OpenAI baselines, as in Huang et al. 2022, "The 37 implementation
    details of PPO", detail 9.
    """
    held = old + (values - old).clamp(-clip, clip)
    return torch.maximum(squared_error(values, returns), squared_error(held, returns))


@dataclass(frozen=True)
class ValueSquared(Loss):
    """Half the squared error of the critic, summed over its heads.

    Reads: returns, weight. Writes: nothing.

    Source: Schulman et al. 2017, eq. 9 (arXiv:1707.06347). Differs: the half.
    """

    wants: ClassVar[frozenset[str]] = frozenset({"values"})

    def __call__(self, out: Outputs, batch: Batch) -> Float[Tensor, ""]:
        """The loss of these rows."""
        each = squared_error(values_of(out), batch.need("returns"))
        return (each.sum(-1) * batch.need("weight")).sum()


@dataclass(frozen=True)
class ValueClipped(Loss):
    """Half the squared error of the critic, summed over its heads, no value moving far in one training step.

    Reads: returns, values, weight. Writes: nothing.
    Logs: the share of values that were held back.

    Source: as `clipped_error`. Differs: the range is in the units of the return, as everywhere.
    """

    clip: float = 0.2
    wants: ClassVar[frozenset[str]] = frozenset({"values"})

    def __post_init__(self) -> None:
        if not self.clip > 0:
            raise WiringError(f"the range of the clipped value loss is {self.clip}; it must be > 0")

    def __call__(self, out: Outputs, batch: Batch) -> Float[Tensor, ""]:
        """The loss of these rows."""
        each = clipped_error(values_of(out), batch.need("values"), batch.need("returns"), self.clip)
        return (each.sum(-1) * batch.need("weight")).sum()

    def watch(self, out: Outputs, batch: Batch) -> Mapping[str, Float[Tensor, "B T"]]:
        """Which values were held back; the mean over the heads."""
        values, returns = values_of(out).detach(), batch.need("returns")
        held = clipped_error(values, batch.need("values"), returns, self.clip)
        return {"clip/value": (held > squared_error(values, returns)).to(values.dtype).mean(-1)}


def values_of(out: Outputs) -> Float[Tensor, "B T H"]:
    """The critic's answer.

    Raises:
        WiringError: The forward pass had no critic.
    """
    if out.values is None:
        raise WiringError("a loss reads the critic's values, and the forward pass had no critic")
    return out.values
