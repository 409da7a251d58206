"""Selection of responses: best of n, zero-variance groups, truncated responses, resampling by rank."""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from paretune.core.batch import Batch, require_scalar
from paretune.core.errors import WiringError
from paretune.core.reductions import group_std, rank_by_group
from paretune.credit.base import CreditStep, Metrics, State
from paretune.credit.normalization import RunningMoments, batch_moments, merge_moments


def top_k_rows(
    rewards: Float[Tensor, "B 1"], group: Int[Tensor, " B"], eligible: Bool[Tensor, " B"], k: int
) -> Int[Tensor, " N"]:
    """The rows of the `k` largest rewards of each group, best first; ties keep their order.

    Unscored or not `eligible` rows are excluded first, so a group may keep fewer than `k`, or none.
    """
    eligible = eligible & ~rewards[:, 0].isnan()
    kept = [rows[eligible[rows]][:k] for rows in rank_by_group(rewards, group)]
    return torch.cat([group.new_zeros(0), *kept])


@dataclass(frozen=True)
class BestOfN(CreditStep):
    """Keep the `k` best responses to each prompt, for a supervised loss on them (rejection sampling).

    Unscored and empty responses cannot be kept; a prompt that has no others is left out. If nothing at all
    would be left, all rows stay. Rows keep their order.

    Reads: rewards, group, response_mask. Writes: removes rows. Logs: the share of responses kept.

    Source: Mukobi et al. 2023, SuperHF (arXiv:2310.16763); Dong et al. 2023, RAFT (arXiv:2304.06767).
    """

    k: int = 1

    def __post_init__(self) -> None:
        if self.k < 1:
            raise WiringError(f"BestOfN keeps {self.k} responses per prompt; it must keep at least 1")

    def apply_stateful(
        self, batch: Batch, state: State, rng: torch.Generator
    ) -> tuple[Batch, State, Metrics]:
        """Remove all but the best rows.

        Raises:
            WiringError: `rewards` has several columns.
        """
        rewards = require_scalar(batch, "BestOfN")
        best = top_k_rows(rewards, batch.group, batch.response_mask.any(-1), self.k)
        kept = batch.select(best.sort().values) if len(best) else batch
        return kept, state, {"responses/kept": len(kept) / max(len(batch), 1)}


@dataclass(frozen=True)
class DropZeroVarianceGroups(CreditStep):
    """Drop the prompts whose responses all have about the same reward.

    A group is dropped if its standard deviation is at most `min_relative_std` times that of all rewards so
    far, in every column. Exact equality, the usual test, never holds for scores of a regression model. If no
    group would be left, all stay. Dropped groups are not replaced by new ones, so the batch gets smaller, and
    the denominators of the loss with it.

    Reads: rewards, group. Writes: removes rows. State: RunningMoments of the rewards. Logs: the share of
    groups kept.

    Source: Yu et al. 2025, DAPO, eq. 11 (arXiv:2503.14476), dynamic sampling. Differs: a relative threshold;
    no resampling.
    """

    min_relative_std: float = 0.0

    def __post_init__(self) -> None:
        if self.min_relative_std < 0:
            raise WiringError(f"min_relative_std is {self.min_relative_std}; it must not be negative")

    def init_state(self) -> RunningMoments:
        """No rewards yet."""
        zero = torch.zeros((), dtype=torch.float64)
        return RunningMoments(zero, zero, zero)

    def apply_stateful(
        self, batch: Batch, state: RunningMoments, rng: torch.Generator
    ) -> tuple[Batch, RunningMoments, Metrics]:
        """Update the moments, then drop groups."""
        x = batch.rewards.double()
        old = RunningMoments(*(v.to(x.device) for v in (state.count, state.mean, state.var)))
        state = merge_moments(old, batch_moments(x, "population"))
        std = group_std(batch.rewards, batch.group).double()
        keep = ((std > 0) & (std > self.min_relative_std * state.var.sqrt())).any(-1)
        fraction = batch.group[keep].unique().numel() / max(batch.group.unique().numel(), 1)
        kept = batch.select(keep.nonzero().squeeze(-1)) if keep.any() else batch
        return kept, state, {"groups/kept": fraction}


