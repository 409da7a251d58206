"""Evaluation of a reward model on unseen prompts, head by head; None stands for what cannot be computed."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from paretune.data.records import Rating
from paretune.reward.model import RewardModel
from paretune.reward.training import LabelledRow, encode_records, label_matrix, label_votes

Vector = NDArray[np.float64]

NUM_BINS = 10
CHUNK_SIZE = 1024
"""Rows that are compared with all others at a time, to bound memory."""
MIN_ROWS = 3
"""Fewer rows give no correlation: that of two is always -1 or 1."""
REDUNDANT_CORRELATION = 0.95
"""Correlation above which two heads count as redundant."""

EMPTY_HEAD_REPORT: dict[str, Any] = dict.fromkeys(
    "num_ratings num_pairs mae rmse r2 spearman kendall pair_accuracy pair_accuracy_clear log_loss".split()
) | {"num_ratings": 0, "num_pairs": 0}


def rating_metrics(predicted: Vector, label: Vector) -> dict[str, Any]:
    """Agreement with ratings, in label units; no NaN.

    `pair_accuracy` is over all pairs of rows with different labels, a tie of the predictions counting half;
    `pair_accuracy_clear` over those at least one standard deviation apart.
    """
    if not len(label):
        return {"num_ratings": 0}
    error = predicted - label
    variance = float(label.var())
    return {
        "num_ratings": len(label),
        "mae": float(np.abs(error).mean()),
        "rmse": float(np.sqrt((error**2).mean())),
        "r2": 1 - float((error**2).mean()) / variance if variance > 0 else None,
        "spearman": spearman(predicted, label),
        "kendall": kendall(predicted, label),
        "pair_accuracy": pairwise_accuracy(predicted, label, 0.0),
        "pair_accuracy_clear": pairwise_accuracy(predicted, label, math.sqrt(variance)),
    }


def pair_metrics(margin: Vector) -> dict[str, Any]:
    """Agreement with preferences, from the log-odds of the chosen response; a tie counts half."""
    if not len(margin):
        return {"num_pairs": 0}
    correct = (margin > 0) + 0.5 * (margin == 0)
    return {
        "num_pairs": len(margin),
        "pair_accuracy": float(correct.mean()),
        "log_loss": float(np.logaddexp(0.0, -margin).mean()),
    }


def calibration(predicted: Vector, label: Vector) -> dict[str, Any] | None:
    """Calibration of predictions; None for fewer than two rows or constant predictions.

    `slope` and `intercept` of the least-squares line of labels on predictions (1 and 0 when calibrated);
    `error`: mean distance between mean label and mean prediction over ten bins of equally many rows.
    """
    if len(label) < 2 or predicted.std() == 0:
        return None
    slope = float(np.cov(predicted, label, ddof=0)[0, 1] / predicted.var())
    bins = []
    # A stable sort keeps tied predictions in the order of the data, on every platform.
    for rows in np.array_split(np.argsort(predicted, kind="stable"), min(NUM_BINS, len(label))):
        bin_means = {"predicted": float(predicted[rows].mean()), "label": float(label[rows].mean())}
        bins.append({**bin_means, "count": len(rows)})
    error = sum(b["count"] * abs(b["predicted"] - b["label"]) for b in bins) / len(label)
    intercept = float(label.mean() - slope * predicted.mean())
    return {"slope": slope, "intercept": intercept, "error": float(error), "bins": bins}


def spearman(x: Vector, y: Vector) -> float | None:
    """Spearman's rank correlation, by scipy; None for fewer than three rows or a constant side."""
    if not _can_correlate(x, y):
        return None
    from scipy import stats

    return float(stats.spearmanr(x, y).statistic)


def kendall(x: Vector, y: Vector) -> float | None:
    """Kendall's tau-b, by scipy; None for fewer than three rows or a constant side.

    Source: Kendall 1945 (Biometrika 33:3), the coefficient for ties.
    """
    if not _can_correlate(x, y):
        return None
    from scipy import stats

    return float(stats.kendalltau(x, y).statistic)


