"""Reward shaping: terminal reward, KL and length penalties, bounds, and rewards calibrated by confidence."""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from paretune.core.batch import Batch, require_scalar
from paretune.core.errors import WiringError
from paretune.core.kl import MAX_LOG_RATIO, k1, k2, k3
from paretune.credit.base import CreditStep, Metrics, State


def last_response_token_mask(response_mask: Bool[Tensor, "B T"]) -> Bool[Tensor, "B T"]:
    """True at the last response token of each row, False elsewhere."""
    return response_mask & (response_mask.flip(1).cumsum(1).flip(1) == 1)


@dataclass(frozen=True)
class TerminalReward(CreditStep):
    """Add the reward of the response to the token rewards, at its last token.

    An unscored row gets NaN there, which later steps turn into advantage 0.

    Reads: rewards, response_mask, token_rewards if there are any. Writes: token_rewards.

    Source: Ouyang et al. 2022, section 3.5 (arXiv:2203.02155). Differs: TRL and
    summarize_from_feedback_details pay one position after the last token.
    """

    def apply(self, batch: Batch) -> Batch:
        """Place the reward."""
        last = last_response_token_mask(batch.response_mask)[..., None]
        reward = torch.where(last, batch.rewards[:, None, :], 0.0)
        earlier = batch.token_rewards
        return batch.replace(token_rewards=reward if earlier is None else earlier + reward)


def kl_estimate(
    log_ratio: Float[Tensor, "*n"], kl_estimator: Literal["k1", "k2", "k3"] = "k1"
) -> Float[Tensor, "*n"]:
    """Estimate of KL(policy || reference) per sampled token, without gradient.

    Args:
        log_ratio: log p(policy) - log p(reference) of the sampled tokens; clamped to +-20.
        kl_estimator: Which estimator.

    Source: Schulman 2020, "Approximating KL divergence".
    """
    log_ratio = log_ratio.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    return {"k1": k1, "k2": k2, "k3": k3}[kl_estimator](log_ratio)


@dataclass(frozen=True)
class KlPenalty(CreditStep):
    """KL penalty in the reward.

        "token":    r_t = r_t - beta * k(log p_old(y_t) - log p_ref(y_t)),   for every objective
        "sequence": s   = s   - beta * sum over t of k_t

    k1 in the reward has the gradient of KL(policy || reference), and needs no KL term in the loss: use one or
    the other. "sequence" needs one reward; with "token" each critic head pays the whole penalty.

    Reads: old_logprobs, ref_logprobs, response_mask; token_rewards (0 if there are none) or rewards.
    Writes: token_rewards or rewards. Logs: the mean penalty of a response.

    Source: Ziegler et al. 2019, eq. 2 (arXiv:1909.08593); Ahmadian et al. 2024 (arXiv:2402.14740) for
    "sequence". Differs: log-ratios are clamped to +-20.
    """

    kl_coef: float
    kl_estimator: Literal["k1", "k2", "k3"] = "k1"
    level: Literal["token", "sequence"] = "token"

    def __post_init__(self) -> None:
        if self.kl_coef < 0:
            raise WiringError(f"kl_coef is {self.kl_coef}; it must not be negative")

    def apply_stateful(
        self, batch: Batch, state: State, rng: torch.Generator
    ) -> tuple[Batch, State, Metrics]:
        """Subtract the penalty."""
        log_ratio = batch.require("old_logprobs") - batch.require("ref_logprobs")
        penalty = torch.where(
            batch.response_mask, self.kl_coef * kl_estimate(log_ratio, self.kl_estimator), 0.0
        )
        metrics = {"penalty/kl": float(penalty.sum(-1).double().mean())}
        if self.level == "sequence":
            rewards = require_scalar(batch, "KlPenalty")
            return batch.replace(rewards=rewards - penalty.sum(-1, keepdim=True)), state, metrics
        earlier = batch.token_rewards
        if earlier is None:
            earlier = torch.zeros_like(penalty)[..., None].expand(-1, -1, batch.num_reward_columns)
        return batch.replace(token_rewards=earlier - penalty[..., None]), state, metrics


def soft_overlong_penalty(
    length: Int[Tensor, " B"],
    max_new_tokens: int,
    buffer_length: int,
    penalty_factor: float = 1.0,
    min_value: float = -1.0,
) -> Float[Tensor, " B"]:
    """Penalty of DAPO: factor * (max_new_tokens - buffer - length) / buffer, clamped to [min_value, 0].

    0 up to max_new_tokens - buffer tokens, then linear to -factor at `max_new_tokens`.

    Source: Yu et al. 2025, DAPO, eq. 13 (arXiv:2503.14476). Differs: verl has no minimum (-inf here).
    """
    line = (
        penalty_factor
        * (max_new_tokens - buffer_length - length.to(torch.get_default_dtype()))
        / buffer_length
    )
    return line.clamp(min=min_value, max=0.0)


