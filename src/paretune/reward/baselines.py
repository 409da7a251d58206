"""Baselines for a reward model on the same split: a constant, and linear models on frozen features.

The features are the mean hidden states of the response, from the body before training. Ratings get ridge
regression, pairs logistic regression on feature differences; a fifth of the training prompts selects the
penalty.
"""

from collections.abc import Callable, Sequence
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
from paretune.reward.evaluation import Vector, kind_metrics, pair_metrics, rating_metrics
from paretune.reward.model import RewardModel
from paretune.reward.training import LabelledRow, encode_records, label_matrix

Matrix = NDArray[np.float64]
Mask = NDArray[np.bool_]

PENALTIES = tuple(10.0**power for power in range(-4, 4))
"""Candidate L2 penalties of standardized features, relative to the mean loss."""
DEFAULT_PENALTY = 1.0
"""Penalty where the prompts cannot be split."""
VALIDATION_FRACTION = 0.2


@dataclass(frozen=True)
class BaselineData:
    """Records with the features of the frozen body."""

    is_rating: Mask
    """[N]"""
    labels: Matrix
    """[N, K]; 0 for a pair, NaN = not labelled."""
    features: Matrix
    """[N, W]; of a pair, chosen minus rejected."""
    is_validation: Mask
    """[N]"""


@torch.inference_mode()
def extract_features(
    model: RewardModel, records: Sequence[LabelledRow], *, seed: int, max_tokens_per_pass: int = 4096
) -> BaselineData:
    """Features of all records.

    Args:
        model: The reward model before training.
        records: Ratings and pairs.
        seed: Seed of the validation split.
        max_tokens_per_pass: Maximum padded tokens per forward pass.
    """
    encoded = encode_records(model, records)
    sequences = [row for record in encoded for row in record.token_rows]
    starts = [record.prompt_length for record in encoded for _ in record.token_rows]
    width = 0
    means: dict[int, Vector] = {}
    for index in batches_by_length([len(row) for row in sequences], max_tokens_per_pass):
        ids, mask = pad_sequences([sequences[i] for i in index], device=device_of(model.network))
        # Sums over long responses in bfloat16 would lose their last digits.
        hidden = hidden_states(model.network, ids, mask).double()
        position = torch.arange(ids.shape[1], device=ids.device)
        in_response = mask & (
            position >= torch.tensor([starts[i] for i in index], device=ids.device)[:, None]
        )
        total = torch.where(in_response[..., None], hidden, 0.0).sum(1)
        mean = total / in_response.sum(1, keepdim=True)
        width = mean.shape[1]
        means |= dict(zip(index, mean.cpu().numpy(), strict=True))
    flat = np.stack([means[i] for i in range(len(sequences))]) if sequences else np.zeros((0, width))
    first = np.cumsum([0, *[len(record.token_rows) for record in encoded[:-1]]])[: len(records)]
    is_rating = np.array([isinstance(record, Rating) for record in records], dtype=bool)
    # A rating has a single row: its own index keeps the lookup in range, and the result is not used.
    rejected = flat[np.where(is_rating, first, first + 1)]
    features = flat[first] - np.where(is_rating[:, None], 0.0, rejected)
    validation_ids = {id(record) for record in split_by_prompt(records, VALIDATION_FRACTION, seed)[1]}
    is_validation = np.array([id(record) in validation_ids for record in records], dtype=bool)
    return BaselineData(is_rating, label_matrix(records, model.objectives).numpy(), features, is_validation)


def baseline_metrics(
    model: RewardModel, train: Sequence[LabelledRow], test: Sequence[LabelledRow], *, seed: int = 0
) -> dict[str, dict[str, dict[str, Any]]]:
    """Per objective, the test metrics of the baselines `constant` and `ridge`.

    Args:
        model: The reward model before training.
        train: Training records of the reward model.
        test: Test records of the reward model.
        seed: Seed of the split that selects the penalties.

    Raises:
        WiringError: No training records.
    """
    if not train:
        raise WiringError("reward model baselines: no training records; fix: pass the training split")
    train_data, test_data = (
        extract_features(model, train, seed=seed),
        extract_features(model, test, seed=seed),
    )
    results = {}
    for k, name in enumerate(model.objectives):
        ratings = _rating_baselines(train_data, test_data, k)
        pairs = _pair_baselines(train_data, test_data, k)
        results[name] = {baseline: ratings[baseline] | pairs[baseline] for baseline in ("constant", "ridge")}
        # Logit 0 is the baseline of a kind before the training.
        if own_metrics := kind_metrics(model, k, torch.zeros(len(test)), test):
            results[name]["constant"] |= {"kind_metrics": own_metrics}
    return results


