"""Calibration metrics of stated confidence by hand."""

import math

import pytest

from paretune.core.errors import DataError
from paretune.evaluate.confidence import calibration_metrics

NAN = math.nan


def test_calibration_metrics_by_hand():
    result = calibration_metrics([0.9, 0.9, 0.8, 0.6, 0.6], [1, 0, 1, 0, 1])
    assert (result.ece, result.brier, result.auroc) == pytest.approx((0.24, 0.276, 0.5))
    assert result.overconfidence == pytest.approx((0.9 + 0.6) / 5)
    assert (result.num_stated, result.num_unstated) == (5, 0)


def test_unstated_confidence_is_counted_and_unjudged_responses_are_ignored():
    result = calibration_metrics([0.9, NAN, 0.8, NAN], [1, 0, NAN, NAN])
    assert (result.num_stated, result.num_unstated) == (1, 1)
    assert result.ece == pytest.approx(0.1)
    assert math.isnan(result.auroc)
    assert all(math.isnan(x) for x in (calibration_metrics([], []).ece, calibration_metrics([], []).brier))


def test_auroc_of_reversed_and_perfect_order():
    assert calibration_metrics([0.1, 0.2, 0.8], [1, 1, 0]).auroc == 0
    assert calibration_metrics([0.1, 0.2, 0.8], [0, 0, 1]).auroc == 1
    assert calibration_metrics([0.5, 0.5], [0, 1]).auroc == 0.5, "a tie counts half"


@pytest.mark.parametrize("correct", [0, 1])
def test_single_class_has_a_brier_score_and_no_auroc(correct):
    result = calibration_metrics([0.9, 0.6], [correct, correct])
    assert result.brier == pytest.approx(((0.9 - correct) ** 2 + (0.6 - correct) ** 2) / 2)
    assert math.isnan(result.auroc)


def test_values_outside_their_range_are_rejected():
    with pytest.raises(DataError, match=r"outside \[0, 1\]"):
        calibration_metrics([9.0], [1])
    with pytest.raises(DataError, match="neither 0 nor 1"):
        calibration_metrics([0.9], [0.5])
