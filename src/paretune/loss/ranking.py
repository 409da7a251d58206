"""A loss on rankings: each response of a group against all the worse ones."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from paretune.batch import Batch, Outputs
from paretune.loss.group import group_weight, indicator, per_response, ranked_scored_rows, scalar_rewards
from paretune.loss.term import Loss


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
