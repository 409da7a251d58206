"""Rows that teach nothing, or should not teach: drop them, or silence them."""

from dataclasses import dataclass

import torch

from paretune.batch import Batch
from paretune.credit.running import Moments, batch_moments, merged
from paretune.credit.step import Metrics, Step
from paretune.errors import WiringError
from paretune.reduce import group_std


@dataclass(frozen=True)
class DropFlatGroups(Step):
    """Leave out the prompts whose responses are all about equally good.

    A group is flat when its spread is at most `below` times the standard deviation of all signals seen so
    far, in every column. Exact equality, the usual test, never holds for scores of a regression model. When
    no group would be left, all stay. Dropped groups are not replaced by others, so the batch gets smaller,
    and the denominators of the loss with it.

    Reads: signal, group. Writes: the rows. State: Moments of the signal. Reports: share of groups kept.

    Source: Yu et al. 2025, DAPO, eq. 11 (arXiv:2503.14476), dynamic sampling. Differs: a relative
    threshold; no sampling anew.
    """

    below: float = 0.0

    def __post_init__(self) -> None:
        if self.below < 0:
            raise WiringError(f"the least spread of a group is {self.below}; it must not be negative")

    def start(self) -> Moments:
        """Nothing seen."""
        zero = torch.zeros((), dtype=torch.float64)
        return Moments(zero, zero, zero)

    def advance(self, batch: Batch, state: Moments, rng: torch.Generator) -> tuple[Batch, Moments, Metrics]:
        """Remember the signals, then drop."""
        x = batch.signal.double()
        old = Moments(*(v.to(x.device) for v in (state.num, state.mean, state.var)))
        state = merged(old, batch_moments(x, "population"))
        spread = group_std(batch.signal, batch.group).double()
        keep = ((spread > 0) & (spread > self.below * state.var.sqrt())).any(-1)
        kept = batch.group[keep].unique().numel() / max(batch.group.unique().numel(), 1)
        left = batch.rows(keep.nonzero().squeeze(-1)) if keep.any() else batch
        return left, state, {"groups/kept": kept}


@dataclass(frozen=True)
class SilenceTruncated(Step):
    """Responses that ran into the length limit teach nothing, and still count in their group's baseline.

    Reads: truncated, advantages. Writes: advantages.

    Source: Yu et al. 2025, DAPO, overlong filtering, section 3.4 (arXiv:2503.14476). Differs: their tokens
    keep their share of the loss's denominator.
    """

    def apply(self, batch: Batch) -> Batch:
        """Set their advantages to 0."""
        return batch.set(
            advantages=torch.where(batch.truncated[:, None, None], 0.0, batch.need("advantages"))
        )
