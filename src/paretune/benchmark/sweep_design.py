"""Weightings of a sweep: a grid on the simplex, or one that grows where the front has its largest gap."""

import itertools
import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Design = Literal["grid", "adaptive"]
Shares = tuple[float, ...]
"""Share of each swept objective in their common weight; they sum to 1."""

DEFAULT_POINTS = 9
MIN_SHARE_STEP = 1 / 64
"""An adaptive design does not part weightings that are nearer than twice this."""
_MAX_GRID_STEPS = 64


def grid_sizes(num_objectives: int) -> dict[int, int]:
    """Number of points -> steps from one corner to the next, of all grids on the simplex."""
    return {
        math.comb(steps + num_objectives - 1, num_objectives - 1): steps
        for steps in range(1, _MAX_GRID_STEPS + 1)
    }


def default_num_points(num_objectives: int) -> int:
    """The size of a grid that is nearest to `DEFAULT_POINTS`."""
    return min(grid_sizes(num_objectives), key=lambda size: abs(size - DEFAULT_POINTS))


def simplex_grid(num_objectives: int, steps: int) -> list[Shares]:
    """All shares that are multiples of 1 / steps, from all weight on the first objective to all on the last.

    Source: Das and Dennis 1998 (SIAM Journal on Optimization 8:631), the simplex lattice.
    """
    return [
        tuple(part / steps for part in parts)
        for parts in itertools.product(range(steps, -1, -1), repeat=num_objectives)
        if sum(parts) == steps
    ]


def first_shares(num_objectives: int) -> list[Shares]:
    """What an adaptive design begins with: all weight on one objective each, and equal weights."""
    corners = [tuple(float(i == k) for i in range(num_objectives)) for k in range(num_objectives)]
    return [*corners, (1 / num_objectives,) * num_objectives]


def next_shares(shares: Sequence[Shares], outcomes: NDArray[np.float64]) -> Shares | None:
    """The middle between the two neighbors whose outcomes are farthest from each other; None: all are near.

    Two weightings are neighbors if no other one is inside the ball between them (Gabriel graph): with two
    objectives, those next to each other. A weighting without an outcome is no neighbor, and still in the way,
    so that none is proposed twice.

    Args:
        shares: [N] weightings that were tried.
        outcomes: [N, K] oriented means in comparable units; NaN for a weighting without an outcome.

    Source: Kim and de Weck 2005 (Structural and Multidisciplinary Optimization 29:149) refine where a front
        has its largest gaps. Differs: the middle of two weightings, for any number of objectives.
    """
    points = np.array(shares, np.float64)
    widest, proposal = 0.0, None
    for i, j in itertools.combinations(range(len(points)), 2):
        middle, reach = (points[i] + points[j]) / 2, np.linalg.norm(points[i] - points[j]) / 2
        inside = np.linalg.norm(points - middle, axis=1) < reach - 1e-9
        near = np.abs(points[i] - points[j]).max() < 2 * MIN_SHARE_STEP - 1e-9
        gap = float(np.linalg.norm(outcomes[i] - outcomes[j]))
        if not near and not inside.any() and gap > widest:
            widest, proposal = gap, tuple(float(share) for share in middle)
    return proposal


def weighting_name(shares: Shares) -> str:
    """Name of a weighting and of its folder: shares in thousandths, such as "w125-875"."""
    return "w" + "-".join(f"{1000 * share:.0f}" for share in shares)
