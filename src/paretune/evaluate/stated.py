"""What responses say of themselves: a confidence that can be held against the truth, and thoughts."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paretune.data.confidence import parse_confidence
from paretune.data.records import Sample
from paretune.evaluate.calibration import calibration_metrics
from paretune.objectives.trace import thinking_length

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
