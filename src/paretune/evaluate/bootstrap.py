"""The bootstrap behind the intervals of `statistics`: resampled clusters, and how far an interval reaches."""

import math
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

_MAX_COUNTS_IN_MEMORY = 4_000_000
"""Resampling counts held in memory at a time."""
_SKEW_RATE, _SKEW_SLOPE, _MAX_SKEW_FACTOR, _FEW_CLUSTERS = 28.0, 6.5, 4.0, 20
"""How far an interval reaches beyond t(c) on the side of a long tail: chosen by simulation."""
_MIN_ERROR_RATIO = 0.5
"""Smallest standard error of a bootstrap sample, as a fraction of that of the whole sample."""


def interval_reaches(
    sums: NDArray[np.float64],
    counts: NDArray[np.float64],
    bootstrap_samples: int,
    confidence_level: float,
    rng: np.random.Generator,
) -> NDArray[np.float64]:
    """[2, K] reaches below and above the mean, in standard errors, that hold for all K objectives.

    They are at least t(c): c is the quantile of max_k |mean*_k - mean_k| / se_k, and t() maps a normal
    quantile to that of Student's t with one degree of freedom less than the objective has clusters, or with
    as many as it has changed clusters (a difference other than 0) if these are fewer: the others say nothing
    on the size of changes, as in McNemar's test. `_skew_excess` adds what skewed differences need on the side
    of their long tail.

    Args:
        sums: [P, K] sums of the differences of each cluster.
        counts: [P, K] scored rows of each cluster.
        bootstrap_samples: Number of bootstrap samples.
        confidence_level: Probability that all K intervals hold.
        rng: Draws the samples.

    Source: Romano and Wolf 2005 (Econometrica 73:4), the studentized step without the step-down; Davison
        and Hinkley 1997, section 2.4 for resampling clusters. Differs: t(c) for small samples.
    """
    num_clusters = (counts > 0).sum(0)
    changed_counts = np.where(sums != 0, counts, 0.0)
    num_changed = np.maximum((changed_counts > 0).sum(0), 1)
    mean, residuals, standard_error = means_with_errors(sums, counts)
    quantile, tails = 0.0, np.zeros((1, 2, len(mean)))
    if (np.nan_to_num(standard_error) > 0).any():
        columns = [(residuals, counts, standard_error)]
        mostly_unchanged = num_changed < num_clusters / 2
        if mostly_unchanged.any():
            changed_counts = np.where(mostly_unchanged, changed_counts, 0.0)
            _, changed_residuals, changed_error = means_with_errors(sums, changed_counts)
            columns.append((changed_residuals, changed_counts, changed_error))
        all_residuals, all_counts, all_errors = (np.hstack(arrays) for arrays in zip(*columns, strict=True))
        deviations, errors = _bootstrap_deviations(all_residuals, all_counts, bootstrap_samples, rng)
        quantile, tails = _reach_quantiles(deviations, errors, all_errors, len(mean), confidence_level)
    # Of a few clusters there are too few different bootstrap samples; K objectives need no less than one.
    quantile = max(quantile, NormalDist().inv_cdf((1 + confidence_level) / 2))
    symmetric = _student_t_quantile(quantile, np.minimum(num_clusters - 1, num_changed))
    return symmetric + _skew_excess(tails, symmetric, num_changed)


