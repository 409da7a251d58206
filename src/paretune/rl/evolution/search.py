"""Gradient-free search strategies with an ask/tell interface.

A strategy is a frozen part; a `SearchState` is a search in progress, saved as a tree of tensors.
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
    """A search in progress; all tensors are float64 on the CPU."""

    @property
    def mean(self) -> Float[Tensor, " N"]:
        """The incumbent: the current estimate of the optimum."""
        ...

    @property
    def sigma(self) -> float:
        """The step size: the standard deviation of the candidates around the mean, per coordinate."""
        ...

    def ask(self, seed: int, generation: int) -> Float[Tensor, "P N"]:
        """Sample the candidates of a generation."""
        ...

    def tell(self, fitness: Float[Tensor, " P"]) -> None:
        """Update the search by the fitness of the last candidates; larger is better, and all are finite."""
        ...

    def state_dict(self) -> StateDict:
        """The state of a checkpoint."""
        ...


@runtime_checkable
class SearchStrategy(Protocol):
    """A search strategy and its settings."""

    @property
    def population_size(self) -> int:
        """Candidates per generation."""
        ...

    def init_state(self, num_params: int, sigma: float) -> SearchState:
        """A search that starts at the origin of `num_params` dimensions."""
        ...

    def load_state(self, state: StateDict, seed: int) -> SearchState:
        """The search with this `state_dict`."""
        ...


@dataclass(frozen=True, kw_only=True)
class IsotropicES:
    """Evolution strategy with isotropic noise of fixed size and mirrored sampling.

        x_i = m + sigma e_i,   e_{i + P/2} = -e_i,   m <- m + mean_lr sigma (4 / P) sum_i u_i e_i

    u_i is the rank of x_i, from -1/2 to 1/2; equal fitness shares the mean of its ranks, so that ties have no
    effect: with mirrored noise a generation of equal fitness does not move the mean. On a linear slope the
    mean climbs by 1.13 mean_lr sigma. O(N) memory.

    Source: Salimans et al. 2017, section 2.1 (arXiv:1703.03864). Differs: ties; a step in units of sigma.
    """

    population_size: int = 96
    mean_lr: float = 1.0

    def __post_init__(self) -> None:
        if self.population_size < 2 or self.population_size % 2:
            raise WiringError(
                f"algorithm.population_size is {self.population_size}: candidates come in mirrored pairs; "
                "fix: an even number of at least 2"
            )

    def init_state(self, num_params: int, sigma: float) -> "IsotropicESState":
        """See `SearchStrategy`."""
        return IsotropicESState(self, torch.zeros(num_params, dtype=torch.float64), sigma)

    def load_state(self, state: StateDict, seed: int) -> "IsotropicESState":
        """See `SearchStrategy`."""
        return IsotropicESState(self, state["mean"], float(state["sigma"]))


@dataclass
class IsotropicESState:
    """See `IsotropicES` and `SearchState`."""

    config: IsotropicES
    mean: Float[Tensor, " N"]
    sigma: float
    noise: Float[Tensor, "P N"] | None = None

    def ask(self, seed: int, generation: int) -> Float[Tensor, "P N"]:
        """See `SearchState`."""
        rng = torch_generator(seed, generation, "candidates")
        half = torch.randn(
            self.config.population_size // 2, len(self.mean), generator=rng, dtype=torch.float64
        )
        self.noise = torch.cat([half, -half])
        return self.mean + self.sigma * self.noise

    def tell(self, fitness: Float[Tensor, " P"]) -> None:
        """See `SearchState`."""
        assert self.noise is not None
        direction = 4 / len(fitness) * (centered_ranks(fitness)[:, None] * self.noise).sum(0)
        self.mean = self.mean + self.config.mean_lr * self.sigma * direction

    def state_dict(self) -> StateDict:
        """See `SearchState`."""
        return {"mean": self.mean, "sigma": torch.tensor(self.sigma, dtype=torch.float64)}


@dataclass(frozen=True, kw_only=True)
class CmaES:
    """CMA-ES with full covariance, by the package `cma`: step size and covariance are adapted.

    Active (the worse half has negative weights), cumulative step-size adaptation, all settings are the
    package's defaults. A generation of equal fitness is skipped. O(N^2) memory: 128 MiB for N = 4096.
    Checkpoints hold the fitness of every generation so far instead of the covariance, which is computed again
    from it on resume.

    Source: Hansen 2016, "The CMA Evolution Strategy: A Tutorial" (arXiv:1604.00772), in pycma.
    """

    population_size: int = 96

    def __post_init__(self) -> None:
        if self.population_size < 4:
            raise WiringError(f"algorithm.population_size is {self.population_size}; fix: at least 4")

    def init_state(self, num_params: int, sigma: float) -> "CmaESState":
        """See `SearchStrategy`.

        Raises:
            MissingDependencyError: The package is not installed.
        """
        return CmaESState(self, num_params, sigma)

    def load_state(self, state: StateDict, seed: int) -> "CmaESState":
        """See `SearchStrategy`: every generation is asked and told again.

        Raises:
            ConfigError: The result differs, as with another version of the package or of its linear algebra.
            MissingDependencyError: The package is not installed.
        """
        search = CmaESState(self, len(state["mean"]), float(state["initial_sigma"]))
        for generation, fitness in enumerate(state["fitness_history"]):
            search.ask(seed, generation)
            search.tell(fitness)
        if not torch.equal(search.mean, state["mean"]) or search.sigma != float(state["sigma"]):
            raise ConfigError(
                "cannot resume bit-exactly: the CPU, or the version of cma or numpy, differs from the "
                "checkpoint's; fix: resume on the original machine, or set a new run.output_dir"
            )
        return search


@dataclass
class CmaESState:
    """See `CmaES` and `SearchState`."""

    config: CmaES
    num_params: int
    initial_sigma: float
    """The first step size."""
    fitness_history: list[Tensor] = field(default_factory=list)

    def __post_init__(self) -> None:
        # Without `randn` and a NaN seed the package would seed the global generator of numpy.
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
        """See `SearchState`."""
        return torch.from_numpy(np.array(self._strategy.mean, dtype=np.float64))

    @property
    def sigma(self) -> float:
        """See `SearchState`."""
        return float(self._strategy.sigma)

    def ask(self, seed: int, generation: int) -> Float[Tensor, "P N"]:
        """See `SearchState`."""
        self._rng = numpy_generator(seed, generation, "candidates")
        self._last_candidates = self._strategy.ask()
        return torch.from_numpy(np.stack(self._last_candidates))

    def tell(self, fitness: Float[Tensor, " P"]) -> None:
        """See `SearchState`."""
        self.fitness_history.append(fitness)
        if len(fitness.unique()) > 1:
            self._strategy.tell(self._last_candidates, (-fitness).tolist())

    def state_dict(self) -> StateDict:
        """See `SearchState`."""
        empty = torch.zeros(0, self.config.population_size)
        history = torch.stack(self.fitness_history) if self.fitness_history else empty
        initial, sigma = (torch.tensor(x, dtype=torch.float64) for x in (self.initial_sigma, self.sigma))
        return {
            "mean": self.mean,
            "sigma": sigma,
            "initial_sigma": initial,
            "fitness_history": history.double(),
        }

    def _randn(self, *shape: int) -> Any:
        return self._rng.standard_normal(shape)


def centered_ranks(x: Float[Tensor, " P"]) -> Float[Tensor, " P"]:
    """Ranks scaled to [-1/2, 1/2]; equal numbers share the mean of their ranks."""
    below = (x[None, :] < x[:, None]).sum(-1).double()
    equal = (x[None, :] == x[:, None]).sum(-1).double()
    return (below + (equal - 1) / 2) / max(len(x) - 1, 1) - 0.5


def import_cma() -> Any:
    """The package `cma`.

    Raises:
        MissingDependencyError: It is not installed.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it warns that it cannot plot
            import cma
    except ImportError as error:
        raise MissingDependencyError(
            "algorithm.strategy: cma needs the package cma, which is not installed; "
            'fix: pip install "paretune[evolution]", or algorithm.strategy: isotropic'
        ) from error
    return cma
