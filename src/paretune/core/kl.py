"""Estimators of KL(policy || reference) from sampled tokens, for KL penalties in rewards and losses.

`log_ratio` is log p(policy) - log p(reference) of the sampled token.
"""

from jaxtyping import Float
from torch import Tensor

MAX_LOG_RATIO = 20.0
"""Log-ratios are clamped to +-20 before exp: e^20 is 5e8, e^89 already overflows float32."""


def k1(log_ratio: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
    """`log_ratio` itself: unbiased, may be negative; its gradient has expectation 0.

    Source: Schulman 2020, "Approximating KL divergence".
    """
    return log_ratio


def k2(log_ratio: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
    """log_ratio^2 / 2: biased; on samples of the policy its gradient is that of KL(policy || reference).

    Source: Schulman 2020, "Approximating KL divergence".
    """
    return log_ratio.square() / 2


def k3(log_ratio: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
    """exp(-log_ratio) + log_ratio - 1: unbiased, never negative.

    Its gradient is that of KL(reference || policy).

    Source: Schulman 2020, "Approximating KL divergence"; Shao et al. 2024, eq. 4 (arXiv:2402.03300).
    """
    return (-log_ratio).exp() + log_ratio - 1
