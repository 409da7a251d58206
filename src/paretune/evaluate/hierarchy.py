"""Means over training seeds and prompts with their intervals, by a bootstrap that draws both."""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Scores = NDArray[np.float64]
"""[P, C] of one seed: prompts by cells; a cell is what one policy has in one objective. NaN: not scored."""


def means(scores: Sequence[Scores]) -> NDArray[np.float64]:
    """[C]: the mean over seeds of each seed's mean over its scored prompts."""
    return np.stack([_mean(part) for part in scores]).mean(0)


def resampled(
    scores: Sequence[Scores], *, crossed: bool, draws: int = 2000, seed: int = 0
) -> NDArray[np.float64]:
    """Bootstrap draws of `means`, [draws, C]; all cells together, so that differences stay paired.

    Each draw takes as many seeds as there are, with replacement, and for each of them as many prompts as it
    has, with replacement. Where every seed was evaluated on the same prompts (`crossed`), those of a draw are
    drawn once for all its seeds: what makes a prompt hard then makes it hard for all of them.

    The spread between S seeds is stretched by sqrt(S / (S - 1)), since drawing S of S with replacement shows
    only (S - 1) / S of its variance. With one seed nothing is known of it, and nothing is added.

    Args:
        scores: One table a seed, all with the same cells.
        crossed: The rows of all tables are the same prompts, in the same order.
        draws: Bootstrap samples.
        seed: Of the draws.

    Source: Davison and Hinkley 1997, section 3.8 (hierarchical data); Rao and Wu 1988 (JASA 83:231) for
        the stretching.
    """
    rng = np.random.Generator(np.random.Philox(seed))
    count = len(scores)
    own = np.stack([_mean(part) for part in scores])
    picks = rng.integers(0, count, (draws, count))
    common = _counts(rng, len(scores[0]), draws) if crossed else None
    within = np.zeros((draws, own.shape[1]))
    for slot in range(count):
        for s in range(count):
            here = picks[:, slot] == s
            counts = _counts(rng, len(scores[s]), int(here.sum())) if common is None else common[here]
            within[here] += (_weighted(counts, scores[s]) - own[s]) / count
    between = own[picks].mean(1) - own.mean(0)
    stretch = math.sqrt(count / (count - 1)) if count > 1 else 1.0
    return own.mean(0) + stretch * between + within


def percentiles(draws: NDArray[np.float64], level: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """[C] low and [C] high ends of each cell's own interval; NaN where a cell has no draws."""
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2], axis=0)
    return low, high


def simultaneous(
    value: NDArray[np.float64], draws: NDArray[np.float64], level: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """[C] low and [C] high ends of intervals that hold for all cells at once: value -+ c * se, by max-t.

    Source: Romano and Wolf 2005 (Econometrica 73:4), the studentised step without the step-down.
    """
    error = draws.std(0)
    use = np.isfinite(error) & (error > 0)
    if not use.any():
        return value.copy(), value.copy()
    largest = (np.abs(draws[:, use] - value[use]) / error[use]).max(1)
    half = float(np.quantile(largest, level)) * error
    return value - half, value + half


def _mean(part: Scores) -> NDArray[np.float64]:
    return _weighted(np.ones((1, len(part))), part)[0]


def _weighted(counts: NDArray[np.float64], part: Scores) -> NDArray[np.float64]:
    """[D, C] means of the scored rows, each counted as often as it was drawn."""
    known = ~np.isnan(part)
    with np.errstate(invalid="ignore", divide="ignore"):
        return (counts @ np.where(known, part, 0.0)) / (counts @ known.astype(np.float64))


def _counts(rng: np.random.Generator, size: int, draws: int) -> NDArray[np.float64]:
    """[D, P]: how often each of `size` rows comes in a sample of `size`, drawn with replacement."""
    picks = rng.integers(0, size, (draws, size))
    rows = np.arange(draws)[:, None]
    return (
        np.bincount((rows * size + picks).ravel(), minlength=draws * size).reshape(draws, size).astype(float)
    )
