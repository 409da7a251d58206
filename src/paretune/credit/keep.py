"""Selection by rank: the best responses to each prompt stay."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from paretune.batch import Batch
from paretune.credit.penalty import require_scalar
from paretune.credit.step import CreditStep, Metrics, State
from paretune.errors import WiringError
from paretune.reduce import rank_by_group


def top_k_rows(
    rewards: Float[Tensor, "B 1"], group: Int[Tensor, " B"], eligible: Bool[Tensor, " B"], k: int
) -> Int[Tensor, " N"]:
    """The rows of the `k` best signals of each group, best first; ties keep their order.

    Rows that are unscored or not `eligible` are left out beforehand, so a group may keep fewer than `k`, or none.
    """
    eligible = eligible & ~rewards[:, 0].isnan()
    kept = [rows[eligible[rows]][:k] for rows in rank_by_group(rewards, group)]
    return torch.cat([group.new_zeros(0), *kept])


@dataclass(frozen=True)
class BestOfN(CreditStep):
    """Keep the `k` best responses to each prompt: what a likelihood is then fitted to.

    Unscored responses and those without a token cannot be kept; a prompt that has no others is left out. When
    nothing at all would be left, all stay. Rows keep their order.

    Reads: rewards, group, response_mask. Writes: the select. Reports: share of responses kept.

    Source: Mukobi et al. 2023, SuperHF (arXiv:2310.16763); Dong et al. 2023, RAFT (arXiv:2304.06767).
    """

    k: int = 1

    def __post_init__(self) -> None:
        if self.k < 1:
            raise WiringError(f"KeepBest keeps {self.k} responses to a prompt; it must keep at least 1")

    def apply_stateful(
        self, batch: Batch, state: State, rng: torch.Generator
    ) -> tuple[Batch, State, Metrics]:
        """Leave out all but the best.

        Raises:
            WiringError: The signal is of several objectives.
        """
        require_scalar(batch, "KeepBest")
        best = top_k_rows(batch.rewards, batch.group, batch.response_mask.any(-1), self.k)
        left = batch.select(best.sort().values) if len(best) else batch
        return left, state, {"responses/kept": len(left) / max(len(batch), 1)}