def pearson(x: Vector, y: Vector) -> float | None:
    """Pearson's correlation; None for fewer than three rows or a constant side."""
    if not _can_correlate(x, y):
        return None
    with np.errstate(invalid="ignore"):
        correlation = float(np.corrcoef(x, y)[0, 1])
    # A spread below the rounding of the mean has no correlation.
    return correlation if math.isfinite(correlation) else None


def _can_correlate(x: Vector, y: Vector) -> bool:
    return len(x) >= MIN_ROWS and bool((x != x[0]).any() and (y != y[0]).any())


def pairwise_accuracy(predicted: Vector, label: Vector, min_gap: float) -> float | None:
    """Fraction of correctly ordered pairs, of those whose labels differ by at least `min_gap`."""
    correct = total = 0.0
    for start in range(0, len(label), CHUNK_SIZE):
        chunk = slice(start, start + CHUNK_SIZE)
        gap = label[chunk, None] - label[None, :]
        use = (gap > 0) & (gap >= min_gap)
        predicted_gap = predicted[chunk, None] - predicted[None, :]
        correct += float((use & (predicted_gap > 0)).sum()) + 0.5 * float((use & (predicted_gap == 0)).sum())
        total += float(use.sum())
    return correct / total if total else None


def kind_metrics(
    model: RewardModel, k: int, logits: Float[Tensor, " N"], records: Sequence[LabelledRow]
) -> dict[str, Any]:
    """The metrics of head number `k` that its kind has beside those of all heads; empty: none.

    Args:
        model: The reward model.
        k: Index of the head.
        logits: Of the rated response of each record.
        records: Held-out records; a rating with several votes counts with each, of weight 1 / votes.
    """
    found = label_votes(records, model.objectives[k])
    known = ~logits[found.rows].isnan()
    if not known.any():
        return {}
    labels = (found.votes[known] - model.offset[k]) / model.scale[k]
    parameters = model.head_parameters(k).detach().cpu().double()
    with torch.no_grad():
        return model.kinds[k].metrics(
            logits[found.rows][known].double(), labels, found.weights[known], parameters
        )


def reward_report(
    model: RewardModel,
    test: Sequence[LabelledRow],
    *,
    train: Sequence[LabelledRow] = (),
    baselines: Mapping[str, Mapping[str, Mapping[str, Any]]] | None = None,
) -> dict[str, Any]:
    """The content of `reward/report.json`; None stands for what cannot be computed.

    {"objectives": {NAME: {num_ratings, mae, rmse, r2, spearman, kendall, pair_accuracy, pair_accuracy_clear,
    num_pairs, log_loss, calibration, length, categories: {CATEGORY: {num_ratings, ..., num_pairs, ...}},
    baselines: {constant, ridge}, beats_baselines: {constant, ridge}}}, "correlation": {objectives, predicted,
    label}, "redundant_heads": [{a, b, correlation}], "train": {ratings, pairs}, "test": {ratings, pairs},
    "provenance"}

    `kind` and `kind_metrics` are there, and in the baseline `constant`, if the kind has metrics of its own.
    With preference pairs, `pair_accuracy` is theirs. `categories` holds the same metrics per prompt category,
    where there are several. `length` is the rank correlation with the number of tokens, of the predictions
    and of the labels: a model that prefers long responses more than its raters did will be exploited for it.

    Args:
        model: The trained reward model.
        test: Records that it was not trained on.
        train: Its training records, to be counted.
        baselines: Result of `baseline_metrics`.
    """
    token_rows = [encoded.token_rows for encoded in encode_records(model, test)]
    logits = model.sequence_logits([row for rows in token_rows for row in rows])
    with torch.inference_mode():
        scores = model.to_label_units(logits).double().numpy()
        rescaled = model.rescale(logits).double().numpy()
    first = np.cumsum([0, *[len(rows) for rows in token_rows[:-1]]])[: len(token_rows)]
    is_rating = np.array([isinstance(record, Rating) for record in test], dtype=bool)
    label = label_matrix(test, model.objectives).numpy()
    predicted = scores[first]
    # Bradley-Terry is fitted on logits. Rescaled ones, so that responses with equal linear scores tie.
    margin = (rescaled[first] - rescaled[np.where(is_rating, first, first + 1)]) / np.array(model.scale)
    length = np.array([len(rows[0]) for rows in token_rows], dtype=np.float64)
    heads = {}
    for k, name in enumerate(model.objectives):
        known = ~np.isnan(label[:, k]) & ~np.isnan(predicted[:, k]) & ~np.isnan(margin[:, k])
        ratings, pairs = known & is_rating, known & ~is_rating
        head = _head_report(predicted[ratings, k], label[ratings, k], length[ratings], margin[pairs, k])
        head["categories"] = {
            category: rating_metrics(predicted[ratings & mask, k], label[ratings & mask, k])
            | pair_metrics(margin[pairs & mask, k])
            for category, mask in _category_masks(test).items()
            if (known & mask).any()
        }
        if own_metrics := kind_metrics(model, k, logits[first, k], test):
            head |= {"kind": model.kinds[k].name, "kind_metrics": own_metrics}
        heads[name] = head | _baseline_report(head, (baselines or {}).get(name, {}))
    return {
        "objectives": heads,
        **_head_correlations(model.objectives, predicted, np.where(is_rating[:, None], label, np.nan)),
        "train": _count_records(train),
        "test": _count_records(test),
        "provenance": model.provenance,
    }


