"""Selection by rank: the best responses to each prompt stay.

Rows that teach nothing, or should not teach: drop them, or silence them.

Which responses of a prompt are learnt from, drawn by how they rank among each other.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from paretune.core.batch import Batch
from paretune.core.errors import WiringError
from paretune.core.reductions import group_std, rank_by_group
from paretune.credit.base import CreditStep, Metrics, State
from paretune.credit.normalization import RunningMoments, batch_moments, merge_moments
from paretune.credit.shaping import require_scalar


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
