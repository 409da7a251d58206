"""Searches without a gradient: ask for points, tell what each was worth.

A search is a frozen part; what it has learnt so far lies in a `Seeker`, whose state is a tree of tensors.
"""

import math
import warnings
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from paretune.core.errors import ConfigError, MissingDependencyError, WiringError
from paretune.core.rng import numpy_generator, torch_generator

StateDict = dict[str, Tensor]


@runtime_checkable
class SearchState(Protocol):
    """A search under way; all of it is float64 on the CPU."""

    @property
    def mean(self) -> Float[Tensor, " N"]:
        """The incumbent: what the search would answer now."""
        ...

    @property
    def sigma(self) -> float:
        """The step size: how far candidates lie from the mean in each direction."""
        ...

    def ask(self, seed: int, generation: int) -> Float[Tensor, "P N"]:
        """The candidates of a generation."""
        ...

    def tell(self, fitness: Float[Tensor, " P"]) -> None:
        """What the candidates that were asked for last were worth; more is better, and all are finite."""
        ...

    def state_dict(self) -> StateDict:
        """All that it takes to go on."""
        ...


@runtime_checkable
class SearchStrategy(Protocol):
    """A way to search, and its settings."""

    @property
    def population_size(self) -> int:
        """Candidates of a generation."""
        ...

    def init_state(self, num_params: int, sigma: float) -> SearchState:
        """A search that starts at the origin of so many numbers."""
        ...

    def load_state(self, state: StateDict, seed: int) -> SearchState:
        """The search that gave this state."""
        ...


@dataclass(frozen=True, kw_only=True)
class IsotropicES:
    """A step of fixed size along what the better candidates have and the worse have not.

        x_i = m + sigma e_i,   e_{i + P/2} = -e_i,   m <- m + rate sigma (4 / P) sum_i u_i e_i

    u_i is the rank of x_i, from -1/2 to 1/2; equal fitness shares the mean of its ranks, so that ties pull
    nowhere: with mirrored noise a generation of equals moves nothing. On a linear slope the mean climbs by
    1.13 rate sigma. O(N) memory.

    Source: Salimans et al. 2017, section 2.1 (arXiv:1703.03864). Differs: ties; a step in units of sigma.
    """

    population_size: int = 96
    mean_lr: float = 1.0

    def __post_init__(self) -> None:
        if self.population_size < 2 or self.population_size % 2:
            raise WiringError(
                f"algorithm.population_size is {self.population_size}: candidates come in mirrored pairs; "
                "fix: an even number"
            )

    def init_state(self, num_params: int, sigma: float) -> "IsotropicESState":
        """See `Search`."""
        return IsotropicESState(self, torch.zeros(num_params, dtype=torch.float64), sigma)

    def load_state(self, state: StateDict, seed: int) -> "IsotropicESState":
        """See `Search`."""
        return IsotropicESState(self, state["mean"], float(state["sigma"]))


@dataclass
class IsotropicESState:
    """See `Isotropic` and `Seeker`."""

    config: IsotropicES
    mean: Float[Tensor, " N"]
    sigma: float
    noise: Float[Tensor, "P N"] | None = None

    def ask(self, seed: int, generation: int) -> Float[Tensor, "P N"]:
        """See `Seeker`."""
        rng = torch_generator(seed, generation, "candidates")
        half = torch.randn(
            self.config.population_size // 2, len(self.mean), generator=rng, dtype=torch.float64
        )
        self.noise = torch.cat([half, -half])
        return self.mean + self.sigma * self.noise

    def tell(self, fitness: Float[Tensor, " P"]) -> None:
        """See `Seeker`."""
        assert self.noise is not None
        pull = 4 / len(fitness) * (centered_ranks(fitness)[:, None] * self.noise).sum(0)
        self.mean = self.mean + self.config.mean_lr * self.sigma * pull

    def state_dict(self) -> StateDict:
        """See `Seeker`."""
        return {"mean": self.mean, "sigma": torch.tensor(self.sigma, dtype=torch.float64)}


