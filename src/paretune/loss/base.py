"""The interface of a loss, and the weighted sum of losses."""

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
    """Fields of Outputs that it reads besides `logprobs`."""

    requires_full_groups: ClassVar[bool] = False
    """Whether all rows of a group must be in one micro-batch."""

    def __call__(self, out: Outputs, batch: Batch) -> Float[Tensor, ""]:
        """The loss of these rows; the losses of the micro-batches add up to that of the whole batch.

        Raises:
            WiringError: The subclass does not override this.
        """
        raise WiringError(f"{type(self).__name__} does not implement __call__")

    def metrics(self, out: Outputs, batch: Batch) -> Mapping[str, Float[Tensor, "B T"]]:
        """Values per token to log, as their mean over the response tokens of the training step.

        For keys that end in `/max` or `/min` the extreme is logged, for `/clamped` the sum.
        """
        return {}

    def group_metrics(self, out: Outputs, batch: Batch) -> Mapping[str, Float[Tensor, " _"]]:
        """Values per group, or per pair of responses, to log as their mean over the training step.

        Each key has its own length; 0 if these rows have no value for it.
        """
        return {}


@dataclass(frozen=True)
class WeightedLoss:
    """A loss and its coefficient."""

    coefficient: float
    loss: Loss


def required_outputs(losses: Sequence[WeightedLoss]) -> frozenset[str]:
    """Fields of Outputs that the losses read besides `logprobs`."""
    return frozenset().union(*(term.loss.requires for term in losses))


def total_loss(
    losses: Sequence[WeightedLoss], out: Outputs, batch: Batch
) -> tuple[Float[Tensor, ""], dict[str, float]]:
    """The weighted sum of the losses, and each loss by its class name, without its coefficient.

    Raises:
        WiringError: There are no losses, or one is not a single number.
    """
    if not losses:
        raise WiringError("the algorithm has no losses; fix: give it at least one WeightedLoss")
    total = out.logprobs.new_zeros(())
    values: dict[str, float] = {}
    for term in losses:
        value = term.loss(out, batch)
        name = type(term.loss).__name__
        if not (isinstance(value, Tensor) and value.ndim == 0 and value.is_floating_point()):
            what = (
                f"a tensor {list(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
            )
            raise WiringError(f"{name} returns {what}; fix: return one number, such as (...).sum()")
        values[name] = values.get(name, 0.0) + float(value.detach())
        total = total + term.coefficient * value
    return total, values
