"""Numbers that do not fit the other labels are asked about; scales, counts and natural spread are not."""

import numpy as np
import pytest

from paretune.data.odd_values import find_odd_values

LIKERT = [i % 5 + 1 for i in range(40)]
RNG = np.random.default_rng(0)


@pytest.mark.parametrize(
    ("numbers", "odd"),
    [
        *[([*LIKERT, value], {value}) for value in (-100, -1, 0, 9, 10, 12, 33, 55, 100, -9999)],
        *[([*LIKERT, *[value] * 20], {value}) for value in (-100, -1, 0, 9, 99)],
        ([*LIKERT, 58, 64], {58, 64}),
        ([*LIKERT, -100, -100, 0, 55], {-100, 0, 55}),
        ([*np.arange(40) / 40, -1], {-1}),
        ([*np.arange(40) / 40, *[-1] * 13], {-1}),
        ([*[0, 1] * 20, -1], {-1}),
        ([*[0, 1] * 20, 55], {55}),
        ([*[i % 7 + 1 for i in range(40)], 0], {0}),
        ([*[i % 9 / 2 + 1 for i in range(40)], 0, 0], {0}),
        ([*[i % 5 - 2 for i in range(40)], 22], {22}),
        ([*[i % 5 for i in range(40)], -1], {-1}),
        ([*range(101), *range(101), 999], {999}),
        ([*RNG.normal(size=60), -999.0, -999.0], {-999}),
        ([*np.round(RNG.uniform(1, 5, 60), 2), 55], {55}),
    ],
)
def test_isolated_values_are_odd(numbers, odd):
    found = find_odd_values(np.asarray(numbers, dtype=np.float64))
    assert found is not None
    assert set(found.values) == odd
    assert found.num_values + found.num_others == len(numbers)


@pytest.mark.parametrize(
    "numbers",
    [
        [1] * 30 + [2] * 20 + [3] * 10 + [5],
        [5] * 30 + [4] * 20 + [3] * 10 + [1],
        [0] * 30 + [1] * 20 + [2] * 10 + [-2],
        [0] * 30 + [1, -1] * 10 + [2, -2],
        [i % 5 for i in range(40)],
        [4] * 30 + [3] * 20 + [2] * 5 + [0],
        [-3, -2, -1, 1, 2, 3] * 6,
        [-1, 0, 1] * 13,
        [0] + [8, 9, 10] * 10,
        [1] + [5, 6, 7] * 10,
        [0] * 40 + [1],
        [0] + [90, 95, 100] * 10,
        [0, 5, 10, 15] * 10 + [100],
        [0, 0.25, 0.5, 0.75, 1] * 8,
        [3, 5] * 10,
        [1, 2, 3, 55],  # too few to know
    ],
)
def test_rare_values_of_a_scale_fit(numbers):
    assert find_odd_values(np.asarray(numbers, dtype=np.float64)) is None


@pytest.mark.parametrize(
    "draw",
    [
        lambda rng, n: rng.normal(size=n),
        lambda rng, n: np.round(rng.normal(size=n), 1),
        lambda rng, n: rng.standard_t(2, size=n),
        lambda rng, n: rng.lognormal(0, 2, size=n),
        lambda rng, n: rng.exponential(size=n),
        lambda rng, n: rng.beta(8, 1, size=n),
        lambda rng, n: rng.poisson(0.5, size=n),
        lambda rng, n: rng.poisson(10, size=n),
        lambda rng, n: rng.integers(0, 101, size=n),
        lambda rng, n: rng.integers(1, 6, size=(n, 3)).mean(axis=1),
    ],
)
def test_natural_spread_is_not_asked_about(draw):
    rng = np.random.default_rng(1)
    assert all(find_odd_values(np.asarray(draw(rng, n), float)) is None for n in [*range(8, 40), 200, 1000])
