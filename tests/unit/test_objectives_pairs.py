"""Losses of pairs beyond Bradley-Terry: worked numbers, directions of slopes, and what is refused."""

import math

import pytest
import torch

from paretune.core.errors import DataError, WiringError
from paretune.reward.losses import (
    BradleyTerryLoss,
    ConfidenceCalibrationLoss,
    CostModelLoss,
    RegularizedBradleyTerryLoss,
    differing_span_mask,
    plackett_luce_loss,
)


def one(*numbers):
    return [torch.tensor([float(x)], dtype=torch.float64, requires_grad=True) for x in numbers]


def test_calibrated_pairs_by_hand():
    """Differences of +1.0 and -0.6: the rejected response with high confidence is too high."""
    high, low, rejected_low, rejected_high = one(1.5, 0.5, -0.4, 0.2)
    loss = ConfidenceCalibrationLoss()(high, low, rejected_low, rejected_high)
    assert loss.item() == pytest.approx(0.3132617 + 1.0374880)
    loss.sum().backward()
    assert high.grad < 0 < low.grad
    assert rejected_low.grad < 0 < rejected_high.grad


def test_crossed_pairs_add_a_term():
    four = one(1.5, 0.5, -0.4, 0.2)
    more = BradleyTerryLoss()(four[0], four[2])
    torch.testing.assert_close(
        ConfidenceCalibrationLoss(loss_type="crossed")(*four), ConfidenceCalibrationLoss()(*four) + more
    )


def test_a_ranking_of_two_is_bradley_terry_and_of_equals_counts_orders():
    a, b = one(0.7, -0.2)
    torch.testing.assert_close(plackett_luce_loss(torch.stack([a, b], -1)), BradleyTerryLoss()(a, b))
    assert plackett_luce_loss(torch.zeros(4, dtype=torch.float64)).item() == pytest.approx(math.log(24))
    with pytest.raises(WiringError, match="knows no margin"):
        ConfidenceCalibrationLoss(loss_type="ranking", margin=0.5)


def test_a_cost_is_above_zero_for_what_is_unsafe():
    worse, better = one(0.0, 0.0)
    sign = torch.tensor([1.0], dtype=torch.float64)
    loss = CostModelLoss(regularization=0.0)(worse, better, sign, -sign)
    assert loss.item() == pytest.approx(3 * math.log(2))
    loss.sum().backward()
    assert (worse.grad.item(), better.grad.item()) == pytest.approx((-1.0, 1.0))


def test_a_response_nobody_called_safe_or_unsafe_only_compares():
    worse, better = one(0.3, -0.4)
    unknown = torch.tensor([math.nan], dtype=torch.float64)
    loss = CostModelLoss(regularization=0.1)(worse, better, unknown, unknown)
    torch.testing.assert_close(loss, RegularizedBradleyTerryLoss(regularization=0.1)(worse, better))
    loss.sum().backward()
    assert worse.grad.isfinite().all()


def test_the_span_of_a_pair_goes_from_where_they_part_to_the_later_end():
    chosen, rejected = torch.tensor([[5, 6, 7, 0, 0]]), torch.tensor([[5, 6, 8, 9, 0]])
    span = differing_span_mask(chosen, rejected, chosen > 0, rejected > 0)
    assert span.tolist() == [[False, False, True, True, False]]
    with pytest.raises(DataError, match="are the same"):
        differing_span_mask(chosen, chosen, chosen > 0, chosen > 0)
