"""All stages in order: what `paretune run` does."""

from collections.abc import Callable
from pathlib import Path

import torch

from paretune.config import Experiment, config_hash, given, resolved
from paretune.config.algorithm import recipe_of
from paretune.config.sources import RewardSection
from paretune.learn.check import check as dry_run
from paretune.learn.stop import StopRequest
from paretune.models.load import device_named
from paretune.report.page import write_report
from paretune.report.table import closing_table
from paretune.rundir import Run, environment, read_json, to_json
from paretune.stages.align import align
from paretune.stages.console import Console, make_console
from paretune.stages.gather import Material, gather
from paretune.stages.judge import judge
from paretune.stages.manifest import manifest
from paretune.stages.policy import teach
from paretune.stages.reward import fit_model
from paretune.stages.work import Work

Stage = Callable[[Work], str]


def run(experiment: Experiment, console: Console | None = None, *, command: str = "") -> Path:
    """Run every stage that is not complete, and return the run folder; `command` is what the report repeats.

    Everything that can be wrong with the recipe and its files is found before a model is loaded and before
    anything is written.

    Raises:
        ParetuneError: With what is wrong and what to do.
    """
    console = console or make_console()
    with console, StopRequest() as stop:
        return _run(experiment, console, command, stop)


def _run(experiment: Experiment, console: Console, command: str, stop: StopRequest) -> Path:
    stages = stages_of(experiment)
    console.open("data", 1, len(stages) + 1)
    dry_run(recipe_of(experiment), tuple(experiment.objectives))
    device_named(experiment.run.device)

    def tell(done: int, total: int, note: str) -> None:
        console.progress(done, total, note)
        stop.obey("nothing: the data was still being read")

    material = gather(experiment, tell)
    if experiment.run.threads is not None:
        torch.set_num_threads(experiment.run.threads)
    files = {
        "config/run.yaml": given(experiment),
        "config/resolved.yaml": resolved(experiment),
        "env.json": to_json(environment()),
    }
    with Run.claim(
        experiment.run.folder,
        name=experiment.name,
        config_hash=config_hash(experiment),
        files=files,
        made_from=manifest(experiment, material),
    ) as opened:
        console.close(_counted(material))
        if command:
            opened.update(command=command)
        work = Work(experiment=experiment, run=opened, console=console, material=material, stop=stop)
        complete = "data"
        for index, (name, stage) in enumerate(stages, 2):
            stop.obey(f'the stage "{complete}"')
            console.open(name, index, len(stages) + 1)
            opened.begin(name)
            console.close(stage(work))
            complete = name
    return opened.path


def stages_of(experiment: Experiment) -> list[tuple[str, Stage]]:
    """The stages after the data, by name, in order."""
    stages: list[tuple[str, Stage]] = [("policy", teach), ("reward", lambda work: fit_model(work, "reward"))]
    if isinstance(experiment.judge, RewardSection):
        stages.append(("judge", lambda work: fit_model(work, "judge")))
    return [*stages, ("align", align), ("evaluate", judge), ("report", report)]


def report(work: Work) -> str:
    """Write the page, and show its table."""
    path = write_report(work.run.path)
    numbers = read_json(work.folder("eval", "final", "eval.json")) or {}
    work.console.say("\n" + closing_table(numbers) + "\n")
    return str(path)


def check(experiment: Experiment) -> str:
    """What a run of this recipe would do, in a few lines, after everything that needs no model was tried."""
    recipe = recipe_of(experiment)
    plan = dry_run(recipe, tuple(experiment.objectives))
    lines = [f"{experiment.name}: ok", f"algorithm: {recipe}"]
    if plan.frozen_roles:
        lines.append(f"frozen models: {', '.join(plan.frozen_roles)}")
    return "\n".join(lines)


def _counted(material: Material) -> str:
    prompts = ", ".join(f"{len(pool):,} {name}" for name, pool in material.pools.items())
    parts = [f"prompts: {prompts}; {len(material.test):,} unseen"]
    for name, found in (("reward", material.reward), ("judge", material.judge)):
        if found is not None:
            parts.append(f"{len(found.train):,} rows for the {name}")
    return "; ".join(parts)
