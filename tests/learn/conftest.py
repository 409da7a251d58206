"""These tests ask whether an algorithm learns; tests/conformance asks whether its shapes are right.

Checking the shapes of every call would double their time, so it is off here.

By default each test has one seed, and the algorithms take 0, 1 and 2 in turn; `make test-learn` takes all.
"""

import os

import jaxtyping
import pytest

from battery import GRADIENT

SEEDS = (0, 1, 2)


@pytest.fixture(autouse=True)
def no_shape_checks():
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


def pytest_generate_tests(metafunc):
    """Give `(name, seed)` or `seed` its values."""
    if "seed" not in metafunc.fixturenames:
        return
    everything = "PARETUNE_ALL_SEEDS" in os.environ
    if "name" not in metafunc.fixturenames:
        metafunc.parametrize("seed", SEEDS if everything else SEEDS[:1])
        return
    cases = [(name, seed) for i, name in enumerate(GRADIENT) for seed in (SEEDS if everything else [i % 3])]
    metafunc.parametrize(("name", "seed"), cases)
