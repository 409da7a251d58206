"""What can be tried of a recipe without weights: for `paretune check`, and for a run before anything else."""

from paretune.config import Experiment
from paretune.config.algorithm import recipe_of
from paretune.errors import ConfigError, DataError, WiringError
from paretune.learn.check import Plan
from paretune.learn.check import check as dry_run
from paretune.learn.evolution import Evolution
from paretune.learn.recipe import Recipe
from paretune.stages.gather import Material, Tell, gather
from paretune.stages.memory import possible
from paretune.stages.plan import planned


def check(experiment: Experiment) -> str:
    """What a run of this recipe would do, after everything was tried that needs no weights; writes nothing.

    Raises:
        ParetuneError: Every mistake of the recipe, of the models' configurations and of the rows, one a line.
    """
    found = tried(experiment)
    if experiment.run.device != "cuda":  # which may be meant for another machine than this one
        possible(experiment)
    return "\n".join(planned(experiment, *found))


def tried(
    experiment: Experiment, tell: Tell = lambda done, total, note: None
) -> tuple[Recipe | Evolution, Plan, Material]:
    """The algorithm on a small fake batch, and all records; what is wrong with both is told together.

    Raises:
        ParetuneError: As `check`.
    """
    recipe = recipe_of(experiment)
    try:
        plan = dry_run(recipe, tuple(experiment.objectives))
    except WiringError as wiring:
        try:
            gather(experiment, tell)
        except (ConfigError, DataError) as error:
            raise ConfigError(f"{wiring}\n{error}") from error
        raise
    return recipe, plan, gather(experiment, tell)
