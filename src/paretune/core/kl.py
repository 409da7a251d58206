"""Estimates of KL(policy || reference) from sampled tokens, for rewards that pay it and losses that hold it.

`gap` is log p(policy) - log p(reference) of the sampled token, everywhere.
"""

from jaxtyping import Float
from torch import Tensor

MAX_LOG_RATIO = 20.0
"""Log-ratios beyond this are cut before exp."""


def k1(log_ratio: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
    """KL(policy || reference) from `log_ratio` = logp - reference: unbiased, of either sign, gradient of mean 0.

    Source: Schulman 2020, "Approximating KL divergence".
    """
    return log_ratio


def k2(log_ratio: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
    """gap^2 / 2: biased in value; on the policy's own samples it has the gradient of KL(policy || reference).

    Source: Schulman 2020, "Approximating KL divergence".
    """
    return log_ratio.square() / 2


def k3(log_ratio: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
    """exp(-gap) + gap - 1: unbiased in value, never negative, with the gradient of KL(reference || policy).

    Source: Schulman 2020, "Approximating KL divergence"; Shao et al. 2024, eq. 4 (arXiv:2402.03300).
    """
    return (-log_ratio).exp() + log_ratio - 1
