"""Intervals and verdicts, in numpy only.

Means over training seeds and prompts with their intervals, by a bootstrap that draws both.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

MAX_MISSING_FRACTION = 0.02
"""More missing judgments than this share, and no gain is claimed."""
UNEQUAL_MISSING_P_VALUE = 0.01
"""Fisher's p below which the two arms are said to miss judgments unequally."""

_MAX_COUNTS_IN_MEMORY = 4_000_000
"""Resampling counts held in memory at a time."""


@dataclass(frozen=True, slots=True)
class Intervals:
    """Mean differences with intervals that hold for all K objectives at once; NaN where nobody can say."""

    mean: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]
    num_scored: NDArray[np.int64]
    """Rows that were scored."""
    min_detectable_effect: NDArray[np.float64]
    """The smallest true change that such an interval would have shown with a probability of 80 %."""


def simultaneous_intervals(
    differences: NDArray[np.float64],
    *,
    clusters: NDArray[np.int64] | None = None,
    bootstrap_samples: int = 10_000,
    confidence_level: float = 0.95,
    seed: int = 0,
) -> Intervals:
    """Max-t bootstrap intervals of the means of paired differences.

    Clusters are drawn with replacement, all objectives together, so that their correlation is kept. The
    quantile c of max_k |mean*_k - mean_k| / se_k is one number for all objectives, and the intervals are
    mean_k -+ t(c) se_k, where t() widens a normal quantile to Student's with as many degrees of freedom as
    the objective has clusters less one: with few prompts the bootstrap alone is too narrow.

    Args:
        differences: [P, K] after minus before, one row a prompt; NaN = not scored.
        clusters: Rows with equal numbers depend on each other; each row alone when not given.
        bootstrap_samples: Bootstrap samples.
        confidence_level: Probability that all K intervals hold.
        seed: Of the draws.

    Returns:
        NaN bounds where fewer than two clusters are scored.

    Source: Romano and Wolf 2005 (Econometrica 73:4), the studentised step without the step-down; Davison
        and Hinkley 1997, section 2.4 for resampling clusters. Differs: t(c) for small samples.
    """
    sums, counts = _cluster_sums(np.asarray(differences, np.float64), clusters)
    size = (counts > 0).sum(0)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = sums.sum(0) / counts.sum(0)
        residual = sums - mean * counts
        error = np.sqrt((residual**2).sum(0)) / counts.sum(0)
    biggest = _max_t_samples(residual, counts, error, bootstrap_samples, seed)
    normal = float(np.quantile(biggest, confidence_level)) if len(biggest) else math.nan
    wide = np.array([_student_t_quantile(normal, int(n) - 1) for n in size])
    scaled = error * np.sqrt(size / np.maximum(size - 1, 1))
    unknown = size < 2
    half = np.where(unknown, math.nan, wide) * scaled
    power = NormalDist().inv_cdf(0.8) * scaled
    return Intervals(
        mean=mean,
        low=mean - half,
        high=mean + half,
        num_scored=(~np.isnan(differences)).sum(0).astype(np.int64),
        min_detectable_effect=np.where(unknown, math.nan, half + power),
    )


