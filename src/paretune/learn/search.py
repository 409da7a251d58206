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

from paretune.chance import generator, numpy_generator
from paretune.errors import ConfigError, MissingExtra, WiringError

Tree = dict[str, Tensor]


@runtime_checkable
class Seeker(Protocol):
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

    def state(self) -> Tree:
        """All that it takes to go on."""
        ...


@runtime_checkable
class Search(Protocol):
    """A way to search, and its settings."""

    @property
    def population(self) -> int:
        """Candidates of a generation."""
        ...

    def begin(self, size: int, sigma: float) -> Seeker:
        """A search that starts at the origin of so many numbers."""
        ...

    def resume(self, state: Tree, seed: int) -> Seeker:
        """The search that gave this state."""
        ...


@dataclass(frozen=True, kw_only=True)
class Isotropic:
    """A step of fixed size along what the better candidates have and the worse have not.

        x_i = m + sigma e_i,   e_{i + P/2} = -e_i,   m <- m + rate sigma (4 / P) sum_i u_i e_i

    u_i is the rank of x_i, from -1/2 to 1/2; equal fitness shares the mean of its ranks, so that ties pull
    nowhere: with mirrored noise a generation of equals moves nothing. On a linear slope the mean climbs by
    1.13 rate sigma. O(N) memory.

    Source: Salimans et al. 2017, section 2.1 (arXiv:1703.03864). Differs: ties; a step in units of sigma.
    """

    population: int = 96
    rate: float = 1.0

    def __post_init__(self) -> None:
        if self.population < 2 or self.population % 2:
            raise WiringError(
                f"algorithm.population is {self.population}: candidates come in mirrored pairs; "
                "fix: an even number"
            )

    def begin(self, size: int, sigma: float) -> "IsotropicSeeker":
        """See `Search`."""
        return IsotropicSeeker(self, torch.zeros(size, dtype=torch.float64), sigma)

    def resume(self, state: Tree, seed: int) -> "IsotropicSeeker":
        """See `Search`."""
        return IsotropicSeeker(self, state["mean"], float(state["sigma"]))


@dataclass
class IsotropicSeeker:
    """See `Isotropic` and `Seeker`."""

    how: Isotropic
    mean: Float[Tensor, " N"]
    sigma: float
    noise: Float[Tensor, "P N"] | None = None

    def ask(self, seed: int, generation: int) -> Float[Tensor, "P N"]:
        """See `Seeker`."""
        rng = generator(seed, generation, "candidates")
        half = torch.randn(self.how.population // 2, len(self.mean), generator=rng, dtype=torch.float64)
        self.noise = torch.cat([half, -half])
        return self.mean + self.sigma * self.noise

    def tell(self, fitness: Float[Tensor, " P"]) -> None:
        """See `Seeker`."""
        assert self.noise is not None
        pull = 4 / len(fitness) * (midranks(fitness)[:, None] * self.noise).sum(0)
        self.mean = self.mean + self.how.rate * self.sigma * pull

    def state(self) -> Tree:
        """See `Seeker`."""
        return {"mean": self.mean, "sigma": torch.tensor(self.sigma, dtype=torch.float64)}


@dataclass(frozen=True, kw_only=True)
class Cma:
    """CMA-ES with its full covariance, by the package `cma`: step size and shape of the cloud are learnt.

    Active (the worse half counts negatively), cumulative step-size adaptation, every setting the package's
    own. A generation whose candidates are all worth the same is passed over. O(N^2) memory: 128 MiB for
    N = 4096. What it has learnt is not stored but learnt again, from the fitness of every generation so far.

    Source: Hansen 2016, "The CMA Evolution Strategy: A Tutorial" (arXiv:1604.00772), in pycma.
    """

    population: int = 96

    def __post_init__(self) -> None:
        if self.population < 4:
            raise WiringError(f"algorithm.population is {self.population}; fix: at least 4")

    def begin(self, size: int, sigma: float) -> "CmaSeeker":
        """See `Search`.

        Raises:
            MissingExtra: The package is not installed.
        """
        return CmaSeeker(self, size, sigma)

    def resume(self, state: Tree, seed: int) -> "CmaSeeker":
        """See `Search`: every generation is asked for and told of again.

        Raises:
            ConfigError: That leads elsewhere, as with another version of the package or of its algebra.
            MissingExtra: The package is not installed.
        """
        seeker = CmaSeeker(self, len(state["mean"]), float(state["first"]))
        for generation, fitness in enumerate(state["told"]):
            seeker.ask(seed, generation)
            seeker.tell(fitness)
        if not torch.equal(seeker.mean, state["mean"]) or seeker.sigma != float(state["sigma"]):
            raise ConfigError(
                "the search cannot be gone on with bit for bit: this machine, or its versions of cma and "
                "numpy, reckon otherwise; fix: go on where the run began, or choose another run.folder"
            )
        return seeker


@dataclass
class CmaSeeker:
    """See `Cma` and `Seeker`."""

    how: Cma
    size: int
    first: float
    """The step size it begins with."""
    told: list[Tensor] = field(default_factory=list)

    def __post_init__(self) -> None:
        # Without `randn` and a seed of NaN the package would seed numpy for everybody.
        options = {
            "popsize": self.how.population,
            "randn": self._randn,
            "seed": math.nan,
            "verbose": -9,
            "verb_log": 0,
        }
        self._strategy = package().CMAEvolutionStrategy(np.zeros(self.size), self.first, options)
        self._asked: list[Any] = []

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
        self._asked = self._strategy.ask()
        return torch.from_numpy(np.stack(self._asked))

    def tell(self, fitness: Float[Tensor, " P"]) -> None:
        """See `Seeker`."""
        self.told.append(fitness)
        if len(fitness.unique()) > 1:
            self._strategy.tell(self._asked, (-fitness).tolist())

    def state(self) -> Tree:
        """See `Seeker`."""
        told = torch.stack(self.told) if self.told else torch.zeros(0, self.how.population)
        first, sigma = (torch.tensor(x, dtype=torch.float64) for x in (self.first, self.sigma))
        return {"mean": self.mean, "sigma": sigma, "first": first, "told": told.double()}

    def _randn(self, *shape: int) -> Any:
        return self._rng.standard_normal(shape)


def midranks(x: Float[Tensor, " P"]) -> Float[Tensor, " P"]:
    """Ranks from -1/2 to 1/2; equal numbers share the mean of their ranks."""
    below = (x[None, :] < x[:, None]).sum(-1).double()
    equal = (x[None, :] == x[:, None]).sum(-1).double()
    return (below + (equal - 1) / 2) / max(len(x) - 1, 1) - 0.5


def package() -> Any:
    """The package `cma`.

    Raises:
        MissingExtra: It is not installed.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it says that it could not plot
            import cma
    except ImportError as error:
        raise MissingExtra(
            "algorithm.search: cma needs the package cma; "
            'fix: pip install "paretune[evolution]", or algorithm.search: isotropic'
        ) from error
    return cma
