"""An alignment without gradients: the fit of its adapter, copies of the policy, and the search itself."""

from dataclasses import dataclass, replace
from pathlib import Path

from paretune.config import Experiment
from paretune.learn.candidates import Candidates
from paretune.learn.descend import OnStep
from paretune.learn.evolution import Evolution
from paretune.learn.evolve import evolve
from paretune.learn.progress import Budget
from paretune.learn.stop import StopRequest
from paretune.models.int8 import in_int8
from paretune.models.load import Language, load_policy
from paretune.models.singular import SingularLora
from paretune.rundir import Run
from paretune.stages.assemble import assembled
from paretune.stages.before import made_in
from paretune.stages.console import PlainConsole
from paretune.stages.material import Material
from paretune.stages.work import Work, lora


@dataclass(frozen=True)
class Hired:
    """What a further process makes its candidates of; all of it can be sent there."""

    experiment: Experiment
    material: Material
    folder: Path
    evolution: Evolution

    def __call__(self, knobs: SingularLora) -> Candidates:
        """See `Hire`."""
        work = Work(
            experiment=self.experiment,
            run=Run(self.folder),
            console=PlainConsole(),
            material=self.material,
            stop=StopRequest(),
        )
        language = _asked(_adapted(work, self.evolution), self.evolution)
        world = assembled(work, self.evolution, language)
        return Candidates(self.evolution, world, knobs, self.experiment.run.seed)


def fit_adapter(work: Work, evolution: Evolution) -> None:
    """Fit the adapter whose singular values are searched, unless that is done."""
    own = lora(work.experiment.policy.lora)
    made_in(work, evolution.fitted, own or evolution.adapter)


def search(work: Work, evolution: Evolution, budget: Budget | None, on_step: OnStep) -> Language:
    """Search from the last checkpoint on; the policy with the incumbent's singular values in its adapter."""
    e = work.experiment
    language = _adapted(work, evolution)
    asked = _asked(language, evolution)
    found = evolve(
        evolution,
        assembled(work, evolution, asked),
        steps=e.run.steps,
        seed=e.run.seed,
        run=work.run,
        hire=Hired(e, work.material, work.run.path, evolution),
        workers=e.run.workers,
        checkpoint_every=e.run.checkpoint_every,
        keep=e.run.keep,
        budget=budget,
        on_step=on_step,
    )
    found.knobs.write(language.model, found.offsets)
    return language


def _adapted(work: Work, evolution: Evolution) -> Language:
    """The start with its fitted adapter."""
    folder = work.folder("phases", evolution.fitted.role, "adapter")
    return load_policy(replace(work.start, adapter=str(folder)), seed=work.experiment.run.seed)


def _asked(language: Language, evolution: Evolution) -> Language:
    """Who responds during the search: the policy itself, or its twin in eight bits."""
    return language if evolution.body == "whole" else replace(language, model=in_int8(language.model))
