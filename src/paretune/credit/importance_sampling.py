"""Factors on the policy loss of single tokens: truncated importance sampling, high-entropy token mask."""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from paretune.core.batch import Batch
from paretune.core.errors import WiringError
from paretune.core.kl import MAX_LOG_RATIO
from paretune.credit.base import CreditStep, Metrics, State


def rollout_is_ratio(
    old_logprobs: Float[Tensor, "B T"],
    rollout_logprobs: Float[Tensor, "B T"],
    response_mask: Bool[Tensor, "B T"],
    level: Literal["token", "sequence"],
) -> Float[Tensor, "B T"]:
    """p_trainer / p_sampler of each response token, or of the whole response; 1 outside it.

    Source: Yao et al. 2025, "Your efficient RL framework secretly brings you off-policy RL training".
    """
    log_ratio = torch.where(response_mask, old_logprobs - rollout_logprobs, 0.0)
    if level == "sequence":
        log_ratio = torch.where(response_mask, log_ratio.sum(-1, keepdim=True), 0.0)
    return log_ratio.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()


def truncated_ratio(
    ratio: Float[Tensor, "*n"], min_ratio: float, max_ratio: float, mode: Literal["truncate", "mask"]
) -> Float[Tensor, "*n"]:
    """The ratio inside [min_ratio, max_ratio]; outside, the nearer bound ("truncate") or 0 ("mask")."""
    if mode == "truncate":
        return ratio.clamp(min_ratio, max_ratio)
    return torch.where((ratio >= min_ratio) & (ratio <= max_ratio), ratio, 0.0)


@dataclass(frozen=True)
class TruncatedImportanceSampling(CreditStep):
    """Correct for the difference between the sampling engine and the trainer, with bounded weights.

        w = p_trainer(y) / p_sampler(y), truncated or masked;   policy loss = w * loss

    With level "token" the weights are biased and of low variance, with "sequence" unbiased and of high
    variance. The ratio of the policy loss keeps its own denominator, the trainer's policy before the first
    update.

    Reads: rollout_logprobs, old_logprobs, response_mask, importance_weights. Writes: importance_weights.
    Logs: mean and extremes of the ratios, and the share of tokens outside the bounds.

    Source: Yao et al. 2025, "Your efficient RL framework secretly brings you off-policy RL training"
    ("truncate", max_ratio 2); masking on both sides as in IcePop 2025, and on one as in TRL 1.16 (level
    "sequence", "mask", max_ratio 3).
    """

    level: Literal["token", "sequence"] = "token"
    mode: Literal["truncate", "mask"] = "truncate"
    max_ratio: float = 2.0
    min_ratio: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.min_ratio <= 1 <= self.max_ratio:
            raise WiringError(
                f"min_ratio is {self.min_ratio} and max_ratio {self.max_ratio}; 1 must lie between them, and "
                "min_ratio must be >= 0"
            )

    def apply_stateful(
        self, batch: Batch, state: State, rng: torch.Generator
    ) -> tuple[Batch, State, Metrics]:
        """Multiply the importance weights.

        Raises:
            WiringError: old_logprobs are the sampler's own, so that all weights would be 1.
        """
        trainer, sampler = batch.require("old_logprobs"), batch.require("rollout_logprobs")
        if trainer is sampler:
            raise WiringError(
                'TruncatedImportanceSampling compares sampler and trainer, and OldLogprobs(source="rollout") '
                "takes the sampler's log-probabilities for both, so every weight is 1; fix: "
                'OldLogprobs(source="policy"), or leave this step out'
            )
        ratio = rollout_is_ratio(trainer, sampler, batch.response_mask, self.level)
        weight = truncated_ratio(ratio, self.min_ratio, self.max_ratio, self.mode)
        response_ratios = ratio[batch.response_mask]
        metrics: Metrics = {}
        if len(response_ratios):
            outside = (response_ratios > self.max_ratio) | (response_ratios < self.min_ratio)
            metrics = {
                "importance_weights/mean": float(response_ratios.mean()),
                "importance_weights/max": float(response_ratios.max()),
                "importance_weights/min": float(response_ratios.min()),
                "importance_weights/truncated": float(outside.double().mean()),
            }
        return _multiply_importance_weights(batch, weight), state, metrics


def high_entropy_mask(
    entropy: Float[Tensor, "B T"], response_mask: Bool[Tensor, "B T"], top_entropy_quantile: float
) -> Bool[Tensor, "B T"]:
    """Response tokens whose entropy is at least the (1 - top_entropy_quantile) quantile of all of them.

    Source: Wang et al. 2025, "Beyond the 80/20 rule", eq. 5 (arXiv:2506.01939).
    """
    if not response_mask.any():
        return response_mask
    # Float32, as torch.quantile takes no half precision.
    threshold = torch.quantile(entropy[response_mask].float(), 1 - top_entropy_quantile)
    return response_mask & (entropy.float() >= threshold)


@dataclass(frozen=True)
class TopEntropyTokens(CreditStep):
    """Policy loss on the tokens with the highest entropy only; KL and other losses still use all tokens.

    The threshold is that of the whole training step, so micro-batches do not change it, and masked tokens
    stay in every denominator.

    Reads: entropy, response_mask, importance_weights. Writes: importance_weights.
    Logs: the share of tokens that were kept.

    Source: Wang et al. 2025, "Beyond the 80/20 rule" (arXiv:2506.01939). Differs: the entropy is that of the
    policy before the first update.
    """

    top_entropy_quantile: float = 0.2

    def __post_init__(self) -> None:
        if not 0 < self.top_entropy_quantile <= 1:
            raise WiringError(f"top_entropy_quantile is {self.top_entropy_quantile}; it must be in (0, 1]")

    def apply_stateful(
        self, batch: Batch, state: State, rng: torch.Generator
    ) -> tuple[Batch, State, Metrics]:
        """Mask the other tokens."""
        kept = high_entropy_mask(batch.require("entropy"), batch.response_mask, self.top_entropy_quantile)
        fraction = float(kept[batch.response_mask].double().mean()) if batch.response_mask.any() else 1.0
        return (
            _multiply_importance_weights(batch, kept.to(torch.get_default_dtype())),
            state,
            {"top_entropy_tokens/kept": fraction},
        )


def _multiply_importance_weights(batch: Batch, weight: Tensor) -> Batch:
    """The batch with one more factor on its policy loss."""
    return batch.replace(
        importance_weights=weight if batch.importance_weights is None else batch.importance_weights * weight
    )
