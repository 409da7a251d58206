"""Win rates with position swap and at equal lengths, on planted effects."""

import numpy as np
import pytest

from paretune.core.errors import DataError
from paretune.evaluate.pairwise import combine_orders, length_controlled_win_rate, win_rate
from paretune.evaluate.statistics import wilson


def judge(rng, num_pairs, effect, length_effect, length_mean, position=0.0):
    """Choices in both orders of a judge that favors a place, longer responses, and the better policy."""
    lengths = rng.normal(length_mean, 40.0, num_pairs)
    log_odds = effect + length_effect * np.tanh(lengths / lengths.std())
    orders = [
        (rng.random(num_pairs) < 1 / (1 + np.exp(-(log_odds + sign * position)))).astype(float)
        for sign in (1, -1)
    ]
    return *orders, lengths


def test_orders_that_disagree_are_ties_and_counted():
    second = np.array([1.0, 1.0, 0.0, 0.5, np.nan, 0.9])
    first = np.array([1.0, 0.0, 0.0, 1.0, 1.0, 0.2])
    preferences, disagreement, missing = combine_orders(second, first)
    assert preferences[:4].tolist() == [1.0, 0.5, 0.0, 0.75]
    assert np.isnan(preferences[4])
    assert preferences[5] == 0.5
    assert (disagreement, missing) == pytest.approx((2 / 5, 1 / 6))
    rate = win_rate(second, first)
    assert (rate.rate, rate.num_prompts, rate.missing_fraction) == pytest.approx((0.55, 5, 1 / 6))


def test_a_judge_of_places_alone_gives_no_win():
    ones, zeros = np.ones(50), np.zeros(50)
    rate = win_rate(ones, zeros)
    assert (rate.rate, rate.disagreement_rate) == (0.5, 1.0)
    assert rate.low < 0.5 < rate.high, "equal preferences: Wilson's interval, no point"


@pytest.mark.parametrize(("effect", "sign"), [(1.0, 1), (-1.0, -1), (0.0, 0)])
def test_win_rate_sees_a_real_effect_under_a_strong_bias_for_a_place(effect, sign):
    second, first, _ = judge(np.random.default_rng(3), 400, effect, 0.0, 0.0, position=1.5)
    rate = win_rate(second, first)
    assert rate.disagreement_rate > 0.3
    assert np.sign(rate.low - 0.5) + np.sign(rate.high - 0.5) == 2 * sign


@pytest.mark.parametrize(("length_effect", "length_mean"), [(2.0, 40.0), (-2.0, 40.0), (2.0, -60.0)])
def test_length_control_removes_a_planted_bias_for_length(length_effect, length_mean):
    second, first, lengths = judge(np.random.default_rng(0), 600, 0.0, length_effect, length_mean)
    raw = win_rate(second, first)
    assert not raw.low <= 0.5 <= raw.high
    controlled = length_controlled_win_rate(combine_orders(second, first)[0], lengths)
    assert controlled.low <= 0.5 <= controlled.high
    assert np.sign(controlled.length_effect) == np.sign(length_effect)


def test_length_control_keeps_a_real_effect_and_its_interval_includes_the_fit():
    second, first, lengths = judge(np.random.default_rng(1), 600, 1.0, 2.0, 60.0)
    preferences = combine_orders(second, first)[0]
    controlled = length_controlled_win_rate(preferences, lengths)
    assert controlled.low <= 1 / (1 + np.exp(-1.0)) <= controlled.high
    assert controlled.low > 0.55
    near = length_controlled_win_rate(preferences, lengths - lengths.mean())
    assert controlled.high - controlled.low > near.high - near.low, "a rate far from the lengths is less sure"


def test_length_controlled_interval_covers():
    hits = 0
    for repeat in range(100):
        _, first, lengths = judge(np.random.default_rng(repeat), 120, 0.6, 1.0, 20.0)
        rate = length_controlled_win_rate(first, lengths, bootstrap_samples=200, seed=repeat)
        hits += rate.low <= 1 / (1 + np.exp(-0.6)) <= rate.high
    assert hits >= 89


def test_pairs_of_a_prompt_count_together_and_the_seed_determines_the_interval():
    second, first, lengths = judge(np.random.default_rng(2), 80, 0.5, 0.5, 0.0)
    prompts = np.repeat(np.arange(80), 6)
    copies = [np.repeat(values, 6) for values in (second, first, lengths)]
    alone, together = win_rate(second, first), win_rate(*copies[:2], prompts)
    assert (together.low, together.high) == pytest.approx((alone.low, alone.high), abs=0.01)
    one = length_controlled_win_rate(second, lengths)
    copied = length_controlled_win_rate(copies[0], copies[2], prompts)
    assert (copied.low, copied.high) == pytest.approx((one.low, one.high), abs=0.01)
    assert length_controlled_win_rate(second, lengths) == one


def test_what_cannot_be_measured_is_nan_and_one_sided_preferences_stay_finite():
    nothing = np.full(4, np.nan)
    assert np.isnan(win_rate(nothing, nothing).rate)
    assert np.isnan(length_controlled_win_rate(nothing, np.zeros(4)).rate)
    always = length_controlled_win_rate(np.ones(30), np.arange(30.0))
    assert 0.8 < always.rate < 1
    assert np.isnan(length_controlled_win_rate(np.ones(30), np.full(30, 5.0)).rate), "never of equal length"
    assert length_controlled_win_rate(np.tile([1.0, 0.0], 20), np.zeros(40)).rate == pytest.approx(0.5)


def test_wrong_arrays_are_refused():
    with pytest.raises(DataError, match="shapes"):
        combine_orders(np.ones(2), np.ones(3))
    with pytest.raises(DataError, match="preference is 2"):
        combine_orders(np.ones(2), np.array([2.0, 1.0]))
    with pytest.raises(DataError, match="length differences"):
        length_controlled_win_rate(np.ones(2), np.ones(3))
    with pytest.raises(DataError, match="not finite"):
        length_controlled_win_rate(np.ones(2), np.array([1.0, np.nan]))
    with pytest.raises(DataError, match="one number per pair"):
        win_rate(np.ones(2), np.ones(2), np.zeros(3, int))


@pytest.mark.parametrize("preference", [0.0, 0.5, 1.0])
def test_equal_preferences_leave_an_interval_at_equal_lengths_too(preference):
    lengths = np.random.default_rng(0).normal(size=20)
    controlled = length_controlled_win_rate(np.full(20, preference), lengths)
    low, high = wilson(20 * preference, 20)
    assert (controlled.low <= low, controlled.high >= high) == (True, True)
    assert controlled.low <= controlled.rate <= controlled.high
