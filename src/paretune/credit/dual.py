"""Choosing multipliers before training, from scored responses of the reference policy alone."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from paretune.errors import DataError
from paretune.reduce import group_index


@dataclass(frozen=True)
class DualSolution:
    """The best multipliers, and what the aligned policy is then expected to reach."""

    multipliers: Float[Tensor, " C"]
    dual_value: float
    """Of the dual function, which is the best KL-regularised reward that respects the constraints."""
    slacks: Float[Tensor, " C"]
    """Expected level less the demanded one; about 0 where a constraint binds, above 0 where it is slack."""


def dual_value_and_grad(
    multipliers: Float[Tensor, " C"],
    rewards: Float[Tensor, " N"],
    slack: Float[Tensor, "N C"],
    group: Int[Tensor, " N"],
    beta: float,
) -> tuple[Float[Tensor, ""], Float[Tensor, " C"]]:
    """The dual function and its slope, each the mean over prompts.

        D(m) = beta log E_ref exp((r + m . g) / beta),    dD/dm = E_tilted[g]

    Source: Huang et al. 2024, one-shot safety alignment by optimal dualisation (arXiv:2405.19544).
    """
    index, count = group_index(group)
    exponent = (rewards + slack @ multipliers) / beta
    most = exponent.new_full((count,), -torch.inf).scatter_reduce(0, index, exponent, "amax")
    shifted = (exponent - most[index]).exp()
    total = shifted.new_zeros(count).index_add(0, index, shifted)
    size = shifted.new_zeros(count).index_add(0, index, torch.ones_like(shifted))
    value = beta * (most + (total / size).log())
    slope = (shifted / total[index])[:, None] * slack / count
    return value.mean(), slope.sum(0)


def solve_dual(
    rewards: Float[Tensor, " N"],
    slack: Float[Tensor, "N C"],
    group: Int[Tensor, " N"],
    beta: float,
    max_multiplier: float = 100.0,
) -> DualSolution:
    """Minimise the dual over 0 <= m <= most; it is convex, so each coordinate is bisected in turn.

    Align once, with the fixed weights r + m . g and the KL coefficient `beta`, and the constraints hold. A
    multiplier at `max_multiplier` says that the reference hardly ever writes a response that meets its constraint.

    Args:
        rewards: Combined reward of each response.
        slack: Score less its level, one column a constraint.
        group: Responses with equal numbers answer the same prompt.
        beta: Coefficient of KL(policy || reference).
        max_multiplier: Largest multiplier to look at.

    Raises:
        DataError: There are no responses, or a score is not finite.

    Source: Huang et al. 2024 (arXiv:2405.19544), MoCAN. Differs: bisection, not projected descent.
    """
    if not len(rewards) or not (rewards.isfinite().all() and slack.isfinite().all()):
        raise DataError("a dual needs scored responses: leave out those that nobody could score")
    rewards, slack = rewards.double(), slack.double()
    at = torch.zeros(slack.shape[1], dtype=torch.float64)
    for _ in range(200):
        before = at.clone()
        for c in range(len(at)):
            low, high = 0.0, max_multiplier
            for _ in range(60):
                at[c] = (low + high) / 2
                _, slope = dual_value_and_grad(at, rewards, slack, group, beta)
                low, high = (low, float(at[c])) if slope[c] >= 0 else (float(at[c]), high)
            at[c] = low  # 0 where the constraint is slack
        if (at - before).abs().max() <= 1e-12 * max_multiplier or len(at) == 1:
            break
    value, slope = dual_value_and_grad(at, rewards, slack, group, beta)
    return DualSolution(at, float(value), slope)
