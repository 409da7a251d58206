"""All stages in order: what `paretune run` does."""

from collections.abc import Callable
from pathlib import Path

from paretune.config import Experiment, config_hash, written_at
from paretune.config.sources import RewardSection
from paretune.errors import ConfigError, complaint
from paretune.learn.stop import StopRequest
from paretune.report.page import write_report
from paretune.report.table import closing_table
from paretune.rundir import Run, read_json
from paretune.stages.align import align
from paretune.stages.check import tried
from paretune.stages.console import Console, make_console
from paretune.stages.gather import Material
from paretune.stages.judge import judge
from paretune.stages.manifest import laid_down, manifest
from paretune.stages.memory import possible
from paretune.stages.plan import counted
from paretune.stages.policy import teach
from paretune.stages.ready import from_hub
from paretune.stages.reward import fit_model
from paretune.stages.shared import BEFORE_ALIGN, refuse_unlike, shared_key, take_over, wanting
from paretune.stages.trial import JUDGED, trial
from paretune.stages.work import Work, take_threads

Stage = Callable[[Work], str]


def run(
    experiment: Experiment,
    console: Console | None = None,
    *,
    command: str = "",
    until: str = "",
    shared: Path | None = None,
) -> Path:
    """Run every stage that is not complete, and return the run folder.

    Everything that can be wrong with the recipe and its files is found before a model is loaded and before
    anything is written.

    Args:
        experiment: The recipe.
        console: Hears of what is done.
        command: What the report repeats.
        until: The last stage; "": all of them. A run that ends before the alignment is made to be taken over,
            and its folder is known by what it was made from, whatever the algorithm.
        shared: The folder of such a run, whose stages this one takes over instead of making them.

    Raises:
        ParetuneError: With what is wrong and what to do.
    """
    console = console or make_console()
    with console, StopRequest() as stop:
        return _run(experiment, console, stop, command, until, shared)


def _run(
    experiment: Experiment, console: Console, stop: StopRequest, command: str, until: str, shared: Path | None
) -> Path:
    stages = stages_of(experiment, until)
    if shared is not None and wanting(Path(experiment.run.folder)):
        refuse_unlike(shared, experiment)  # before the records are read, which may take minutes
    console.open("data", 1, len(stages) + 1)
    possible(experiment)
    for line in from_hub(experiment):
        console.say(line)

    def tell(done: int, total: int, note: str) -> None:
        console.progress(done, total, note)
        stop.obey()

    _, _, material = tried(experiment, tell)
    take_threads(experiment)
    with Run.claim(
        experiment.run.folder,
        name=experiment.name,
        config_hash=shared_key(experiment) if until in BEFORE_ALIGN else config_hash(experiment),
        files=laid_down(experiment),
        made_from=manifest(experiment, material),
    ) as opened:
        console.close(_counted(material))
        if goes_on := opened.goes_on(experiment.run.steps):
            console.say(goes_on)
        if command:
            opened.update(command=command)
        if shared is not None:
            take_over(opened, shared, experiment)
        work = Work(experiment=experiment, run=opened, console=console, material=material, stop=stop)
        complete = "data"
        for index, (name, stage) in enumerate(stages, 2):
            stop.obey(f'the stage "{complete}"')
            console.open(name, index, len(stages) + 1)
            opened.begin(name)
            console.close(stage(work))
            complete = name
    return opened.path


def stages_of(experiment: Experiment, until: str = "") -> list[tuple[str, Stage]]:
    """The stages after the data, by name, in order; `until`: without those after it.

    Raises:
        ConfigError: A judge is to score a trial, and the recipe has none.
    """
    if until == JUDGED and experiment.judge is None:
        wrong, fix = "is missing: the judge is to score a trial", "write judge, or take --until trial"
        raise ConfigError(complaint(written_at(experiment, ("judge",)), None, None, "judge", wrong, fix=fix))
    stages: list[tuple[str, Stage]] = [("policy", teach), ("reward", lambda work: fit_model(work, "reward"))]
    if isinstance(experiment.judge, RewardSection):
        stages.append(("judge", lambda work: fit_model(work, "judge")))
    if until not in BEFORE_ALIGN:
        stages.append(("align", align))
    if until in ("trial", JUDGED):
        return [*stages, ("trial", lambda work: trial(work, judged=until == JUDGED))]
    return stages if until else [*stages, ("evaluate", judge), ("report", report)]


def report(work: Work) -> str:
    """Write the page, and show its table."""
    path = write_report(work.run.path)
    numbers = read_json(work.folder("eval", "final", "eval.json")) or {}
    work.console.say(f"\n{closing_table(numbers)}\n\nmodel: {work.folder('final')}\n")
    return str(path)


def _counted(material: Material) -> str:
    parts = [f"prompts: {counted(material)}"]
    for name, found in (("reward", material.reward), ("judge", material.judge)):
        if found is not None:
            parts.append(f"{len(found.train):,} rows for the {name}")
    return "; ".join(parts)
