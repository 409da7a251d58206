"""The front of a sweep under a bootstrap: who dominates whom, hypervolume, and the knee.

All values are oriented scores, where higher is better, as distances from the initial policy in standard
deviations of its scores. The bootstrap samples are of prompts, and of training seeds where there are
several; every point is resampled with the others, so that comparisons are paired.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paretune.core.pareto import hypervolume, nondominated
from paretune.evaluate.statistics import percentile_intervals

FloatArray = NDArray[np.float64]

REFERENCE = -1.0
"""Reference point of the hypervolume: one standard deviation below the initial policy, which then has 1."""
CLEAR_KNEE = 0.5
"""Share of the bootstrap samples from which a knee counts as clear."""
_MAX_CELLS = 20_000_000
"""Comparisons held in memory at a time."""


@dataclass(frozen=True)
class Knee:
    """The point of a front where it bulges most."""

    index: int
    bulge: float
    """Distance from the plane through the extremes of the front, as a fraction of that of the ideal point: 0
    on a straight front, 1 if one point were the best in every objective."""


@dataclass(frozen=True)
class FrontEvidence:
    """What a bootstrap says about N points in K objectives."""

    on_front: NDArray[np.bool_]
    """[N] no other point has means at least as good everywhere and better somewhere."""
    front_probability: FloatArray
    """[N] share of the bootstrap samples in which the point is on the front."""
    dominance: FloatArray
    """[N, N] share of the bootstrap samples in which the first point dominates the second."""
    volume: float
    volume_low: float
    volume_high: float
    knee: Knee | None
    knee_probability: FloatArray
    """[N] share of the bootstrap samples in which the point is the knee."""


def front_evidence(means: FloatArray, samples: FloatArray, confidence_level: float) -> FrontEvidence:
    """Front, dominance, hypervolume and knee of points, with their probabilities over the bootstrap.

    Args:
        means: [N, K] estimates.
        samples: [D, N, K] bootstrap samples of them.
        confidence_level: Of the percentile interval of the hypervolume.
    """
    corner = np.full(means.shape[1], REFERENCE)
    volumes = np.array([hypervolume(row, corner) for row in samples])
    low, high = percentile_intervals(volumes[:, None], confidence_level)
    dominance, on_front = np.zeros((len(means), len(means))), np.zeros(samples.shape[:2], bool)
    step = max(1, _MAX_CELLS // (len(means) ** 2 * means.shape[1]))
    for start in range(0, len(samples), step):
        dominated = dominance_mask(samples[start : start + step])
        dominance += dominated.sum(0)
        on_front[start : start + step] = ~dominated.any(1)
    knees = [find_knee(row, front) for row, front in zip(samples, on_front, strict=True)]
    counts = np.bincount([knee.index for knee in knees if knee is not None], minlength=len(means))
    front = nondominated(means)
    return FrontEvidence(
        on_front=front,
        front_probability=on_front.mean(0),
        dominance=dominance / len(samples),
        volume=hypervolume(means, corner),
        volume_low=float(low[0]),
        volume_high=float(high[0]),
        knee=find_knee(means, front),
        knee_probability=counts / len(samples),
    )


def find_knee(points: FloatArray, on_front: NDArray[np.bool_]) -> Knee | None:
    """The knee of the front, or None where no point lies beyond the plane through its extremes.

    Every objective is scaled to its range over the front, 0 at its worst and 1 at its best point. The knee is
    the point with the largest sum. With two objectives that is the largest distance to the straight line
    between the two ends of the front, in whatever units.

    Args:
        points: [N, K] oriented scores.
        on_front: [N] points of the front.

    Source: Das 1999 (Structural Optimization 18:107): the largest distance from the hyperplane through the
        individual optima. Differs: the range over the front, whose extremes need not be the optima.
    """
    front = points[on_front]
    low, spread = front.min(0), np.ptp(front, axis=0)
    if len(front) < 3 or (spread <= 0).any():
        return None
    bulges = (((points - low) / spread).sum(1) - 1) / (points.shape[1] - 1)
    bulges[~on_front] = -np.inf
    index = int(bulges.argmax())
    # A straight front has no knee: its bulges differ by rounding alone.
    return Knee(index, float(bulges[index])) if bulges[index] > 1e-9 else None


def knee_entry(evidence: FrontEvidence, names: list[str]) -> Mapping[str, Any] | None:
    """The key `knee` of sweep.json."""
    if evidence.knee is None:
        return None
    probability = float(evidence.knee_probability[evidence.knee.index])
    return {
        "point": names[evidence.knee.index],
        "bulge": evidence.knee.bulge,
        "probability": probability,
        "is_clear": probability >= CLEAR_KNEE,
    }


def volume_entry(evidence: FrontEvidence, num_objectives: int) -> Mapping[str, Any]:
    """The key `hypervolume` of sweep.json."""
    return {
        "value": evidence.volume,
        "low": evidence.volume_low,
        "high": evidence.volume_high,
        "reference": REFERENCE,
        "initial": (-REFERENCE) ** num_objectives,
    }


def dominance_mask(points: FloatArray) -> NDArray[np.bool_]:
    """[..., N, N]: whether the first of two [..., N, K] points is never worse, and better somewhere."""
    first, second = points[..., :, None, :], points[..., None, :, :]
    return np.logical_and(np.all(first >= second, axis=-1), np.any(first > second, axis=-1))
