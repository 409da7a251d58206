"""Bootstrap intervals of means over seeds and prompts."""

import numpy as np
import pytest

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


def test_bootstrap_variance_equals_the_theory():
    """Var = (S / (S - 1)) (S - 1) / S s^2 / S between seeds + p^2 / (S P) within; p^2 / P where crossed."""
    rng = np.random.default_rng(0)
    seeds, prompts, std = 5, 400, 0.3
    seed_means = np.array([-0.4, -0.2, 0.0, 0.2, 0.4])
    noise = rng.normal(0, 1, (prompts, 1))
    noise = (noise - noise.mean()) / noise.std()
    between = seed_means.var(ddof=1) / seeds
    for crossed, within in ((False, std**2 / (seeds * prompts)), (True, std**2 / prompts)):
        tables = [seed_means[s] + std * noise for s in range(seeds)]
        replicates = bootstrap_means(tables, shared_prompts=crossed, bootstrap_samples=20_000, seed=1)
        assert replicates.mean() == pytest.approx(0, abs=0.01)
        assert replicates.var() == pytest.approx(between + within, rel=0.05)
    single = [std * noise]
    assert bootstrap_means(single, shared_prompts=False, bootstrap_samples=20_000).var() == pytest.approx(
        std**2 / prompts, rel=0.05
    )
    same = [std * noise] * 3
    assert bootstrap_means(same, shared_prompts=True, bootstrap_samples=20_000).var() == pytest.approx(
        std**2 / prompts, rel=0.05
    )
    assert bootstrap_means(same, shared_prompts=False, bootstrap_samples=20_000).var() == pytest.approx(
        std**2 / (3 * prompts), rel=0.05
    )


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
