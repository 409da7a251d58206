"""Intervals of means over seeds and prompts."""

import numpy as np
import pytest

from paretune.evaluate.statistics import (
    bootstrap_means,
    max_t_intervals,
    mean_over_seeds,
    percentile_intervals,
)


def test_a_mean_weighs_every_seed_the_same_and_leaves_out_what_nobody_scored():
    one = np.array([[1.0, np.nan], [3.0, 2.0]])
    two = np.array([[5.0, np.nan], [7.0, 6.0], [6.0, 7.0]])
    assert mean_over_seeds([one, two]) == pytest.approx([(2 + 6) / 2, (2 + 6.5) / 2])


def test_the_spread_of_the_draws_is_that_of_the_theory():
    """Var = (S / (S - 1)) (S - 1) / S s^2 / S between seeds + p^2 / (S P) within; p^2 / P where crossed."""
    rng = np.random.default_rng(0)
    seeds, prompts, apart = 5, 400, 0.3
    own = np.array([-0.4, -0.2, 0.0, 0.2, 0.4])
    noise = rng.normal(0, 1, (prompts, 1))
    noise = (noise - noise.mean()) / noise.std()
    between = own.var(ddof=1) / seeds
    for crossed, within in ((False, apart**2 / (seeds * prompts)), (True, apart**2 / prompts)):
        tables = [own[s] + apart * noise for s in range(seeds)]
        drawn = bootstrap_means(tables, shared_prompts=crossed, bootstrap_samples=20_000, seed=1)
        assert drawn.mean() == pytest.approx(0, abs=0.01)
        assert drawn.var() == pytest.approx(between + within, rel=0.05)
    one = [apart * noise]
    assert bootstrap_means(one, shared_prompts=False, bootstrap_samples=20_000).var() == pytest.approx(
        apart**2 / prompts, rel=0.05
    )
    same = [apart * noise] * 3
    assert bootstrap_means(same, shared_prompts=True, bootstrap_samples=20_000).var() == pytest.approx(
        apart**2 / prompts, rel=0.05
    )
    assert bootstrap_means(same, shared_prompts=False, bootstrap_samples=20_000).var() == pytest.approx(
        apart**2 / (3 * prompts), rel=0.05
    )


def test_draws_are_paired_and_repeat():
    rng = np.random.default_rng(0)
    one = [rng.normal(0, 1, (30, 1)) for _ in range(3)]
    tables = [np.hstack([part, part + 0.5]) for part in one]
    drawn = bootstrap_means(tables, shared_prompts=False, bootstrap_samples=500)
    assert np.ptp(drawn[:, 1] - drawn[:, 0]) < 1e-9
    assert (bootstrap_means(tables, shared_prompts=False, bootstrap_samples=500) == drawn).all()
    assert (bootstrap_means(tables, shared_prompts=False, bootstrap_samples=500, seed=1) != drawn).any()
    low, high = percentile_intervals(drawn, 0.95)
    assert (low < mean_over_seeds(tables)).all()
    assert (mean_over_seeds(tables) < high).all()


def test_intervals_that_hold_together_are_wider_than_one_alone():
    rng = np.random.default_rng(0)
    drawn = rng.normal(0, [1.0, 2.0, 0.0, 1.0], (5000, 4))
    drawn[:, 3] = np.nan
    low, high = max_t_intervals(np.zeros(4), drawn, 0.95)
    assert high[:2] == pytest.approx([2.24, 4.48], rel=0.05), "two independent ones: the 97.5 % quantile each"
    assert low[:2] == pytest.approx(-high[:2])
    assert (low[2], high[2]) == (0, 0)
    assert np.isnan(low[3])
    nothing = max_t_intervals(np.array([0.5]), np.full((10, 1), 0.5), 0.95)
    assert [float(end[0]) for end in nothing] == [0.5, 0.5]
