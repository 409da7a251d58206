"""Win rates from pairwise preferences between the responses of two policies; numpy and scipy only.

A judge that compares two responses is biased towards one position and towards longer text. Every pair is
therefore judged in both orders, and the length-controlled win rate is that of responses of equal length.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from paretune.core.errors import DataError
from paretune.evaluate.statistics import simultaneous_intervals, wilson

_PRIOR_PRECISION = 0.01
"""Ridge penalty per coefficient: keeps a fit finite where one response always wins."""
_MAX_NEWTON_STEPS = 50

FloatArray = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class WinRate:
    """Win rate of the policy after training over the one before, with its interval; NaN: not measurable."""

    rate: float
    """Wins plus half the ties, over the judged pairs."""
    low: float
    high: float
    num_prompts: int
    """Prompts with a judged pair."""
    disagreement_rate: float
    """Fraction of the judged pairs for which the two orders prefer different responses: counted as ties."""
    missing_fraction: float
    """Fraction of the pairs that at least one order did not judge: left out."""


@dataclass(frozen=True, kw_only=True)
class LengthControlledWinRate:
    """Win rate at equal lengths, with its interval, and how much a longer response wins."""

    rate: float
    low: float
    high: float
    length_effect: float
    """Log-odds of a win per unit of tanh(length difference / its standard deviation)."""


def combine_orders(after_second: FloatArray, after_first: FloatArray) -> tuple[FloatArray, float, float]:
    """One preference per pair from its judgments in both orders.

    Args:
        after_second: [N] probability or choice (1, 0, or 0.5 for a tie) that the response after training is
            better, shown second; NaN = not judged.
        after_first: [N] the same with that response shown first.

    Returns:
        [N] preferences: the mean of both orders, 0.5 where they prefer different responses, NaN where one is
        not judged; the rate of such disagreements among the judged pairs; and the fraction not judged. Both
        rates are NaN without a pair to measure them on.

    Raises:
        DataError: The arrays differ in shape, or a number lies outside [0, 1].
    """
    orders = [np.asarray(order, np.float64) for order in (after_second, after_first)]
    if orders[0].ndim != 1 or orders[0].shape != orders[1].shape:
        raise DataError(
            f"preferences in the two orders have shapes {orders[0].shape} and {orders[1].shape}; "
            "fix: give one number per pair and order"
        )
    for order in orders:
        outside = order[(order < 0) | (order > 1)]
        if len(outside):
            raise DataError(
                f"a preference is {outside[0]:g}; fix: give numbers from 0 (before is better) to 1 (after)"
            )
    mean = (orders[0] + orders[1]) / 2
    judged = ~np.isnan(mean)
    disagree = judged & ((orders[0] - 0.5) * (orders[1] - 0.5) < 0)
    preferences = np.where(disagree, 0.5, mean)
    return (
        preferences,
        float(disagree.sum() / judged.sum()) if judged.any() else float("nan"),
        float(1 - judged.mean()) if len(judged) else float("nan"),
    )


def win_rate(
    after_second: FloatArray,
    after_first: FloatArray,
    prompts: NDArray[np.int64] | None = None,
    *,
    bootstrap_samples: int = 2000,
    confidence_level: float = 0.95,
    seed: int = 0,
) -> WinRate:
    """Win rate with position swap and a bootstrap-t interval over prompts.

    Args:
        after_second: [N] as in `combine_orders`.
        after_first: [N] as in `combine_orders`.
        prompts: [N] Pairs with equal numbers belong to one prompt; default: each pair has its own.
        bootstrap_samples: Number of bootstrap samples.
        confidence_level: Confidence level of the interval.
        seed: Seed of the bootstrap.

    Returns:
        The win rate; its interval is within [0, 1], and that of Wilson where all preferences are equal.

    Raises:
        DataError: As `combine_orders`.
    """
    preferences, disagreement_rate, missing_fraction = combine_orders(after_second, after_first)
    index = _prompt_index(prompts, len(preferences))
    judged = ~np.isnan(preferences)
    num_prompts = len(np.unique(index[judged]))
    if not num_prompts:
        rate, low, high = (float("nan"),) * 3
    else:
        intervals = simultaneous_intervals(
            preferences[:, None] - 0.5,
            clusters=index,
            bootstrap_samples=bootstrap_samples,
            confidence_level=confidence_level,
            seed=seed,
        )
        rate = float(preferences[judged].mean())
        low, high = (float(np.clip(end[0] + 0.5, 0, 1)) for end in (intervals.low, intervals.high))
        if np.ptp(preferences[judged]) == 0:
            low, high = wilson(rate * num_prompts, num_prompts, confidence_level)
    return WinRate(
        rate=rate,
        low=low,
        high=high,
        num_prompts=num_prompts,
        disagreement_rate=disagreement_rate,
        missing_fraction=missing_fraction,
    )


def length_controlled_win_rate(
    preferences: FloatArray,
    length_differences: FloatArray,
    prompts: NDArray[np.int64] | None = None,
    *,
    bootstrap_samples: int = 500,
    confidence_level: float = 0.95,
    seed: int = 0,
) -> LengthControlledWinRate:
    """Win rate that would be seen if both responses to every prompt were of equal length.

    A logistic model explains the preferences by a constant and by tanh(difference / its standard
    deviation); the rate is the model's at a difference of 0. The interval is of the percentiles over
    bootstrap samples of the prompts, and at least Wilson's where all preferences are equal. The lengths
    are standardized and the model is fitted anew in each of them, so that the uncertainty of the fit is
    included.

    Args:
        preferences: [N] as from `combine_orders`; NaN = not judged.
        length_differences: [N] length after minus before, in any unit.
        prompts: [N] Pairs with equal numbers belong to one prompt; default: each pair has its own.
        bootstrap_samples: Number of bootstrap samples.
        confidence_level: Confidence level of the interval.
        seed: Seed of the bootstrap.

    Returns:
        The win rate; NaN with fewer than two prompts, or where all lengths differ by one number other than 0:
        then nothing is known of equal lengths.

    Raises:
        DataError: The arrays differ in shape, or a length is not finite.

    Source: Dubois et al. 2024 (arXiv:2404.04475), length-controlled AlpacaEval. Differs: one pair of
        policies, so no difficulty of the prompt, which needs other policies' preferences; the interval
        includes the fit, where theirs is the standard error of the fitted values; a ridge penalty of 0.01.
    """
    outcomes, lengths = np.asarray(preferences, np.float64), np.asarray(length_differences, np.float64)
    if outcomes.ndim != 1 or outcomes.shape != lengths.shape:
        raise DataError(
            f"preferences have shape {outcomes.shape} and length differences {lengths.shape}; "
            "fix: give one of each per pair"
        )
    if not np.isfinite(lengths).all():
        raise DataError("a length difference is not finite; fix: give the lengths of both responses")
    judged = ~np.isnan(outcomes)
    _, index = np.unique(_prompt_index(prompts, len(outcomes))[judged], return_inverse=True)
    outcomes, lengths = outcomes[judged], lengths[judged]
    num_prompts = int(index.max()) + 1 if len(index) else 0
    if num_prompts < 2 or (np.ptp(lengths) == 0 and lengths[0] != 0):
        return LengthControlledWinRate(
            **dict.fromkeys(("rate", "low", "high", "length_effect"), float("nan"))
        )
    rng = np.random.Generator(np.random.Philox(seed))
    counts = rng.multinomial(num_prompts, np.full(num_prompts, 1 / num_prompts), bootstrap_samples)
    weights = np.concatenate([np.ones((1, len(outcomes))), counts[:, index].astype(np.float64)])
    constant, slope = _fit_logistic(outcomes, lengths, weights)
    rates = 1 / (1 + np.exp(-constant))
    low, high = np.quantile(rates[1:], [(1 - confidence_level) / 2, (1 + confidence_level) / 2])
    low, high = _with_wilson(float(low), float(high), outcomes, num_prompts, confidence_level)
    return LengthControlledWinRate(rate=float(rates[0]), low=low, high=high, length_effect=float(slope[0]))


def _with_wilson(
    low: float, high: float, outcomes: FloatArray, num_prompts: int, confidence_level: float
) -> tuple[float, float]:
    """The interval, not narrower than Wilson's where all outcomes are equal: resampling shows no variance."""
    if np.ptp(outcomes) > 0:
        return low, high
    bounds = wilson(float(outcomes[0]) * num_prompts, num_prompts, confidence_level)
    return min(low, bounds[0]), max(high, bounds[1])


