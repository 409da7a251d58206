"""Rows that teach nothing, or should not teach: drop them, or silence them."""

from dataclasses import dataclass

import torch

from paretune.batch import Batch
from paretune.credit.running import RunningMoments, batch_moments, merge_moments
from paretune.credit.step import CreditStep, Metrics
from paretune.errors import WiringError
from paretune.reduce import group_std


@dataclass(frozen=True)
class DropZeroVarianceGroups(CreditStep):
    """Leave out the prompts whose responses are all about equally good.

    A group is flat when its spread is at most `min_relative_std` times the standard deviation of all signals seen so
    far, in every column. Exact equality, the usual test, never holds for scores of a regression model. When
    no group would be left, all stay. Dropped groups are not replaced by others, so the batch gets smaller,
    and the denominators of the loss with it.

    Reads: rewards, group. Writes: the select. State: Moments of the rewards. Reports: share of groups kept.

    Source: Yu et al. 2025, DAPO, eq. 11 (arXiv:2503.14476), dynamic sampling. Differs: a relative
    threshold; no sampling anew.
    """

    min_relative_std: float = 0.0

    def __post_init__(self) -> None:
        if self.min_relative_std < 0:
            raise WiringError(
                f"the least spread of a group is {self.min_relative_std}; it must not be negative"
            )

    def init_state(self) -> RunningMoments:
        """Nothing seen."""
        zero = torch.zeros((), dtype=torch.float64)
        return RunningMoments(zero, zero, zero)

    def apply_stateful(
        self, batch: Batch, state: RunningMoments, rng: torch.Generator
    ) -> tuple[Batch, RunningMoments, Metrics]:
        """Remember the signals, then drop."""
        x = batch.rewards.double()
        old = RunningMoments(*(v.to(x.device) for v in (state.count, state.mean, state.var)))
        state = merge_moments(old, batch_moments(x, "population"))
        spread = group_std(batch.rewards, batch.group).double()
        keep = ((spread > 0) & (spread > self.min_relative_std * state.var.sqrt())).any(-1)
        kept = batch.group[keep].unique().numel() / max(batch.group.unique().numel(), 1)
        left = batch.select(keep.nonzero().squeeze(-1)) if keep.any() else batch
        return left, state, {"groups/kept": kept}


@dataclass(frozen=True)
class MaskTruncated(CreditStep):
    """Responses that ran into the length limit teach nothing, and still count in their group's baseline.

    Reads: truncated, advantages. Writes: advantages.

    Source: Yu et al. 2025, DAPO, overlong filtering, section 3.4 (arXiv:2503.14476). Differs: their tokens
    keep their share of the loss's denominator.
    """

    def apply(self, batch: Batch) -> Batch:
        """Set their advantages to 0."""
        return batch.replace(
            advantages=torch.where(batch.truncated[:, None, None], 0.0, batch.require("advantages"))
        )
