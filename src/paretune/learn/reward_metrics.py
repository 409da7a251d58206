"""How well predictions agree with labels, in numpy. What cannot be computed is None, never a number."""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float64]

NUM_BINS = 10
CHUNK_SIZE = 1024
"""Rows that are compared with all others at a time."""


def rating_metrics(predicted: Vector, label: Vector) -> dict[str, Any]:
    """Agreement with ratings, in label units; all entries are known.

    `pair_accuracy` is over all pairs of rows with different labels, a tie of the predictions counting half;
    `pair_accuracy_clear` over those at least one standard deviation apart.
    """
    if not len(label):
        return {"n": 0}
    error = predicted - label
    spread = float(label.var())
    return {
        "n": len(label),
        "mae": float(np.abs(error).mean()),
        "rmse": float(np.sqrt((error**2).mean())),
        "r2": 1 - float((error**2).mean()) / spread if spread > 0 else None,
        "spearman": spearman(predicted, label),
        "kendall": kendall(predicted, label),
        "pair_accuracy": pairwise_accuracy(predicted, label, 0.0),
        "pair_accuracy_clear": pairwise_accuracy(predicted, label, math.sqrt(spread)),
    }


def pair_metrics(margin: Vector) -> dict[str, Any]:
    """Agreement with preferences, from the log-odds of the chosen side; a tie counts half."""
    if not len(margin):
        return {"pairs": 0}
    right = (margin > 0) + 0.5 * (margin == 0)
    return {
        "pairs": len(margin),
        "pair_accuracy": float(right.mean()),
        "log_loss": float(np.logaddexp(0.0, -margin).mean()),
    }


def calibration(predicted: Vector, label: Vector) -> dict[str, Any] | None:
    """Do labels fall where they were predicted?

    `slope` and `intercept` of the least-squares line from predictions to labels (1 and 0 when calibrated);
    `error`: mean distance, over ten bins of equally many rows, of the mean label from the mean prediction.
    """
    if len(label) < 2 or predicted.std() == 0:
        return None
    slope = float(np.cov(predicted, label, ddof=0)[0, 1] / predicted.var())
    bins = []
    for rows in np.array_split(np.argsort(predicted, kind="stable"), min(NUM_BINS, len(label))):
        at, said = float(predicted[rows].mean()), float(label[rows].mean())
        bins.append({"predicted": at, "label": said, "n": len(rows)})
    error = sum(b["n"] * abs(b["predicted"] - b["label"]) for b in bins) / len(label)
    intercept = float(label.mean() - slope * predicted.mean())
    return {"slope": slope, "intercept": intercept, "error": float(error), "bins": bins}


def average_ranks(x: Vector) -> Vector:
    """Ranks from 1; equal values share the mean of theirs."""
    _, index, count = np.unique(x, return_inverse=True, return_counts=True)
    last = count.cumsum()
    mean: Vector = (last - (count - 1) / 2)[index]
    return mean


def spearman(x: Vector, y: Vector) -> float | None:
    """Rank correlation; None with fewer than three rows or where a side is constant."""
    return pearson(average_ranks(x), average_ranks(y)) if len(x) > 2 else None


def kendall(x: Vector, y: Vector) -> float | None:
    """Agreement of the order of pairs, tau-b; None with fewer than three rows or where a side is constant.

    Source: Kendall 1945 (Biometrika 33:3), the coefficient for ties.
    """
    if len(x) < 3:
        return None
    both = ours = theirs = 0.0
    for start in range(0, len(x), CHUNK_SIZE):
        part = slice(start, start + CHUNK_SIZE)
        one, two = np.sign(x[part, None] - x[None, :]), np.sign(y[part, None] - y[None, :])
        both += float((one * two).sum())
        ours += float((one * one).sum())
        theirs += float((two * two).sum())
    return both / math.sqrt(ours * theirs) if ours * theirs > 0 else None


def pearson(x: Vector, y: Vector) -> float | None:
    """Pearson's; None where a side is constant."""
    a, b = x - x.mean(), y - y.mean()
    size = math.sqrt(float((a * a).sum() * (b * b).sum()))
    return float((a * b).sum()) / size if size > 0 else None


def pairwise_accuracy(predicted: Vector, label: Vector, min_gap: float) -> float | None:
    """Share of the pairs with labels that differ, by `min_gap` or more, that the predictions put in order."""
    right = total = 0.0
    for start in range(0, len(label), CHUNK_SIZE):
        part = slice(start, start + CHUNK_SIZE)
        gap = label[part, None] - label[None, :]
        use = (gap > 0) & (gap >= min_gap)
        side = predicted[part, None] - predicted[None, :]
        right += float((use & (side > 0)).sum()) + 0.5 * float((use & (side == 0)).sum())
        total += float(use.sum())
    return right / total if total else None
