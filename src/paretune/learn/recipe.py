"""A recipe: everything that makes one algorithm different from another, and nothing else."""

from dataclasses import dataclass, replace
from typing import Any, Literal

from jaxtyping import Bool, Float
from torch import Tensor

from paretune.credit.step import Step, chain
from paretune.errors import WiringError
from paretune.loss.term import Term, wanted
from paretune.models.measure import Behaviour, Measure
from paretune.reduce import By, token_weights
from paretune.rollout.sample import Offline, Online

NOTHING = chain()
"""The chain without a step."""


@dataclass(frozen=True)
class Weigh:
    """How much each response token counts: the denominator of every loss, in one place.

    "token": all tokens alike (DAPO). "sequence": all responses alike (GRPO). "sequence_sum": the mean over
    responses of sums over tokens (RLOO). "constant": every token 1 / (length * rows) (Dr. GRPO). Responses
    without a score keep their share of the denominator, and so do those without a token unless `empty` says
    "skip", as in verl.

    Reads: respond. Writes: weight.

    Source: the three normalisations compared in Liu et al. 2025 (arXiv:2503.20783) and Yu et al. 2025
    (arXiv:2503.14476).
    """

    by: By = "token"
    length: int = 1
    empty: Literal["count", "skip"] = "count"

    def __call__(self, respond: Bool[Tensor, "B T"]) -> Float[Tensor, "B T"]:
        """The weight of every token, over all the rows of an optimiser step."""
        return token_weights(respond, self.by, self.length, self.empty)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """source -> scores -> worth -> measure -> credit -> losses.

    There are two chains because selection must come before the expensive forward passes of `measure`, and
    what needs their answers after.
    """

    name: str
    source: Online | Offline
    worth: Step = NOTHING
    """Before models are asked: aggregate, shape, select."""
    measure: tuple[Measure, ...] = (Behaviour(),)
    """What old and frozen models say of the rows that are left."""
    credit: Step = NOTHING
    """After models were asked: penalise, normalise, estimate advantages."""
    losses: tuple[Term, ...]
    weigh: Weigh = Weigh()
    epochs: int = 1
    minibatch: int | None = None
    """Rows of one optimiser step; None: all."""

    def __post_init__(self) -> None:
        if self.epochs < 1 or (self.minibatch is not None and self.minibatch < 1):
            raise WiringError(
                f'recipe "{self.name}": epochs is {self.epochs} and minibatch {self.minibatch}; '
                "both must be at least 1"
            )

    def wants(self) -> frozenset[str]:
        """What the losses want of the forward pass beside log-probabilities."""
        return wanted(self.losses)

    def by_group(self) -> bool:
        """Must the rows of a prompt stay together?"""
        return any(term.loss.by_group for term in self.losses)

    def temperature(self) -> float:
        """At which temperature log-probabilities are taken: that of sampling."""
        return self.source.temperature if isinstance(self.source, Online) else 1.0

    def but(self, **changes: Any) -> "Recipe":
        """The same recipe with some fields replaced."""
        return replace(self, **changes)
