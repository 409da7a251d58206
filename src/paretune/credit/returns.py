"""Advantages token by token: from rewards on tokens, with or without a critic.

Where on a response the rewards of its tokens are paid.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from paretune.core.batch import Batch
from paretune.core.errors import WiringError
from paretune.credit.base import CreditStep
from paretune.credit.shaping import last_response_token_mask


def gae(
    token_rewards: Float[Tensor, "B T H"],
    values: Float[Tensor, "B T H"],
    response_mask: Bool[Tensor, "B T"],
    gamma: float,
    lam: float,
) -> Float[Tensor, "B T H"]:
    """Generalised advantage estimates over the response tokens.

        A_t = d_t + gamma lam A_{t+1},    d_t = r_t + gamma V_{t+1} - V_t,    V after the last response
        token = 0

    lam = 1 is return minus value; lam = 0 is the one-step error. What follows a response token is the next
    response token: those in between that the policy did not write are passed over.

    Args:
        token_rewards: Received for choosing tokens[b, t], in the units of the signal.
        values: Value of the state in which tokens[b, t] was chosen.
        response_mask: Which tokens the policy chose.
        gamma: Discount per token, in [0, 1].
        lam: Weight of later errors, in [0, 1].

    Returns:
        Advantages; 0 outside the response.

    Source: Schulman et al. 2016, eq. 16 (arXiv:1506.02438). Differs: responses never bootstrap past their
    end.
    """
    mask = response_mask[..., None]
    running = following = torch.zeros_like(values[:, 0])
    out = torch.zeros_like(values)
    for t in range(values.shape[1] - 1, -1, -1):
        error = token_rewards[:, t] + gamma * following - values[:, t]
        running = torch.where(mask[:, t], error + gamma * lam * running, running)
        following = torch.where(mask[:, t], values[:, t], following)
        out[:, t] = torch.where(mask[:, t], running, 0.0)
    return out


@dataclass(frozen=True)
class Gae(CreditStep):
    """Advantages by a critic: generalised advantage estimation.

    An unscored response gets advantage 0 and its own values as returns: it teaches neither policy nor critic.

    Reads: token_rewards, values, response_mask. Writes: advantages, returns.

    Source: Schulman et al. 2016, eq. 16 (arXiv:1506.02438). Differs: responses never bootstrap past their
    end.
    """

    gamma: float = 1.0
    lam: float = 0.95

    def __post_init__(self) -> None:
        _check_unit_interval(gamma=self.gamma, lam=self.lam)

    def apply(self, batch: Batch) -> Batch:
        """Estimate advantages and returns.

        Raises:
            WiringError: The critic has another number of heads than there are rewards.
        """
        reward, values = batch.require("token_rewards"), batch.require("values")
        if reward.shape != values.shape:
            raise WiringError(
                f"the rewards are of {reward.shape[-1]} objectives and the critic has {values.shape[-1]} "
                "heads: aggregate before EndReward, or give the critic a head for each"
            )
        advantages = _zero_unscored(gae(reward, values, batch.response_mask, self.gamma, self.lam))
        return batch.replace(
            advantages=advantages, returns=(advantages + values) * batch.response_mask[..., None]
        )


@dataclass(frozen=True)
class ReturnToGo(CreditStep):
    """Credit each token with all rewards from it on, without a critic.

        A_t = sum over s >= t of gamma^(s - t) r_s

    An unscored response gets 0.

    Reads: token_rewards, response_mask. Writes: advantages.

    Source: Hu et al. 2025, REINFORCE++ (arXiv:2501.03262), gamma = 1.
    """

    gamma: float = 1.0

    def __post_init__(self) -> None:
        _check_unit_interval(gamma=self.gamma)

    def apply(self, batch: Batch) -> Batch:
        """Add up what is still to come."""
        reward = batch.require("token_rewards")
        return batch.replace(
            advantages=_zero_unscored(
                gae(reward, torch.zeros_like(reward), batch.response_mask, self.gamma, 1.0)
            )
        )


def _zero_unscored(advantages: Float[Tensor, "B T H"]) -> Float[Tensor, "B T H"]:
    """0 for every head and row whose reward nobody could say."""
    return torch.where(advantages.isnan().any(1, keepdim=True), 0.0, advantages)


def _check_unit_interval(**values: float) -> None:
    for name, value in values.items():
        if not 0 <= value <= 1:
            raise WiringError(f"{name} is {value}; it must be in [0, 1]")


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
