"""What a reward model has to beat on the same split: a constant, and linear models on frozen features.

The features are the mean of the *unfitted* body's hidden states over the response. Ratings get ridge
regression, pairs a logistic one on differences; a fifth of the training prompts chooses the penalties.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from paretune.core.errors import WiringError
from paretune.data.loader import split_by_prompt
from paretune.data.records import Rating
from paretune.models.forward.length_batching import batches_by_length, pad_sequences
from paretune.models.forward.logprobs import device_of, hidden_states
from paretune.reward.evaluation import Vector, pair_metrics, rating_metrics
from paretune.reward.model import RewardModel
from paretune.reward.training import LabelledRow, encode_records, label_matrix

Matrix = NDArray[np.float64]

RIDGE_PENALTIES = tuple(10.0**power for power in range(-4, 4))
"""Of the squared weights, beside the mean loss of standardised features."""
VALIDATION_FRACTION = 0.2
NEWTON_ITERATIONS = 12


@dataclass(frozen=True)
class BaselineData:
    """Records and what the frozen body makes of them."""

    is_rating: NDArray[np.bool_]
    labels: Matrix
    """[N, K]; 0 for a pair, NaN where nobody was asked."""
    features: Matrix
    """[N, W]; of a pair, chosen minus rejected."""
    is_validation: NDArray[np.bool_]


@torch.inference_mode()
def extract_features(
    model: RewardModel, records: Sequence[LabelledRow], *, seed: int, max_tokens_per_pass: int = 4096
) -> BaselineData:
    """Ask the frozen body, as it was before any fit, for the features of all records."""
    encoded = encode_records(model, records)
    rows = [row for record in encoded for row in record.token_rows]
    begin = [record.prompt_length for record in encoded for _ in record.token_rows]
    width = 0
    means: dict[int, Vector] = {}
    for part in batches_by_length([len(row) for row in rows], max_tokens_per_pass):
        ids, attend = pad_sequences([rows[i] for i in part], device=device_of(model.network))
        hidden = hidden_states(model.network, ids, attend).double()
        place = torch.arange(ids.shape[1], device=ids.device)
        where = attend & (place >= torch.tensor([begin[i] for i in part], device=ids.device)[:, None])
        mean = torch.where(where[..., None], hidden, 0.0).sum(1) / where.sum(1, keepdim=True)
        width = mean.shape[1]
        means |= dict(zip(part, mean.cpu().numpy(), strict=True))
    flat = np.stack([means[i] for i in range(len(rows))]) if rows else np.zeros((0, width))
    first = np.cumsum([0, *[len(record.token_rows) for record in encoded[:-1]]])[: len(records)]
    rated = np.array([isinstance(record, Rating) for record in records], dtype=bool)
    features = flat[first] - np.where(rated[:, None], 0.0, flat[np.where(rated, first, first + 1)])
    held = {id(record) for record in split_by_prompt(records, VALIDATION_FRACTION, seed)[1]}
    validation = np.array([id(record) in held for record in records], dtype=bool)
    return BaselineData(rated, label_matrix(records, model.objectives).numpy(), features, validation)


def baseline_metrics(
    model: RewardModel, train: Sequence[LabelledRow], test: Sequence[LabelledRow], *, seed: int = 0
) -> dict[str, dict[str, dict[str, Any]]]:
    """For each objective the metrics on the test records of `constant` and `ridge`, fitted on the others.

    Args:
        model: The reward model as it was before its fit.
        train: What the reward model is fitted on.
        test: What it is judged on.
        seed: Of the split that chooses the penalties.

    Raises:
        WiringError: No training records.
    """
    if not train:
        raise WiringError("the baselines of a reward model need its training records")
    known, unseen = extract_features(model, train, seed=seed), extract_features(model, test, seed=seed)
    result = {}
    for k, name in enumerate(model.objectives):
        parts = [_rating_baselines(known, unseen, k), _pair_baselines(known, unseen, k)]
        result[name] = {kind: parts[0][kind] | parts[1][kind] for kind in ("constant", "ridge")}
    return result


def _rating_baselines(train: BaselineData, test: BaselineData, k: int) -> dict[str, dict[str, Any]]:
    use = train.is_rating & ~np.isnan(train.labels[:, k])
    at = test.is_rating & ~np.isnan(test.labels[:, k])
    if not use.any() or not at.any():
        return {"constant": {}, "ridge": {}}
    x, y, held = train.features[use], train.labels[use, k], train.is_validation[use]
    constant = rating_metrics(np.full(int(at.sum()), y.mean()), test.labels[at, k])
    predicted = _ridge_predict(x, y, held, test.features[at])
    return {"constant": constant, "ridge": rating_metrics(predicted, test.labels[at, k])}


def _pair_baselines(train: BaselineData, test: BaselineData, k: int) -> dict[str, dict[str, Any]]:
    use = ~train.is_rating & ~np.isnan(train.labels[:, k])
    at = ~test.is_rating & ~np.isnan(test.labels[:, k])
    if not use.any() or not at.any():
        return {"constant": {}, "ridge": {}}
    margin = _logistic_predict(train.features[use], train.is_validation[use], test.features[at])
    return {"constant": pair_metrics(np.zeros(int(at.sum()))), "ridge": pair_metrics(margin)}


def _ridge_predict(x: Matrix, y: Vector, is_validation: NDArray[np.bool_], test_features: Matrix) -> Vector:
    """Ridge with an unpenalised intercept; the penalty is the best on the held rows."""

    def predict(a: Matrix, b: Vector, to: Matrix, penalty: float) -> Vector:
        mean, scale = a.mean(0), a.std(0) + 1e-12
        z = (a - mean) / scale
        gram = z.T @ z / len(z) + penalty * np.eye(z.shape[1])
        weights = np.linalg.solve(gram, z.T @ (b - b.mean()) / len(z))
        found: Vector = (to - mean) / scale @ weights + b.mean()
        return found

    if not 0 < is_validation.sum() < len(is_validation):
        return predict(x, y, test_features, 1.0)
    errors = [
        ((predict(x[~is_validation], y[~is_validation], x[is_validation], p) - y[is_validation]) ** 2).mean()
        for p in RIDGE_PENALTIES
    ]
    return predict(x, y, test_features, RIDGE_PENALTIES[int(np.argmin(errors))])


def _logistic_predict(x: Matrix, is_validation: NDArray[np.bool_], test_features: Matrix) -> Vector:
    """Bradley-Terry with linear scores: log-odds of the unseen pairs."""

    def predict(a: Matrix, to: Matrix, penalty: float) -> Vector:
        scale = np.sqrt((a**2).mean(0)) + 1e-12
        z = a / scale
        weights = np.zeros(z.shape[1])
        for _ in range(NEWTON_ITERATIONS):
            lost = 1 / (1 + np.exp(np.clip(z @ weights, -500, 500)))
            gradient = penalty * weights - z.T @ lost / len(z)
            curve = (z * (lost * (1 - lost))[:, None]).T @ z / len(z) + penalty * np.eye(len(weights))
            weights = weights - np.linalg.solve(curve, gradient)
        found: Vector = to / scale @ weights
        return found

    if not 0 < is_validation.sum() < len(is_validation):
        return predict(x, test_features, 1.0)
    losses = [
        np.logaddexp(0.0, -predict(x[~is_validation], x[is_validation], p)).mean() for p in RIDGE_PENALTIES
    ]
    return predict(x, test_features, RIDGE_PENALTIES[int(np.argmin(losses))])
