"""Intervals and tests against scipy and published numbers."""

import math
import subprocess
import sys

import numpy as np
import pytest
from scipy import stats

from paretune.evaluate import bootstrap
from paretune.evaluate.bootstrap import _student_t_quantile
from paretune.evaluate.statistics import (
    fisher_exact,
    rate_change_interval,
    simultaneous_intervals,
    wilson,
)


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [(10, 250, 0.022, 0.072), (81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611)],
)
def test_wilson_against_published_numbers(successes, n, low, high):
    assert wilson(successes, n) == pytest.approx((low, high), abs=6e-5 if n != 250 else 6e-4)


def test_wilson_without_observations_is_the_unit_interval():
    assert wilson(0, 0) == (0.0, 1.0)


def test_rate_change_against_newcombe_1998():
    # Table III of the paper: pairs (both, before only, after only, neither), method 10.
    def pairs(both, lost, gained, neither):
        before = [1.0] * (both + lost) + [0.0] * (gained + neither)
        after = [1.0] * both + [0.0] * lost + [1.0] * gained + [0.0] * neither
        return np.array(before), np.array(after)

    # The published interval is of the first rate minus the second.
    low, high = rate_change_interval(*pairs(36, 12, 2, 0))
    assert (-high, -low) == pytest.approx((0.0569, 0.3404), abs=1e-4)
    low, high = rate_change_interval(*pairs(20, 12, 2, 16))
    assert (-high, -low) == pytest.approx((0.0562, 0.3292), abs=1e-4)
    low, high = rate_change_interval(*pairs(0, 0, 0, 50))
    assert (low, high) == pytest.approx((-0.0714, 0.0714), abs=2e-4)


def test_fisher_exact_against_scipy_and_with_empty_margins():
    for table in ([3, 97, 12, 88], [0, 50, 0, 50], [1, 9, 11, 3], [20, 480, 20, 480]):
        assert fisher_exact(*table) == pytest.approx(stats.fisher_exact(np.reshape(table, (2, 2))).pvalue)
    for table in ([0, 0, 0, 5], [5, 0, 5, 0], [0, 0, 0, 0]):
        assert fisher_exact(*table) == 1.0


def test_wilson_equals_scipy_on_whole_counts_and_takes_fractions():
    for successes, n in ((0, 20), (7, 20), (20, 20), (1, 1)):
        exact = stats.binomtest(successes, n).proportion_ci(0.9, method="wilson")
        assert wilson(successes, n, 0.9) == pytest.approx((exact.low, exact.high))
    assert wilson(7, 20) < wilson(7.5, 20) < wilson(8, 20)


def test_student_t_quantiles_against_scipy():
    degrees = np.array([1, 2, 9, 29, 199])
    for z in (1.96, 2.5):
        exact = stats.t.ppf(stats.norm.cdf(z), degrees)
        assert _student_t_quantile(z, degrees) == pytest.approx(exact, rel=1e-9)
    assert np.isnan(_student_t_quantile(1.96, np.array([0, -1]))).all()
    assert np.isfinite(_student_t_quantile(9.0, degrees)).all(), "where the probability rounds to 1"


def test_single_objective_equals_the_t_interval():
    values = np.random.default_rng(0).normal(0.1, 1.0, (400, 1))
    intervals = simultaneous_intervals(values)
    exact = stats.ttest_1samp(values[:, 0], 0).confidence_interval(0.95)
    assert (intervals.low[0], intervals.high[0]) == pytest.approx((exact.low, exact.high), abs=8e-3)
    assert intervals.mean[0] == pytest.approx(values.mean())
    # 80 % power at d: (1.96 + 0.84) / sqrt(n)
    assert intervals.min_detectable_effect[0] == pytest.approx(2.80 * values.std(ddof=1) / 20, rel=0.06)


def test_independent_objectives_widen_the_intervals_and_correlated_ones_do_not():
    rng = np.random.default_rng(1)
    values = rng.normal(size=(300, 1))
    alone = simultaneous_intervals(values)
    same = simultaneous_intervals(np.repeat(values, 4, 1))
    others = simultaneous_intervals(np.concatenate([values, rng.normal(size=(300, 3))], 1))
    assert same.high[0] == pytest.approx(alone.high[0])
    assert others.high[0] > alone.high[0]


@pytest.mark.parametrize(("prompts", "missing"), [(15, 0.0), (120, 0.2)])
def test_simultaneous_coverage_is_the_confidence_level(prompts, missing):
    rng = np.random.default_rng(prompts)
    mix = np.linalg.cholesky(0.5 * np.eye(4) + 0.5)
    truth = np.array([0.3, 0.0, -0.1, 0.05])
    hits, repeats = 0, 200
    for repeat in range(repeats):
        values = truth + rng.normal(size=(prompts, 4)) @ mix.T
        values[rng.random(values.shape) < missing] = math.nan
        intervals = simultaneous_intervals(values, bootstrap_samples=300, seed=repeat)
        hits += bool(((intervals.low <= truth) & (truth <= intervals.high)).all())
    # Two standard errors of a 95 % rate over 200 repeats; an interval may be wide where skewness is unsure.
    assert hits / repeats >= 0.92


