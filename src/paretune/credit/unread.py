"""What a response is worth that has not the form in which it could be judged."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from paretune.batch import Batch
from paretune.credit.step import CreditStep, Metrics


@dataclass(frozen=True)
class InvalidFormatPenalty(CreditStep):
    """A response that cannot be read is worth what the worst one so far was worth.

    Without this step it is unscored, and nobody learns to keep the form. The worst is of every column of the
    signal apart, over all training steps, this one included; before anything was scored it stays unscored.
    A response that could be read and got no score stays unscored too.

    Reads: format_valid, rewards. Writes: rewards. State: the worst of each score_column, infinite before the first.

    Source: the strict mode of Bhaskar et al. 2025 (arXiv:2509.20357). Differs: their code lets the reward
    model score a fixed text in the place of such a response.
    """

    def init_state(self) -> Float[Tensor, ""]:
        """Nothing was seen."""
        return torch.tensor(torch.inf, dtype=torch.float64)

    def apply_stateful(
        self, batch: Batch, state: Float[Tensor, "*j"], rng: torch.Generator
    ) -> tuple[Batch, Float[Tensor, " J"], Metrics]:
        """Remember the worst, then give it."""
        unread = ~batch.require("format_valid")[:, None]
        known = batch.rewards.nan_to_num(torch.inf, torch.inf, -torch.inf)
        seen = known.amin(0).double() if len(batch) else known.new_full((known.shape[1],), torch.inf).double()
        worst = torch.minimum(state.to(seen), seen)
        fill = torch.where(worst.isinf(), torch.nan, worst).to(batch.rewards)
        signal = torch.where(unread & batch.rewards.isnan(), fill, batch.rewards)
        return batch.replace(rewards=signal), worst, {}
