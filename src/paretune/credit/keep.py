"""Selection by rank: the best responses to each prompt stay."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from paretune.batch import Batch
from paretune.credit.penalty import one_signal
from paretune.credit.step import Metrics, State, Step
from paretune.errors import WiringError
from paretune.reduce import ranked


def best_rows(
    signal: Float[Tensor, "B 1"], group: Int[Tensor, " B"], able: Bool[Tensor, " B"], k: int
) -> Int[Tensor, " N"]:
    """The rows of the `k` best signals of each group, best first; ties keep their order.

    Rows that are unscored or not `able` are left out beforehand, so a group may keep fewer than `k`, or none.
    """
    able = able & ~signal[:, 0].isnan()
    kept = [rows[able[rows]][:k] for rows in ranked(signal, group)]
    return torch.cat([group.new_zeros(0), *kept])


@dataclass(frozen=True)
class KeepBest(Step):
    """Keep the `k` best responses to each prompt: what a likelihood is then fitted to.

    Unscored responses and those without a token cannot be kept; a prompt that has no others is left out. When
    nothing at all would be left, all stay. Rows keep their order.

    Reads: signal, group, respond. Writes: the rows. Reports: share of responses kept.

    Source: Mukobi et al. 2023, SuperHF (arXiv:2310.16763); Dong et al. 2023, RAFT (arXiv:2304.06767).
    """

    k: int = 1

    def __post_init__(self) -> None:
        if self.k < 1:
            raise WiringError(f"KeepBest keeps {self.k} responses to a prompt; it must keep at least 1")

    def advance(self, batch: Batch, state: State, rng: torch.Generator) -> tuple[Batch, State, Metrics]:
        """Leave out all but the best.

        Raises:
            WiringError: The signal is of several objectives.
        """
        one_signal(batch, "KeepBest")
        best = best_rows(batch.signal, batch.group, batch.respond.any(-1), self.k)
        left = batch.rows(best.sort().values) if len(best) else batch
        return left, state, {"responses/kept": len(left) / max(len(batch), 1)}
