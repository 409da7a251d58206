"""A loss on ranked groups, and helpers for all losses on groups: response sums, best-worst pairs, weights."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from paretune.core.batch import Batch, Outputs, require_scalar
from paretune.core.reductions import group_std, group_sum, rank_by_group, row_mean
from paretune.loss.base import Loss

Reduction = Literal["sum", "mean"]
"""Reduction over the tokens of a response."""


def per_response(
    x: Float[Tensor, "B T"], response_mask: Bool[Tensor, "B T"], reduction: Reduction
) -> Float[Tensor, " B"]:
    """Sum or mean over the tokens of each response; 0 for a response that has none."""
    if reduction == "mean":
        return row_mean(x, response_mask)
    return torch.where(response_mask, x, 0.0).sum(-1)


def ranked_scored_rows(rewards: Float[Tensor, "B 1"], group: Int[Tensor, " B"]) -> list[Int[Tensor, " G"]]:
    """The scored rows of every group by descending reward, ties in row order; empty if nothing is scored."""
    return [rows[~rewards[rows, 0].isnan()] for rows in rank_by_group(rewards, group)]


class Pairs(NamedTuple):
    """At most one pair per group."""

    chosen: Int[Tensor, " P"]
    """Row of the better response."""
    rejected: Int[Tensor, " P"]
    """Row of the worse response."""
    missing: Bool[Tensor, " L"]
    """For each of all L groups: it has no pair."""


def best_worst_pairs(rewards: Float[Tensor, "B 1"], group: Int[Tensor, " B"]) -> Pairs:
    """The best and the worst scored response of every group, if they differ.

    Of equally good best ones the first row is taken, of equally bad worst ones the last. A group without two
    scored responses, or with rewards that are equal up to rounding (`reductions.ZERO_STD_RTOL`), has no pair:
    it is unknown which response is better, and the order of the rows must not decide it.
    """
    ranked = ranked_scored_rows(rewards, group)
    differs = group_std(rewards, group)[:, 0] > 0
    has_pair = [bool(differs[rows[:1]].any()) for rows in ranked]
    pairs = [rows[[0, -1]] for rows, paired in zip(ranked, has_pair, strict=True) if paired]
    ends = torch.stack(pairs) if pairs else group.new_zeros(0, 2, dtype=torch.long)
    return Pairs(ends[:, 0], ends[:, 1], torch.tensor([not paired for paired in has_pair], dtype=torch.bool))


def group_weight(batch: Batch) -> Float[Tensor, " B"]:
    """Weight of the group of each row: the sum of the weights of all its tokens.

    Under LossAggregation("seq_mean_token_mean") that is its share of the rows, whatever the lengths of its
    responses. A group without a pair or ranking keeps its weight in the denominator, so that the losses of
    micro-batches add up to that of the whole batch.
    """
    return group_sum(batch.require("loss_weights").sum(-1, keepdim=True), batch.group)[:, 0]


def to_zero_one(condition: Bool[Tensor, "*n"]) -> Float[Tensor, "*n"]:
    """1 where the condition holds and 0 elsewhere; the mean is a fraction."""
    return condition.to(torch.get_default_dtype())


def ranking_stage_losses(
    policy_scores: Float[Tensor, " G"], rewards: Float[Tensor, " G"]
) -> Float[Tensor, " S"]:
    """Loss of every stage of a ranking, S = G - 1: the k-th response against all worse ones.

        L_k = log(exp(tau_k s_k) + sum over i > k of exp((r_k - r_i) s_i)) - tau_k s_k
        tau_k = max over i > k of (r_k - r_i)

    With equal rewards every multiplier is 0: L_k is the log of the number of remaining responses, and its
    gradient is 0. The loss is invariant to a shift of all rewards, and to doubling the reward differences
    while halving the scores.

    Args:
        policy_scores: Log-probability of each response, the policy's ranking score; best reward first.
        rewards: Rewards of the responses, descending.

    Source: Song et al. 2023, PRO (arXiv:2306.17492). Differs: a log-sum-exp where the authors'
    code adds 1e-10 to a sum that may underflow.
    """
    difference = rewards[:, None] - rewards[None]
    tau = difference[:, -1]  # rewards are descending, so the last difference is the largest
    worse = torch.ones_like(difference, dtype=torch.bool).triu(1)
    exponent = torch.where(worse, difference * policy_scores[None], torch.diag(tau * policy_scores))
    exponent = exponent.masked_fill(worse.T, -torch.inf)
    return (torch.logsumexp(exponent, -1) - tau * policy_scores)[:-1]


@dataclass(frozen=True)
class PreferenceRanking(Loss):
    """Preference ranking: every response of a group against all worse ones, scaled by the reward difference.

    The policy's score of a response is the mean log-probability of its tokens; there is no reference. Groups
    may have any size; unscored responses are left out. The multipliers are differences of the rewards as they
    are, so their scale matters: rescale them to a few units. Only an additional likelihood of the best
    response (BestOfNSft) anchors the policy; published runs give it the coefficient 0.05 (G - 1)^2 and the
    sum over tokens.

    Reads: rewards, group, response_mask, loss_weights. Writes: nothing.
    Logs: the share of pairs that the policy ranks correctly, of ties, of groups without a ranking.

    Source: as `ranking_stage_losses`.
    """

    requires_full_groups: ClassVar[bool] = True

    def __call__(self, out: Outputs, batch: Batch) -> Float[Tensor, ""]:
        """The loss of these rows."""
        score, weight = per_response(out.logprobs, batch.response_mask, "mean"), group_weight(batch)
        rewards = require_scalar(batch, "PreferenceRanking")
        losses = [
            ranking_stage_losses(score[rows], rewards.to(score.dtype)[rows, 0]).sum() * weight[rows[0]]
            for rows in ranked_scored_rows(rewards, batch.group)
            if len(rows) > 1
        ]
        # The empty sum keeps the loss attached to the graph in a micro-batch without rankings.
        return torch.stack([score[:0].sum(), *losses]).sum()

    def group_metrics(self, out: Outputs, batch: Batch) -> Mapping[str, Float[Tensor, " _"]]:
        """Ranking accuracy, ties, and groups without a ranking."""
        score = per_response(out.logprobs.detach(), batch.response_mask, "mean")
        rewards = require_scalar(batch, "PreferenceRanking")
        ranked = ranked_scored_rows(rewards, batch.group)
        missing = torch.tensor([len(rows) < 2 for rows in ranked], dtype=torch.bool)
        # The empty slices give torch.cat a boolean tensor when there are no groups.
        ties, correct = [missing[:0]], [missing[:0]]
        for rows in ranked:
            better, worse = torch.triu_indices(len(rows), len(rows), 1)
            differs = rewards[rows[better], 0] > rewards[rows[worse], 0]
            correct.append((score[rows[better]] > score[rows[worse]])[differs])
            ties.append(rewards[rows[:-1], 0] == rewards[rows[-1:], 0])
        return {
            "ranking/missing": to_zero_one(missing),
            "ranking/ties": to_zero_one(torch.cat(ties)),
            "ranking/accuracy": to_zero_one(torch.cat(correct)),
        }