def wilson(successes: float | int, n: float | int, confidence_level: float = 0.95) -> tuple[float, float]:
    """Wilson's interval of a rate; (0, 1) when there is nothing to count.

    Source: Wilson 1927 (JASA 22:158), without continuity correction.
    """
    if n <= 0:
        return 0.0, 1.0
    z = NormalDist().inv_cdf(0.5 + confidence_level / 2)
    rate = successes / n
    middle = (rate + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(rate * (1 - rate) / n + z * z / (4 * n * n))
    return max(0.0, middle - half), min(1.0, middle + half)


def rate_change_interval(
    before: NDArray[np.float64], after: NDArray[np.float64], confidence_level: float = 0.95
) -> tuple[float, float]:
    """Interval of the change of a rate measured twice on the same prompts.

    Unlike a bootstrap it does not shrink to a point when neither arm has a single case.

    Args:
        before: Per prompt, the share of its samples that are cases.
        after: The same prompts, after.
        confidence_level: Of the interval.

    Source: Newcombe 1998 (Statistics in Medicine 17:2635), method 10. Differs: with several samples a
        prompt, the table of pairs holds expected counts, and n stays the number of prompts.
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
    return max(-1.0, change - math.sqrt(max(down, 0.0))), min(1.0, change + math.sqrt(max(up, 0.0)))


def fisher_exact(a: int, b: int, c: int, d: int) -> float:
    """Two-sided p of Fisher's exact test on the table [[a, b], [c, d]]."""
    row, column, total = a + b, a + c, a + b + c + d

    def log_probability(x: int) -> float:
        return (
            _log_choose(row, x) + _log_choose(total - row, column - x) - _log_choose(total, column)
        )  # hypergeometric

    observed = log_probability(a)
    low, high = max(0, column - (total - row)), min(row, column)
    every = (log_probability(x) for x in range(low, high + 1))
    return min(1.0, sum(math.exp(value) for value in every if value <= observed + 1e-7))


def verdict(
    low: float,
    high: float,
    *,
    independent: bool,
    missing_fraction: float,
    unequal_missing: bool = False,
    margin: float | None = None,
) -> str:
    """The word for a change, by a rule and nothing else.

    better: the interval lies above 0, and the judge is not the training reward, and at most 2 % of the
    judgments are missing, and not more in one arm. worse: the interval lies below 0, whoever judged.
    inconclusive: too much is missing. not worse: the lower bound lies above -margin. no evidence: none of
    these. not measured: no interval.
    """
    if math.isnan(low) or math.isnan(high):
        return "not measured"
    if high < 0:
        return "worse"
    if missing_fraction > MAX_MISSING_FRACTION or unequal_missing:
        return "inconclusive"
    if low > 0 and independent:
        return "better"
    if margin is not None and low > -margin:
        return "not worse"
    return "no evidence"


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


def _max_t_samples(
    residual: NDArray[np.float64],
    counts: NDArray[np.float64],
    standard_error: NDArray[np.float64],
    bootstrap_samples: int,
    seed: int,
) -> NDArray[np.float64]:
    """max_k |mean*_k - mean_k| / se_k of every bootstrap sample, objectives without spread left out."""
    use = np.nan_to_num(standard_error) > 0
    if not use.any():
        return np.zeros(1)
    residual, counts, standard_error = residual[:, use], counts[:, use], standard_error[use]
    size = len(residual)
    rng = np.random.Generator(np.random.Philox(seed))
    part = max(1, _MAX_COUNTS_IN_MEMORY // size)
    found = []
    for start in range(0, bootstrap_samples, part):
        picks = rng.integers(0, size, (min(part, bootstrap_samples - start), size))
        rows = np.arange(len(picks))[:, None]
        weight = np.bincount((rows * size + picks).ravel(), minlength=picks.size).reshape(picks.shape)
        drawn = weight @ counts
        with np.errstate(invalid="ignore", divide="ignore"):
            deviation = np.where(drawn > 0, np.abs(weight @ residual) / drawn, 0.0) / standard_error
        found.append(deviation.max(1))
    return np.concatenate(found)


def _student_t_quantile(normal_quantile: float, degrees_of_freedom: int) -> float:
    """Student's quantile that belongs to a normal one.

    Source: Abramowitz and Stegun 26.7.5, to the fourth power of 1 / freedom.
    """
    if degrees_of_freedom < 1:
        return math.nan
    z, v = normal_quantile, float(degrees_of_freedom)
    one = (z**3 + z) / 4
    two = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    three = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    four = (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160
    return z + one / v + two / v**2 + three / v**3 + four / v**4


def _phi_coefficient(before: NDArray[np.float64], after: NDArray[np.float64]) -> float:
    """Phi of the table of pairs, Newcombe's correction included; 0 where an arm does not vary."""
    n = len(before)
    both, neither = float((before * after).sum()), float(((1 - before) * (1 - after)).sum())
    gained, lost = float(((1 - before) * after).sum()), float((before * (1 - after)).sum())
    product = (both + gained) * (lost + neither) * (both + lost) * (gained + neither)
    if product <= 0:
        return 0.0
    spread = both * neither - gained * lost
    if spread > 0:
        spread = max(spread - n / 2, 0.0)
    return spread / math.sqrt(product)


def _log_choose(n: int, k: int) -> float:
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)


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