def _rating_baselines(train: BaselineData, test: BaselineData, k: int) -> dict[str, dict[str, Any]]:
    use = train.is_rating & ~np.isnan(train.labels[:, k])
    test_use = test.is_rating & ~np.isnan(test.labels[:, k])
    if not use.any() or not test_use.any():
        return {"constant": {}, "ridge": {}}
    x, y, label = train.features[use], train.labels[use, k], test.labels[test_use, k]
    predicted = _ridge_predict(x, y, train.is_validation[use], test.features[test_use])
    return {
        "constant": rating_metrics(np.full(len(label), y.mean()), label),
        "ridge": rating_metrics(predicted, label),
    }


def _pair_baselines(train: BaselineData, test: BaselineData, k: int) -> dict[str, dict[str, Any]]:
    use = ~train.is_rating & ~np.isnan(train.labels[:, k])
    test_use = ~test.is_rating & ~np.isnan(test.labels[:, k])
    if not use.any() or not test_use.any():
        return {"constant": {}, "ridge": {}}
    margin = _logistic_predict(train.features[use], train.is_validation[use], test.features[test_use])
    return {"constant": pair_metrics(np.zeros(int(test_use.sum()))), "ridge": pair_metrics(margin)}


def _ridge_predict(x: Matrix, y: Vector, is_validation: Mask, test_features: Matrix) -> Vector:
    """Ridge regression on standardized features with an unpenalized intercept."""
    from sklearn.linear_model import Ridge
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    def predict(rows: Mask, features: Matrix, penalty: float) -> Vector:
        # scikit-learn adds alpha to the sum of the squared errors, not to their mean.
        model = make_pipeline(StandardScaler(), Ridge(alpha=penalty * rows.sum()))
        predicted: Vector = model.fit(x[rows], y[rows]).predict(features)
        return predicted

    def validation_loss(penalty: float) -> float:
        predicted = predict(~is_validation, x[is_validation], penalty)
        return float(((predicted - y[is_validation]) ** 2).mean())

    penalty = _select_penalty(is_validation, validation_loss)
    return predict(np.ones(len(x), dtype=bool), test_features, penalty)


def _logistic_predict(x: Matrix, is_validation: Mask, test_features: Matrix) -> Vector:
    """Bradley-Terry with linear rewards: log-odds of the test pairs."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    def predict(rows: Mask, features: Matrix, penalty: float) -> Vector:
        # Each pair appears in both orders, because scikit-learn needs two classes. No intercept and no
        # centering: swapping the responses of a pair must negate its log-odds.
        both_orders, preferred = np.vstack([x[rows], -x[rows]]), np.repeat([1, 0], rows.sum())
        model = make_pipeline(
            StandardScaler(with_mean=False),
            LogisticRegression(
                C=1 / (penalty * len(both_orders)),
                fit_intercept=False,
                solver="newton-cholesky",
                tol=1e-8,
            ),
        )
        log_odds: Vector = model.fit(both_orders, preferred).decision_function(features)
        return log_odds

    def validation_loss(penalty: float) -> float:
        return float(np.logaddexp(0.0, -predict(~is_validation, x[is_validation], penalty)).mean())

    penalty = _select_penalty(is_validation, validation_loss)
    return predict(np.ones(len(x), dtype=bool), test_features, penalty)


def _select_penalty(is_validation: Mask, validation_loss: Callable[[float], float]) -> float:
    if not 0 < is_validation.sum() < len(is_validation):
        return DEFAULT_PENALTY
    return min(PENALTIES, key=validation_loss)
