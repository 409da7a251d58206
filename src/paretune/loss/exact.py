"""The divergence from the reference over the whole vocabulary, not estimated from the sampled tokens."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from paretune.batch import Batch, Outputs
from paretune.errors import WiringError
from paretune.loss.term import Loss


@dataclass(frozen=True)
class FullKl(Loss):
    """KL(reference || policy) at every token of the given responses.

    The other direction than KlToReference: it keeps the policy from forgetting what the reference would have
    said, is never negative, and needs no response to be the policy's own.

    Reads: loss_weights. Writes: nothing.
    Logs: its mean over response tokens.

    Source: Mukobi et al. 2023, SuperHF (arXiv:2310.16763). Differs: a mean like that of every other loss;
    their code adds up the rows of a mini-batch, and looks one token too late.
    """

    requires: ClassVar[frozenset[str]] = frozenset({"kl_reference_policy"})

    def __call__(self, out: Outputs, batch: Batch) -> Float[Tensor, ""]:
        """The loss of these rows."""
        return (require_ref_policy_kl(out) * batch.require("loss_weights")).sum()

    def metrics(self, out: Outputs, batch: Batch) -> Mapping[str, Float[Tensor, "B T"]]:
        """The divergence itself."""
        return {"kl/full": require_ref_policy_kl(out).detach()}


def require_ref_policy_kl(out: Outputs) -> Float[Tensor, "B T"]:
    """KL(reference || policy) at every token.

    Raises:
        WiringError: The forward pass did not give it.
    """
    if out.ref_policy_kl is None:
        raise WiringError(
            "a loss reads the exact divergence from the reference, which the forward pass did not give"
        )
    return out.ref_policy_kl