@dataclass(frozen=True)
class OverlongPenalty(CreditStep):
    """Penalize responses near the length limit.

    The penalty grows linearly over the last `buffer_length` tokens, to `penalty_factor` at `max_new_tokens`.

    Reads: rewards, response_mask. Writes: rewards. Logs: the mean penalty of a response.

    Source: Yu et al. 2025, DAPO, eq. 13 (arXiv:2503.14476). Differs: `penalty_factor` is a choice; there it
    is 1.
    """

    max_new_tokens: int
    buffer_length: int
    penalty_factor: float = 1.0
    """In the units of the reward."""

    def __post_init__(self) -> None:
        if not 0 < self.buffer_length <= self.max_new_tokens or self.penalty_factor < 0:
            raise WiringError(
                f"OverlongPenalty has max_new_tokens {self.max_new_tokens}, buffer_length "
                f"{self.buffer_length} and "
                f"penalty_factor {self.penalty_factor}; the buffer must be in [1, max_new_tokens], the "
                "factor not "
                "negative"
            )

    def apply_stateful(
        self, batch: Batch, state: State, rng: torch.Generator
    ) -> tuple[Batch, State, Metrics]:
        """Subtract the penalty."""
        rewards = require_scalar(batch, "OverlongPenalty")
        penalty = soft_overlong_penalty(
            batch.response_mask.sum(-1),
            self.max_new_tokens,
            self.buffer_length,
            self.penalty_factor,
            -self.penalty_factor,
        )
        metrics = {"penalty/overlong": -float(penalty.double().mean())}
        return batch.replace(rewards=rewards + penalty.to(rewards)[:, None]), state, metrics


@dataclass(frozen=True)
class EosTrick(CreditStep):
    """A fixed reward for every truncated response, whatever its scores; unscored responses stay unscored.

    Reads: rewards, truncated. Writes: rewards (the whole row). Logs: nothing; the share of truncated
    responses is logged in any case.

    Source: Huang et al. 2024, the "EOS trick" (arXiv:2403.17031), where it is -1.
    """

    truncated_reward: float
    """In the units of the reward."""

    def apply(self, batch: Batch) -> Batch:
        """Replace the rewards of truncated rows."""
        truncated = batch.truncated[:, None] & ~batch.rewards.isnan()
        return batch.replace(rewards=torch.where(truncated, self.truncated_reward, batch.rewards))


CLIPPED_METRICS = {"rewards": "reward/clipped", "advantages": "advantages/clipped"}


@dataclass(frozen=True)
class ClipReward(CreditStep):
    """Clamp rewards or advantages to bounds. Within a group this can tie the best and the worst responses.

    Reads: rewards or advantages (`apply_to`). Writes: the same. Logs: the share of values that were clipped.

    Source: Zheng et al. 2023, PPO-max, section 5.3.1 (arXiv:2307.04964).
    """

    min_value: float
    max_value: float
    apply_to: Literal["rewards", "advantages"] = "rewards"

    def __post_init__(self) -> None:
        if not self.min_value < self.max_value:
            raise WiringError(
                f"clip bounds are {self.min_value} and {self.max_value}; the first must be the smaller"
            )

    def apply_stateful(
        self, batch: Batch, state: State, rng: torch.Generator
    ) -> tuple[Batch, State, Metrics]:
        """Clamp the field."""
        x = batch.require(self.apply_to)
        counted = ~x.isnan() if self.apply_to == "rewards" else batch.response_mask[..., None].expand_as(x)
        clipped = ((x < self.min_value) | (x > self.max_value))[counted]
        metrics = {CLIPPED_METRICS[self.apply_to]: float(clipped.double().mean())} if clipped.numel() else {}
        return batch.replace(**{self.apply_to: x.clamp(self.min_value, self.max_value)}), state, metrics


AdjustmentType = Literal["difference", "threshold", "spread"]


def confidence_adjustment(
    reward: Float[Tensor, "*n"],
    confidence: Float[Tensor, "*n"],
    baseline: Float[Tensor, ""],
    confidence_coef: float,
    adjustment_type: AdjustmentType = "difference",
) -> Float[Tensor, "*n"]:
    """The amount that a stated confidence adds to a reward; 0 at a confidence of 1/2.

        "difference"   w (r - baseline) (c - 1/2)
        "threshold"    w |r| (c - 1/2) where r >= baseline, the negative of it elsewhere
        "spread"       the same with r in place of |r|

    Args:
        reward: r, of any scale.
        confidence: c, in [0, 1].
        baseline: Separates good from bad responses, in the units of the reward.
        confidence_coef: w.
        adjustment_type: Which formula.

    Source: Leng et al. 2024, PPO-C (arXiv:2410.09724), and its code.
    """
    centered = confidence - 0.5
    if adjustment_type == "difference":
        return confidence_coef * (reward - baseline) * centered
    size = confidence_coef * (reward.abs() if adjustment_type == "threshold" else reward) * centered
    return torch.where(reward >= baseline, size, -size)


