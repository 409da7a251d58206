"""Factors on the policy loss of single tokens: who really wrote them, and which are worth learning from."""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from paretune.batch import Batch
from paretune.credit.step import Metrics, State, Step
from paretune.divergence import LIMIT
from paretune.errors import WiringError


def sampler_ratio(
    trainer: Float[Tensor, "B T"],
    sampler: Float[Tensor, "B T"],
    respond: Bool[Tensor, "B T"],
    by: Literal["token", "sequence"],
) -> Float[Tensor, "B T"]:
    """p_trainer / p_sampler of each response token, or of the whole response; 1 outside it.

    Source: Yao et al. 2025, "Your efficient RL framework secretly brings you off-policy RL training".
    """
    gap = torch.where(respond, trainer - sampler, 0.0)
    if by == "sequence":
        gap = torch.where(respond, gap.sum(-1, keepdim=True), 0.0)
    return gap.clamp(-LIMIT, LIMIT).exp()


def cut_ratio(
    ratio: Float[Tensor, "*n"], least: float, most: float, beyond: Literal["truncate", "mask"]
) -> Float[Tensor, "*n"]:
    """The ratio where it lies in [least, most]; elsewhere the nearer bound ("truncate") or 0 ("mask")."""
    if beyond == "truncate":
        return ratio.clamp(least, most)
    return torch.where((ratio >= least) & (ratio <= most), ratio, 0.0)


@dataclass(frozen=True)
class TruncatedImportance(Step):
    """Undo the difference between the engine that samples and the trainer, as far as that is safe.

        w = p_trainer(y) / p_sampler(y), cut;   policy loss = w * loss

    By "token" the weights are biased and calm, by "sequence" unbiased and wild. The ratio of the policy loss
    keeps its own denominator, the trainer's policy before the first update.

    Reads: sampler_logp, behaviour_logp, respond, importance. Writes: importance.
    Reports: mean and extremes of the ratios, and the share of tokens that were cut.

    Source: Yao et al. 2025, "Your efficient RL framework secretly brings you off-policy RL training"
    ("truncate", most 2); masking on both sides as in IcePop 2025, and on one as in TRL 1.16 (by "sequence",
    "mask", most 3).
    """

    by: Literal["token", "sequence"] = "token"
    beyond: Literal["truncate", "mask"] = "truncate"
    most: float = 2.0
    least: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.least <= 1 <= self.most:
            raise WiringError(
                f"bounds of an importance weight are {self.least} and {self.most}; 1 must lie between them"
            )

    def advance(self, batch: Batch, state: State, rng: torch.Generator) -> tuple[Batch, State, Metrics]:
        """Weigh every token.

        Raises:
            WiringError: The trainer was not asked, so that all weights would be 1.
        """
        trainer, sampler = batch.need("behaviour_logp"), batch.need("sampler_logp")
        if trainer is sampler:
            raise WiringError(
                'TruncatedImportance compares sampler and trainer, and Behaviour(by="sampler") takes the '
                'sampler at its word, so every weight is 1; fix: Behaviour(by="trainer"), or leave it out'
            )
        ratio = sampler_ratio(trainer, sampler, batch.respond, self.by)
        weight = cut_ratio(ratio, self.least, self.most, self.beyond)
        inside = ratio[batch.respond]
        metrics: Metrics = {}
        if len(inside):
            cut = (inside > self.most) | (inside < self.least)
            metrics = {
                "importance/mean": float(inside.mean()),
                "importance/max": float(inside.max()),
                "importance/min": float(inside.min()),
                "importance/cut": float(cut.double().mean()),
            }
        return _weighed(batch, weight), state, metrics


def most_uncertain(
    entropy: Float[Tensor, "B T"], respond: Bool[Tensor, "B T"], share: float
) -> Bool[Tensor, "B T"]:
    """Response tokens whose entropy is at or above the (1 - share) quantile of all response tokens.

    Source: Wang et al. 2025, "Beyond the 80/20 rule", eq. 5 (arXiv:2506.01939).
    """
    if not respond.any():
        return respond
    threshold = torch.quantile(entropy[respond].float(), 1 - share)
    return respond & (entropy.float() >= threshold)


@dataclass(frozen=True)
class KeepUncertain(Step):
    """Learn only from the tokens at which the policy was least decided; penalties still see all of them.

    The threshold is that of the whole training step, so that no cut into micro-batches moves it, and tokens
    that are left out stay in every denominator.

    Reads: entropy, respond, importance. Writes: importance.
    Reports: the share of tokens that were kept.

    Source: Wang et al. 2025, "Beyond the 80/20 rule" (arXiv:2506.01939). Differs: the entropy is that of the
    policy before the first update.
    """

    share: float = 0.2

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise WiringError(f"the share of tokens to learn from is {self.share}; it must be in (0, 1]")

    def advance(self, batch: Batch, state: State, rng: torch.Generator) -> tuple[Batch, State, Metrics]:
        """Silence the others."""
        kept = most_uncertain(batch.need("entropy"), batch.respond, self.share)
        share = float(kept[batch.respond].double().mean()) if batch.respond.any() else 1.0
        return _weighed(batch, kept.to(torch.get_default_dtype())), state, {"importance/uncertain": share}


def _weighed(batch: Batch, weight: Tensor) -> Batch:
    """The batch with one more factor on its policy loss."""
    return batch.set(importance=weight if batch.importance is None else batch.importance * weight)
