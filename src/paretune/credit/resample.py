"""Which responses of a prompt are learnt from, drawn by how they rank among each other."""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from paretune.batch import Batch
from paretune.credit.penalty import require_scalar
from paretune.credit.step import CreditStep, Metrics, State
from paretune.errors import WiringError
from paretune.reduce import rank_by_group

RankFiltrationStrategy = Literal["best_of_n", "best_random", "best_worst", "four_to_one"]
FiltrationStrategy = RankFiltrationStrategy | Literal["power"]


def rank_probabilities(strategy: RankFiltrationStrategy, num_responses: int) -> tuple[float, ...]:
    """Odds of every rank among `num_responses` responses, the best first; they sum to 1.

        "best_of_n"     1, 0, ..., 0
        "best_random"   1/2, and the other half shared by the rest
        "best_worst"    1/2, 0, ..., 0, 1/2
        "four_to_one"   the best is four times as likely as each of the rest: with n = 5 the same as
                        "best_random"

    Source: Shen and Zhang 2024, PF-PPO (arXiv:2409.06957); the last is in its code.
    """
    rest = num_responses - 1
    if rest == 0:
        return (1.0,)
    if strategy == "best_worst":
        return (0.5, *(0.0,) * (rest - 1), 0.5)
    first = {"best_of_n": 1.0, "best_random": 0.5, "four_to_one": 4 / (4 + rest)}[strategy]
    return (first, *((1 - first) / rest,) * rest)


def response_probabilities(
    rewards: Float[Tensor, "B 1"],
    group: Int[Tensor, " B"],
    strategy: FiltrationStrategy,
    exponent: float = 2.0,
) -> Float[Tensor, " B"]:
    """Odds of every response among those to its prompt, in float64.

    They sum to 1 over the scored responses to a prompt; an unscored one has 0. Ties rank in their order.
    "power" goes by the number and not by its rank: odds as |signal|^power, which asks for a signal whose zero
    means "neither good nor bad"; all alike where all are 0.

    Source: Shen and Zhang 2024, PF-PPO (arXiv:2409.06957). Differs: ranks and odds are those of one prompt,
    also for "power", where its code takes the whole buffer.
    """
    x = rewards.double()
    out = torch.zeros_like(x[:, 0])
    for rows in rank_by_group(x, group):
        scored = rows[~x[rows, 0].isnan()]
        if not len(scored):
            continue
        if strategy == "power":
            size = x[scored, 0].abs() ** exponent
            out[scored] = size / size.sum() if size.any() else torch.full_like(size, 1 / len(scored))
        else:
            out[scored] = out.new_tensor(rank_probabilities(strategy, len(scored)))
    return out


@dataclass(frozen=True)
class ResampleByRank(CreditStep):
    """Learn from `num_samples` responses of each prompt, drawn with replacement by odds that go by rank.

    A reward model errs most where its reward is middling; what is drawn is what it can be trusted on. A
    response that was drawn twice stands in the batch twice. Before a baseline the drawn are compared with
    each other, after it with all: after it is the rule for baselines of the group, since the best and the
    worst alone are always +1 and -1. A prompt without a scored response is left out; when there is none with
    one, all rows stay.

    Reads: rewards (one score_column), group. Writes: the select. Reports: the share of responses that were drawn.

    Source: Shen and Zhang 2024, PF-PPO (arXiv:2409.06957). Differs: draws within each prompt, as the
    paper has it; its code draws from the whole buffer by weights that are made within the prompt.
    """

    strategy: FiltrationStrategy = "best_random"
    num_samples: int = 2
    exponent: float = 2.0
    """For odds "power"."""

    def __post_init__(self) -> None:
        if self.num_samples < 1 or self.exponent < 0:
            raise WiringError(
                f"ResampleByRank keeps {self.num_samples} responses of a prompt by the power {self.exponent}; "
                "it must keep at least 1, and the power must not be negative"
            )

    def apply_stateful(
        self, batch: Batch, state: State, rng: torch.Generator
    ) -> tuple[Batch, State, Metrics]:
        """Draw."""
        require_scalar(batch, "ResampleByRank")
        odds = response_probabilities(batch.rewards, batch.group, self.strategy, self.exponent).cpu()
        drawn = []
        for label in batch.group.unique():
            rows = (batch.group == label).nonzero().squeeze(-1).cpu()
            if odds[rows].any():
                picked = torch.multinomial(odds[rows], self.num_samples, replacement=True, generator=rng)
                drawn.append(rows[picked].sort().values)
        if not drawn:
            return batch, state, {}
        index = torch.cat(drawn)
        metrics = {"responses/resampled": index.unique().numel() / len(batch)}
        return batch.select(index.to(batch.input_ids.device)), state, metrics
