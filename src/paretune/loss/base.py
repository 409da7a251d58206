"""What a loss is: a frozen part that turns the outputs of a forward pass and a batch into one number."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from paretune.core.batch import Batch, Outputs
from paretune.core.errors import WiringError


class Loss:
    """One loss. A subclass is a frozen dataclass whose fields are its hyper-parameters."""

    requires: ClassVar[frozenset[str]] = frozenset()
    """Outputs of the forward pass it reads beside `logp`."""

    requires_full_groups: ClassVar[bool] = False
    """Must all the rows of a group stand in one micro-batch?"""

    def __call__(self, out: Outputs, batch: Batch) -> Float[Tensor, ""]:
        """The loss of these rows; the losses of the parts of a batch add up to that of the whole.

        Raises:
            WiringError: The subclass does not override this.
        """
        raise WiringError(f"{type(self).__name__} does not say what its loss is")

    def metrics(self, out: Outputs, batch: Batch) -> Mapping[str, Float[Tensor, "B T"]]:
        """Numbers per token to log: their mean over the response tokens of the training step.

        Of a key that ends in `/max` or `/min` the extreme is logged, of one that ends in `/clamped` the sum.
        """
        return {}

    def group_metrics(self, out: Outputs, batch: Batch) -> Mapping[str, Float[Tensor, " _"]]:
        """Numbers per group, or per pair of responses, to log: the mean over all of the training step.

        Each key has a length of its own; one that has nothing to show in these rows has length 0.
        """
        return {}


@dataclass(frozen=True)
class WeightedLoss:
    """A loss and its coefficient."""

    coefficient: float
    loss: Loss


def required_outputs(losses: Sequence[WeightedLoss]) -> frozenset[str]:
    """Everything the terms want of the forward pass beside `logp`."""
    return frozenset().union(*(term.loss.requires for term in losses))


def total_loss(
    losses: Sequence[WeightedLoss], out: Outputs, batch: Batch
) -> tuple[Float[Tensor, ""], dict[str, float]]:
    """The weighted sum of the terms, and each loss by its name, its coefficient not applied.

    Raises:
        WiringError: There is no term.
    """
    if not losses:
        raise WiringError("the recipe has no losses: give it at least one Term")
    whole = out.logprobs.new_zeros(())
    parts: dict[str, float] = {}
    for term in losses:
        part = term.loss(out, batch)
        name = type(term.loss).__name__
        parts[name] = parts.get(name, 0.0) + float(part.detach())
        whole = whole + term.coefficient * part
    return whole, parts
