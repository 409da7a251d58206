"""An order of objectives: the second one matters only between responses that the first cannot tell apart."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from paretune.batch import Batch
from paretune.credit.aggregate import objective_index
from paretune.credit.step import CreditStep, Metrics, State
from paretune.errors import WiringError
from paretune.reduce import group_index


def lexicographic_rank(x: Float[Tensor, "B J"], group: Int[Tensor, " B"]) -> Float[Tensor, "B 1"]:
    """Place of each row in its group by the first column, ties by the second, and so on; 0 worst, 1 best.

    Rows that are equal in every column share the middle of their places. Rows with a NaN are not ranked, and
    stay NaN; a row without others gets 0.5.
    """
    place = x.new_full((len(x), 1), torch.nan)
    index, count = group_index(group)
    known = ~x.isnan().any(-1)
    for g in range(count):
        rows = ((index == g) & known).nonzero().squeeze(-1)
        if not len(rows):
            continue
        _, inverse, ties = x[rows].unique(dim=0, return_inverse=True, return_counts=True)
        middle = ties.cumsum(0) - ties + (ties - 1) / 2
        place[rows, 0] = middle[inverse].to(x.dtype) / (len(rows) - 1) if len(rows) > 1 else 0.5
    return place


@dataclass(frozen=True)
class Lexicographic(CreditStep):
    """Objectives in the order of their importance; a response is worth its place in its group.

    An objective with a level counts only up to it: once responses are good enough in it, the next one
    decides. Without levels, and with scores that hardly ever tie, the first objective decides everything;
    `resolution` makes near scores equal.

    Reads: rewards, group. Writes: rewards (J becomes 1), in [0, 1].
    Reports: `active_objective/{objective}`, the share of pairs of responses that each objective decides.

    Source: Gabor et al. 1998 and Vamplew et al. 2011 (Machine Learning 84), thresholded lexicographic order.
    Differs: among the responses of a prompt instead of among actions; the place instead of a choice.
    """

    order: tuple[tuple[str, float | None], ...]
    """(objective, level from which it is good enough, or None), the most important first."""
    resolution: float = 0.0
    """Scores are rounded down to multiples of this; 0: as they are."""

    def __post_init__(self) -> None:
        names = [name for name, _ in self.order]
        if not names or len(set(names)) < len(names):
            raise WiringError(
                f"Lexicographic orders {', '.join(names) or 'nothing'}: name each objective once"
            )
        if not 0 <= self.resolution < float("inf"):
            raise WiringError(f"Lexicographic got grain {self.resolution}; it must be 0 or above")

    def apply_stateful(
        self, batch: Batch, state: State, rng: torch.Generator
    ) -> tuple[Batch, State, Metrics]:
        """The places, and who decided them."""
        columns = []
        for name, level in self.order:
            x = batch.rewards[:, objective_index(batch, name, "Lexicographic")]
            x = x if level is None else x.clamp(max=level)
            columns.append((x / self.resolution).floor() if self.resolution else x)
        x = torch.stack(columns, -1)
        place = lexicographic_rank(x, batch.group)
        return batch.replace(rewards=place), state, self._active_metrics(x, batch.group)

    def _active_metrics(self, x: Float[Tensor, "B J"], group: Int[Tensor, " B"]) -> Metrics:
        known = ~x.isnan().any(-1)
        pairs = (group[:, None] == group) & known[:, None] & known
        pairs = pairs.triu(1)
        differs = (x[:, None] != x) & pairs[..., None]
        first = differs & (differs.cumsum(-1) == 1)
        count = max(int(pairs.sum()), 1)
        return {
            f"active_objective/{name}": float(first[..., j].sum()) / count
            for j, (name, _) in enumerate(self.order)
        }
