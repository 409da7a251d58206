"""Pareto fronts and hypervolume with moocore. Every objective is better when larger.

A point dominates another if it is at least as good in every objective and better in one. Equal points do not
dominate each other.
"""

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from paretune.core.errors import DataError

Points = NDArray[np.float64]
"""[N, K]: one row per policy or response, one column per objective."""


def nondominated(points: Points, duplicates: Literal["keep", "first"] = "keep") -> NDArray[np.bool_]:
    """Boolean mask [N] of the points on the Pareto front.

    Args:
        points: Points [N, K].
        duplicates: "keep" marks all of several equal points, "first" only the first.

    Raises:
        DataError: The points are no table of finite numbers.
    """
    # Imported here: `paretune --help` and the report of a single run need no moocore.
    import moocore

    keep_weakly = duplicates == "keep"
    mask = moocore.is_nondominated(_validated_points(points), maximise=True, keep_weakly=keep_weakly)
    return np.asarray(mask, np.bool_)


def hypervolume(points: Points, ref_point: NDArray[np.float64]) -> float:
    """Volume dominated by the points above the reference point; exact, for any number of objectives.

    Points that are not above `ref_point` in every objective contribute nothing. Hypervolumes are comparable
    only with the same `ref_point` and the same units of every objective.

    Raises:
        DataError: The points are no table of finite numbers, or `ref_point` has another number of objectives.

    Source: Fonseca et al. 2006 for two and three objectives, Guerreiro and Fonseca 2017 (HV4D+) for four, WFG
    by While et al. 2012 beyond, as implemented in moocore.
    """
    import moocore

    table, corner = _validated_points(points), np.asarray(ref_point, np.float64)
    if corner.shape != table.shape[1:]:
        raise DataError(
            f"the reference point has shape {corner.shape}, but the points have {table.shape[1]} objectives; "
            "fix: give one number per objective"
        )
    return float(moocore.hypervolume(table, corner, maximise=True))


def _validated_points(points: Points) -> Points:
    table = np.asarray(points, np.float64)
    if table.ndim != 2:
        raise DataError(
            f"a Pareto front needs numbers of shape [points, objectives], got shape {table.shape}; "
            "fix: one list of numbers per point"
        )
    invalid = np.argwhere(~np.isfinite(table))
    if len(invalid):
        row, column = invalid[0].tolist()
        number = str(table[row, column]).replace("nan", "NaN")
        raise DataError(
            f"a Pareto front needs finite numbers; objective {column + 1} of point {row + 1} is {number}; "
            "fix: leave out points without a score"
        )
    return table
