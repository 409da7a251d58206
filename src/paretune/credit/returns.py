"""Advantages per token from token rewards: GAE, returns, and redistribution of the rewards before them."""

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
    """Generalized advantage estimation over the response tokens.

        A_t = d_t + gamma lam A_{t+1},    d_t = r_t + gamma V_{t+1} - V_t,    V after the last response
        token = 0

    lam = 1 is return minus value; lam = 0 is the one-step TD error. The successor of a response token is the
    next response token: tokens in between that the policy did not generate are skipped.

    Args:
        token_rewards: Reward for choosing input_ids[b, t], in the units of the reward.
        values: Value of the state in which input_ids[b, t] was chosen.
        response_mask: Tokens that the policy chose.
        gamma: Discount per token, in [0, 1].
        lam: Weight of later TD errors, in [0, 1].

    Returns:
        Advantages; 0 outside the response.

    Source: Schulman et al. 2016, eq. 16 (arXiv:1506.02438). Differs: responses never bootstrap past their
    end.
    """
    mask = response_mask[..., None]
    next_advantage = next_value = torch.zeros_like(values[:, 0])
    advantages = torch.zeros_like(values)
    for t in range(values.shape[1] - 1, -1, -1):
        td_error = token_rewards[:, t] + gamma * next_value - values[:, t]
        # Masked tokens hand both numbers on unchanged, so a gap in the mask costs no discount.
        next_advantage = torch.where(mask[:, t], td_error + gamma * lam * next_advantage, next_advantage)
        next_value = torch.where(mask[:, t], values[:, t], next_value)
        advantages[:, t] = torch.where(mask[:, t], next_advantage, 0.0)
    return advantages


@dataclass(frozen=True)
class Gae(CreditStep):
    """Advantages from a critic: generalized advantage estimation.

    An unscored response gets advantage 0 and its own values as returns: no gradient for policy or critic.

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
            WiringError: The number of critic heads is not the number of rewards.
        """
        rewards, values = batch.require("token_rewards"), batch.require("values")
        if rewards.shape != values.shape:
            raise WiringError(
                f"the token rewards are of {rewards.shape[-1]} objectives and the critic has "
                f"{values.shape[-1]} "
                "heads; fix: aggregate before TerminalReward, or give the critic a head for each"
            )
        advantages = _zero_unscored(gae(rewards, values, batch.response_mask, self.gamma, self.lam))
        return batch.replace(
            advantages=advantages, returns=(advantages + values) * batch.response_mask[..., None]
        )


@dataclass(frozen=True)
class ReturnToGo(CreditStep):
    """Advantage of each token: the discounted sum of all rewards from it on, without a critic.

        A_t = sum over s >= t of gamma^(s - t) r_s

    An unscored response gets 0.

    Reads: token_rewards, response_mask. Writes: advantages.

    Source: Hu et al. 2025, REINFORCE++ (arXiv:2501.03262), gamma = 1.
    """

    gamma: float = 1.0

    def __post_init__(self) -> None:
        _check_unit_interval(gamma=self.gamma)

    def apply(self, batch: Batch) -> Batch:
        """Sum the rewards from each token on."""
        rewards = batch.require("token_rewards")
        # GAE with values 0 and lam 1 is the discounted return.
        returns = gae(rewards, torch.zeros_like(rewards), batch.response_mask, self.gamma, 1.0)
        return batch.replace(advantages=_zero_unscored(returns))


def _zero_unscored(advantages: Float[Tensor, "B T H"]) -> Float[Tensor, "B T H"]:
    """0 for every head and row with an unscored (NaN) reward."""
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
    """The sum of the rewards of every segment, at its last token; 0 elsewhere.

    A segment ends where `segment_ends` is true, and at the last response token.
    """
    segment_ends = (segment_ends & response_mask) | last_response_token_mask(response_mask)
    # The segment of a token is the number of ends before it; tokens after the last end are clamped into
    # range.
    segment = (
        (segment_ends.cumsum(1) - segment_ends.long())[..., None]
        .expand_as(token_rewards)
        .clamp(max=token_rewards.shape[1] - 1)
    )
    sums = torch.zeros_like(token_rewards).scatter_add(
        1, segment, torch.where(response_mask[..., None], token_rewards, 0.0)
    )
    return torch.where(segment_ends[..., None], sums.gather(1, segment), 0.0)


@dataclass(frozen=True)
class RedistributeTokenRewards(CreditStep):
    """Move the token rewards collected so far to other tokens of the response.

        "sentence"   the sum of a sentence at the token that ends it
        "end"        the sum of the response at its last token
        "shaping"    unchanged, and their sum is subtracted at the last response token, so that they assign
                     credit to tokens without changing the return of the response

    Put it before the steps that add rewards of the whole response, `TerminalReward` and `KlPenalty`.

    Reads: token_rewards, response_mask, input_ids. Writes: token_rewards.

    Source: Zhong et al. 2024, RTO (arXiv:2404.18922): its ablations Semi-RTO, DDPO and RS-PPO.
    """

    mode: Literal["sentence", "end", "shaping"]
    sentence_end_ids: tuple[int, ...] = ()
    """Token ids that end a sentence; for mode "sentence" only."""

    def __post_init__(self) -> None:
        if (self.mode == "sentence") != bool(self.sentence_end_ids):
            raise WiringError(
                f'RedistributeTokenRewards has mode "{self.mode}" and {len(self.sentence_end_ids)} '
                "sentence_end_ids; "
                'fix: give sentence_end_ids with mode "sentence", and with no other'
            )

    def apply(self, batch: Batch) -> Batch:
        """Move the rewards."""
        rewards = torch.where(batch.response_mask[..., None], batch.require("token_rewards"), 0.0)
        if self.mode == "shaping":
            last = last_response_token_mask(batch.response_mask)[..., None]
            return batch.replace(
                token_rewards=torch.where(last, rewards - rewards.sum(1, keepdim=True), rewards)
            )
        ends = torch.isin(batch.input_ids, batch.input_ids.new_tensor(self.sentence_end_ids))
        return batch.replace(token_rewards=sum_at_segment_ends(rewards, batch.response_mask, ends))
