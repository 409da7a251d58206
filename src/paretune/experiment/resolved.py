"""The resolved run: a recipe together with its algorithm; nothing else builds the algorithm of a run."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property

from paretune.config import Config, location_of
from paretune.config.build import build_spec
from paretune.config.yaml import KeyPath, dotted_key
from paretune.core.errors import ConfigError, DataError, ParetuneError, format_issue
from paretune.core.requirements import Requirements
from paretune.experiment.learning_rates import fill_learning_rates
from paretune.rl.algorithm_spec import AlgorithmSpec, phase_specs
from paretune.rl.evolution.spec import EvolutionSpec
from paretune.rl.validate import check_spec


@dataclass(frozen=True)
class ResolvedRun:
    """A recipe and everything that follows from it alone."""

    config: Config
    algorithm: AlgorithmSpec | EvolutionSpec
    phases: tuple[AlgorithmSpec, ...]
    """The specs of the phases that train a model before the algorithm starts."""
    learning_rate_notes: tuple[str, ...] = ()
    """One line per learning rate that the recipe leaves out: its default, and why."""

    @cached_property
    def requirements(self) -> Requirements:
        """What the algorithm needs of the run.

        Computed by a dry run on first use, so that its error can be reported together with those of the data.

        Raises:
            WiringError: The parts of the algorithm do not fit together.
        """
        return check_spec(self.algorithm, tuple(self.config.objectives))

    @property
    def specs(self) -> "tuple[AlgorithmSpec | EvolutionSpec, ...]":
        """The algorithm and its phases."""
        return (self.algorithm, *self.phases)

    def issue(self, path: KeyPath, problem: str, fix: str = "", *, suggestion: str = "") -> str:
        """An error message at the location of a key of the recipe."""
        location = location_of(self.config, path)
        return format_issue(location, None, None, dotted_key(path), problem, suggestion=suggestion, fix=fix)

    def with_config(self, config: Config) -> "ResolvedRun":
        """The run with another recipe of the same algorithm, and the algorithm built from it."""
        algorithm = build_spec(config)
        return replace(self, config=config, algorithm=algorithm, phases=tuple(phase_specs(algorithm.phases)))


def resolve(config: Config) -> ResolvedRun:
    """Build the algorithm of a valid recipe, and fill in the learning rates it leaves out."""
    algorithm = build_spec(config)
    config, notes = fill_learning_rates(config, gradient_free=algorithm.gradient_free)
    phases = tuple(phase_specs(algorithm.phases))
    return ResolvedRun(config=config, algorithm=algorithm, phases=phases, learning_rate_notes=notes)


@contextmanager
def as_config_error(run: ResolvedRun, key: KeyPath, *kinds: type[ParetuneError]) -> Iterator[None]:
    """Turns the DataError of a model that cannot be read into a ConfigError at its key.

    Args:
        run: The resolved recipe.
        key: The key of the model.
        *kinds: Further errors to turn.

    Raises:
        ConfigError: There was such an error.
    """
    caught: tuple[type[ParetuneError], ...] = (DataError, *kinds)
    try:
        yield
    except caught as error:
        raise ConfigError(run.issue(key, str(error))) from error
