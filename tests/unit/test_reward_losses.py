"""Losses of reward models: numbers by hand, published numbers, and gradients."""

import json
import math

import pytest
import torch

from paretune.core.errors import WiringError
from paretune.core.reductions import label_weights
from paretune.reward.losses import (
    BradleyTerryLoss,
    RegressionLoss,
    bradley_terry_loss,
    regression_loss,
    weighted_loss_sum,
)
from shared import shared

NAN = math.nan


def loss_and_gradient(predicted, label, loss=None):
    x = torch.tensor(predicted, dtype=torch.float64, requires_grad=True)
    y = torch.tensor(label, dtype=torch.float64)
    value = weighted_loss_sum((loss or RegressionLoss())(x, y), label_weights(y))
    value.backward()
    return value.item(), x.grad


def test_mse_of_four_labels_by_hand():
    value, gradient = loss_and_gradient([[0.7, 0.9, 0.4, 0.5]], [[0.9, 0.8, 0.2, 1.0]])
    assert value == pytest.approx(0.085)
    assert gradient.tolist() == [pytest.approx([-0.1, 0.05, 0.1, -0.25])]


def test_nan_label_is_excluded_from_loss_and_weights():
    value, gradient = loss_and_gradient([[0.7, 0.9, 0.4, 0.5]], [[0.9, 0.8, 0.2, NAN]])
    assert value == pytest.approx(0.03)
    assert gradient[0, 3] == 0


def test_objectives_have_equal_weight_whatever_their_number_of_labels():
    value, _ = loss_and_gradient([[1.0, 2.0], [1.0, 0.0], [1.0, 0.0]], [[0.0, 0.0], [0.0, NAN], [0.0, NAN]])
    assert value == pytest.approx((1 + 4) / 2)


def test_loss_without_labels_is_zero_with_zero_gradient():
    value, gradient = loss_and_gradient([[1.0, 2.0]], [[NAN, NAN]])
    assert value == 0
    assert (gradient == 0).all()


def test_huber_is_squared_below_delta_and_linear_above():
    x = torch.tensor([0.5, 1.0, 3.0, -3.0], dtype=torch.float64, requires_grad=True)
    error = regression_loss(x, torch.zeros(4, dtype=torch.float64), 1.0)
    assert error.tolist() == pytest.approx([0.25, 1.0, 5.0, 5.0])
    error.sum().backward()
    assert x.grad.tolist() == pytest.approx([1.0, 2.0, 2.0, -2.0])


def test_huber_with_large_delta_equals_squared_error():
    x, y = torch.randn(50, dtype=torch.float64), torch.randn(50, dtype=torch.float64)
    assert torch.equal(RegressionLoss(loss_type="huber", delta=1e6)(x, y), RegressionLoss()(x, y))


def test_huber_is_twice_torch_huber_loss():
    x, y = torch.randn(50).double() * 3, torch.randn(50).double()
    theirs = torch.nn.functional.huber_loss(x, y, reduction="none", delta=0.7)
    assert torch.allclose(regression_loss(x, y, 0.7), 2 * theirs)


def test_non_positive_delta_is_rejected():
    with pytest.raises(WiringError, match="delta"):
        RegressionLoss(loss_type="huber", delta=0.0)


@pytest.mark.parametrize("topic", ["regression_reward_loss"])
def test_regression_equals_published_code(topic):
    cases = json.loads(shared("golden", f"{topic}.json").read_text())["cases"]
    used = [
        case for case in cases if case["params"]["mode"] == "regression" and not case["expected"]["error"]
    ]
    assert used
    for case in used:
        x = torch.tensor(case["inputs"]["pred"], dtype=torch.float64, requires_grad=True)
        y = torch.tensor(case["inputs"]["labels"], dtype=torch.float64)
        y = torch.where(y == -100, torch.nan, y)
        known = ~y.isnan()
        # Their mean is over all labels; ours gives each objective the same share, so weigh as they do.
        loss = weighted_loss_sum(RegressionLoss()(x, y), known / known.sum())
        loss.backward()
        assert loss.item() == pytest.approx(case["expected"]["loss"], rel=1e-7)
        assert torch.allclose(x.grad, torch.tensor(case["grad"]["pred"], dtype=torch.float64), rtol=1e-7)


def test_pairs_equal_published_code():
    cases = json.loads(shared("golden", "regression_reward_loss.json").read_text())["cases"]
    for case in (c for c in cases if c["params"]["mode"] in {"regular_bt", "margin_bt"}):
        x, label = torch.tensor(case["inputs"]["pred"]).double()[:, 4], case["inputs"]["labels"][0][0]
        chosen, rejected = (x[:1], x[1:]) if label < 0 else (x[1:], x[:1])
        margin = abs(label) if case["params"]["mode"] == "margin_bt" else 0.0
        loss = BradleyTerryLoss(margin=margin)(chosen, rejected)
        # Their first row is the preferred one for a negative label; a label of 0 prefers the second.
        assert loss.item() == pytest.approx(case["expected"]["loss"], rel=1e-6)


def test_bradley_terry_equals_published_code():
    for case in json.loads(shared("golden", "trl_reward_bt.json").read_text())["cases"]:
        if case["params"]["center_rewards_coefficient"]:
            continue
        given = case["inputs"]
        chosen, rejected = (
            torch.tensor(given[k], dtype=torch.float64, requires_grad=True) for k in ("chosen", "rejected")
        )
        margin = torch.tensor(given.get("margin", [0.0] * len(chosen)), dtype=torch.float64)
        loss = bradley_terry_loss(chosen - margin, rejected).mean()
        loss.backward()
        assert loss.item() == pytest.approx(case["expected"]["loss"], rel=1e-6)
        assert chosen.grad.tolist() == pytest.approx(case["grad"]["chosen"], rel=1e-6)
        assert rejected.grad.tolist() == pytest.approx(case["grad"]["rejected"], rel=1e-6)


def test_losses_have_a_readable_repr():
    assert (
        repr(RegressionLoss(loss_type="huber", delta=0.5)) == "RegressionLoss(loss_type='huber', delta=0.5)"
    )
    assert BradleyTerryLoss() == BradleyTerryLoss(margin=0.0)
