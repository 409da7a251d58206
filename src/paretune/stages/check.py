"""What can be tried of a recipe without weights: for `paretune check`, and for a run before anything else."""

from paretune.config import Config
from paretune.config.algorithm import build_spec
from paretune.errors import ConfigError, DataError, WiringError
from paretune.learn.check import SpecRequirements
from paretune.learn.check import check_spec as dry_run
from paretune.learn.evolution import EvolutionSpec
from paretune.learn.recipe import AlgorithmSpec
from paretune.stages.gather import Dataset, ProgressCallback, load_data
from paretune.stages.memory import check_memory_options
from paretune.stages.plan import describe_run


def check(config: Config) -> str:
    """What a run of this recipe would do, after everything was tried that needs no weights; writes nothing.

    Raises:
        ParetuneError: Every mistake of the recipe, of the models' configurations and of the rows, one a line.
    """
    found = validate_run(config)
    if config.run.device != "cuda":  # which may be meant for another machine than this one
        check_memory_options(config)
    return "\n".join(describe_run(config, *found))


def validate_run(
    config: Config, on_progress: ProgressCallback = lambda done, total, note: None
) -> tuple[AlgorithmSpec | EvolutionSpec, SpecRequirements, Dataset]:
    """The algorithm on a small fake batch, and all records; what is wrong with both is told together.

    Raises:
        ParetuneError: As `check`.
    """
    recipe = build_spec(config)
    try:
        plan = dry_run(recipe, tuple(config.objectives))
    except WiringError as wiring:
        try:
            load_data(config, on_progress)
        except (ConfigError, DataError) as error:
            raise ConfigError(f"{wiring}\n{error}") from error
        raise
    return recipe, plan, load_data(config, on_progress)
