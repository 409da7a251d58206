"""Choosing multipliers before training, from scored responses of the reference policy alone."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from paretune.errors import DataError
from paretune.reduce import group_index


@dataclass(frozen=True)
class Dual:
    """The best multipliers, and what the aligned policy is then expected to reach."""

    multipliers: Float[Tensor, " C"]
    value: float
    """Of the dual function, which is the best KL-regularised reward that respects the constraints."""
    margins: Float[Tensor, " C"]
    """Expected level less the demanded one; about 0 where a constraint binds, above 0 where it is slack."""


def tilted(
    multipliers: Float[Tensor, " C"],
    reward: Float[Tensor, " N"],
    margin: Float[Tensor, "N C"],
    group: Int[Tensor, " N"],
    beta: float,
) -> tuple[Float[Tensor, ""], Float[Tensor, " C"]]:
    """The dual function and its slope, each the mean over prompts.

        D(m) = beta log E_ref exp((r + m . g) / beta),    dD/dm = E_tilted[g]

    Source: Huang et al. 2024, one-shot safety alignment by optimal dualisation (arXiv:2405.19544).
    """
    index, count = group_index(group)
    exponent = (reward + margin @ multipliers) / beta
    most = exponent.new_full((count,), -torch.inf).scatter_reduce(0, index, exponent, "amax")
    shifted = (exponent - most[index]).exp()
    total = shifted.new_zeros(count).index_add(0, index, shifted)
    size = shifted.new_zeros(count).index_add(0, index, torch.ones_like(shifted))
    value = beta * (most + (total / size).log())
    slope = (shifted / total[index])[:, None] * margin / count
    return value.mean(), slope.sum(0)


def best_multipliers(
    reward: Float[Tensor, " N"],
    margin: Float[Tensor, "N C"],
    group: Int[Tensor, " N"],
    beta: float,
    most: float = 100.0,
) -> Dual:
    """Minimise the dual over 0 <= m <= most; it is convex, so each coordinate is bisected in turn.

    Align once, with the fixed weights r + m . g and the KL coefficient `beta`, and the constraints hold. A
    multiplier at `most` says that the reference hardly ever writes a response that meets its constraint.

    Args:
        reward: Combined reward of each response.
        margin: Score less its level, one column a constraint.
        group: Responses with equal numbers answer the same prompt.
        beta: Coefficient of KL(policy || reference).
        most: Largest multiplier to look at.

    Raises:
        DataError: There are no responses, or a score is not finite.

    Source: Huang et al. 2024 (arXiv:2405.19544), MoCAN. Differs: bisection, not projected descent.
    """
    if not len(reward) or not (reward.isfinite().all() and margin.isfinite().all()):
        raise DataError("a dual needs scored responses: leave out those that nobody could score")
    reward, margin = reward.double(), margin.double()
    at = torch.zeros(margin.shape[1], dtype=torch.float64)
    for _ in range(200):
        before = at.clone()
        for c in range(len(at)):
            low, high = 0.0, most
            for _ in range(60):
                at[c] = (low + high) / 2
                _, slope = tilted(at, reward, margin, group, beta)
                low, high = (low, float(at[c])) if slope[c] >= 0 else (float(at[c]), high)
            at[c] = low  # 0 where the constraint is slack
        if (at - before).abs().max() <= 1e-12 * most or len(at) == 1:
            break
    value, slope = tilted(at, reward, margin, group, beta)
    return Dual(at, float(value), slope)
