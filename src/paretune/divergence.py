"""Estimates of KL(policy || reference) from sampled tokens, for rewards that pay it and losses that hold it.

`gap` is log p(policy) - log p(reference) of the sampled token, everywhere.
"""

from jaxtyping import Float
from torch import Tensor

LIMIT = 20.0
"""Log-ratios beyond this are cut before exp."""


def k1(gap: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
    """KL(policy || reference) from `gap` = logp - reference: unbiased, of either sign, gradient of mean 0.

    Source: Schulman 2020, "Approximating KL divergence".
    """
    return gap


def k2(gap: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
    """gap^2 / 2: biased in value; on the policy's own samples it has the gradient of KL(policy || reference).

    Source: Schulman 2020, "Approximating KL divergence".
    """
    return gap.square() / 2


def k3(gap: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
    """exp(-gap) + gap - 1: unbiased in value, never negative, with the gradient of KL(reference || policy).

    Source: Schulman 2020, "Approximating KL divergence"; Shao et al. 2024, eq. 4 (arXiv:2402.03300).
    """
    return (-gap).exp() + gap - 1
