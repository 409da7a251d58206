"""A reward for staying undecided."""

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from paretune.batch import Batch, Outputs
from paretune.errors import WiringError
from paretune.loss.term import Loss


@dataclass(frozen=True)
class EntropyBonus(Loss):
    """Minus the entropy of the policy: a positive coefficient keeps it from becoming certain too soon.

    Reads: loss_weights. Writes: nothing.

    Source: Williams and Peng 1991; Schulman et al. 2017, eq. 9 (arXiv:1707.06347). Differs: the mean is the
    recipe's, not always that over tokens. The coefficient is delicate: a little too much and the policy
    never settles.
    """

    requires: ClassVar[frozenset[str]] = frozenset({"entropy"})

    def __call__(self, out: Outputs, batch: Batch) -> Float[Tensor, ""]:
        """The loss of these rows."""
        if out.entropy is None:
            raise WiringError("a loss reads the policy's entropy, which the forward pass did not give")
        return -(out.entropy * batch.require("loss_weights")).sum()


def entropy_target_distance(entropy: Float[Tensor, ""], target: float) -> Float[Tensor, ""]:
    """|H - target|, H the mean entropy of a whole batch in nats.

    Not a part: it needs the mean over all rows before any slope, so the losses of micro-batches do not add up
    to that of the batch.

    Source: MOSS-RLHF, where the target is 35 nats and the term off by default.
    """
    return (entropy - target).abs()
