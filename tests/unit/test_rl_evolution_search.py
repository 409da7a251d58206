"""Search strategies: the updates of CMA-ES and of the isotropic ES, ties, and bit-exact resume."""

import sys

import numpy as np
import pytest
import torch
from cma.more_algorithms import purecma
from cma.recombination_weights import RecombinationWeights

from paretune.core.errors import ConfigError, MissingDependencyError, WiringError
from paretune.rl.evolution.search import CmaES, IsotropicES, SearchStrategy, centered_ranks


def close(x, expected):
    x = x.tolist() if isinstance(x, torch.Tensor) else np.array(x).tolist()
    torch.testing.assert_close(torch.tensor(x).double(), torch.tensor(expected).double(), atol=1e-6, rtol=0)


def sphere(x):
    return -((x - 1) ** 2).sum(-1)


def run_search(search, fitness, generations, seed=0, first=0):
    for generation in range(first, first + generations):
        search.tell(fitness(search.ask(seed, generation)))
    return search


def test_cma_weights_of_four_candidates():
    """By hand: ln 2.5 - ln i for i = 1, 2, over their sum ln 2.5 + ln 1.25."""
    weights = RecombinationWeights(4)
    close(weights[:2], [0.804163, 0.195837])
    close(weights.mueff, 1.459790)


def test_cma_step_matches_hand_computation():
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
def test_cma_minimizes_a_sphere(seed):
    search = run_search(CmaES(population_size=10).init_state(10, 0.5), sphere, 200, seed)
    assert float((search.mean - 1).norm()) < 1e-3


def test_isotropic_es_approaches_the_optimum():
    search = run_search(IsotropicES(population_size=16).init_state(10, 0.05), sphere, 150)
    assert search.sigma == 0.05
    assert float(-sphere(search.mean)) < 0.01


def test_isotropic_es_step_on_a_slope_matches_the_docs():
    """4 E[u g] with u the rank of g less a half: 4 / (2 sqrt pi) = 1.128."""
    search = IsotropicES(population_size=2_000).init_state(1, 0.5)
    search.tell(search.ask(0, 0)[:, 0])
    assert float(search.mean) == pytest.approx(0.5 * 1.128, rel=0.05)


@pytest.mark.parametrize("strategy", [CmaES(population_size=6), IsotropicES(population_size=6)])
def test_equal_fitness_does_not_move_the_mean(strategy):
    """A generation of equal fitness carries no information."""
    search = run_search(
        strategy.init_state(3, 0.5), lambda x: torch.full((len(x),), 0.7, dtype=torch.float64), 5
    )
    assert not search.mean.any()
    assert search.sigma == 0.5


def test_ties_share_their_ranks():
    close(centered_ranks(torch.tensor([3.0, 1.0, 3.0, 5.0, 1.0])), [0.125, -0.375, 0.125, 0.5, -0.375])
    assert not centered_ranks(torch.ones(4)).any()


@pytest.mark.parametrize("strategy", [CmaES(population_size=10), IsotropicES(population_size=10)])
def test_resume_is_bit_exact_and_leaves_global_generator(strategy):
    # The package would seed the legacy global generator of numpy if it could.
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    whole = run_search(strategy.init_state(5, 0.3), sphere, 30)
    part = run_search(strategy.init_state(5, 0.3), sphere, 12)
    part = run_search(strategy.load_state(part.state_dict(), 0), sphere, 18, first=12)
    assert isinstance(strategy, SearchStrategy)
    assert all(torch.equal(x, part.state_dict()[k]) for k, x in whole.state_dict().items())
    assert torch.equal(whole.ask(0, 30), part.ask(0, 30))
    assert (np.random.get_state()[1] == before).all()  # noqa: NPY002


def test_state_that_cannot_be_reproduced_is_refused():
    state = run_search(CmaES(population_size=10).init_state(5, 0.3), sphere, 3).state_dict()
    with pytest.raises(ConfigError, match=r"cannot resume bit-exactly: .*; fix: "):
        CmaES(population_size=10).load_state(state | {"mean": state["mean"] + 1e-12}, 0)


def test_invalid_population_sizes_are_refused():
    with pytest.raises(
        WiringError, match=r"algorithm\.population_size is 5: candidates come in mirrored pairs"
    ):
        IsotropicES(population_size=5)
    with pytest.raises(WiringError, match=r"algorithm\.population_size is 3; fix: at least 4"):
        CmaES(population_size=3)


def test_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "cma", None)
    with pytest.raises(
        MissingDependencyError,
        match=r'strategy: cma needs the package cma, which is not installed; fix: pip install "paretune\[',
    ) as e:
        CmaES().init_state(2, 0.1)
    assert e.value.exit_code == 3
    IsotropicES().init_state(2, 0.1)


def test_search_finds_singular_values_of_a_target_token():
    """A softmax whose logits are sums of singular values times vectors; token 2 is the target."""
    rng = torch.Generator().manual_seed(0)
    vectors = torch.randn(4, 4, generator=rng, dtype=torch.float64)
    fixed, s = vectors.clone(), torch.ones(4, dtype=torch.float64)

    def target_prob(z):
        return ((s + z) @ vectors).softmax(-1)[..., 2]

    search = run_search(CmaES(population_size=8).init_state(4, 0.3), target_prob, 60)
    assert float(target_prob(torch.zeros(4, dtype=torch.float64))) < 0.9
    assert float(target_prob(search.mean)) > 0.95
    assert torch.equal(vectors, fixed)
