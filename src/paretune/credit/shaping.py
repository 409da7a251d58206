"""What a response pays beside its score, where on its tokens it is paid, and how much at most.

What a response claims of itself is held against what it is worth.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from paretune.core.batch import Batch
from paretune.core.errors import WiringError
from paretune.core.kl import MAX_LOG_RATIO, k1, k2, k3
from paretune.credit.base import CreditStep, Metrics, State


def last_response_token_mask(response_mask: Bool[Tensor, "B T"]) -> Bool[Tensor, "B T"]:
    """True at the last response token of each row, and nowhere else."""
    return response_mask & (response_mask.flip(1).cumsum(1).flip(1) == 1)


@dataclass(frozen=True)
class TerminalReward(CreditStep):
    """Pay the whole signal at the last response token.

    Adds to the rewards that are there. An unscored row gets NaN there, so that later steps know.

    Reads: rewards, response_mask, token_rewards where there is one. Writes: token_rewards.

    Source: Ouyang et al. 2022, section 3.5 (arXiv:2203.02155). Differs: TRL and
    summarize_from_feedback_details pay one place after the last token.
    """

    def apply(self, batch: Batch) -> Batch:
        """Place the signal."""
        end = last_response_token_mask(batch.response_mask)[..., None]
        reward = torch.where(end, batch.rewards[:, None, :], 0.0)
        before = batch.token_rewards
        return batch.replace(token_rewards=reward if before is None else before + reward)


def kl_estimate(
    log_ratio: Float[Tensor, "*n"], kl_estimator: Literal["k1", "k2", "k3"] = "k1"
) -> Float[Tensor, "*n"]:
    """KL(policy || reference) from `log_ratio` = log p(policy) - log p(reference) of sampled tokens, as a number.

    Source: Schulman 2020, "Approximating KL divergence".
    """
    log_ratio = log_ratio.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    return {"k1": k1, "k2": k2, "k3": k3}[kl_estimator](log_ratio)


@dataclass(frozen=True)
class KlPenalty(CreditStep):
    """The price of leaving the reference, paid in the reward.

        "tokens":    r_t = r_t - beta * k(log p_old(y_t) - log p_ref(y_t)),   for every objective
        "response":  s   = s   - beta * sum over t of k_t

    k1 in the reward has the gradient of KL(policy || reference), and needs no term in the loss: have one or
    the other. "response" needs one signal; in "tokens" each head pays the whole price.

    Reads: old_logprobs, ref_logprobs, response_mask; token_rewards (zero where nobody wrote one) or rewards.
    Writes: token_rewards or rewards. Reports: the mean price of a response.

    Source: Ziegler et al. 2019, eq. 2 (arXiv:1909.08593); Ahmadian et al. 2024 (arXiv:2402.14740) for
    "response". Differs: log-ratios are cut to +-20.
    """

    kl_coef: float
    kl_estimator: Literal["k1", "k2", "k3"] = "k1"
    level: Literal["tokens", "response"] = "tokens"

    def __post_init__(self) -> None:
        if self.kl_coef < 0:
            raise WiringError(f"the price of divergence is {self.kl_coef}; it must not be negative")

    def apply_stateful(
        self, batch: Batch, state: State, rng: torch.Generator
    ) -> tuple[Batch, State, Metrics]:
        """Charge the price."""
        gap = batch.require("old_logprobs") - batch.require("ref_logprobs")
        price = torch.where(batch.response_mask, self.kl_coef * kl_estimate(gap, self.kl_estimator), 0.0)
        metrics = {"penalty/kl": float(price.sum(-1).double().mean())}
        if self.level == "response":
            require_scalar(batch, "KlPenalty")
            return batch.replace(rewards=batch.rewards - price.sum(-1, keepdim=True)), state, metrics
        before = batch.token_rewards
        if before is None:
            before = torch.zeros_like(price)[..., None].expand(-1, -1, batch.rewards.shape[-1])
        return batch.replace(token_rewards=before - price[..., None]), state, metrics


def soft_overlong_penalty(
    length: Int[Tensor, " B"],
    max_new_tokens: int,
    buffer_length: int,
    penalty_factor: float = 1.0,
    min_value: float = -1.0,
) -> Float[Tensor, " B"]:
    """A price: factor * (longest - buffer - length) / buffer, not above 0 and not below `min_value`.

    0 up to longest - buffer tokens, then a straight line to -factor at `max_new_tokens`.

    Source: Yu et al. 2025, DAPO, eq. 13 (arXiv:2503.14476). Differs: verl has no least value (-inf here).
    """
    line = (
        penalty_factor
        * (max_new_tokens - buffer_length - length.to(torch.get_default_dtype()))
        / buffer_length
    )
    return line.clamp(min=min_value, max=0.0)


@dataclass(frozen=True)
class OverlongPenalty(CreditStep):
    """A response pays for the last tokens before the length limit, the more the longer it is.

    The penalty grows in a straight line over the last `buffer_length` tokens, to `penalty_factor` at `max_new_tokens` and beyond.

    Reads: rewards, response_mask. Writes: rewards. Reports: the mean penalty of a response.

    Source: Yu et al. 2025, DAPO, eq. 13 (arXiv:2503.14476). Differs: `penalty_factor` is a choice; there it is 1.
    """

    max_new_tokens: int
    buffer_length: int
    penalty_factor: float = 1.0
    """In the units of the signal."""

    def __post_init__(self) -> None:
        if not 0 < self.buffer_length <= self.max_new_tokens or self.penalty_factor < 0:
            raise WiringError(
                f"the overlong penalty has longest {self.max_new_tokens}, buffer {self.buffer_length} and factor "
                f"{self.penalty_factor}; the buffer must be in [1, longest], the factor not negative"
            )

    def apply_stateful(
        self, batch: Batch, state: State, rng: torch.Generator
    ) -> tuple[Batch, State, Metrics]:
        """Charge the penalty."""
        require_scalar(batch, "OverlongPenalty")
        price = soft_overlong_penalty(
            batch.response_mask.sum(-1),
            self.max_new_tokens,
            self.buffer_length,
            self.penalty_factor,
            -self.penalty_factor,
        )
        signal = batch.rewards + price.to(batch.rewards)[:, None]
        return batch.replace(rewards=signal), state, {"penalty/overlong": -float(price.double().mean())}


@dataclass(frozen=True)
class EosTrick(CreditStep):
    """A response that ran into the length limit has this worth, whatever it scored; unscored ones stay so.

    Reads: rewards, truncated. Writes: rewards (the whole row). Reports: nothing; `truncated` is logged anyway.

    Source: Huang et al. 2024, the "EOS trick" (arXiv:2403.17031), where it is -1.
    """

    truncated_reward: float
    """In the units of the signal."""

    def apply(self, batch: Batch) -> Batch:
        """Replace the signal of truncated rows."""
        cut = batch.truncated[:, None] & ~batch.rewards.isnan()
        return batch.replace(rewards=torch.where(cut, self.truncated_reward, batch.rewards))


@dataclass(frozen=True)
class ClipReward(CreditStep):
    """Cut what lies beyond the bounds. In a group it makes ties of the best and of the worst.

    Reads: rewards or advantages (`apply_to`). Writes: the same. Reports: the share of numbers that were cut.

    Source: Zheng et al. 2023, PPO-max, section 5.3.1 (arXiv:2307.04964).
    """

    min_value: float
    max_value: float
    apply_to: Literal["signal", "advantages"] = "signal"

    def __post_init__(self) -> None:
        if not self.min_value < self.max_value:
            raise WiringError(
                f"clip bounds are {self.min_value} and {self.max_value}; the first must be the smaller"
            )

    def apply_stateful(
        self, batch: Batch, state: State, rng: torch.Generator
    ) -> tuple[Batch, State, Metrics]:
        """Cut."""
        x = batch.require(self.apply_to)
        counted = ~x.isnan() if self.apply_to == "signal" else batch.response_mask[..., None].expand_as(x)
        cut = ((x < self.min_value) | (x > self.max_value))[counted]
        metrics = {f"{self.apply_to}/cut": float(cut.double().mean())} if cut.numel() else {}
        return batch.replace(**{self.apply_to: x.clamp(self.min_value, self.max_value)}), state, metrics


def require_scalar(batch: Batch, step_name: str) -> None:
    """Refuse a signal whose objectives are still apart.

    Raises:
        WiringError: There is more than one column.
    """
    if batch.rewards.shape[-1] != 1:
        raise WiringError(
            f"{step_name} needs one signal and got {batch.rewards.shape[-1]} objectives: "
            "put it after an aggregator (WeightedSum)"
        )


AdjustmentType = Literal["difference", "threshold", "spread"]


def confidence_adjustment(
    reward: Float[Tensor, "*n"],
    confidence: Float[Tensor, "*n"],
    baseline: Float[Tensor, ""],
    confidence_coef: float,
    adjustment_type: AdjustmentType = "difference",
) -> Float[Tensor, "*n"]:
    """What a stated confidence adds to a reward; 0 at a confidence of 1/2.

        "difference"   w (r - level) (c - 1/2)
        "threshold"    w |r| (c - 1/2) where r >= level, the negative of it elsewhere
        "spread"       the same with r in place of |r|

    Args:
        reward: r, of any scale.
        confidence: c, in [0, 1].
        baseline: What divides good from bad, in the units of the reward.
        confidence_coef: How much confidence matters.
        adjustment_type: Which of the three.

    Source: Leng et al. 2024, PPO-C (arXiv:2410.09724), and its code.
    """
    sure = confidence - 0.5
    if adjustment_type == "difference":
        return confidence_coef * (reward - baseline) * sure
    size = confidence_coef * (reward.abs() if adjustment_type == "threshold" else reward) * sure
    return torch.where(reward >= baseline, size, -size)


@dataclass(frozen=True)
class ConfidenceCalibratedReward(CreditStep):
    """The confident and good earn more, the confident and bad less; good and bad by a moving mean.

    The reward is first cut to +-`reward_clip` and its moving mean updated with this batch, and only then compared.
    Stated confidence is one of the objectives: a score in [0, 1], NaN where a response states none. It needs
    no weight in the aggregator before this step; with one it pays twice. The other objectives should be
    scored on the response without its statement (`without_confidence`). The adjusted reward is not cut again;
    a `Clip` after this step does so, as the published code does.

    Reads: rewards (one score_column), scores of the confidence. Writes: rewards. State: the moving mean, NaN before
    the first reward. Reports: state/reward_level.

    Source: Leng et al. 2024, PPO-C (arXiv:2410.09724). Differs: the mean starts at that of the first batch,
    unless `initial_baseline` says otherwise; an unscored reward stays NaN and is not remembered; a batch with too few
    rewards leaves the state as it is.
    """

    confidence_objective: str = "confidence"
    """Name of the objective."""
    adjustment_type: AdjustmentType = "difference"
    """"spread" is the code's option to compare with the moving standard deviation of the rewards."""
    confidence_coef: float = 2.0
    ema_decay: float = 0.9
    """Share of the old mean that a batch leaves."""
    initial_baseline: float | None = None
    """The mean before the first batch; the published code takes one stored with the reward model."""
    missing_confidence: Literal["unadjusted", "worst", "unscored"] = "unadjusted"
    """A response that states none is left alone, gets the worse of both extremes, or counts as unscored.

    Left alone, a policy that knows itself to be bad escapes by saying nothing.
    """
    reward_clip: float = 10.0

    def __post_init__(self) -> None:
        if not 0 <= self.ema_decay < 1:
            raise WiringError(f"decay is {self.ema_decay}; it must be in [0, 1)")
        if self.confidence_coef < 0 or not self.reward_clip > 0:
            raise WiringError(
                f"w is {self.confidence_coef} and limit {self.reward_clip}; neither may be negative, nor the limit 0"
            )

    def init_state(self) -> Float[Tensor, ""]:
        """The mean before the first batch."""
        return torch.tensor(
            torch.nan if self.initial_baseline is None else self.initial_baseline, dtype=torch.float64
        )

    def update(self, state: Float[Tensor, ""], reward: Float[Tensor, "B 1"]) -> Float[Tensor, ""]:
        """The moving mean after one more batch."""
        known = reward[~reward.isnan()].double()
        old = state.to(known.device)
        if known.numel() < (2 if self.adjustment_type == "spread" else 1):
            return old
        seen = known.std() if self.adjustment_type == "spread" else known.mean()
        return torch.where(old.isnan(), seen, self.ema_decay * old + (1 - self.ema_decay) * seen)

    def apply_stateful(
        self, batch: Batch, state: Float[Tensor, ""], rng: torch.Generator
    ) -> tuple[Batch, Float[Tensor, ""], Metrics]:
        """Remember the rewards, then adjust them."""
        require_scalar(batch, "CalibrateByConfidence")
        stated = batch.score_column(self.confidence_objective)[:, None]
        if ((stated < 0) | (stated > 1)).any():
            raise WiringError(
                f'CalibrateByConfidence reads the objective "{self.confidence_objective}" as confidence and met '
                "a score outside [0, 1]; fix: scale it, or name the objective that is the confidence"
            )
        reward = batch.rewards.clamp(-self.reward_clip, self.reward_clip)
        state = self.update(state, reward)
        # While no spread is known (one reward so far), nothing can be said to be good or bad.
        level = state.nan_to_num(0.0).to(reward.dtype)
        w = self.confidence_coef if not state.isnan() else 0.0
        extra = confidence_adjustment(reward, stated.nan_to_num(0.5), level, w, self.adjustment_type)
        if self.missing_confidence == "worst":
            extreme = confidence_adjustment(reward, torch.ones_like(reward), level, w, self.adjustment_type)
            extra = torch.where(stated.isnan(), -extreme.abs(), extra)
        if self.missing_confidence == "unscored":
            extra = torch.where(stated.isnan(), torch.nan, extra)
        return batch.replace(rewards=reward + extra), state, {"state/reward_level": float(state)}
