"""Confidence intervals, significance tests and verdicts; numpy and scipy only.

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

MAX_MISSING_FRACTION = 0.02
"""Largest fraction of missing judgments with which a gain is still claimed."""
UNEQUAL_MISSING_P_VALUE = 0.01
"""p-value of Fisher's exact test below which the two arms count as missing judgments unequally."""

_MAX_COUNTS_IN_MEMORY = 4_000_000
"""Resampling counts held in memory at a time."""

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
    """Max-t bootstrap intervals of the means of paired differences.

    Clusters are resampled with replacement, jointly for all objectives, so that the correlation between
    objectives is kept. The quantile c of max_k |mean*_k - mean_k| / se_k is one number for all objectives,
    and the intervals are mean_k -+ t(c) se_k. t() maps a normal quantile to the quantile of Student's t with
    one degree of freedom less than the objective has clusters: with few prompts the bootstrap alone is too
    narrow.

    Args:
        differences: [P, K] after minus before, one row per prompt; NaN = not scored.
        clusters: [P] Rows with equal numbers depend on each other; default: each row is its own cluster.
        bootstrap_samples: Number of bootstrap samples.
        confidence_level: Probability that all K intervals hold.
        seed: Seed of the bootstrap.

    Returns:
        The intervals; NaN bounds where fewer than two clusters are scored.

    Source: Romano and Wolf 2005 (Econometrica 73:4), the studentized step without the step-down; Davison
        and Hinkley 1997, section 2.4 for resampling clusters. Differs: t(c) for small samples.
    """
    sums, counts = _cluster_sums(np.asarray(differences, np.float64), clusters)
    num_clusters = (counts > 0).sum(0)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = sums.sum(0) / counts.sum(0)
        residuals = sums - mean * counts
        standard_error = np.sqrt((residuals**2).sum(0)) / counts.sum(0)
    # An objective whose differences are all equal has no t statistic; its interval is a point.
    varies = np.nan_to_num(standard_error) > 0
    normal_quantile = 0.0
    if varies.any():
        deviations = _bootstrap_deviations(
            residuals[:, varies],
            counts[:, varies],
            bootstrap_samples,
            np.random.Generator(np.random.Philox(seed)),
        )
        normal_quantile = _max_t_quantile(deviations, standard_error[varies], confidence_level)
    # The residuals are about the estimated mean: n / (n - 1) makes their variance unbiased.
    scaled_error = standard_error * np.sqrt(num_clusters / np.maximum(num_clusters - 1, 1))
    half_width = _student_t_quantile(normal_quantile, num_clusters - 1) * scaled_error
    return Intervals(
        mean=mean,
        low=mean - half_width,
        high=mean + half_width,
        num_scored=(~np.isnan(differences)).sum(0).astype(np.int64),
        min_detectable_effect=half_width + NormalDist().inv_cdf(0.8) * scaled_error,
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


def verdict(
    low: float,
    high: float,
    *,
    independent: bool,
    missing_fraction: float,
    unequal_missing: bool = False,
    margin: float | None = None,
) -> str:
    """The verdict on a change, from its interval and a fixed rule.

    better: the interval is above 0, the judge is independent of the training reward, at most 2 % of the
    judgments are missing, and not more in one arm. worse: the interval is below 0, whatever the judge.
    inconclusive: too many judgments are missing. not worse: the lower bound is above -margin. no evidence:
    none of these. not measured: no interval.
    """
    if math.isnan(low) or math.isnan(high):
        return "not measured"
    # A loss is reported even where a gain would not be believed: the rule errs on the side of caution.
    if high < 0:
        return "worse"
    if missing_fraction > MAX_MISSING_FRACTION or unequal_missing:
        return "inconclusive"
    if low > 0 and independent:
        return "better"
    if margin is not None and low > -margin:
        return "not worse"
    return "no evidence"


def mean_over_seeds(scores: Sequence[Scores]) -> NDArray[np.float64]:
    """[C]: mean over seeds of each seed's mean over its scored prompts."""
    return np.stack([_mean_over_prompts(table) for table in scores]).mean(0)


def bootstrap_means(
    scores: Sequence[Scores], *, shared_prompts: bool, bootstrap_samples: int = 2000, seed: int = 0
) -> NDArray[np.float64]:
    """Bootstrap replicates of `mean_over_seeds`, [D, C].

    All cells are resampled jointly, so that differences between them stay paired. Each replicate resamples
    the seeds with replacement, and for each of them its prompts with replacement. Where all seeds were
    evaluated on the same prompts (`shared_prompts`), a replicate resamples the prompts once for all its
    seeds, because a hard prompt is then hard for all of them.

    The deviations between S seeds are multiplied by sqrt(S / (S - 1)), because resampling S of S shows only
    (S - 1) / S of their variance. With one seed the variance between seeds is unknown, and nothing is added.

    Args:
        scores: One table per seed, all with the same cells.
        shared_prompts: The rows of all tables are the same prompts, in the same order.
        bootstrap_samples: Number of bootstrap replicates, D.
        seed: Seed of the bootstrap.

    Source: Davison and Hinkley 1997, section 3.8 (hierarchical data); Rao and Wu 1988 (JASA 83:231) for
        the rescaling.
    """
    rng = np.random.Generator(np.random.Philox(seed))
    num_seeds = len(scores)
    seed_means = np.stack([_mean_over_prompts(table) for table in scores])
    picks = rng.integers(0, num_seeds, (bootstrap_samples, num_seeds))
    shared_counts = _resample_counts(rng, len(scores[0]), bootstrap_samples) if shared_prompts else None
    within = np.zeros((bootstrap_samples, seed_means.shape[1]))
    for slot in range(num_seeds):
        for s in range(num_seeds):
            replicates = picks[:, slot] == s
            counts = (
                _resample_counts(rng, len(scores[s]), int(replicates.sum()))
                if shared_counts is None
                else shared_counts[replicates]
            )
            within[replicates] += (_weighted_mean(counts, scores[s]) - seed_means[s]) / num_seeds
    between = seed_means[picks].mean(1) - seed_means.mean(0)
    rescale = math.sqrt(num_seeds / (num_seeds - 1)) if num_seeds > 1 else 1.0
    return seed_means.mean(0) + rescale * between + within


def percentile_intervals(
    replicates: NDArray[np.float64], confidence_level: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """[C] lower and [C] upper bounds of each cell's own percentile interval; NaN without replicates."""
    low, high = np.quantile(replicates, [(1 - confidence_level) / 2, (1 + confidence_level) / 2], axis=0)
    return low, high


def max_t_intervals(
    estimate: NDArray[np.float64], replicates: NDArray[np.float64], confidence_level: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """[C] lower and [C] upper bounds of simultaneous intervals: estimate -+ c * se, by max-t.

    Args:
        estimate: [C] point estimates.
        replicates: [D, C] bootstrap replicates of them, such as from `bootstrap_means`; their standard
            deviation is se.
        confidence_level: Probability that all C intervals hold.

    Source: Romano and Wolf 2005 (Econometrica 73:4), the studentized step without the step-down.
    """
    standard_error = replicates.std(0)
    varies = np.isfinite(standard_error) & (standard_error > 0)
    if not varies.any():
        return estimate.copy(), estimate.copy()
    deviations = np.abs(replicates[:, varies] - estimate[varies])
    half_width = _max_t_quantile(deviations, standard_error[varies], confidence_level) * standard_error
    return estimate - half_width, estimate + half_width


def _max_t_quantile(
    deviations: NDArray[np.float64], standard_error: NDArray[np.float64], confidence_level: float
) -> float:
    """The quantile of max_k |replicate_k - estimate_k| / se_k, from [D, K] |deviations| and [K] errors."""
    return float(np.quantile((deviations / standard_error).max(1), confidence_level))


def _bootstrap_deviations(
    residuals: NDArray[np.float64],
    counts: NDArray[np.float64],
    bootstrap_samples: int,
    rng: np.random.Generator,
) -> NDArray[np.float64]:
    """[D, K]: |mean*_k - mean_k| of every bootstrap sample of the rows; 0 where it has no scored row."""
    num_rows = len(residuals)
    chunk_size = max(1, _MAX_COUNTS_IN_MEMORY // num_rows)
    deviations = []
    for start in range(0, bootstrap_samples, chunk_size):
        weights = _resample_counts(rng, num_rows, min(chunk_size, bootstrap_samples - start))
        total = weights @ counts
        with np.errstate(invalid="ignore", divide="ignore"):
            deviations.append(np.where(total > 0, np.abs(weights @ residuals) / total, 0.0))
    return np.concatenate(deviations)


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
