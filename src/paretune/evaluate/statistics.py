"""Confidence intervals and significance tests; numpy and scipy only.

`simultaneous_intervals` compares two arms on the same prompts. `bootstrap_means`, `percentile_intervals` and
`max_t_intervals` are for means over several training seeds. scipy.stats is imported where it is used: its
import takes a second, which `paretune --help` and `paretune report` must not pay.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from paretune.evaluate.bootstrap import (
    cluster_sums,
    interval_reaches,
    max_t_quantile,
    means_with_errors,
    resample_counts,
)

Scores = NDArray[np.float64]
"""[P, C] of one seed: prompts by cells; a cell is one policy under one objective. NaN: not scored."""


@dataclass(frozen=True, slots=True)
class Intervals:
    """Mean differences with simultaneous confidence intervals for all K objectives; NaN: not measurable."""

    mean: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]
    num_scored: NDArray[np.int64]
    """Number of scored rows per objective."""
    num_clusters: NDArray[np.int64]
    """Number of clusters with a scored row per objective."""
    min_detectable_effect: NDArray[np.float64]
    """The smallest true change that such an interval would have detected with a power of 80 %."""


def simultaneous_intervals(
    differences: NDArray[np.float64],
    *,
    clusters: NDArray[np.int64] | None = None,
    bootstrap_samples: int = 10_000,
    confidence_level: float = 0.95,
    seed: int = 0,
) -> Intervals:
    """Bootstrap intervals of the means of paired differences that hold for all objectives at once.

    Clusters are resampled with replacement, jointly for all objectives, so that the correlation between
    objectives is kept. An interval is [mean - a se, mean + b se], with the reaches a and b of
    `bootstrap.interval_reaches`: at least Student's t, and more on the side of a long tail.

    Args:
        differences: [P, K] after minus before, one row per prompt; NaN = not scored.
        clusters: [P] Rows with equal numbers depend on each other; default: each row is its own cluster.
        bootstrap_samples: Number of bootstrap samples.
        confidence_level: Probability that all K intervals hold.
        seed: Seed of the bootstrap.

    Returns:
        The intervals; NaN bounds where fewer than two clusters are scored.
    """
    sums, counts = cluster_sums(np.asarray(differences, np.float64), clusters)
    num_clusters = (counts > 0).sum(0)
    mean, _, standard_error = means_with_errors(sums, counts)
    rng = np.random.Generator(np.random.Philox(seed))
    reach = interval_reaches(sums, counts, bootstrap_samples, confidence_level, rng)
    # The residuals are about the estimated mean.
    scaled_error = standard_error * np.sqrt(num_clusters / np.maximum(num_clusters - 1, 1))
    return Intervals(
        mean=mean,
        low=mean - reach[0] * scaled_error,
        high=mean + reach[1] * scaled_error,
        num_scored=(~np.isnan(differences)).sum(0).astype(np.int64),
        num_clusters=num_clusters.astype(np.int64),
        min_detectable_effect=(reach.max(0) + NormalDist().inv_cdf(0.8)) * scaled_error,
    )


def wilson(successes: float | int, n: float | int, confidence_level: float = 0.95) -> tuple[float, float]:
    """Wilson's confidence interval of a rate; (0, 1) for n = 0.

    Source: Wilson 1927 (JASA 22:158), without continuity correction. `scipy.stats.binomtest` computes the
    same but takes whole counts only; with several samples per prompt `successes` is a sum of fractions.
    """
    if n <= 0:
        return 0.0, 1.0
    z = NormalDist().inv_cdf(0.5 + confidence_level / 2)
    rate = successes / n
    center = (rate + z * z / (2 * n)) / (1 + z * z / n)
    half_width = z / (1 + z * z / n) * math.sqrt(rate * (1 - rate) / n + z * z / (4 * n * n))
    return max(0.0, center - half_width), min(1.0, center + half_width)


def rate_change_interval(
    before: NDArray[np.float64], after: NDArray[np.float64], confidence_level: float = 0.95
) -> tuple[float, float]:
    """Confidence interval of the change of a rate between two arms on the same prompts.

    Unlike a bootstrap interval it does not shrink to a point when neither arm has a positive case.

    Args:
        before: [P] fraction of each prompt's samples that are positive.
        after: [P] the same for the other arm.
        confidence_level: Confidence level of the interval.

    Source: Newcombe 1998 (Statistics in Medicine 17:2635), method 10, which scipy does not have. Differs:
        with several samples per prompt, the 2 x 2 table holds expected counts, and n stays the number of
        prompts.
    """
    n = len(before)
    if n == 0:
        return -1.0, 1.0
    p, q = float(before.mean()), float(after.mean())
    (low_p, high_p), (low_q, high_q) = wilson(p * n, n, confidence_level), wilson(q * n, n, confidence_level)
    phi = _phi_coefficient(before, after)
    down = (q - low_q) ** 2 - 2 * phi * (q - low_q) * (high_p - p) + (high_p - p) ** 2
    up = (high_q - q) ** 2 - 2 * phi * (high_q - q) * (p - low_p) + (p - low_p) ** 2
    change = q - p
    # Rounding may leave a square slightly below 0; a change of a rate never leaves [-1, 1].
    return max(-1.0, change - math.sqrt(max(down, 0.0))), min(1.0, change + math.sqrt(max(up, 0.0)))


def fisher_exact(a: int, b: int, c: int, d: int) -> float:
    """Two-sided p-value of Fisher's exact test on [[a, b], [c, d]]; 1 for an empty row or column."""
    from scipy import stats

    return float(stats.fisher_exact([[a, b], [c, d]]).pvalue)


