"""Several judges of the same objective: their agreement."""

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paretune.data.raters import krippendorff_alpha

MIN_RANKED = 3
"""Responses below which a rank correlation says nothing."""


def judge_agreement(scores: Mapping[str, NDArray[np.float64]]) -> dict[str, Any]:
    """Agreement of judges on the same responses.

    Judges have scales of their own, so each one's scores are first replaced by their ranks among the
    responses that all judges scored.

    Args:
        scores: Judge -> score of each response; NaN = not scored.

    Returns:
        num_responses that all of them scored; alpha, Krippendorff's alpha of the ranks; spearman, the rank
        correlation of each pair of judges, by "first, second". NaN where fewer than three responses were
        scored or a judge gave all of them the same score.
    """
    from scipy import stats

    table = np.stack(list(scores.values()))
    table = table[:, ~np.isnan(table).any(0)]
    count = table.shape[1]
    varies = [len(set(row.tolist())) > 1 for row in table]
    if count < MIN_RANKED:
        ranks, varies = table, [False] * len(table)
    else:
        ranks = np.stack([stats.rankdata(row) for row in table])
    spearman = {
        f"{first}, {second}": (
            float(np.corrcoef(ranks[i], ranks[j])[0, 1]) if varies[i] and varies[j] else float("nan")
        )
        for (i, first), (j, second) in itertools.combinations(enumerate(scores), 2)
    }
    alpha = krippendorff_alpha(ranks.T.tolist()) if all(varies) else float("nan")
    return {"num_responses": count, "alpha": alpha, "spearman": spearman}


def shared_objectives(names_by_judge: Mapping[str, Sequence[str]]) -> list[str]:
    """The objectives that two or more judges score, in the order of the judges."""
    counts = Counter(name for names in names_by_judge.values() for name in names)
    return [name for name, count in counts.items() if count > 1]
