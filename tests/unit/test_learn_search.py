"""Searches: what the package reckons, what ties do, and that a search goes on where it was."""

import sys

import numpy as np
import pytest
import torch
from cma.more_algorithms import purecma
from cma.recombination_weights import RecombinationWeights

from paretune.core.errors import ConfigError, MissingDependencyError, WiringError
from paretune.rl.evolution.search import CmaES, IsotropicES, SearchStrategy, centered_ranks


def close(x, want):
    x = x.tolist() if isinstance(x, torch.Tensor) else np.array(x).tolist()
    torch.testing.assert_close(torch.tensor(x).double(), torch.tensor(want).double(), atol=1e-6, rtol=0)


def sphere(x):
    return -((x - 1) ** 2).sum(-1)


def climbed(seeker, worth, generations, seed=0, first=0):
    for generation in range(first, first + generations):
        seeker.tell(worth(seeker.ask(seed, generation)))
    return seeker


def test_weights_of_four_candidates():
    """By hand: ln 2.5 - ln i for i = 1, 2, over their sum ln 2.5 + ln 1.25."""
    weights = RecombinationWeights(4)
    close(weights[:2], [0.804163, 0.195837])
    close(weights.mueff, 1.459790)


def test_a_step_of_the_package_by_hand():
    """N = 2 from m = 0, sigma = 1, C = I: the candidates lie on the axes, and (1, 0), (0, 1) are the best."""
    es = purecma.CMAES([0.0, 0.0], 1.0, popsize=4)
    es.params = purecma.CMAESParameters(2, 4)
    es.ps, es.pc = [0.0, 0.0], [0.0, 0.0]
    constants = [es.params.cs, es.params.cc, es.params.c1, es.params.cmu, es.params.damps]
    close(constants, [0.408969, 0.634052, 0.161946, 0.016589, 1.438864])
    es.tell([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]], [0.0, 1.0, 2.0, 3.0])
    close(es.xmean, [0.804163, 0.195837])
    close(es.ps, [0.783743, 0.190864])
    close(es.C, [[0.967211, 0.032245], [0.032245, 0.832566]])
    close(es.sigma, 0.908574)


@pytest.mark.parametrize("seed", range(3))
def test_cma_finds_the_foot_of_a_sphere(seed):
    seeker = climbed(CmaES(population_size=10).init_state(10, 0.5), sphere, 200, seed)
    assert float((seeker.mean - 1).norm()) < 1e-3


def test_steps_of_one_size_come_near_it():
    seeker = climbed(IsotropicES(population_size=16).init_state(10, 0.05), sphere, 150)
    assert seeker.sigma == 0.05
    assert float(-sphere(seeker.mean)) < 0.01


def test_the_mean_climbs_a_slope_by_as_much_as_its_page_says():
    """4 E[u g] with u the rank of g less a half: 4 / (2 sqrt pi) = 1.128."""
    seeker = IsotropicES(population_size=2_000).init_state(1, 0.5)
    seeker.tell(seeker.ask(0, 0)[:, 0])
    assert float(seeker.mean) == pytest.approx(0.5 * 1.128, rel=0.05)


@pytest.mark.parametrize("search", [CmaES(population_size=6), IsotropicES(population_size=6)])
def test_ties_pull_nowhere(search):
    """A generation whose texts are all equal says nothing."""
    seeker = climbed(search.begin(3, 0.5), lambda x: torch.full((len(x),), 0.7, dtype=torch.float64), 5)
    assert not seeker.mean.any()
    assert seeker.sigma == 0.5


def test_equal_numbers_share_their_ranks():
    close(centered_ranks(torch.tensor([3.0, 1.0, 3.0, 5.0, 1.0])), [0.125, -0.375, 0.125, 0.5, -0.375])
    assert not centered_ranks(torch.ones(4)).any()


@pytest.mark.parametrize("search", [CmaES(population_size=10), IsotropicES(population_size=10)])
def test_a_search_goes_on_bit_for_bit_and_seeds_nobody(search):
    # The old global generator is nobody's here, and the package would seed it if it was let.
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    whole = climbed(search.begin(5, 0.3), sphere, 30)
    part = climbed(search.begin(5, 0.3), sphere, 12)
    part = climbed(search.resume(part.state(), 0), sphere, 18, first=12)
    assert isinstance(search, SearchStrategy)
    assert all(torch.equal(x, part.state()[k]) for k, x in whole.state().items())
    assert torch.equal(whole.ask(0, 30), part.ask(0, 30))
    assert (np.random.get_state()[1] == before).all()  # noqa: NPY002


def test_a_history_that_leads_elsewhere_is_refused():
    state = climbed(CmaES(population_size=10).init_state(5, 0.3), sphere, 3).state_dict()
    with pytest.raises(ConfigError, match=r"cannot be gone on with bit for bit: .*; fix: "):
        CmaES(population_size=10).load_state(state | {"mean": state["mean"] + 1e-12}, 0)


def test_populations_that_cannot_be():
    with pytest.raises(WiringError, match=r"algorithm\.population is 5: candidates come in mirrored pairs"):
        IsotropicES(population_size=5)
    with pytest.raises(WiringError, match=r"algorithm\.population is 3; fix: at least 4"):
        CmaES(population_size=3)


def test_a_package_that_is_not_there_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "cma", None)
    with pytest.raises(
        MissingDependencyError, match=r'search: cma needs the package cma; fix: pip install "paretune\['
    ) as e:
        CmaES().init_state(2, 0.1)
    assert e.value.exit_code == 3
    IsotropicES().init_state(2, 0.1)


def test_four_tokens_and_a_searched_spectrum():
    """A softmax whose logits are sums of singular values times vectors; token 2 is what is wanted."""
    rng = torch.Generator().manual_seed(0)
    vectors = torch.randn(4, 4, generator=rng, dtype=torch.float64)
    fixed, s = vectors.clone(), torch.ones(4, dtype=torch.float64)

    def wanted(z):
        return ((s + z) @ vectors).softmax(-1)[..., 2]

    seeker = climbed(CmaES(population_size=8).init_state(4, 0.3), wanted, 60)
    assert float(wanted(torch.zeros(4, dtype=torch.float64))) < 0.9
    assert float(wanted(seeker.mean)) > 0.95
    assert torch.equal(vectors, fixed)
