"""Paired changes of all methods and objectives of a weighting, with intervals that hold for all at once."""

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paretune.compare.cells import Cells
from paretune.config.contest import Contest
from paretune.evaluate.hierarchy import simultaneous
from paretune.evaluate.statistics import verdict

Numbers = dict[str, Any]
Key = tuple[str, str]
"""(method, objective)"""
Floats = NDArray[np.float64]


def to_baseline(
    contest: Contest, cells: Cells, judged: Mapping[str, Any], refused: Mapping[str, str], weighting: str
) -> dict[Key, Numbers]:
    """Paired differences of all other methods to the baseline.

    Args:
        contest: As declared.
        cells: Judged scores of all runs.
        judged: Objective -> who judges it, as in compare.json.
        refused: Method -> why it is not ranked; no word is said of its differences, since who spent more
            may well be better. Where it is the baseline, none is said of any.
        weighting: Of the runs.
    """
    first = contest.said.first
    keys = [(m, o) for m in contest.said.methods if m != first for o in cells.objectives]
    ours = [cells.index[m, weighting, o] for m, o in keys]
    theirs = [cells.index[first, weighting, o] for _, o in keys]
    silent = {m for m in contest.said.methods if {m, first} & refused.keys()}
    change, draws = cells.mean[ours] - cells.mean[theirs], cells.draws[:, ours] - cells.draws[:, theirs]
    return _worded(contest, judged, keys, change, draws, silent)


def from_start(
    contest: Contest, cells: Cells, judged: Mapping[str, Any], weighting: str
) -> dict[Key, Numbers]:
    """Paired changes of all methods, the baseline too, from the policies that their own runs began with.

    Arguments as of `to_baseline`. Methods that are not ranked have their words here: no budgets are compared.
    """
    keys = [(m, o) for m in contest.said.methods for o in cells.objectives]
    own = [cells.index[m, weighting, o] for m, o in keys]
    change, draws = cells.mean[own] - cells.start[own], cells.draws[:, own] - cells.start_draws[:, own]
    return _worded(contest, judged, keys, change, draws)


def _worded(
    contest: Contest,
    judged: Mapping[str, Any],
    keys: Sequence[Key],
    change: Floats,
    draws: Floats,
    silent: AbstractSet[str] = frozenset(),
) -> dict[Key, Numbers]:
    """Change, interval and verdict of each; the intervals hold for all of them at once."""
    if not keys:
        return {}
    low, high = simultaneous(change, draws, contest.said.level)
    found: dict[Key, Numbers] = {}
    for place, (method, o) in enumerate(keys):
        bounds = float(low[place]), float(high[place])
        word = verdict(*bounds, independent=judged[o]["independent"], missing=judged[o]["missing"])
        word = "not ranked" if method in silent else word
        found[method, o] = {
            "change": float(change[place]), "low": bounds[0], "high": bounds[1], "verdict": word,
        }  # fmt: skip
    return found
