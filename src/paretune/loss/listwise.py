"""What the losses on groups share: one number a response, who is compared with whom, what a group counts.

A loss on rankings: each response of a group against all the worse ones.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from paretune.core.batch import Batch, Outputs
from paretune.core.errors import WiringError
from paretune.core.reductions import group_std, group_sum, rank_by_group, row_mean
from paretune.loss.base import Loss

Reduction = Literal["sum", "mean"]
"""How the tokens of a response become one number."""


def per_response(
    x: Float[Tensor, "B T"], response_mask: Bool[Tensor, "B T"], reduction: Reduction
) -> Float[Tensor, " B"]:
    """Sum or mean over the tokens of each response; 0 for a response that has none."""
    if reduction == "mean":
        return row_mean(x, response_mask)
    return torch.where(response_mask, x, 0.0).sum(-1)


def scalar_rewards(batch: Batch) -> Float[Tensor, "B 1"]:
    """What the responses are worth, when that is one number each.

    Raises:
        WiringError: The signal is of several objectives.
    """
    if batch.rewards.shape[-1] != 1:
        raise WiringError(
            f"a loss compares responses by their signal, which is of {batch.rewards.shape[-1]} objectives and "
            "must be of 1: add an aggregator (WeightedSum) to the recipe's worth"
        )
    return batch.rewards


def ranked_scored_rows(rewards: Float[Tensor, "B 1"], group: Int[Tensor, " B"]) -> list[Int[Tensor, " G"]]:
    """The scored rows of every group, best first, ties in their order; empty where nothing is scored."""
    return [rows[~rewards[rows, 0].isnan()] for rows in rank_by_group(rewards, group)]


class Pairs(NamedTuple):
    """One pair for every group that has one."""

    chosen: Int[Tensor, " P"]
    """Row of the better response."""
    rejected: Int[Tensor, " P"]
    """Row of the worse response."""
    missing: Bool[Tensor, " L"]
    """Of each of all L groups: it has no pair."""


def best_worst_pairs(rewards: Float[Tensor, "B 1"], group: Int[Tensor, " B"]) -> Pairs:
    """The best and the worst scored response of every group, where they differ.

    Of equally good best ones the first row is taken, of equally bad worst ones the last. A group without two
    scored responses, or with signals that are all alike up to rounding (`reduce.FLAT`), has no pair: which
    of its responses is better is not known, and the order of the rows does not decide it.
    """
    lists = ranked_scored_rows(rewards, group)
    differ = group_std(rewards, group)[:, 0] > 0
    paired = [bool(differ[rows[:1]].any()) for rows in lists]
    both = [rows[[0, -1]] for rows, has in zip(lists, paired, strict=True) if has]
    ends = torch.stack(both) if both else group.new_zeros(0, 2, dtype=torch.long)
    return Pairs(ends[:, 0], ends[:, 1], torch.tensor([not has for has in paired], dtype=torch.bool))


def group_weight(batch: Batch) -> Float[Tensor, " B"]:
    """What the group of each row counts: the weights of all its tokens, added up.

    Under Weigh("sequence") that is its share of the rows, whatever the lengths of its responses. A group that
    teaches nothing keeps its share, so that the losses of micro-batches add up to that of the whole.
    """
    return group_sum(batch.require("loss_weights").sum(-1, keepdim=True), batch.group)[:, 0]


def indicator(x: Bool[Tensor, "*n"]) -> Float[Tensor, "*n"]:
    """0 and 1, of which the mean is a share."""
    return x.to(torch.get_default_dtype())


def ranking_stage_losses(
    policy_scores: Float[Tensor, " G"], rewards: Float[Tensor, " G"]
) -> Float[Tensor, " S"]:
    """Loss of every stage of a ranking, S = G - 1: the k-th response against all that are worse.

        L_k = log(exp(own_k s_k) + sum over i > k of exp((r_k - r_i) s_i)) - own_k s_k
        own_k = max over i > k of (r_k - r_i)

    Without a gap every multiplier is 0: L_k is the log of the number of responses left, and its gradient 0.
    Shifting all signals changes nothing; nor does twice the gaps at half the scores.

    Args:
        policy_scores: Log-probability of each response by which the policy ranks; best signal first.
        rewards: What the responses are worth, falling.

    Source: Song et al. 2023, PRO (arXiv:2306.17492). Differs: a log-sum-exp where the authors'
    code adds 1e-10 to a sum that may underflow.
    """
    gap = rewards[:, None] - rewards[None]
    own = gap[:, -1]
    beaten = torch.ones_like(gap, dtype=torch.bool).triu(1)
    power = torch.where(beaten, gap * policy_scores[None], torch.diag(own * policy_scores))
    power = power.masked_fill(beaten.T, -torch.inf)
    return (torch.logsumexp(power, -1) - own * policy_scores)[:-1]


@dataclass(frozen=True)
class PreferenceRanking(Loss):
    """Preference ranking: every response of a group against all worse ones, more so the wider the gap.

    The policy's score of a response is the mean log-probability of its tokens; there is no reference. Groups
    may have any size; responses without a score are left out. Multipliers are differences of the signal as it
    is, so its scale matters: bring it to a few units. Only a likelihood of the best response beside it
    (LikelihoodOfBest) anchors the policy; published runs give that 0.05 (G - 1)^2 and the sum over tokens.

    Reads: rewards, group, response_mask, loss_weights. Writes: nothing.
    Logs: the share of pairs the policy ranks rightly, of stages without a gap, of groups without a ranking.

    Source: as `ranking_stages`.
    """

    requires_full_groups: ClassVar[bool] = True

    def __call__(self, out: Outputs, batch: Batch) -> Float[Tensor, ""]:
        """The loss of these rows."""
        score, weight = per_response(out.logprobs, batch.response_mask, "mean"), group_weight(batch)
        signal = batch.rewards.to(score.dtype)
        each = [
            ranking_stage_losses(score[rows], signal[rows, 0]).sum() * weight[rows[0]]
            for rows in ranked_scored_rows(scalar_rewards(batch), batch.group)
            if len(rows) > 1
        ]
        # The empty sum, too, has to hang on the policy: another part of the batch may hold the rankings.
        return torch.stack([score[:0].sum(), *each]).sum()

    def group_metrics(self, out: Outputs, batch: Batch) -> Mapping[str, Float[Tensor, " _"]]:
        """How well the policy ranks, and how much there was to rank."""
        score = per_response(out.logprobs.detach(), batch.response_mask, "mean")
        lists = ranked_scored_rows(scalar_rewards(batch), batch.group)
        short = torch.tensor([len(rows) < 2 for rows in lists], dtype=torch.bool)
        flat, right = [short[:0]], [short[:0]]
        for rows in lists:
            better, worse = torch.triu_indices(len(rows), len(rows), 1)
            apart = batch.rewards[rows[better], 0] > batch.rewards[rows[worse], 0]
            right.append((score[rows[better]] > score[rows[worse]])[apart])
            flat.append(batch.rewards[rows[:-1], 0] == batch.rewards[rows[-1:], 0])
        return {
            "ranking/missing": indicator(short),
            "ranking/ties": indicator(torch.cat(flat)),
            "ranking/accuracy": indicator(torch.cat(right)),
        }
