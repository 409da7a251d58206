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

_MAX_COUNTS_IN_MEMORY = 4_000_000
"""Resampling counts held in memory at a time."""
_SKEW_RATE, _SKEW_SLOPE, _MAX_SKEW_FACTOR, _FEW_CLUSTERS = 28.0, 6.5, 4.0, 20
"""How far an interval reaches beyond t(c) on the side of a long tail: chosen by simulation."""
_MIN_ERROR_RATIO = 0.5
"""Smallest standard error of a bootstrap sample, as a fraction of that of the whole sample."""

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
    objectives is kept. An interval is [mean - a se, mean + b se]. Its reaches a and b are at least t(c): c is
    the quantile of max_k |mean*_k - mean_k| / se_k, and t() maps a normal quantile to the quantile of
    Student's t with one degree of freedom less than the objective has clusters, or with as many as it has
    changed clusters (a difference other than 0) if these are fewer: the others say nothing on the size of
    changes, as in McNemar's test.

    Skewed differences need more on the side of their long tail, where a sample often lacks the rare large
    values. The bootstrap-t quantile of (mean* - mean) / se*, at the level at which at most
    (1 - confidence_level) / 2 of the bootstrap samples exceed it in any objective, is the reach where it
    exceeds t(c). A sample is less skewed than what it was drawn from: by as much as a side exceeds the other
    one, it gets min(28 / sqrt(changed clusters), 4) times more, or 6.5 times that excess if this is smaller,
    since symmetric differences show a small one by chance. Where most clusters are unchanged, the excess
    among the changed ones counts if it is larger. Below 20 changed clusters these quantiles are unsure
    themselves, and what they add to t(c) counts in proportion to the changed clusters. The bootstrap-t
    quantile never shortens an interval: where tails are heavy, the shorter side would not hold.

    Args:
        differences: [P, K] after minus before, one row per prompt; NaN = not scored.
        clusters: [P] Rows with equal numbers depend on each other; default: each row is its own cluster.
        bootstrap_samples: Number of bootstrap samples.
        confidence_level: Probability that all K intervals hold.
        seed: Seed of the bootstrap.

    Returns:
        The intervals; NaN bounds where fewer than two clusters are scored.

    Source: Romano and Wolf 2005 (Econometrica 73:4), the studentized step without the step-down; Davison
        and Hinkley 1997, section 2.4 for resampling clusters; Efron 1981 (Canadian Journal of Statistics
        9:139) for bootstrap-t; Beran 1988 (JASA 83:679) for one joint level of all objectives. Differs: t(c)
        for small samples; the allowance for skew, whose numbers were chosen by simulation on log-normal
        differences (docs/results/intervals.md).
    """
    sums, counts = _cluster_sums(np.asarray(differences, np.float64), clusters)
    num_clusters = (counts > 0).sum(0)
    changed_counts = np.where(sums != 0, counts, 0.0)
    num_changed = np.maximum((changed_counts > 0).sum(0), 1)
    mean, residuals, standard_error = _means_with_errors(sums, counts)
    quantile, tails = 0.0, np.zeros((1, 2, len(mean)))
    if (np.nan_to_num(standard_error) > 0).any():
        columns = [(residuals, counts, standard_error)]
        mostly_unchanged = num_changed < num_clusters / 2
        if mostly_unchanged.any():
            changed_counts = np.where(mostly_unchanged, changed_counts, 0.0)
            _, changed_residuals, changed_error = _means_with_errors(sums, changed_counts)
            columns.append((changed_residuals, changed_counts, changed_error))
        all_residuals, all_counts, all_errors = (np.hstack(arrays) for arrays in zip(*columns, strict=True))
        rng = np.random.Generator(np.random.Philox(seed))
        deviations, errors = _bootstrap_deviations(all_residuals, all_counts, bootstrap_samples, rng)
        quantile, tails = _reach_quantiles(deviations, errors, all_errors, len(mean), confidence_level)
    # The residuals are about the estimated mean.
    scaled_error = standard_error * np.sqrt(num_clusters / np.maximum(num_clusters - 1, 1))
    # Of a few clusters there are too few different bootstrap samples; K objectives need no less than one.
    quantile = max(quantile, NormalDist().inv_cdf((1 + confidence_level) / 2))
    symmetric = _student_t_quantile(quantile, np.minimum(num_clusters - 1, num_changed))
    tails = np.maximum(tails, symmetric)
    skew = np.maximum(tails - tails[:, ::-1], 0.0).max(0)
    factor = np.minimum(_SKEW_RATE / np.sqrt(num_changed), _MAX_SKEW_FACTOR)
    factor = np.minimum(factor, _SKEW_SLOPE * skew)
    excess = tails[0] - symmetric + factor * skew
    reach = symmetric + np.minimum(num_changed / _FEW_CLUSTERS, 1.0) * excess
    return Intervals(
        mean=mean,
        low=mean - reach[0] * scaled_error,
        high=mean + reach[1] * scaled_error,
        num_scored=(~np.isnan(differences)).sum(0).astype(np.int64),
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
    counts = _resample_counts(rng, len(scores[0]), bootstrap_samples)
    for s, table in enumerate(scores):
        if s > 0 and not shared_prompts:
            counts = _resample_counts(rng, len(table), bootstrap_samples)
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
    half_width = _max_t_quantile(deviations[:, varies], scale[varies], confidence_level) * scale
    return estimate - half_width, estimate + half_width


def _max_t_quantile(
    deviations: NDArray[np.float64], scale: NDArray[np.float64], confidence_level: float
) -> float:
    """The quantile of max_k |replicate_k - estimate_k| / scale_k, from [D, K] |deviations| and [K] scales."""
    return float(np.quantile((deviations / scale).max(1), confidence_level))


def _means_with_errors(
    sums: NDArray[np.float64], counts: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """[K] means, [P, K] residuals of the sums about them, [K] standard errors; NaN without any count."""
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = np.where(counts > 0, sums, 0.0).sum(0) / counts.sum(0)
        residuals = np.where(counts > 0, sums - mean * counts, 0.0)
        return mean, residuals, np.sqrt((residuals**2).sum(0)) / counts.sum(0)


def _bootstrap_deviations(
    residuals: NDArray[np.float64],
    counts: NDArray[np.float64],
    bootstrap_samples: int,
    rng: np.random.Generator,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """[D, C] mean* - mean and [D, C] se* of every bootstrap sample of the rows.

    Both are 0 where a sample has no scored row.
    """
    num_rows = len(residuals)
    chunk_size = max(1, _MAX_COUNTS_IN_MEMORY // num_rows)
    columns = np.hstack([residuals, counts, residuals**2, residuals * counts, counts**2])
    deviations, errors = [], []
    for start in range(0, bootstrap_samples, chunk_size):
        weights = _resample_counts(rng, num_rows, min(chunk_size, bootstrap_samples - start))
        total, size, squares, mixed, squared_size = np.split(weights @ columns, 5, axis=1)
        with np.errstate(invalid="ignore", divide="ignore"):
            deviation = np.where(size > 0, total / size, 0.0)
            # The sum of squares about the sample's own mean; rounding may leave it slightly below 0.
            around_mean = squares - 2 * deviation * mixed + deviation**2 * squared_size
            errors.append(np.where(size > 0, np.sqrt(np.maximum(around_mean, 0.0)) / size, 0.0))
        deviations.append(deviation)
    return np.concatenate(deviations), np.concatenate(errors)


def _reach_quantiles(
    deviations: NDArray[np.float64],
    errors: NDArray[np.float64],
    standard_error: NDArray[np.float64],
    num_objectives: int,
    confidence_level: float,
) -> tuple[float, NDArray[np.float64]]:
    """The max-t quantile of all objectives, and [N, 2, K] bootstrap-t quantiles of N parts on both sides.

    Args:
        deviations: [D, N K] as from `_bootstrap_deviations`: the K objectives over all clusters, then where
            there are unchanged ones the K objectives over the changed clusters.
        errors: [D, N K] standard errors of the bootstrap samples.
        standard_error: [N K] standard errors of the whole samples.
        num_objectives: K.
        confidence_level: Probability that all intervals hold.
    """
    # A sample of nearly equal differences has almost no error of its own, or none.
    floor = _MIN_ERROR_RATIO * standard_error
    tail = (1 - confidence_level) / 2
    quantile, tails = 0.0, np.zeros((len(standard_error) // num_objectives, 2, num_objectives))
    for number, part_tails in enumerate(tails):
        # An objective whose differences are all equal has no t statistic, and no part in the joint level.
        part = np.arange(num_objectives) + number * num_objectives
        varies = np.nan_to_num(standard_error[part]) > 0
        part = part[varies]
        if not len(part):
            continue
        statistics = deviations[:, part] / np.maximum(errors[:, part], floor[part])
        part_tails[0, varies] = _joint_upper_quantiles(statistics, tail)
        part_tails[1, varies] = _joint_upper_quantiles(-statistics, tail)
        if number == 0:
            quantile = _max_t_quantile(np.abs(deviations[:, part]), standard_error[part], confidence_level)
    return quantile, tails


def _joint_upper_quantiles(statistics: NDArray[np.float64], tail: float) -> NDArray[np.float64]:
    """[K] quantiles of the columns, all of one level; at most `tail` of the rows exceed any of them."""
    num_rows = len(statistics)
    order = np.argsort(statistics, axis=0, kind="stable")
    ranks = np.empty_like(order)
    np.put_along_axis(ranks, order, np.arange(num_rows)[:, None], axis=0)
    row = np.sort(ranks.max(1))[min(math.ceil((1 - tail) * num_rows), num_rows) - 1]
    return np.take_along_axis(statistics, order[row][None], axis=0)[0]


def _cluster_sums(
    differences: NDArray[np.float64], clusters: NDArray[np.int64] | None
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    known = ~np.isnan(differences)
    values = np.where(known, differences, 0.0)
    if clusters is None:
        return values, known.astype(np.float64)
    labels, index = np.unique(clusters, return_inverse=True)
    sums = np.zeros((len(labels), differences.shape[1]))
    counts = np.zeros_like(sums)
    np.add.at(sums, index, values)
    np.add.at(counts, index, known)
    return sums, counts


def _student_t_quantile(normal_quantile: float, degrees_of_freedom: NDArray[np.int64]) -> NDArray[np.float64]:
    """The quantiles of Student's t at the probability of a normal quantile; NaN below 1 degree of freedom."""
    from scipy import stats

    # The upper tail keeps its digits where a cumulative probability would round to 1.
    upper_tail = stats.norm.sf(normal_quantile)
    quantiles: NDArray[np.float64] = stats.t.isf(upper_tail, degrees_of_freedom)
    return quantiles


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


def _resample_counts(rng: np.random.Generator, num_rows: int, num_resamples: int) -> NDArray[np.float64]:
    """[D, P]: how often each of `num_rows` rows occurs in each of the samples with replacement."""
    picks = rng.integers(0, num_rows, (num_resamples, num_rows))
    rows = np.arange(num_resamples)[:, None]
    return (
        np.bincount((rows * num_rows + picks).ravel(), minlength=num_resamples * num_rows)
        .reshape(num_resamples, num_rows)
        .astype(float)
    )
