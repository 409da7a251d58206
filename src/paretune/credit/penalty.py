"""What a response pays beside its score, where on its tokens it is paid, and how much at most."""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from paretune.batch import Batch
from paretune.credit.step import Metrics, State, Step
from paretune.divergence import LIMIT, k1, k2, k3
from paretune.errors import WiringError


def last_response_token(respond: Bool[Tensor, "B T"]) -> Bool[Tensor, "B T"]:
    """True at the last response token of each row, and nowhere else."""
    return respond & (respond.flip(1).cumsum(1).flip(1) == 1)


@dataclass(frozen=True)
class EndReward(Step):
    """Pay the whole signal at the last response token.

    Adds to the rewards that are there. An unscored row gets NaN there, so that later steps know.

    Reads: signal, respond, token_reward where there is one. Writes: token_reward.

    Source: Ouyang et al. 2022, section 3.5 (arXiv:2203.02155). Differs: TRL and
    summarize_from_feedback_details pay one place after the last token.
    """

    def apply(self, batch: Batch) -> Batch:
        """Place the signal."""
        end = last_response_token(batch.respond)[..., None]
        reward = torch.where(end, batch.signal[:, None, :], 0.0)
        before = batch.token_reward
        return batch.set(token_reward=reward if before is None else before + reward)


def divergence(gap: Float[Tensor, "*n"], estimator: Literal["k1", "k2", "k3"] = "k1") -> Float[Tensor, "*n"]:
    """KL(policy || reference) from `gap` = log p(policy) - log p(reference) of sampled tokens, as a number.

    Source: Schulman 2020, "Approximating KL divergence".
    """
    gap = gap.clamp(-LIMIT, LIMIT)
    return {"k1": k1, "k2": k2, "k3": k3}[estimator](gap)


@dataclass(frozen=True)
class KlPenalty(Step):
    """The price of leaving the reference, paid in the reward.

        "tokens":    r_t = r_t - beta * k(log p_old(y_t) - log p_ref(y_t)),   for every objective
        "response":  s   = s   - beta * sum over t of k_t

    k1 in the reward has the gradient of KL(policy || reference), and needs no term in the loss: have one or
    the other. "response" needs one signal; in "tokens" each head pays the whole price.

    Reads: behaviour_logp, reference_logp, respond; token_reward (zero where nobody wrote one) or signal.
    Writes: token_reward or signal. Reports: the mean price of a response.

    Source: Ziegler et al. 2019, eq. 2 (arXiv:1909.08593); Ahmadian et al. 2024 (arXiv:2402.14740) for
    "response". Differs: log-ratios are cut to +-20.
    """

    coefficient: float
    estimator: Literal["k1", "k2", "k3"] = "k1"
    on: Literal["tokens", "response"] = "tokens"

    def __post_init__(self) -> None:
        if self.coefficient < 0:
            raise WiringError(f"the price of divergence is {self.coefficient}; it must not be negative")

    def advance(self, batch: Batch, state: State, rng: torch.Generator) -> tuple[Batch, State, Metrics]:
        """Charge the price."""
        gap = batch.need("behaviour_logp") - batch.need("reference_logp")
        price = torch.where(batch.respond, self.coefficient * divergence(gap, self.estimator), 0.0)
        metrics = {"penalty/kl": float(price.sum(-1).double().mean())}
        if self.on == "response":
            one_signal(batch, "KlPenalty")
            return batch.set(signal=batch.signal - price.sum(-1, keepdim=True)), state, metrics
        before = batch.token_reward
        if before is None:
            before = torch.zeros_like(price)[..., None].expand(-1, -1, batch.signal.shape[-1])
        return batch.set(token_reward=before - price[..., None]), state, metrics


