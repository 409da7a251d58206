"""Where on a response the rewards of its tokens are paid."""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from paretune.batch import Batch
from paretune.credit.penalty import last_response_token_mask
from paretune.credit.step import CreditStep
from paretune.errors import WiringError


def sum_at_segment_ends(
    token_rewards: Float[Tensor, "B T H"],
    response_mask: Bool[Tensor, "B T"],
    segment_ends: Bool[Tensor, "B T"],
) -> Float[Tensor, "B T H"]:
    """What the tokens of every stretch earn together, paid at the stretch's end; 0 elsewhere.

    A stretch ends where `segment_ends` says and at the last response token.
    """
    segment_ends = (segment_ends & response_mask) | last_response_token_mask(response_mask)
    # A token belongs to the stretch of the first end that is not before it.
    stretch = (
        (segment_ends.cumsum(1) - segment_ends.long())[..., None]
        .expand_as(token_rewards)
        .clamp(max=token_rewards.shape[1] - 1)
    )
    sums = torch.zeros_like(token_rewards).scatter_add(
        1, stretch, torch.where(response_mask[..., None], token_rewards, 0.0)
    )
    return torch.where(segment_ends[..., None], sums.gather(1, stretch), 0.0)


@dataclass(frozen=True)
class RedistributeTokenRewards(CreditStep):
    """Move the rewards that tokens have earned up to now; the place is what makes them worth having.

        "sentence"   all of a sentence at the token that ends it
        "end"        all at the last response token: credit for the whole response
        "shaping"    where they are, and their sum is taken back at the last response token, so that they
                     say where credit belongs and change nobody's return

    Put it before the parts that pay for the whole response, `EndReward` and `KlPenalty`.

    Reads: token_rewards, response_mask, input_ids. Writes: token_rewards.

    Source: Zhong et al. 2024, RTO (arXiv:2404.18922): its ablations Semi-RTO, DDPO and RS-PPO.
    """

    mode: Literal["sentence", "end", "shaping"]
    sentence_end_ids: tuple[int, ...] = ()
    """Ids of the tokens that end a sentence."""

    def __post_init__(self) -> None:
        if (self.mode == "sentence") != bool(self.sentence_end_ids):
            raise WiringError(
                f'PlaceTokenReward has the form "{self.mode}" and {len(self.sentence_end_ids)} ends of sentences; '
                'fix: give ends with the form "sentence", and with no other'
            )

    def apply(self, batch: Batch) -> Batch:
        """Move."""
        reward = torch.where(batch.response_mask[..., None], batch.require("token_rewards"), 0.0)
        if self.mode == "shaping":
            last = last_response_token_mask(batch.response_mask)[..., None]
            return batch.replace(
                token_rewards=torch.where(last, reward - reward.sum(1, keepdim=True), reward)
            )
        ends = torch.isin(batch.input_ids, batch.input_ids.new_tensor(self.sentence_end_ids))
        return batch.replace(token_rewards=sum_at_segment_ends(reward, batch.response_mask, ends))
