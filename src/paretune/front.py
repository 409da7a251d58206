"""Pareto fronts and the volume under them, in numpy only. Every objective is better when larger.

A point dominates another if it is nowhere worse and somewhere better. Duplicates do not dominate each other.
"""

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from paretune.errors import DataError

Points = NDArray[np.float64]
"""[N, K]: one row a policy or a response, one column an objective."""


def nondominated(points: Points, duplicates: Literal["keep", "first"] = "keep") -> NDArray[np.bool_]:
    """Which points no other point dominates; of equal ones all, or only the first.

    Raises:
        DataError: The points are no table of finite numbers.
    """
    points = _table(points)
    beaten = np.asarray(_dominates(points).any(0))
    if duplicates == "first":
        equal = (points[:, None] == points[None]).all(-1)
        beaten |= np.triu(equal, 1).any(0)
    return ~beaten


def ranks(points: Points) -> NDArray[np.int64]:
    """0 for the front, 1 for the front of the rest, and so on; equal points share a rank.

    Raises:
        DataError: The points are no table of finite numbers.

    Source: Deb et al. 2002, section III.A (NSGA-II), fast non-dominated sorting.
    """
    points = _table(points)
    dominates = _dominates(points)
    rank = np.full(len(points), -1, np.int64)
    level = 0
    while (left := rank < 0).any():
        rank[left & ~dominates[left].any(0)] = level
        level += 1
    return rank


def hypervolume(points: Points, worst: NDArray[np.float64]) -> float:
    """Volume of what the points dominate above the corner `worst`; exact, in any number of objectives.

    Points that are not above `worst` in every objective add nothing. Volumes can be compared only when they
    share `worst` and the units of every objective.

    Raises:
        DataError: The points are no table of finite numbers, or the corner has another number of objectives.

    Source: While, Bradstreet and Barone 2012, WFG (IEEE TEC 16:1): each point adds the box below it less
    what the points after it cover of that box.
    """
    above = _above(_table(points), worst)
    return _volume(above[nondominated(above, "first")])


def contributions(points: Points, worst: NDArray[np.float64]) -> NDArray[np.float64]:
    """The volume of the front that goes when one point is taken away; 0 for duplicates.

    Dominated points are worth nothing, and none of them steps in for a point that was taken away.

    Raises:
        DataError: As for `hypervolume`.
    """
    points = _table(points)
    twice = (points[:, None] == points[None]).all(-1).sum(0) > 1
    front, lost = nondominated(points, "first"), np.zeros(len(points))
    whole = hypervolume(points[front], worst)
    for i in np.flatnonzero(front & ~twice):
        others = front.copy()
        others[i] = False
        lost[i] = whole - hypervolume(points[others], worst)
    return lost


def igd(points: Points, reference: Points) -> float:
    """Inverted generational distance: mean distance of the reference points to the nearest of the points.

    Raises:
        DataError: One of the tables is not of finite numbers, or they have no points or unequal objectives.

    Source: Coello Coello and Reyes Sierra 2004, with exponent 1.
    """
    return float(np.linalg.norm(_gaps(points, reference), axis=-1).min(1).mean())


def igd_plus(points: Points, reference: Points) -> float:
    """The same, counting only the objectives in which the point falls short of the reference point.

    Raises:
        DataError: As for `igd`.

    Source: Ishibuchi et al. 2015, IGD+, which never prefers a set that another one dominates.
    """
    short = np.maximum(_gaps(points, reference), 0.0)
    return float(np.linalg.norm(short, axis=-1).min(1).mean())


def epsilon(points: Points, reference: Points) -> float:
    """The smallest amount by which the points must rise to cover the reference; negative if they exceed it.

    Raises:
        DataError: As for `igd`.

    Source: Zitzler et al. 2003, section 4.2, additive epsilon indicator.
    """
    return float(_gaps(points, reference).max(-1).min(1).max())


def _table(points: Points) -> Points:
    table = np.asarray(points, np.float64)
    if table.ndim != 2 or not np.isfinite(table).all():
        raise DataError(
            f"a front needs a table of finite numbers, one row a point, and got one of shape {table.shape}; "
            "fix: leave out points that nobody could score"
        )
    return table


def _dominates(points: Points) -> NDArray[np.bool_]:
    """[i, j]: i dominates j."""
    at_least = np.asarray((points[:, None] >= points[None]).all(-1))
    return at_least & ~at_least.T


def _above(points: Points, worst: NDArray[np.float64]) -> Points:
    """The points as seen from the corner, without those that are not above it everywhere."""
    corner = np.asarray(worst, np.float64)
    if corner.shape != points.shape[1:]:
        raise DataError(f"the corner has shape {corner.shape}, and the points have {points.shape[1]} columns")
    return points[(points > corner).all(-1)] - corner


def _volume(front: Points) -> float:
    """Volume above 0 of a front without duplicates."""
    if not len(front):
        return 0.0
    if front.shape[1] == 2:
        x, y = front[np.argsort(front[:, 0])].T
        return float((np.diff(x, prepend=0.0) * y).sum())
    order = front[np.argsort(-front[:, 0])]
    total = 0.0
    for i, point in enumerate(order):
        covered = np.minimum(order[i + 1 :], point)
        total += float(point.prod()) - _volume(covered[nondominated(covered, "first")])
    return total


def _gaps(points: Points, reference: Points) -> NDArray[np.float64]:
    """[R, N, K]: how far each reference point is above each point."""
    ours, theirs = _table(points), _table(reference)
    if ours.shape[1] != theirs.shape[1] or not len(ours) or not len(theirs):
        raise DataError(f"cannot compare points of shape {ours.shape} with a reference of {theirs.shape}")
    return theirs[:, None] - ours[None]