def _fit_logistic(
    outcomes: FloatArray, lengths: FloatArray, weights: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """[D] constants and [D] slopes of D weighted logistic fits, from [N] outcomes and [D, N] weights."""
    total = weights.sum(1, keepdims=True)
    mean = weights @ lengths[:, None] / total
    std = np.sqrt((weights * (lengths - mean) ** 2).sum(1, keepdims=True) / total)
    covariate = np.tanh(lengths / np.where(std > 0, std, 1.0))
    constant, slope = np.zeros(len(weights)), np.zeros(len(weights))
    for _ in range(_MAX_NEWTON_STEPS):
        probability = 1 / (1 + np.exp(-(constant[:, None] + slope[:, None] * covariate)))
        residual = weights * (outcomes - probability)
        curvature = weights * probability * (1 - probability)
        gradient = residual.sum(1) - _PRIOR_PRECISION * constant
        slope_gradient = (residual * covariate).sum(1) - _PRIOR_PRECISION * slope
        a = curvature.sum(1) + _PRIOR_PRECISION
        b = (curvature * covariate).sum(1)
        c = (curvature * covariate**2).sum(1) + _PRIOR_PRECISION
        determinant = a * c - b * b
        step = (
            np.stack([(c * gradient - b * slope_gradient), (a * slope_gradient - b * gradient)]) / determinant
        )
        # A full step overshoots where nearly all outcomes are equal.
        step = np.clip(step, -1.0, 1.0)
        constant, slope = constant + step[0], slope + step[1]
        if np.abs(step).max() < 1e-8:
            break
    return constant, slope


def _prompt_index(prompts: NDArray[np.int64] | None, num_pairs: int) -> NDArray[np.int64]:
    index = np.arange(num_pairs) if prompts is None else np.asarray(prompts)
    if index.shape != (num_pairs,):
        raise DataError(
            f"{num_pairs} pairs, but prompts of shape {index.shape}; fix: give one number per pair"
        )
    return index
