"""A method of one's own: a response counts by its rank among those to its prompt.

python docs/examples/own_algorithm.py
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from paretune.algorithms.grpo import Gates, grpo
from paretune.algorithms.signature import inherit_arguments
from paretune.core.batch import Batch
from paretune.core.types import PositiveFloat
from paretune.credit.base import CreditStep, chain
from paretune.credit.normalization import BroadcastToTokens
from paretune.rl.algorithm_spec import AlgorithmSpec


@dataclass(frozen=True)
class RankInGroup(CreditStep):
    """The rank of each reward in its group, from -scale for the lowest to scale for the highest."""

    scale: PositiveFloat = 1.0

    def apply(self, batch: Batch) -> Batch:
        """Replace rewards by ranks; NaN, not scored, stays NaN and is compared with none."""
        same_group = (batch.group[:, None] == batch.group)[..., None]
        difference = batch.rewards[:, None] - batch.rewards  # [row, other row, column]
        comparable = same_group & ~difference.isnan()
        balance = torch.where(comparable, difference.sign(), 0.0).sum(1)  # lower ones minus higher ones
        rank = balance / (comparable.sum(1) - 1).clamp(min=1)
        return batch.replace(rewards=torch.where(batch.rewards.isnan(), torch.nan, self.scale * rank))


@inherit_arguments(grpo)
def rank_grpo(
    weights: Mapping[str, float], *, gates: Gates = (), scale: PositiveFloat = 1.0, **kwargs: Any
) -> AlgorithmSpec:
    """GRPO with ranks for normalized rewards.

    Args:
        weights: Weight of each objective.
        gates: As for `grpo`.
        scale: Advantage of the best response of a group.
        kwargs: As for `grpo`.
    """
    credit = chain(RankInGroup(scale), BroadcastToTokens())
    return grpo(weights, gates=gates, **kwargs).replace(name="rank_grpo", credit=credit)


if __name__ == "__main__":
    print("[parts]")
    print("\n".join(rank_grpo({"polite": 1.0, "safety": 1.0}, scale=2.0).describe()))