@dataclass(frozen=True, kw_only=True)
class CmaES:
    """CMA-ES with its full covariance, by the package `cma`: step size and shape of the cloud are learnt.

    Active (the worse half counts negatively), cumulative step-size adaptation, every setting the package's
    own. A generation whose candidates are all worth the same is passed over. O(N^2) memory: 128 MiB for
    N = 4096. What it has learnt is not stored but learnt again, from the fitness of every generation so far.

    Source: Hansen 2016, "The CMA Evolution Strategy: A Tutorial" (arXiv:1604.00772), in pycma.
    """

    population_size: int = 96

    def __post_init__(self) -> None:
        if self.population_size < 4:
            raise WiringError(f"algorithm.population_size is {self.population_size}; fix: at least 4")

    def init_state(self, num_params: int, sigma: float) -> "CmaESState":
        """See `Search`.

        Raises:
            MissingExtra: The package is not installed.
        """
        return CmaESState(self, num_params, sigma)

    def load_state(self, state: StateDict, seed: int) -> "CmaESState":
        """See `Search`: every generation is asked for and told of again.

        Raises:
            ConfigError: That leads elsewhere, as with another version of the package or of its algebra.
            MissingExtra: The package is not installed.
        """
        seeker = CmaESState(self, len(state["mean"]), float(state["first"]))
        for generation, fitness in enumerate(state["told"]):
            seeker.ask(seed, generation)
            seeker.tell(fitness)
        if not torch.equal(seeker.mean, state["mean"]) or seeker.sigma != float(state["sigma"]):
            raise ConfigError(
                "the search cannot be gone on with bit for bit: this machine, or its versions of cma and "
                "numpy, reckon otherwise; fix: go on where the run began, or choose another run.output_dir"
            )
        return seeker


@dataclass
class CmaESState:
    """See `Cma` and `Seeker`."""

    config: CmaES
    num_params: int
    initial_sigma: float
    """The step size it begins with."""
    fitness_history: list[Tensor] = field(default_factory=list)

    def __post_init__(self) -> None:
        # Without `randn` and a seed of NaN the package would seed numpy for everybody.
        options = {
            "popsize": self.config.population_size,
            "randn": self._randn,
            "seed": math.nan,
            "verbose": -9,
            "verb_log": 0,
        }
        self._strategy = import_cma().CMAEvolutionStrategy(
            np.zeros(self.num_params), self.initial_sigma, options
        )
        self._last_candidates: list[Any] = []

    @property
    def mean(self) -> Float[Tensor, " N"]:
        """See `Seeker`."""
        return torch.from_numpy(np.array(self._strategy.mean, dtype=np.float64))

    @property
    def sigma(self) -> float:
        """See `Seeker`."""
        return float(self._strategy.sigma)

    def ask(self, seed: int, generation: int) -> Float[Tensor, "P N"]:
        """See `Seeker`."""
        self._rng = numpy_generator(seed, generation, "candidates")
        self._last_candidates = self._strategy.ask()
        return torch.from_numpy(np.stack(self._last_candidates))

    def tell(self, fitness: Float[Tensor, " P"]) -> None:
        """See `Seeker`."""
        self.fitness_history.append(fitness)
        if len(fitness.unique()) > 1:
            self._strategy.tell(self._last_candidates, (-fitness).tolist())

    def state_dict(self) -> StateDict:
        """See `Seeker`."""
        told = (
            torch.stack(self.fitness_history)
            if self.fitness_history
            else torch.zeros(0, self.config.population_size)
        )
        first, sigma = (torch.tensor(x, dtype=torch.float64) for x in (self.initial_sigma, self.sigma))
        return {"mean": self.mean, "sigma": sigma, "first": first, "told": told.double()}

    def _randn(self, *shape: int) -> Any:
        return self._rng.standard_normal(shape)


def centered_ranks(x: Float[Tensor, " P"]) -> Float[Tensor, " P"]:
    """Ranks from -1/2 to 1/2; equal numbers share the mean of their ranks."""
    below = (x[None, :] < x[:, None]).sum(-1).double()
    equal = (x[None, :] == x[:, None]).sum(-1).double()
    return (below + (equal - 1) / 2) / max(len(x) - 1, 1) - 0.5


def import_cma() -> Any:
    """The package `cma`.

    Raises:
        MissingExtra: It is not installed.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it says that it could not plot
            import cma
    except ImportError as error:
        raise MissingDependencyError(
            "algorithm.strategy: cma needs the package cma; "
            'fix: pip install "paretune[evolution]", or algorithm.strategy: isotropic'
        ) from error
    return cma
