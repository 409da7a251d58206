"""Intervals, tests and verdicts against scipy and published numbers."""

import math
import subprocess
import sys

import numpy as np
import pytest
from scipy import stats

from paretune.evaluate.statistics import (
    _student_t_quantile,
    fisher_exact,
    rate_change_interval,
    simultaneous_intervals,
    verdict,
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
    assert (intervals.low[0], intervals.high[0]) == pytest.approx((exact.low, exact.high), abs=4e-3)
    assert intervals.mean[0] == pytest.approx(values.mean())
    # 80 % power at d: (1.96 + 0.84) / sqrt(n)
    assert intervals.min_detectable_effect[0] == pytest.approx(2.80 * values.std(ddof=1) / 20, rel=0.03)


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
    hits, repeats = 0, 500
    for repeat in range(repeats):
        values = truth + rng.normal(size=(prompts, 4)) @ mix.T
        values[rng.random(values.shape) < missing] = math.nan
        intervals = simultaneous_intervals(values, bootstrap_samples=600, seed=repeat)
        hits += bool(((intervals.low <= truth) & (truth <= intervals.high)).all())
    # Three standard errors of a 95 % rate over 500 repeats, and a little for the draws.
    assert 0.91 <= hits / repeats <= 0.985


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


@pytest.mark.parametrize(
    ("low", "high", "arguments", "word"),
    [
        (0.01, 0.2, {}, "better"),
        (0.01, 0.2, {"independent": False}, "no evidence"),
        (0.01, 0.2, {"independent": False, "margin": 0.05}, "not worse"),
        (0.01, 0.2, {"missing_fraction": 0.021}, "inconclusive"),
        (0.01, 0.2, {"missing_fraction": 0.02}, "better"),
        (0.01, 0.2, {"unequal_missing": True}, "inconclusive"),
        (-0.2, -0.01, {}, "worse"),
        (-0.2, -0.01, {"independent": False, "missing_fraction": 0.5}, "worse"),
        (-0.01, 0.2, {}, "no evidence"),
        (-0.01, 0.2, {"margin": 0.05}, "not worse"),
        (-0.05, 0.2, {"margin": 0.05}, "no evidence"),
        (0.0, 0.0, {}, "no evidence"),
        (math.nan, math.nan, {}, "not measured"),
    ],
)
def test_verdict_follows_the_rule(low, high, arguments, word):
    assert verdict(low, high, **({"independent": True, "missing_fraction": 0.0} | arguments)) == word


def test_statistics_need_no_torch():
    code = "import sys, paretune.evaluate.statistics; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
