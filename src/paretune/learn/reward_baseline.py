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

from paretune.data.collate import split_by_prompt
from paretune.data.records import Rating
from paretune.errors import WiringError
from paretune.learn.reward_fit import Judgement, encode_records, label_matrix
from paretune.learn.reward_metrics import Vector, pair_metrics, rating_metrics
from paretune.models.forward import device_of, hidden_states
from paretune.objectives.reward_model import RewardModel, by_length, pad_rows

Matrix = NDArray[np.float64]

PENALTIES = tuple(10.0**power for power in range(-4, 4))
"""Of the squared weights, beside the mean loss of standardised features."""
VALIDATION = 0.2
NEWTON = 12


@dataclass(frozen=True)
class Featured:
    """Records and what the frozen body makes of them."""

    rated: NDArray[np.bool_]
    label: Matrix
    """[N, K]; 0 for a pair, NaN where nobody was asked."""
    features: Matrix
    """[N, W]; of a pair, chosen minus rejected."""
    validation: NDArray[np.bool_]


@torch.inference_mode()
def featured(body: RewardModel, records: Sequence[Judgement], *, seed: int, tokens: int = 4096) -> Featured:
    """Ask the frozen body, as it was before any fit, for the features of all records."""
    encoded = encode_records(body, records)
    rows = [row for record in encoded for row in record.rows]
    begin = [record.start for record in encoded for _ in record.rows]
    width = 0
    means: dict[int, Vector] = {}
    for part in by_length([len(row) for row in rows], tokens):
        ids, attend = pad_rows([rows[i] for i in part], device=device_of(body.network))
        hidden = hidden_states(body.network, ids, attend).double()
        place = torch.arange(ids.shape[1], device=ids.device)
        where = attend & (place >= torch.tensor([begin[i] for i in part], device=ids.device)[:, None])
        mean = torch.where(where[..., None], hidden, 0.0).sum(1) / where.sum(1, keepdim=True)
        width = mean.shape[1]
        means |= dict(zip(part, mean.cpu().numpy(), strict=True))
    flat = np.stack([means[i] for i in range(len(rows))]) if rows else np.zeros((0, width))
    first = np.cumsum([0, *[len(record.rows) for record in encoded[:-1]]])[: len(records)]
    rated = np.array([isinstance(record, Rating) for record in records], dtype=bool)
    features = flat[first] - np.where(rated[:, None], 0.0, flat[np.where(rated, first, first + 1)])
    held = {id(record) for record in split_by_prompt(records, VALIDATION, seed)[1]}
    validation = np.array([id(record) in held for record in records], dtype=bool)
    return Featured(rated, label_matrix(records, body.objectives).numpy(), features, validation)


def baselines(
    body: RewardModel, train: Sequence[Judgement], test: Sequence[Judgement], *, seed: int = 0
) -> dict[str, dict[str, dict[str, Any]]]:
    """For each objective the metrics on the test records of `constant` and `ridge`, fitted on the others.

    Args:
        body: The reward model as it was before its fit.
        train: What the reward model is fitted on.
        test: What it is judged on.
        seed: Of the split that chooses the penalties.

    Raises:
        WiringError: No training records.
    """
    if not train:
        raise WiringError("the baselines of a reward model need its training records")
    known, unseen = featured(body, train, seed=seed), featured(body, test, seed=seed)
    result = {}
    for k, name in enumerate(body.objectives):
        parts = [_on_ratings(known, unseen, k), _on_pairs(known, unseen, k)]
        result[name] = {kind: parts[0][kind] | parts[1][kind] for kind in ("constant", "ridge")}
    return result


def _on_ratings(train: Featured, test: Featured, k: int) -> dict[str, dict[str, Any]]:
    use = train.rated & ~np.isnan(train.label[:, k])
    at = test.rated & ~np.isnan(test.label[:, k])
    if not use.any() or not at.any():
        return {"constant": {}, "ridge": {}}
    x, y, held = train.features[use], train.label[use, k], train.validation[use]
    constant = rating_metrics(np.full(int(at.sum()), y.mean()), test.label[at, k])
    predicted = _linear(x, y, held, test.features[at])
    return {"constant": constant, "ridge": rating_metrics(predicted, test.label[at, k])}


def _on_pairs(train: Featured, test: Featured, k: int) -> dict[str, dict[str, Any]]:
    use = ~train.rated & ~np.isnan(train.label[:, k])
    at = ~test.rated & ~np.isnan(test.label[:, k])
    if not use.any() or not at.any():
        return {"constant": {}, "ridge": {}}
    margin = _logistic(train.features[use], train.validation[use], test.features[at])
    return {"constant": pair_metrics(np.zeros(int(at.sum()))), "ridge": pair_metrics(margin)}


def _linear(x: Matrix, y: Vector, held: NDArray[np.bool_], unseen: Matrix) -> Vector:
    """Ridge with an unpenalised intercept; the penalty is the best on the held rows."""

    def predict(a: Matrix, b: Vector, to: Matrix, penalty: float) -> Vector:
        mean, scale = a.mean(0), a.std(0) + 1e-12
        z = (a - mean) / scale
        gram = z.T @ z / len(z) + penalty * np.eye(z.shape[1])
        weights = np.linalg.solve(gram, z.T @ (b - b.mean()) / len(z))
        found: Vector = (to - mean) / scale @ weights + b.mean()
        return found

    if not 0 < held.sum() < len(held):
        return predict(x, y, unseen, 1.0)
    errors = [((predict(x[~held], y[~held], x[held], p) - y[held]) ** 2).mean() for p in PENALTIES]
    return predict(x, y, unseen, PENALTIES[int(np.argmin(errors))])


def _logistic(x: Matrix, held: NDArray[np.bool_], unseen: Matrix) -> Vector:
    """Bradley-Terry with linear scores: log-odds of the unseen pairs."""

    def predict(a: Matrix, to: Matrix, penalty: float) -> Vector:
        scale = np.sqrt((a**2).mean(0)) + 1e-12
        z = a / scale
        weights = np.zeros(z.shape[1])
        for _ in range(NEWTON):
            lost = 1 / (1 + np.exp(np.clip(z @ weights, -500, 500)))
            gradient = penalty * weights - z.T @ lost / len(z)
            curve = (z * (lost * (1 - lost))[:, None]).T @ z / len(z) + penalty * np.eye(len(weights))
            weights = weights - np.linalg.solve(curve, gradient)
        found: Vector = to / scale @ weights
        return found

    if not 0 < held.sum() < len(held):
        return predict(x, unseen, 1.0)
    losses = [np.logaddexp(0.0, -predict(x[~held], x[held], p)).mean() for p in PENALTIES]
    return predict(x, unseen, PENALTIES[int(np.argmin(losses))])
