"""Calibration of stated confidence, and length of thinking, before and after training."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from paretune.core.errors import DataError
from paretune.data.prompt_formats import parse_confidence
from paretune.data.records import Sample
from paretune.reward.scorers import thinking_metrics

FloatArray = NDArray[np.float64]
SampleArms = tuple[Sequence[Sample], Sequence[Sample]]


@dataclass(frozen=True, slots=True)
class Calibration:
    """How well stated confidence predicts correctness; NaN: not measurable."""

    ece: float
    brier: float
    auroc: float
    overconfidence: float
    num_stated: int
    """Judged responses that state a confidence."""
    num_unstated: int
    """Judged responses that state none."""


def calibration_metrics(confidence: ArrayLike, correct: ArrayLike, num_bins: int = 10) -> Calibration:
    """All calibration metrics over the judged responses that state a confidence.

    Args:
        confidence: [n] in [0, 1]; NaN = none stated.
        correct: [n] 0 or 1; NaN = not judged.
        num_bins: Bins of the expected calibration error.

    Raises:
        DataError: A confidence outside [0, 1], or a value of `correct` other than 0 and 1.
    """
    c, y = np.asarray(confidence, np.float64), np.asarray(correct, np.float64)
    if ((c < 0) | (c > 1)).any():
        raise DataError("confidence outside [0, 1]; fix: divide by the largest confidence that can be stated")
    if (~np.isnan(y) & (y != 0) & (y != 1)).any():
        raise DataError("correct holds a value that is neither 0 nor 1 nor NaN; fix: threshold the scores")
    known = ~np.isnan(c) & ~np.isnan(y)
    num_unstated = int((np.isnan(c) & ~np.isnan(y)).sum())
    c, y = c[known], y[known]
    return Calibration(
        ece=ece(c, y, num_bins),
        brier=brier_score(c, y),
        auroc=auroc(c, y),
        overconfidence=overconfidence(c, y),
        num_stated=int(known.sum()),
        num_unstated=num_unstated,
    )


def bin_indices(confidence: FloatArray, num_bins: int = 10) -> NDArray[np.int64]:
    """The bin of equal width that each confidence falls into, from 0; 1.0 falls into the last.

    Bin b holds [b, b + 1) / num_bins by the edges of `np.linspace`, whose rounding decides at an edge.
    """
    # Without the outer edges, 0.0 falls into the first bin and 1.0 into the last.
    inner_edges = np.linspace(0, 1, num_bins + 1)[1:-1]
    return np.digitize(confidence, inner_edges).astype(np.int64)


def ece(confidence: FloatArray, correct: FloatArray, num_bins: int = 10) -> float:
    """Expected calibration error: sum over bins of (fraction of responses) |mean confidence - accuracy|.

    Source: Naeini et al. 2015, "Obtaining well calibrated probabilities using Bayesian binning".
    """
    if not len(confidence):
        return float("nan")
    gaps = np.bincount(bin_indices(confidence, num_bins), confidence - correct, num_bins)
    return float(np.abs(gaps).sum() / len(confidence))


def brier_score(confidence: FloatArray, correct: FloatArray) -> float:
    """Mean squared difference of confidence and correctness, by scikit-learn; NaN without responses.

    Source: Brier 1950, "Verification of forecasts expressed in terms of probability".
    """
    if not len(confidence):
        return float("nan")
    from sklearn.metrics import brier_score_loss

    # With a single class scikit-learn cannot tell which label is the positive one.
    return float(brier_score_loss(correct, confidence, pos_label=1, labels=[0, 1]))


def auroc(confidence: FloatArray, correct: FloatArray) -> float:
    """Probability that a correct response states more confidence than a wrong one; a tie counts half.

    By scikit-learn; NaN where all responses are correct or all are wrong.
    """
    if len(np.unique(correct)) < 2:
        return float("nan")
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(correct, confidence))


def overconfidence(confidence: FloatArray, correct: FloatArray) -> float:
    """Mean over all responses of the confidence of the wrong ones.

    Source: `mpce` in the code of Leng et al. 2024 (arXiv:2410.09724).
    """
    return float((confidence * (1 - correct)).mean()) if len(confidence) else float("nan")


def calibration_by_arm(
    arms: SampleArms,
    scores: tuple[NDArray[np.float64], NDArray[np.float64]],
    objectives: Sequence[str],
    correctness_threshold: tuple[str, float],
) -> dict[str, Any]:
    """Calibration, accuracy and mean confidence of both arms; null where not measurable.

    Args:
        arms: Samples before and after.
        scores: [P, n, K] of each arm.
        objectives: Names of the K columns.
        correctness_threshold: An objective and the lowest score of it that counts as correct.
    """
    name, threshold = correctness_threshold
    results: dict[str, Any] = {"correctness_threshold": f"{name} >= {threshold:g}"}
    for arm, samples, arm_scores in zip(("before", "after"), arms, scores, strict=True):
        judged = arm_scores[:, :, objectives.index(name)].ravel()
        correct = np.where(np.isnan(judged), np.nan, judged >= threshold)
        stated = np.array([parse_confidence(sample.full_response) for sample in samples])
        known = ~np.isnan(correct) & ~np.isnan(stated)
        results[arm] = {
            **asdict(calibration_metrics(stated, correct)),
            "accuracy": float(correct[known].mean()) if known.any() else None,
            "confidence": float(stated[known].mean()) if known.any() else None,
        }
    return results


def thinking_metrics_by_arm(arms: SampleArms) -> dict[str, Any]:
    """Mean words of the final response and of the thinking, and the rate of invalid formats, in both arms."""
    before, after = (thinking_metrics(samples) for samples in arms)
    metric_keys = {
        "response": "responses/answer_length",
        "thinking": "responses/thinking_length",
        "invalid_format": "responses/format_invalid",
    }
    return {name: {"before": before[key], "after": after[key]} for name, key in metric_keys.items()} | {
        "unit": "words"
    }
