"""Whether stated confidence can be trusted: how often those who claim 80 % are right.

What responses say of themselves: a confidence that can be held against the truth, and thoughts.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from paretune.core.errors import DataError
from paretune.data.chat import parse_confidence
from paretune.data.records import Sample
from paretune.reward.scorers import thinking_length

FloatArray = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Calibration:
    """How stated confidence compares with what was right; NaN where nobody can say."""

    ece: float
    brier: float
    auroc: float
    overconfidence: float
    num_stated: int
    """Responses that state a confidence and were judged."""
    num_unstated: int
    """Responses that were judged and state none."""


def calibration_metrics(confidence: ArrayLike, correct: ArrayLike, num_bins: int = 10) -> Calibration:
    """All measures over the responses that state a confidence and were judged.

    Args:
        confidence: [n] in [0, 1]; NaN = none stated.
        correct: [n] 0 or 1; NaN = not judged.
        num_bins: For the calibration error.

    Raises:
        DataError: A confidence outside [0, 1], or a judgment that is neither 0 nor 1.
    """
    c, y = np.asarray(confidence, np.float64), np.asarray(correct, np.float64)
    if ((c < 0) | (c > 1)).any():
        raise DataError("a confidence outside [0, 1]; fix: divide it by the largest that can be stated")
    if (~np.isnan(y) & (y != 0) & (y != 1)).any():
        raise DataError("a judgment of correctness that is neither 0 nor 1")
    known = ~np.isnan(c) & ~np.isnan(y)
    unstated = int((np.isnan(c) & ~np.isnan(y)).sum())
    c, y = c[known], y[known]
    return Calibration(
        ece(c, y, num_bins), brier_score(c, y), auroc(c, y), overconfidence(c, y), int(known.sum()), unstated
    )


def bin_indices(confidence: FloatArray, num_bins: int = 10) -> NDArray[np.int64]:
    """The bin of equal width that each confidence falls into, from 0; 1.0 falls into the last.

    Bin b holds [b, b + 1) / num_bins by the edges of `np.linspace`, whose rounding decides at an edge.
    """
    inner = np.linspace(0, 1, num_bins + 1)[1:-1]
    return np.digitize(confidence, inner).astype(np.int64)


def ece(confidence: FloatArray, correct: FloatArray, num_bins: int = 10) -> float:
    """Expected calibration error: sum over bins of (share of responses) |mean confidence - share right|.

    Source: Naeini et al. 2015, "Obtaining well calibrated probabilities using Bayesian binning".
    """
    if not len(confidence):
        return float("nan")
    gaps = np.bincount(bin_indices(confidence, num_bins), confidence - correct, num_bins)
    return float(np.abs(gaps).sum() / len(confidence))


def brier_score(confidence: FloatArray, correct: FloatArray) -> float:
    """Mean squared difference of confidence and correctness.

    Source: Brier 1950, "Verification of forecasts expressed in terms of probability".
    """
    return float(np.square(confidence - correct).mean()) if len(confidence) else float("nan")


def auroc(confidence: FloatArray, correct: FloatArray) -> float:
    """Probability that a right response states more confidence than a wrong one, a tie counting half.

    NaN where all are right or all wrong.
    """
    right, wrong = confidence[correct == 1], confidence[correct == 0]
    if not len(right) or not len(wrong):
        return float("nan")
    gap = right[:, None] - wrong[None]
    return float((gap > 0).mean() + (gap == 0).mean() / 2)


def overconfidence(confidence: FloatArray, correct: FloatArray) -> float:
    """Mean over all responses of the confidence of those that are wrong.

    Source: `mpce` in the code of Leng et al. 2024 (arXiv:2410.09724).
    """
    return float((confidence * (1 - correct)).mean()) if len(confidence) else float("nan")


def to_unit_scale(raw: ArrayLike) -> FloatArray:
    """Numbers that models state in tenths or in percent, as shares: 8 and 80 are 0.8, beyond 100 is 1.

    NaN stays NaN. A guess about the scale, for answers that were not asked in ours; 1 is read as a tenth.

    Raises:
        DataError: A negative number.

    Source: Leng et al. 2024 (arXiv:2410.09724), its evaluation code. Differs: that makes negative scores of
    negative numbers.
    """
    x = np.asarray(raw, np.float64)
    if (x < 0).any():
        raise DataError("a stated confidence is negative")
    return np.where(x <= 10, x / 10, np.minimum(x / 100, 1.0))


def impute_most_common(confidence: ArrayLike) -> FloatArray:
    """The confidence most often stated, the first of equally common ones, for those who state none.

    0.5 where nobody states any.

    Source: Leng et al. 2024 (arXiv:2410.09724), its evaluation code.
    """
    x = np.asarray(confidence, np.float64)
    known = x[~np.isnan(x)]
    if not len(known):
        return np.full_like(x, 0.5)
    values, first, counts = np.unique(known, return_index=True, return_counts=True)
    most = values[np.lexsort((first, -counts))[0]]
    return np.where(np.isnan(x), most, x)


SampleArms = tuple[Sequence[Sample], Sequence[Sample]]


def calibration_by_arm(
    arms: SampleArms,
    scores: tuple[NDArray[np.float64], NDArray[np.float64]],
    objectives: Sequence[str],
    correctness_threshold: tuple[str, float],
) -> dict[str, Any]:
    """How well stated confidence fits what is right, in both arms; null where nobody can say.

    Args:
        arms: Samples before and after.
        scores: [P, n, K] of each arm.
        objectives: Of the columns.
        correctness_threshold: The objective and its least score that make an answer right.
    """
    name, least = correctness_threshold
    found: dict[str, Any] = {"correct": f"{name} >= {least:g}"}
    for arm, samples, score in zip(("before", "after"), arms, scores, strict=True):
        judged = score[:, :, objectives.index(name)].ravel()
        right = np.where(np.isnan(judged), np.nan, judged >= least)
        stated = np.array([parse_confidence(sample.full_response) for sample in samples])
        known = ~np.isnan(right) & ~np.isnan(stated)
        found[arm] = {
            **asdict(calibration_metrics(stated, right)),
            "accuracy": float(right[known].mean()) if known.any() else None,
            "confidence": float(stated[known].mean()) if known.any() else None,
        }
    return found


def thinking_length_by_arm(arms: SampleArms) -> dict[str, Any]:
    """Mean words of answers and of thoughts, and the share of responses without the form, in both arms."""
    one, two = (thinking_length(samples) for samples in arms)
    names = {
        "responses/answer_length": "answer",
        "responses/thinking_length": "trace",
        "responses/format_invalid": "unread",
    }
    return {name: {"before": one[key], "after": two[key]} for key, name in names.items()} | {"unit": "words"}
