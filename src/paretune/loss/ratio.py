"""How far the trained policy has moved from the one that wrote the responses: the probability ratio."""

from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from paretune.divergence import MAX_LOG_RATIO
from paretune.reduce import row_mean

RatioLevel = Literal["token", "sequence", "sequence_token"]
"""One ratio for each token; one for a response; or one for a response whose slope is the token's own."""


def clamp_log_ratio(log_ratio: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
    """The log-ratio cut to +-LIMIT in value only: the gradient still flows where a clamp would kill it."""
    return log_ratio + (log_ratio.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO) - log_ratio).detach()


def outside_clip(log_ratio: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
    """1 where `bounded` cuts the log-ratio."""
    return (log_ratio.detach().abs() > MAX_LOG_RATIO).to(log_ratio.dtype)


def policy_log_ratio(
    logprobs: Float[Tensor, "B T"],
    old_logprobs: Float[Tensor, "B T"],
    response_mask: Bool[Tensor, "B T"],
    level: RatioLevel,
) -> Float[Tensor, "B T"]:
    """Log of the ratio by which a token is judged.

        token           d_t = log p(y_t) - log p_old(y_t)
        sequence        s = mean over the response of d_t, at each of its tokens
        sequence_token  s in value; in gradient d_t, so that every token answers for itself

    Source: Schulman et al. 2017, eq. 6 (arXiv:1707.06347); Zheng et al. 2025, GSPO, eq. 7 and 14
    (arXiv:2507.18071) for the two others.
    """
    gap = logprobs - old_logprobs
    if level == "token":
        return gap
    whole = row_mean(gap, response_mask)[:, None].expand_as(gap)
    return whole if level == "sequence" else whole.detach() + (gap - gap.detach())


def policy_ratio(
    logprobs: Float[Tensor, "B T"],
    old_logprobs: Float[Tensor, "B T"],
    response_mask: Bool[Tensor, "B T"],
    level: RatioLevel,
) -> Float[Tensor, "B T"]:
    """The ratio itself, from the log-ratio cut to what exp can stand."""
    return torch.exp(clamp_log_ratio(policy_log_ratio(logprobs, old_logprobs, response_mask, level)))