def _category_masks(records: Sequence[LabelledRow]) -> dict[str, Any]:
    """[N] mask per prompt category; empty if there is only one."""
    categories = [record.prompt.category for record in records]
    masks = {
        category or "other": np.array([category == other for other in categories])
        for category in sorted(set(categories))
    }
    return masks if len(masks) > 1 else {}


def _head_report(predicted: Vector, label: Vector, length: Vector, margin: Vector) -> dict[str, Any]:
    head = EMPTY_HEAD_REPORT | rating_metrics(predicted, label)
    head["calibration"] = calibration(predicted, label)
    head["length"] = {"predicted": None, "label": None}
    if len(label):
        head["length"] = {"predicted": spearman(predicted, length), "label": spearman(label, length)}
    if len(margin):
        head |= pair_metrics(margin)
        if not len(label):
            # Probability of the response that the model prefers, against how often it was chosen.
            probability = 1 / (1 + np.exp(-np.abs(margin)))
            head["calibration"] = calibration(probability, (margin > 0).astype(np.float64))
    return head


def _baseline_report(
    head: Mapping[str, Any], baselines: Mapping[str, Mapping[str, Any]]
) -> dict[str, dict[str, Any]]:
    return {
        "baselines": {key: dict(metrics) for key, metrics in baselines.items()},
        "beats_baselines": {key: _beats_baseline(head, metrics) for key, metrics in baselines.items()},
    }


def _beats_baseline(head: Mapping[str, Any], baseline: Mapping[str, Any]) -> bool | None:
    """By squared error on ratings, by accuracy where there are only pairs."""
    if head["rmse"] is not None and baseline.get("rmse") is not None:
        return bool(head["rmse"] < baseline["rmse"])
    if head["pair_accuracy"] is not None and baseline.get("pair_accuracy") is not None:
        return bool(head["pair_accuracy"] > baseline["pair_accuracy"])
    return None


def _head_correlations(objectives: Sequence[str], predicted: Any, label: Any) -> dict[str, Any]:
    """Correlations between heads, and between the labels of the rows that have both."""
    between_heads, between_labels = _correlation_matrix(predicted), _correlation_matrix(label)
    redundant = [
        {"a": a, "b": b, "correlation": between_heads[i][j]}
        for i, a in enumerate(objectives)
        for j, b in enumerate(objectives)
        if i < j and between_heads[i][j] is not None and between_heads[i][j] > REDUNDANT_CORRELATION
    ]
    return {
        "correlation": {
            "objectives": list(objectives),
            "predicted": between_heads,
            "label": between_labels,
        },
        "redundant_heads": redundant,
    }


def _correlation_matrix(x: Any) -> list[list[Any]]:
    def entry(i: int, j: int) -> float | None:
        both = ~np.isnan(x[:, i]) & ~np.isnan(x[:, j])
        return pearson(x[both, i], x[both, j])

    return [[entry(i, j) for j in range(x.shape[1])] for i in range(x.shape[1])]


def _count_records(records: Sequence[LabelledRow]) -> dict[str, int]:
    num_ratings = sum(isinstance(record, Rating) for record in records)
    return {"ratings": num_ratings, "pairs": len(records) - num_ratings}
