"""Pareto fronts and the volume under them, in numpy only. Every objective is better when larger.

A point dominates another if it is nowhere worse and somewhere better. Duplicates do not dominate each other.
"""

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from paretune.core.errors import DataError

Points = NDArray[np.float64]
"""[N, K]: one row a policy or a response, one column an objective."""


def nondominated(points: Points, duplicates: Literal["keep", "first"] = "keep") -> NDArray[np.bool_]:
    """Which points no other point dominates; of equal ones all, or only the first.

    Raises:
        DataError: The points are no table of finite numbers.
    """
    points = _validated_points(points)
    beaten = np.asarray(_dominance_matrix(points).any(0))
    if duplicates == "first":
        equal = (points[:, None] == points[None]).all(-1)
        beaten |= np.triu(equal, 1).any(0)
    return ~beaten


def pareto_ranks(points: Points) -> NDArray[np.int64]:
    """0 for the front, 1 for the front of the rest, and so on; equal points share a rank.

    Raises:
        DataError: The points are no table of finite numbers.

    Source: Deb et al. 2002, section III.A (NSGA-II), fast non-dominated sorting.
    """
    points = _validated_points(points)
    dominates = _dominance_matrix(points)
    rank = np.full(len(points), -1, np.int64)
    level = 0
    while (left := rank < 0).any():
        rank[left & ~dominates[left].any(0)] = level
        level += 1
    return rank


def hypervolume(points: Points, ref_point: NDArray[np.float64]) -> float:
    """Volume of what the points dominate above the corner `ref_point`; exact, in any number of objectives.

    Points that are not above `ref_point` in every objective add nothing. Volumes can be compared only when they
    share `ref_point` and the units of every objective.

    Raises:
        DataError: The points are no table of finite numbers, or the corner has another number of objectives.

    Source: While, Bradstreet and Barone 2012, WFG (IEEE TEC 16:1): each point adds the box below it less
    what the points after it cover of that box.
    """
    above = _relative_to_ref_point(_validated_points(points), ref_point)
    return _volume_above_origin(above[nondominated(above, "first")])


def hypervolume_contributions(points: Points, ref_point: NDArray[np.float64]) -> NDArray[np.float64]:
    """The volume of the front that goes when one point is taken away; 0 for duplicates.

    Dominated points are worth nothing, and none of them steps in for a point that was taken away.

    Raises:
        DataError: As for `hypervolume`.
    """
    points = _validated_points(points)
    twice = (points[:, None] == points[None]).all(-1).sum(0) > 1
    front, lost = nondominated(points, "first"), np.zeros(len(points))
    whole = hypervolume(points[front], ref_point)
    for i in np.flatnonzero(front & ~twice):
        others = front.copy()
        others[i] = False
        lost[i] = whole - hypervolume(points[others], ref_point)
    return lost


def igd(points: Points, reference_set: Points) -> float:
    """Inverted generational distance: mean distance of the reference points to the nearest of the points.

    Raises:
        DataError: One of the tables is not of finite numbers, or they have no points or unequal objectives.

    Source: Coello Coello and Reyes Sierra 2004, with exponent 1.
    """
    return float(np.linalg.norm(_pairwise_gaps(points, reference_set), axis=-1).min(1).mean())


def igd_plus(points: Points, reference_set: Points) -> float:
    """The same, counting only the objectives in which the point falls short of the reference point.

    Raises:
        DataError: As for `igd`.

    Source: Ishibuchi et al. 2015, IGD+, which never prefers a set that another one dominates.
    """
    short = np.maximum(_pairwise_gaps(points, reference_set), 0.0)
    return float(np.linalg.norm(short, axis=-1).min(1).mean())


def additive_epsilon(points: Points, reference_set: Points) -> float:
    """The smallest amount by which the points must rise to cover the reference; negative if they exceed it.

    Raises:
        DataError: As for `igd`.

    Source: Zitzler et al. 2003, section 4.2, additive epsilon indicator.
    """
    return float(_pairwise_gaps(points, reference_set).max(-1).min(1).max())


def _validated_points(points: Points) -> Points:
    table = np.asarray(points, np.float64)
    if table.ndim != 2 or not np.isfinite(table).all():
        raise DataError(
            f"a front needs a table of finite numbers, one row a point, and got one of shape {table.shape}; "
            "fix: leave out points that nobody could score"
        )
    return table


def _dominance_matrix(points: Points) -> NDArray[np.bool_]:
    """[i, j]: i dominates j."""
    at_least = np.asarray((points[:, None] >= points[None]).all(-1))
    return at_least & ~at_least.T


def _relative_to_ref_point(points: Points, ref_point: NDArray[np.float64]) -> Points:
    """The points as seen from the corner, without those that are not above it everywhere."""
    corner = np.asarray(ref_point, np.float64)
    if corner.shape != points.shape[1:]:
        raise DataError(f"the corner has shape {corner.shape}, and the points have {points.shape[1]} columns")
    return points[(points > corner).all(-1)] - corner


def _volume_above_origin(front: Points) -> float:
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
        total += float(point.prod()) - _volume_above_origin(covered[nondominated(covered, "first")])
    return total


def _pairwise_gaps(points: Points, reference_set: Points) -> NDArray[np.float64]:
    """[R, N, K]: how far each reference point is above each point."""
    ours, theirs = _validated_points(points), _validated_points(reference_set)
    if ours.shape[1] != theirs.shape[1] or not len(ours) or not len(theirs):
        raise DataError(f"cannot compare points of shape {ours.shape} with a reference of {theirs.shape}")
    return theirs[:, None] - ours[None]
