"""Means over training seeds and prompts with their intervals, by a bootstrap that draws both."""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Scores = NDArray[np.float64]
"""[P, C] of one seed: prompts by cells; a cell is what one policy has in one objective. NaN: not scored."""


def mean_over_seeds(scores: Sequence[Scores]) -> NDArray[np.float64]:
    """[C]: the mean over seeds of each seed's mean over its scored prompts."""
    return np.stack([_mean_over_prompts(part) for part in scores]).mean(0)


def bootstrap_means(
    scores: Sequence[Scores], *, shared_prompts: bool, bootstrap_samples: int = 2000, seed: int = 0
) -> NDArray[np.float64]:
    """Bootstrap draws of `means`, [draws, C]; all cells together, so that differences stay paired.

    Each draw takes as many seeds as there are, with replacement, and for each of them as many prompts as it
    has, with replacement. Where every seed was evaluated on the same prompts (`shared_prompts`), those of a draw are
    drawn once for all its seeds: what makes a prompt hard then makes it hard for all of them.

    The spread between S seeds is stretched by sqrt(S / (S - 1)), since drawing S of S with replacement shows
    only (S - 1) / S of its variance. With one seed nothing is known of it, and nothing is added.

    Args:
        scores: One table a seed, all with the same cells.
        shared_prompts: The rows of all tables are the same prompts, in the same order.
        bootstrap_samples: Bootstrap samples.
        seed: Of the draws.

    Source: Davison and Hinkley 1997, section 3.8 (hierarchical data); Rao and Wu 1988 (JASA 83:231) for
        the stretching.
    """
    rng = np.random.Generator(np.random.Philox(seed))
    count = len(scores)
    own = np.stack([_mean_over_prompts(part) for part in scores])
    picks = rng.integers(0, count, (bootstrap_samples, count))
    common = _resample_counts(rng, len(scores[0]), bootstrap_samples) if shared_prompts else None
    within = np.zeros((bootstrap_samples, own.shape[1]))
    for slot in range(count):
        for s in range(count):
            here = picks[:, slot] == s
            counts = (
                _resample_counts(rng, len(scores[s]), int(here.sum())) if common is None else common[here]
            )
            within[here] += (_weighted_mean(counts, scores[s]) - own[s]) / count
    between = own[picks].mean(1) - own.mean(0)
    stretch = math.sqrt(count / (count - 1)) if count > 1 else 1.0
    return own.mean(0) + stretch * between + within


def percentile_intervals(
    replicates: NDArray[np.float64], confidence_level: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """[C] low and [C] high ends of each cell's own interval; NaN where a cell has no draws."""
    low, high = np.quantile(replicates, [(1 - confidence_level) / 2, (1 + confidence_level) / 2], axis=0)
    return low, high


def max_t_intervals(
    estimate: NDArray[np.float64], replicates: NDArray[np.float64], confidence_level: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """[C] low and [C] high ends of intervals that hold for all cells at once: value -+ c * se, by max-t.

    Source: Romano and Wolf 2005 (Econometrica 73:4), the studentised step without the step-down.
    """
    error = replicates.std(0)
    use = np.isfinite(error) & (error > 0)
    if not use.any():
        return estimate.copy(), estimate.copy()
    largest = (np.abs(replicates[:, use] - estimate[use]) / error[use]).max(1)
    half = float(np.quantile(largest, confidence_level)) * error
    return estimate - half, estimate + half


def _mean_over_prompts(scores: Scores) -> NDArray[np.float64]:
    return _weighted_mean(np.ones((1, len(scores))), scores)[0]


def _weighted_mean(counts: NDArray[np.float64], scores: Scores) -> NDArray[np.float64]:
    """[D, C] means of the scored rows, each counted as often as it was drawn."""
    known = ~np.isnan(scores)
    with np.errstate(invalid="ignore", divide="ignore"):
        return (counts @ np.where(known, scores, 0.0)) / (counts @ known.astype(np.float64))


def _resample_counts(rng: np.random.Generator, size: int, bootstrap_samples: int) -> NDArray[np.float64]:
    """[D, P]: how often each of `size` rows comes in a sample of `size`, drawn with replacement."""
    picks = rng.integers(0, size, (bootstrap_samples, size))
    rows = np.arange(bootstrap_samples)[:, None]
    return (
        np.bincount((rows * size + picks).ravel(), minlength=bootstrap_samples * size)
        .reshape(bootstrap_samples, size)
        .astype(float)
    )