@pytest.mark.parametrize("sign", [1, -1])
def test_skewed_differences_of_mean_zero_are_called_neither_better_nor_worse(sign, monkeypatch):
    """Log-normal differences: symmetric intervals call 13 % of these evaluations better or worse."""
    draws = [bootstrap.resample_counts(np.random.default_rng(i), 40, 400) for i in range(10)]
    monkeypatch.setattr(bootstrap, "resample_counts", lambda rng, *_: draws[rng.integers(10)])
    rng = np.random.default_rng(7)
    mix = np.linalg.cholesky(0.6 * np.eye(4) + 0.4)
    false = np.zeros(2)
    for repeat in range(200):
        values = sign * (np.exp(0.8 * rng.normal(size=(40, 4)) @ mix.T) - np.exp(0.32))
        intervals = simultaneous_intervals(values, bootstrap_samples=400, seed=repeat)
        false += [(intervals.low > 0).any(), (intervals.high < 0).any()]
    # 2.5 % and two standard errors over 200 repeats.
    assert (false / 200 <= 0.047).all()


def test_the_long_side_of_a_skewed_sample_is_the_longer_one_and_seen_by_the_detectable_effect():
    values = stats.lognorm.ppf((np.arange(60) + 0.5) / 60, 0.8)[:, None]
    right, left = simultaneous_intervals(values), simultaneous_intervals(-values)
    assert right.high[0] - right.mean[0] > 1.5 * (right.mean[0] - right.low[0])
    exact = stats.ttest_1samp(values[:, 0], 0).confidence_interval(0.95)
    assert right.low[0] == pytest.approx(exact.low, rel=0.03), "the short side is never cut"
    assert left.low[0] == pytest.approx(-right.high[0], rel=0.1)
    assert right.min_detectable_effect[0] > right.high[0] - right.mean[0]


def test_few_changed_prompts_among_many_count_as_few():
    """As in McNemar's test: seven gains and no loss, for eight objectives, are no evidence."""
    gains = np.zeros((300, 8))
    gains[np.arange(7)[:, None] + 10 * np.arange(8), np.arange(8)] = 1.0
    assert (simultaneous_intervals(gains).low < 0).all()
    more = np.zeros((300, 1))
    more[:12] = 1.0
    assert simultaneous_intervals(more).low[0] > 0


@pytest.mark.parametrize(
    "values",
    [
        [[0.5, -1.0], [0.1, 2.0]],
        [[0.0, 0.0], [0.0, 0.0], [1.0, 0.0]],
        [[1.0, 1.0], [1.0, -1.0], [math.nan, 1.0]],
        [*[[0.0, 0.0]] * 29, [1.0, -1.0]],
        [*[[0.0, 0.0]] * 27, [1.0, -1.0], [1.0, 1.0], [1.0, math.nan]],
    ],
)
def test_few_different_differences_have_finite_intervals_around_zero(values):
    """Two clusters, all but one equal, and bootstrap samples without any error of their own."""
    intervals = simultaneous_intervals(np.array(values))
    varies = np.nanstd(values, axis=0) > 0
    assert np.isfinite([intervals.low, intervals.high, intervals.min_detectable_effect]).all()
    assert (intervals.low[varies] < 0).all()
    assert (intervals.high[varies] > 0).all()
    assert (intervals.low[~varies] == intervals.high[~varies]).all()


def test_two_clusters_have_at_least_the_t_interval_of_one_degree_of_freedom():
    pair = np.array([[0.2], [0.6]])
    exact = stats.ttest_1samp(pair[:, 0], 0).confidence_interval(0.95)
    intervals = simultaneous_intervals(pair)
    assert intervals.low[0] <= exact.low + 1e-9
    assert intervals.high[0] >= exact.high - 1e-9


def test_duplicate_prompts_count_once():
    rng = np.random.default_rng(2)
    values = rng.normal(size=(60, 2))
    copied = np.repeat(values, 5, 0)
    clusters = np.repeat(np.arange(60), 5)
    alone = simultaneous_intervals(values, seed=3)
    together = simultaneous_intervals(copied, clusters=clusters, seed=3)
    assert together.high == pytest.approx(alone.high, rel=0.03)
    assert (simultaneous_intervals(copied, seed=3).high < 0.7 * alone.high + 0.3 * alone.mean).all()


def test_unscored_objective_has_no_interval_and_leaves_the_others_unchanged():
    values = np.random.default_rng(3).normal(size=(50, 3))
    scored_only = simultaneous_intervals(values[:, :2])
    values[:, 2] = math.nan
    intervals = simultaneous_intervals(values)
    assert np.isnan(
        [intervals.mean[2], intervals.low[2], intervals.high[2], intervals.min_detectable_effect[2]]
    ).all()
    assert intervals.num_scored.tolist() == [50, 50, 0]
    assert intervals.low[:2] == pytest.approx(scored_only.low)
    one = simultaneous_intervals(np.array([[0.5]]))
    assert one.mean[0] == 0.5
    assert math.isnan(one.low[0])
    none = simultaneous_intervals(np.zeros((0, 2)))
    assert np.isnan(none.mean).all()


def test_constant_differences_give_a_point_and_the_seed_determines_the_interval():
    constant = simultaneous_intervals(np.zeros((20, 2)))
    assert constant.low.tolist() == constant.high.tolist() == [0.0, 0.0]
    values = np.random.default_rng(4).normal(size=(40, 2))
    repeats = [simultaneous_intervals(values, seed=5) for _ in range(2)]
    assert repeats[0].low.tolist() == repeats[1].low.tolist()


def test_statistics_need_no_torch():
    code = "import sys, paretune.evaluate.statistics; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