def overlong(
    length: Int[Tensor, " B"], longest: int, buffer: int, factor: float = 1.0, least: float = -1.0
) -> Float[Tensor, " B"]:
    """A price: factor * (longest - buffer - length) / buffer, not above 0 and not below `least`.

    0 up to longest - buffer tokens, then a straight line to -factor at `longest`.

    Source: Yu et al. 2025, DAPO, eq. 13 (arXiv:2503.14476). Differs: verl has no least value (-inf here).
    """
    line = factor * (longest - buffer - length.to(torch.get_default_dtype())) / buffer
    return line.clamp(min=least, max=0.0)


@dataclass(frozen=True)
class OverlongPenalty(Step):
    """A response pays for the last tokens before the length limit, the more the longer it is.

    The penalty grows in a straight line over the last `buffer` tokens, to `factor` at `longest` and beyond.

    Reads: signal, respond. Writes: signal. Reports: the mean penalty of a response.

    Source: Yu et al. 2025, DAPO, eq. 13 (arXiv:2503.14476). Differs: `factor` is a choice; there it is 1.
    """

    longest: int
    buffer: int
    factor: float = 1.0
    """In the units of the signal."""

    def __post_init__(self) -> None:
        if not 0 < self.buffer <= self.longest or self.factor < 0:
            raise WiringError(
                f"the overlong penalty has longest {self.longest}, buffer {self.buffer} and factor "
                f"{self.factor}; the buffer must be in [1, longest], the factor not negative"
            )

    def advance(self, batch: Batch, state: State, rng: torch.Generator) -> tuple[Batch, State, Metrics]:
        """Charge the penalty."""
        one_signal(batch, "OverlongPenalty")
        price = overlong(batch.respond.sum(-1), self.longest, self.buffer, self.factor, -self.factor)
        signal = batch.signal + price.to(batch.signal)[:, None]
        return batch.set(signal=signal), state, {"penalty/overlong": -float(price.double().mean())}


@dataclass(frozen=True)
class Unfinished(Step):
    """A response that ran into the length limit has this worth, whatever it scored; unscored ones stay so.

    Reads: signal, truncated. Writes: signal (the whole row). Reports: nothing; `truncated` is logged anyway.

    Source: Huang et al. 2024, the "EOS trick" (arXiv:2403.17031), where it is -1.
    """

    worth: float
    """In the units of the signal."""

    def apply(self, batch: Batch) -> Batch:
        """Replace the signal of truncated rows."""
        cut = batch.truncated[:, None] & ~batch.signal.isnan()
        return batch.set(signal=torch.where(cut, self.worth, batch.signal))


@dataclass(frozen=True)
class Clip(Step):
    """Cut what lies beyond the bounds. In a group it makes ties of the best and of the worst.

    Reads: signal or advantages (`on`). Writes: the same. Reports: the share of numbers that were cut.

    Source: Zheng et al. 2023, PPO-max, section 5.3.1 (arXiv:2307.04964).
    """

    low: float
    high: float
    on: Literal["signal", "advantages"] = "signal"

    def __post_init__(self) -> None:
        if not self.low < self.high:
            raise WiringError(f"clip bounds are {self.low} and {self.high}; the first must be the smaller")

    def advance(self, batch: Batch, state: State, rng: torch.Generator) -> tuple[Batch, State, Metrics]:
        """Cut."""
        x = batch.need(self.on)
        counted = ~x.isnan() if self.on == "signal" else batch.respond[..., None].expand_as(x)
        cut = ((x < self.low) | (x > self.high))[counted]
        metrics = {f"{self.on}/cut": float(cut.double().mean())} if cut.numel() else {}
        return batch.set(**{self.on: x.clamp(self.low, self.high)}), state, metrics


def one_signal(batch: Batch, part: str) -> None:
    """Refuse a signal whose objectives are still apart.

    Raises:
        WiringError: There is more than one column.
    """
    if batch.signal.shape[-1] != 1:
        raise WiringError(
            f"{part} needs one signal and got {batch.signal.shape[-1]} objectives: "
            "put it after an aggregator (WeightedSum)"
        )
