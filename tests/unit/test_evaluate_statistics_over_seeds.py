"""Bootstrap intervals of means over seeds and prompts."""

import numpy as np
import pytest
from scipy import stats

from paretune.evaluate.statistics import (
    bootstrap_means,
    max_t_intervals,
    mean_over_seeds,
    percentile_intervals,
)


def test_mean_weights_seeds_equally_and_ignores_unscored_prompts():
    first = np.array([[1.0, np.nan], [3.0, 2.0]])
    second = np.array([[5.0, np.nan], [7.0, 6.0], [6.0, 7.0]])
    assert mean_over_seeds([first, second]) == pytest.approx([(2 + 6) / 2, (2 + 6.5) / 2])


def test_spread_of_the_replicates_equals_the_theory():
    """Between seeds s / sqrt(S) times Student's t; within p^2 / (S P), or p^2 / P where crossed."""
    rng = np.random.default_rng(0)
    seeds, prompts, std = 5, 100, 0.3
    seed_means = np.array([-0.4, -0.2, 0.0, 0.2, 0.4])
    noise = rng.normal(0, 1, (prompts, 1))
    noise = (noise - noise.mean()) / noise.std()
    # Student's t with 4 degrees of freedom has twice the variance of a normal number.
    between = 2 * seed_means.var(ddof=1) / seeds
    for crossed, within in ((False, std**2 / (seeds * prompts)), (True, std**2 / prompts)):
        tables = [seed_means[s] + std * noise for s in range(seeds)]
        replicates = bootstrap_means(tables, shared_prompts=crossed, bootstrap_samples=8000, seed=1)
        assert replicates.mean() == pytest.approx(0, abs=0.01)
        assert replicates.var() == pytest.approx(between + within, rel=0.1)
    single = [std * noise]
    assert bootstrap_means(single, shared_prompts=False, bootstrap_samples=8000).var() == pytest.approx(
        std**2 / prompts, rel=0.06
    )
    same = [std * noise] * 3
    assert bootstrap_means(same, shared_prompts=True, bootstrap_samples=8000).var() == pytest.approx(
        std**2 / prompts, rel=0.06
    )
    assert bootstrap_means(same, shared_prompts=False, bootstrap_samples=8000).var() == pytest.approx(
        std**2 / (3 * prompts), rel=0.06
    )


@pytest.mark.parametrize("seeds", [3, 5])
def test_means_of_a_few_seeds_have_the_t_interval_of_any_difference(seeds):
    """Equal prompts within each seed: only the seeds vary, and the exact interval is known."""
    rng = np.random.default_rng(seeds)
    tables = [np.tile(rng.normal(size=3), (10, 1)) for _ in range(seeds)]
    replicates = bootstrap_means(tables, shared_prompts=True, bootstrap_samples=20_000)
    for weights in ([1, 0, 0], [1, -1, 0], [0.5, 0.5, -1]):
        low, high = percentile_intervals(replicates @ np.array(weights)[:, None], 0.9)
        exact = stats.ttest_1samp([table[0] @ weights for table in tables], 0).confidence_interval(0.9)
        assert (low[0], high[0]) == pytest.approx((exact.low, exact.high), rel=0.05, abs=0.03)


def test_joint_intervals_of_three_seeds_hold():
    """Seeds that differ more than prompts; resampling the seeds would cover 76 %."""
    rng = np.random.default_rng(0)
    hits = 0
    for repeat in range(120):
        prompts = rng.normal(size=(20, 4))
        tables = [prompts + rng.normal(size=4) for _ in range(3)]
        replicates = bootstrap_means(tables, shared_prompts=True, bootstrap_samples=300, seed=repeat)
        low, high = max_t_intervals(mean_over_seeds(tables), replicates, 0.95)
        hits += bool(((low <= 0) & (high >= 0)).all())
    assert hits / 120 >= 0.88


def test_replicates_are_paired_and_deterministic():
    rng = np.random.default_rng(0)
    effects = [rng.normal(0, 1, (30, 1)) for _ in range(3)]
    tables = [np.hstack([table, table + 0.5]) for table in effects]
    replicates = bootstrap_means(tables, shared_prompts=False, bootstrap_samples=500)
    assert np.ptp(replicates[:, 1] - replicates[:, 0]) < 1e-9
    assert (bootstrap_means(tables, shared_prompts=False, bootstrap_samples=500) == replicates).all()
    assert (bootstrap_means(tables, shared_prompts=False, bootstrap_samples=500, seed=1) != replicates).any()
    low, high = percentile_intervals(replicates, 0.95)
    assert (low < mean_over_seeds(tables)).all()
    assert (mean_over_seeds(tables) < high).all()


def test_max_t_intervals_are_wider_than_single_intervals():
    rng = np.random.default_rng(0)
    replicates = rng.normal(0, [1.0, 2.0, 0.0, 1.0], (5000, 4))
    replicates[:, 3] = np.nan
    low, high = max_t_intervals(np.zeros(4), replicates, 0.95)
    assert high[:2] == pytest.approx([2.24, 4.48], rel=0.05), "two independent ones: the 97.5 % quantile each"
    assert low[:2] == pytest.approx(-high[:2])
    assert (low[2], high[2]) == (0, 0)
    assert np.isnan(low[3])
    constant = max_t_intervals(np.array([0.5]), np.full((10, 1), 0.5), 0.95)
    assert [float(end[0]) for end in constant] == [0.5, 0.5]
