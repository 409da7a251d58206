"""How well predictions agree with labels, in numpy. What cannot be computed is None, never a number.

How good a reward model is on unseen prompts, head by head, and whether two heads say the same.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paretune.data.records import Rating
from paretune.reward.model import RewardModel
from paretune.reward.training import LabelledRow, encode_records, label_matrix

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


REDUNDANT_CORRELATION = 0.95
"""Correlation above which one head is said to copy another."""

EMPTY_HEAD_REPORT: dict[str, Any] = dict.fromkeys(
    "n pairs mae rmse r2 spearman kendall pair_accuracy pair_accuracy_clear log_loss".split()
) | {"n": 0, "pairs": 0}


def reward_report(
    model: RewardModel,
    test: Sequence[LabelledRow],
    *,
    train: Sequence[LabelledRow] = (),
    baselines: Mapping[str, Mapping[str, Mapping[str, Any]]] | None = None,
) -> dict[str, Any]:
    """The content of `reward/report.json`; None stands for what cannot be computed.

    {"objectives": {NAME: {n, mae, rmse, r2, spearman, kendall, pair_accuracy, pair_accuracy_clear, pairs,
    log_loss, calibration, length, kinds: {KIND: {n, ..., pairs, ...}}, baselines: {constant, ridge}, beats:
    {constant, ridge}}}, "correlation": {objectives, predicted, label}, "copies": [{a, b, correlation}],
    "train": {ratings, pairs}, "test": {ratings, pairs}}

    `n` counts ratings and `pairs` preference pairs; where there are pairs, `pair_accuracy` is of them.
    `kinds` holds the same for each kind of prompt, where there are several.
    `length` is the rank correlation with the number of tokens, of the predictions and of the labels: a
    model that says more than its raters did that longer is better will be exploited for it.
    """
    rows = [encoded.token_rows for encoded in encode_records(model, test)]
    flat = model.score_sequences([row for both in rows for row in both]).double().numpy()
    first = np.cumsum([0, *[len(both) for both in rows[:-1]]])[: len(rows)]
    rated = np.array([isinstance(record, Rating) for record in test], dtype=bool)
    label = label_matrix(test, model.objectives).numpy()
    mine = flat[first]
    margin = (mine - flat[np.where(rated, first, first + 1)]) / np.array(model.scale)
    length = np.array([len(both[0]) for both in rows], dtype=np.float64)
    kinds = _category_masks(test)
    heads = {}
    for k, name in enumerate(model.objectives):
        known = ~np.isnan(label[:, k]) & ~np.isnan(mine[:, k]) & ~np.isnan(margin[:, k])
        use = known & rated
        compared = margin[known & ~rated, k]
        head = _head_report(mine[use, k], label[use, k], length[use], compared)
        head["kinds"] = {
            kind: rating_metrics(mine[use & part, k], label[use & part, k])
            | pair_metrics(margin[known & ~rated & part, k])
            for kind, part in kinds.items()
            if (known & part).any()
        }
        beside = {kind: dict(found) for kind, found in (baselines or {}).get(name, {}).items()}
        head["baselines"] = beside
        head["beats"] = {kind: _beats_baseline(head, other) for kind, other in beside.items()}
        heads[name] = head
    return {
        "objectives": heads,
        **_head_correlations(model.objectives, mine, np.where(rated[:, None], label, np.nan)),
        "train": _count_records(train),
        "test": _count_records(test),
        "data": model.provenance,
    }


def _category_masks(records: Sequence[LabelledRow]) -> dict[str, Any]:
    """Where the prompts of each kind are; nothing where all are of one."""
    words = [record.prompt.category for record in records]
    found = {word or "other": np.array([word == w for w in words]) for word in sorted(set(words))}
    return found if len(found) > 1 else {}


def _head_report(predicted: Vector, label: Vector, length: Vector, margin: Vector) -> dict[str, Any]:
    head = EMPTY_HEAD_REPORT | rating_metrics(predicted, label)
    head["calibration"] = calibration(predicted, label)
    head["length"] = {"predicted": None, "label": None}
    if len(label):
        head["length"] = {"predicted": spearman(predicted, length), "label": spearman(label, length)}
    if len(margin):
        head |= pair_metrics(margin)
        if not len(label):
            # How often the side a model prefers wins, against how surely it prefers it.
            head["calibration"] = calibration(
                1 / (1 + np.exp(-np.abs(margin))), (margin > 0).astype(np.float64)
            )
    return head


def _beats_baseline(head: Mapping[str, Any], baseline: Mapping[str, Any]) -> bool | None:
    """By squared error on ratings, by accuracy where there are only pairs."""
    if head["rmse"] is not None and baseline.get("rmse") is not None:
        return bool(head["rmse"] < baseline["rmse"])
    if head["pair_accuracy"] is not None and baseline.get("pair_accuracy") is not None:
        return bool(head["pair_accuracy"] > baseline["pair_accuracy"])
    return None


def _head_correlations(objectives: Sequence[str], predicted: Any, label: Any) -> dict[str, Any]:
    """Correlations between heads, and between the labels of the rows that have both."""
    matrices = {"predicted": _correlation_matrix(predicted), "label": _correlation_matrix(label)}
    found = matrices["predicted"]
    copies = [
        {"a": a, "b": b, "correlation": found[i][j]}
        for i, a in enumerate(objectives)
        for j, b in enumerate(objectives)
        if i < j and found[i][j] is not None and found[i][j] > REDUNDANT_CORRELATION
    ]
    return {"correlation": {"objectives": list(objectives), **matrices}, "copies": copies}


def _correlation_matrix(x: Any) -> list[list[Any]]:
    def one(i: int, j: int) -> float | None:
        both = ~np.isnan(x[:, i]) & ~np.isnan(x[:, j])
        return pearson(x[both, i], x[both, j]) if both.sum() > 2 else None

    return [[one(i, j) for j in range(x.shape[1])] for i in range(x.shape[1])]


def _count_records(records: Sequence[LabelledRow]) -> dict[str, int]:
    ratings = sum(isinstance(record, Rating) for record in records)
    return {"ratings": ratings, "pairs": len(records) - ratings}