def mean_over_seeds(scores: Sequence[Scores]) -> NDArray[np.float64]:
    """[C]: mean over seeds of each seed's mean over its scored prompts."""
    return np.stack([_mean_over_prompts(table) for table in scores]).mean(0)


def bootstrap_means(
    scores: Sequence[Scores], *, shared_prompts: bool, bootstrap_samples: int = 2000, seed: int = 0
) -> NDArray[np.float64]:
    """Replicates of `mean_over_seeds`, [D, C]: their quantiles are the bounds of confidence intervals.

    All cells are drawn jointly, so that differences between them stay paired. Two parts are added to the
    mean:

    * Between seeds: the deviations of the S seeds' means, summed with normal weights, over sqrt(S (S - 1)),
      and divided by the root of a chi-squared number over its S - 1 degrees of freedom. For every cell and
      every difference of cells that is the standard error times Student's t with S - 1 degrees of freedom:
      resampling three seeds would show neither their variance nor how unsure it is. With one seed the
      variance between seeds is unknown, and nothing is added.
    * Within seeds: each seed's prompts are resampled with replacement. Where all seeds were evaluated on the
      same prompts (`shared_prompts`), once for all seeds, because a hard prompt is then hard for all.

    The first part already holds what a seed's own prompts add to its mean: the sum is on the safe side.

    Args:
        scores: One table per seed, all with the same cells.
        shared_prompts: The rows of all tables are the same prompts, in the same order.
        bootstrap_samples: Number of replicates, D.
        seed: Seed of the draws.

    Source: Davison and Hinkley 1997, section 3.8 (hierarchical data); Weerahandi 1993 (JASA 88:899) for
        intervals from such draws (generalized confidence intervals).
    """
    rng = np.random.Generator(np.random.Philox(seed))
    num_seeds = len(scores)
    seed_means = np.stack([_mean_over_prompts(table) for table in scores])
    mean = seed_means.mean(0)
    replicates = np.tile(mean, (bootstrap_samples, 1))
    if num_seeds > 1:
        weights = rng.standard_normal((bootstrap_samples, num_seeds))
        weights /= np.sqrt(rng.chisquare(num_seeds - 1, (bootstrap_samples, 1)) / (num_seeds - 1))
        replicates += weights @ (seed_means - mean) / math.sqrt(num_seeds * (num_seeds - 1))
    counts = resample_counts(rng, len(scores[0]), bootstrap_samples)
    for s, table in enumerate(scores):
        if s > 0 and not shared_prompts:
            counts = resample_counts(rng, len(table), bootstrap_samples)
        replicates += (_weighted_mean(counts, table) - seed_means[s]) / num_seeds
    return replicates


def percentile_intervals(
    replicates: NDArray[np.float64], confidence_level: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """[C] lower and [C] upper bounds of each cell's own percentile interval; NaN without replicates."""
    low, high = np.quantile(replicates, [(1 - confidence_level) / 2, (1 + confidence_level) / 2], axis=0)
    return low, high


def max_t_intervals(
    estimate: NDArray[np.float64], replicates: NDArray[np.float64], confidence_level: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """[C] lower and [C] upper bounds of simultaneous intervals, by max-t.

    Each cell has its own symmetric interval, and all are widened by one factor. The scale is half a cell's
    own interval and not a standard deviation, which draws for three seeds do not have.

    Args:
        estimate: [C] point estimates.
        replicates: [D, C] replicates of them, such as from `bootstrap_means`.
        confidence_level: Probability that all C intervals hold.

    Source: Romano and Wolf 2005 (Econometrica 73:4), the studentized step without the step-down. Differs:
        the scale.
    """
    deviations = np.abs(replicates - estimate)
    scale = np.quantile(deviations, confidence_level, axis=0)
    varies = np.isfinite(scale) & (scale > 0)
    if not varies.any():
        return estimate.copy(), estimate.copy()
    half_width = max_t_quantile(deviations[:, varies], scale[varies], confidence_level) * scale
    return estimate - half_width, estimate + half_width


def _phi_coefficient(before: NDArray[np.float64], after: NDArray[np.float64]) -> float:
    """Phi of the 2 x 2 table, with Newcombe's correction; 0 where an arm does not vary."""
    n = len(before)
    both, neither = float((before * after).sum()), float(((1 - before) * (1 - after)).sum())
    gained, lost = float(((1 - before) * after).sum()), float((before * (1 - after)).sum())
    product = (both + gained) * (lost + neither) * (both + lost) * (gained + neither)
    if product <= 0:
        return 0.0
    covariance = both * neither - gained * lost
    if covariance > 0:
        covariance = max(covariance - n / 2, 0.0)
    return covariance / math.sqrt(product)


def _mean_over_prompts(scores: Scores) -> NDArray[np.float64]:
    return _weighted_mean(np.ones((1, len(scores))), scores)[0]


def _weighted_mean(counts: NDArray[np.float64], scores: Scores) -> NDArray[np.float64]:
    """[D, C] means of the scored rows, each weighted by how often it was resampled."""
    known = ~np.isnan(scores)
    with np.errstate(invalid="ignore", divide="ignore"):
        return (counts @ np.where(known, scores, 0.0)) / (counts @ known.astype(np.float64))
