"""Where on a response the rewards of its tokens are paid."""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from paretune.batch import Batch
from paretune.credit.penalty import last_response_token
from paretune.credit.step import Step
from paretune.errors import WiringError


def gathered(
    reward: Float[Tensor, "B T H"], respond: Bool[Tensor, "B T"], ends: Bool[Tensor, "B T"]
) -> Float[Tensor, "B T H"]:
    """What the tokens of every stretch earn together, paid at the stretch's end; 0 elsewhere.

    A stretch ends where `ends` says and at the last response token.
    """
    ends = (ends & respond) | last_response_token(respond)
    # A token belongs to the stretch of the first end that is not before it.
    stretch = (ends.cumsum(1) - ends.long())[..., None].expand_as(reward).clamp(max=reward.shape[1] - 1)
    sums = torch.zeros_like(reward).scatter_add(1, stretch, torch.where(respond[..., None], reward, 0.0))
    return torch.where(ends[..., None], sums.gather(1, stretch), 0.0)


@dataclass(frozen=True)
class PlaceTokenReward(Step):
    """Move the rewards that tokens have earned up to now; the place is what makes them worth having.

        "sentence"   all of a sentence at the token that ends it
        "end"        all at the last response token: credit for the whole response
        "shaping"    where they are, and their sum is taken back at the last response token, so that they
                     say where credit belongs and change nobody's return

    Put it before the parts that pay for the whole response, `EndReward` and `KlPenalty`.

    Reads: token_reward, respond, tokens. Writes: token_reward.

    Source: Zhong et al. 2024, RTO (arXiv:2404.18922): its ablations Semi-RTO, DDPO and RS-PPO.
    """

    form: Literal["sentence", "end", "shaping"]
    ends: tuple[int, ...] = ()
    """Ids of the tokens that end a sentence."""

    def __post_init__(self) -> None:
        if (self.form == "sentence") != bool(self.ends):
            raise WiringError(
                f'PlaceTokenReward has the form "{self.form}" and {len(self.ends)} ends of sentences; '
                'fix: give ends with the form "sentence", and with no other'
            )

    def apply(self, batch: Batch) -> Batch:
        """Move."""
        reward = torch.where(batch.respond[..., None], batch.need("token_reward"), 0.0)
        if self.form == "shaping":
            last = last_response_token(batch.respond)[..., None]
            return batch.set(token_reward=torch.where(last, reward - reward.sum(1, keepdim=True), reward))
        ends = torch.isin(batch.tokens, batch.tokens.new_tensor(self.ends))
        return batch.set(token_reward=gathered(reward, batch.respond, ends))
