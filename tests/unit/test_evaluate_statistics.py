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


def test_wilson_of_nothing_says_nothing():
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


def test_fisher_against_scipy():
    for table in ([3, 97, 12, 88], [0, 50, 0, 50], [1, 9, 11, 3], [20, 480, 20, 480]):
        assert fisher_exact(*table) == pytest.approx(stats.fisher_exact(np.reshape(table, (2, 2))).pvalue)


def test_student_quantiles_against_scipy():
    for freedom in (9, 29, 199):
        for z in (1.96, 2.5):
            exact = stats.t.ppf(stats.norm.cdf(z), freedom)
            assert _student_t_quantile(z, freedom) == pytest.approx(exact, rel=2e-3)


def test_one_objective_is_the_t_interval():
    values = np.random.default_rng(0).normal(0.1, 1.0, (400, 1))
    found = simultaneous_intervals(values)
    exact = stats.ttest_1samp(values[:, 0], 0).confidence_interval(0.95)
    assert (found.low[0], found.high[0]) == pytest.approx((exact.low, exact.high), abs=4e-3)
    assert found.mean[0] == pytest.approx(values.mean())
    # 80 % power at d: (1.96 + 0.84) / sqrt(n)
    assert found.min_detectable_effect[0] == pytest.approx(2.80 * values.std(ddof=1) / 20, rel=0.03)


def test_more_objectives_widen_and_perfectly_correlated_ones_do_not():
    rng = np.random.default_rng(1)
    values = rng.normal(size=(300, 1))
    alone = simultaneous_intervals(values)
    same = simultaneous_intervals(np.repeat(values, 4, 1))
    others = simultaneous_intervals(np.concatenate([values, rng.normal(size=(300, 3))], 1))
    assert same.high[0] == pytest.approx(alone.high[0])
    assert others.high[0] > alone.high[0]


@pytest.mark.parametrize(("prompts", "missing"), [(15, 0.0), (120, 0.2)])
def test_the_intervals_hold_together_as_often_as_they_say(prompts, missing):
    rng = np.random.default_rng(prompts)
    mix = np.linalg.cholesky(0.5 * np.eye(4) + 0.5)
    truth = np.array([0.3, 0.0, -0.1, 0.05])
    hits, repeats = 0, 500
    for repeat in range(repeats):
        values = truth + rng.normal(size=(prompts, 4)) @ mix.T
        values[rng.random(values.shape) < missing] = math.nan
        found = simultaneous_intervals(values, bootstrap_samples=600, seed=repeat)
        hits += bool(((found.low <= truth) & (truth <= found.high)).all())
    # Three standard errors of a 95 % rate over 500 repeats, and a little for the draws.
    assert 0.91 <= hits / repeats <= 0.985


def test_copies_of_a_prompt_count_once():
    rng = np.random.default_rng(2)
    values = rng.normal(size=(60, 2))
    copied = np.repeat(values, 5, 0)
    clusters = np.repeat(np.arange(60), 5)
    alone = simultaneous_intervals(values, seed=3)
    together = simultaneous_intervals(copied, clusters=clusters, seed=3)
    assert together.high == pytest.approx(alone.high, rel=0.03)
    assert (simultaneous_intervals(copied, seed=3).high < 0.7 * alone.high + 0.3 * alone.mean).all()


def test_what_nobody_could_score_has_no_interval_and_does_not_touch_the_others():
    values = np.random.default_rng(3).normal(size=(50, 3))
    whole = simultaneous_intervals(values[:, :2])
    values[:, 2] = math.nan
    found = simultaneous_intervals(values)
    assert np.isnan([found.mean[2], found.low[2], found.high[2], found.min_detectable_effect[2]]).all()
    assert found.num_scored.tolist() == [50, 50, 0]
    assert found.low[:2] == pytest.approx(whole.low)
    one = simultaneous_intervals(np.array([[0.5]]))
    assert one.mean[0] == 0.5
    assert math.isnan(one.low[0])
    none = simultaneous_intervals(np.zeros((0, 2)))
    assert np.isnan(none.mean).all()


def test_no_spread_is_a_point_and_the_same_seed_gives_the_same_numbers():
    still = simultaneous_intervals(np.zeros((20, 2)))
    assert still.low.tolist() == still.high.tolist() == [0.0, 0.0]
    values = np.random.default_rng(4).normal(size=(40, 2))
    again = [simultaneous_intervals(values, seed=5) for _ in range(2)]
    assert again[0].low.tolist() == again[1].low.tolist()


@pytest.mark.parametrize(
    ("low", "high", "how", "word"),
    [
        (0.01, 0.2, {}, "better"),
        (0.01, 0.2, {"independent": False}, "no evidence"),
        (0.01, 0.2, {"independent": False, "margin": 0.05}, "not worse"),
        (0.01, 0.2, {"missing": 0.021}, "inconclusive"),
        (0.01, 0.2, {"missing": 0.02}, "better"),
        (0.01, 0.2, {"unequal": True}, "inconclusive"),
        (-0.2, -0.01, {}, "worse"),
        (-0.2, -0.01, {"independent": False, "missing": 0.5}, "worse"),
        (-0.01, 0.2, {}, "no evidence"),
        (-0.01, 0.2, {"margin": 0.05}, "not worse"),
        (-0.05, 0.2, {"margin": 0.05}, "no evidence"),
        (0.0, 0.0, {}, "no evidence"),
        (math.nan, math.nan, {}, "not measured"),
    ],
)
def test_the_words_follow_the_rule(low, high, how, word):
    assert verdict(low, high, **({"independent": True, "missing": 0.0} | how)) == word


def test_statistics_need_no_torch():
    code = "import sys, paretune.evaluate.statistics; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