@dataclass(frozen=True)
class MaskTruncated(CreditStep):
    """Overlong filtering: truncated responses get advantage 0, and still count in their group's baseline.

    Reads: truncated, advantages, response_mask. Writes: advantages, response_mask.

    Source: Yu et al. 2025, DAPO, overlong filtering, section 3.4 (arXiv:2503.14476); `drop_tokens` as
    `mask_truncated_completions` of TRL 1.16. Differs: without it their tokens stay in the denominator of the
    loss.
    """

    drop_tokens: bool = False
    """Truncated responses have no loss at all, KL penalty included, and do not count in the number of tokens;
    they still count in the number of responses."""

    def apply(self, batch: Batch) -> Batch:
        """Set the advantages of truncated rows to 0."""
        advantages = torch.where(batch.truncated[:, None, None], 0.0, batch.require("advantages"))
        if not self.drop_tokens:
            return batch.replace(advantages=advantages)
        return batch.replace(
            advantages=advantages, response_mask=batch.response_mask & ~batch.truncated[:, None]
        )


RankFiltrationStrategy = Literal["best_of_n", "best_random", "best_worst", "four_to_one"]
FiltrationStrategy = RankFiltrationStrategy | Literal["power"]


def rank_probabilities(strategy: RankFiltrationStrategy, num_responses: int) -> tuple[float, ...]:
    """Sampling probability of every rank among `num_responses` responses, the best first; they sum to 1.

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
    """Sampling probability of every response among those to its prompt, in float64.

    They sum to 1 over the scored responses to a prompt; an unscored one has 0. Ties rank in row order.
    "power" uses the reward instead of its rank: probabilities proportional to |reward|^exponent, which needs
    a reward whose zero means "neither good nor bad"; uniform where all rewards are 0.

    Source: Shen and Zhang 2024, PF-PPO (arXiv:2409.06957). Differs: ranks and probabilities are those of one
    prompt, also for "power", where its code takes the whole buffer.
    """
    x = rewards.double()
    probabilities = torch.zeros_like(x[:, 0])
    for rows in rank_by_group(x, group):
        scored = rows[~x[rows, 0].isnan()]
        if not len(scored):
            continue
        if strategy == "power":
            size = x[scored, 0].abs() ** exponent
            probabilities[scored] = (
                size / size.sum() if size.any() else torch.full_like(size, 1 / len(scored))
            )
        else:
            probabilities[scored] = probabilities.new_tensor(rank_probabilities(strategy, len(scored)))
    return probabilities


@dataclass(frozen=True)
class ResampleByRank(CreditStep):
    """Policy filtration: train on `num_samples` responses per prompt, sampled with replacement by their rank.

    A reward model is least reliable for middling rewards, so responses are sampled where it can be trusted. A
    response that is sampled twice is in the batch twice. Before a baseline, the sampled responses are
    compared with each other; after it, with all responses. For group baselines put it after, since the best
    and the worst alone always have advantages +1 and -1. A prompt without a scored response is left out; if
    no prompt has one, all rows stay.

    Reads: rewards (one column), group. Writes: selects rows. Logs: the share of responses that were sampled.

    Source: Shen and Zhang 2024, PF-PPO (arXiv:2409.06957). Differs: samples within each prompt, as in the
    paper; its code samples from the whole buffer by weights that are made within the prompt.
    """

    strategy: FiltrationStrategy = "best_random"
    num_samples: int = 2
    exponent: float = 2.0
    """For the strategy "power"."""

    def __post_init__(self) -> None:
        if self.num_samples < 1 or self.exponent < 0:
            raise WiringError(
                f"ResampleByRank has num_samples {self.num_samples} and exponent {self.exponent}; "
                "the first must be at least 1, the second not negative"
            )

    def apply_stateful(
        self, batch: Batch, state: State, rng: torch.Generator
    ) -> tuple[Batch, State, Metrics]:
        """Sample rows."""
        rewards = require_scalar(batch, "ResampleByRank")
        # On the CPU, where `rng` is, so that every device draws the same rows.
        probabilities = response_probabilities(rewards, batch.group, self.strategy, self.exponent).cpu()
        selected = []
        for label in batch.group.unique():
            rows = (batch.group == label).nonzero().squeeze(-1).cpu()
            if probabilities[rows].any():
                picks = torch.multinomial(
                    probabilities[rows], self.num_samples, replacement=True, generator=rng
                )
                selected.append(rows[picks].sort().values)
        if not selected:
            return batch, state, {}
        index = torch.cat(selected)
        metrics = {"responses/resampled": index.unique().numel() / len(batch)}
        return batch.select(index.to(batch.input_ids.device)), state, metrics