@dataclass(frozen=True)
class ConfidenceCalibratedReward(CreditStep):
    """PPO-C: raise the reward of confident good and unsure bad responses, lower it for the opposite.

    Good and bad are relative to a moving mean of rewards. The reward is first clamped to +-`reward_clip`,
    the moving mean is updated with this batch, and then the reward is compared with it. The stated confidence
    is one of the objectives: a score in [0, 1], NaN if a response states none. It needs no weight in the
    aggregator before this step; with a weight it pays twice. The other objectives should be scored on the
    response without its confidence statement (`without_confidence`). The adjusted reward is not clamped
    again; a ClipReward after this step does so, as the published code does.

    Reads: rewards (one column), scores of the confidence. Writes: rewards. State: the moving mean, NaN before
    the first reward. Logs: state/reward_level.

    Source: Leng et al. 2024, PPO-C (arXiv:2410.09724). Differs: the mean starts at that of the first batch,
    unless `initial_baseline` is given; an unscored reward stays NaN and does not enter the mean; a batch with
    too few rewards does not change the state.
    """

    confidence_objective: str = "confidence"
    """Name of the objective."""
    adjustment_type: AdjustmentType = "difference"
    """"spread" is the code's option to compare with the moving standard deviation of the rewards."""
    confidence_coef: float = 2.0
    ema_decay: float = 0.9
    """Weight of the old mean in each update."""
    initial_baseline: float | None = None
    """The mean before the first batch; the published code takes one stored with the reward model."""
    missing_confidence: Literal["unadjusted", "worst", "unscored"] = "unadjusted"
    """A response without a confidence is not adjusted, gets the lower of both extremes, or is unscored.

    If it is not adjusted, a policy whose responses are bad can avoid the penalty by not stating a confidence.
    """
    reward_clip: float = 10.0

    def __post_init__(self) -> None:
        if not 0 <= self.ema_decay < 1:
            raise WiringError(f"ema_decay is {self.ema_decay}; it must be in [0, 1)")
        if self.confidence_coef < 0 or not self.reward_clip > 0:
            raise WiringError(
                f"confidence_coef is {self.confidence_coef} and reward_clip {self.reward_clip}; the first "
                "must not "
                "be negative, the second must be above 0"
            )

    def init_state(self) -> Float[Tensor, ""]:
        """The mean before the first batch."""
        return torch.tensor(
            torch.nan if self.initial_baseline is None else self.initial_baseline, dtype=torch.float64
        )

    def update(self, state: Float[Tensor, ""], reward: Float[Tensor, "B 1"]) -> Float[Tensor, ""]:
        """The moving mean (for "spread": standard deviation) after one more batch."""
        known = reward[~reward.isnan()].double()
        old = state.to(known.device)
        if known.numel() < (2 if self.adjustment_type == "spread" else 1):
            return old
        new = known.std() if self.adjustment_type == "spread" else known.mean()
        return torch.where(old.isnan(), new, self.ema_decay * old + (1 - self.ema_decay) * new)

    def apply_stateful(
        self, batch: Batch, state: Float[Tensor, ""], rng: torch.Generator
    ) -> tuple[Batch, Float[Tensor, ""], Metrics]:
        """Update the moving mean, then adjust the rewards."""
        rewards = require_scalar(batch, "ConfidenceCalibratedReward")
        confidence = batch.score_column(self.confidence_objective)[:, None]
        if ((confidence < 0) | (confidence > 1)).any():
            raise WiringError(
                f'ConfidenceCalibratedReward reads the objective "{self.confidence_objective}" as confidence '
                "and "
                "got a score outside [0, 1]; fix: rescale it, or name the objective that is the confidence"
            )
        reward = rewards.clamp(-self.reward_clip, self.reward_clip)
        state = self.update(state, reward)
        # Without a baseline (too few rewards so far) no response can be called good or bad: no adjustment.
        baseline = state.nan_to_num(0.0).to(reward.dtype)
        coef = self.confidence_coef if not state.isnan() else 0.0
        adjustment = confidence_adjustment(
            reward, confidence.nan_to_num(0.5), baseline, coef, self.adjustment_type
        )
        if self.missing_confidence == "worst":
            extreme = confidence_adjustment(
                reward, torch.ones_like(reward), baseline, coef, self.adjustment_type
            )
            adjustment = torch.where(confidence.isnan(), -extreme.abs(), adjustment)
        if self.missing_confidence == "unscored":
            adjustment = torch.where(confidence.isnan(), torch.nan, adjustment)
        return batch.replace(rewards=reward + adjustment), state, {"state/reward_level": float(state)}