def _skew_excess(
    tails: NDArray[np.float64], symmetric: NDArray[np.float64], num_changed: NDArray[np.int64]
) -> NDArray[np.float64]:
    """[2, K] what skewed differences need beyond t(c) on the side of their long tail.

    A sample often lacks the rare large values of a long tail. The bootstrap-t quantile of
    (mean* - mean) / se*, at the level at which at most (1 - confidence_level) / 2 of the bootstrap samples
    exceed it in any objective, is the reach where it exceeds t(c). A sample is less skewed than what it was
    drawn from: by as much as a side exceeds the other one, it gets min(28 / sqrt(changed clusters), 4) times
    more, or 6.5 times that excess if this is smaller, since symmetric differences show a small one by chance.
    Where most clusters are unchanged, the excess among the changed ones counts if it is larger. Below 20
    changed clusters these quantiles are unsure themselves, and what they add to t(c) counts in proportion to
    the changed clusters. The bootstrap-t quantile never shortens an interval: where tails are heavy, the
    shorter side would not hold.

    Args:
        tails: [N, 2, K] bootstrap-t quantiles of N parts on both sides, from `_reach_quantiles`.
        symmetric: [K] t(c).
        num_changed: [K] changed clusters.

    Source: Efron 1981 (Canadian Journal of Statistics 9:139) for bootstrap-t; Beran 1988 (JASA 83:679) for
        one joint level of all objectives. Differs: the allowance for skew, whose numbers were chosen by
        simulation on log-normal differences (docs/results/intervals.md).
    """
    tails = np.maximum(tails, symmetric)
    skew = np.maximum(tails - tails[:, ::-1], 0.0).max(0)
    factor = np.minimum(_SKEW_RATE / np.sqrt(num_changed), _MAX_SKEW_FACTOR)
    factor = np.minimum(factor, _SKEW_SLOPE * skew)
    excess: NDArray[np.float64] = tails[0] - symmetric + factor * skew
    return np.minimum(num_changed / _FEW_CLUSTERS, 1.0) * excess


def max_t_quantile(
    deviations: NDArray[np.float64], scale: NDArray[np.float64], confidence_level: float
) -> float:
    """The quantile of max_k |replicate_k - estimate_k| / scale_k, from [D, K] |deviations| and [K] scales."""
    return float(np.quantile((deviations / scale).max(1), confidence_level))


def means_with_errors(
    sums: NDArray[np.float64], counts: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """[K] means, [P, K] residuals of the sums about them, [K] standard errors; NaN without any count."""
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = np.where(counts > 0, sums, 0.0).sum(0) / counts.sum(0)
        residuals = np.where(counts > 0, sums - mean * counts, 0.0)
        return mean, residuals, np.sqrt((residuals**2).sum(0)) / counts.sum(0)


def cluster_sums(
    differences: NDArray[np.float64], clusters: NDArray[np.int64] | None
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """[C, K] sums of the scored differences of each cluster, and [C, K] how many these are."""
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


def resample_counts(rng: np.random.Generator, num_rows: int, num_resamples: int) -> NDArray[np.float64]:
    """[D, P]: how often each of `num_rows` rows occurs in each of the samples with replacement."""
    picks = rng.integers(0, num_rows, (num_resamples, num_rows))
    rows = np.arange(num_resamples)[:, None]
    return (
        np.bincount((rows * num_rows + picks).ravel(), minlength=num_resamples * num_rows)
        .reshape(num_resamples, num_rows)
        .astype(float)
    )


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
        weights = resample_counts(rng, num_rows, min(chunk_size, bootstrap_samples - start))
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
            quantile = max_t_quantile(np.abs(deviations[:, part]), standard_error[part], confidence_level)
    return quantile, tails


def _joint_upper_quantiles(statistics: NDArray[np.float64], tail: float) -> NDArray[np.float64]:
    """[K] quantiles of the columns, all of one level; at most `tail` of the rows exceed any of them."""
    num_rows = len(statistics)
    order = np.argsort(statistics, axis=0, kind="stable")
    ranks = np.empty_like(order)
    np.put_along_axis(ranks, order, np.arange(num_rows)[:, None], axis=0)
    row = np.sort(ranks.max(1))[min(math.ceil((1 - tail) * num_rows), num_rows) - 1]
    return np.take_along_axis(statistics, order[row][None], axis=0)[0]


def _student_t_quantile(normal_quantile: float, degrees_of_freedom: NDArray[np.int64]) -> NDArray[np.float64]:
    """The quantiles of Student's t at the probability of a normal quantile; NaN below 1 degree of freedom."""
    from scipy import stats

    # The upper tail keeps its digits where a cumulative probability would round to 1.
    upper_tail = stats.norm.sf(normal_quantile)
    quantiles: NDArray[np.float64] = stats.t.isf(upper_tail, degrees_of_freedom)
    return quantiles
