"""All stages in order: what `paretune run` does."""

from collections.abc import Callable
from pathlib import Path

from paretune.config import Config, config_hash, location_of
from paretune.config.data_schema import RewardSection
from paretune.core.errors import ConfigError, format_issue
from paretune.experiment.align import align
from paretune.experiment.console import Console, make_console
from paretune.experiment.context import RunContext, set_num_threads
from paretune.experiment.data import Dataset
from paretune.experiment.dry_run import describe_prompts, validate_run
from paretune.experiment.evaluate import evaluate_policies
from paretune.experiment.preflight import check_memory_options, hub_model_notes
from paretune.experiment.provenance import build_manifest, provenance_files
from paretune.experiment.reuse import (
    PRE_ALIGN_STAGES,
    is_fresh_run,
    require_same_inputs,
    reuse_key,
    reuse_stages,
)
from paretune.experiment.reward import train_reward_model
from paretune.experiment.sft import run_sft
from paretune.experiment.tuning_trial import JUDGED_TRIAL, evaluate_trial
from paretune.report.run_page import write_report
from paretune.report.tables import summary_table
from paretune.run.folder import Run, read_json
from paretune.training.guards import StopRequest

Stage = Callable[[RunContext], str]


def run_pipeline(
    config: Config,
    console: Console | None = None,
    *,
    command: str = "",
    until: str = "",
    reuse_from: Path | None = None,
) -> Path:
    """Run every stage that is not complete, and return the run folder.

    Everything that can be wrong with the recipe and its files is found before a model is loaded and before
    anything is written.

    Args:
        config: The recipe.
        console: Hears of what is done.
        command: What the report repeats.
        until: The last stage; "": all of them. A run that ends before the alignment is made to be taken over,
            and its folder is known by what it was made from, whatever the algorithm.
        reuse_from: The folder of such a run, whose stages this one takes over instead of making them.

    Raises:
        ParetuneError: With what is wrong and what to do.
    """
    console = console or make_console()
    with console, StopRequest() as stop:
        return _run_stages(config, console, stop, command, until, reuse_from)


def _run_stages(
    config: Config, console: Console, stop: StopRequest, command: str, until: str, reuse_from: Path | None
) -> Path:
    stages = pipeline_stages(config, until)
    if reuse_from is not None and is_fresh_run(Path(config.run.output_dir)):
        require_same_inputs(reuse_from, config)  # before the records are read, which may take minutes
    console.start_stage("data", 1, len(stages) + 1)
    check_memory_options(config)
    for line in hub_model_notes(config):
        console.log(line)

    def tell(done: int, total: int, note: str) -> None:
        console.progress(done, total, note)
        stop.raise_if_stopped()

    _, _, material = validate_run(config, tell)
    set_num_threads(config)
    with Run.start_or_resume(
        config.run.output_dir,
        name=config.name,
        config_hash=reuse_key(config) if until in PRE_ALIGN_STAGES else config_hash(config),
        files=provenance_files(config),
        data_manifest=build_manifest(config, material),
    ) as opened:
        console.finish_stage(_data_summary(material))
        if goes_on := opened.resume_message(config.run.max_steps):
            console.log(goes_on)
        if command:
            opened.update_state(command=command)
        if reuse_from is not None:
            reuse_stages(opened, reuse_from, config)
        work = RunContext(config=config, run=opened, console=console, dataset=material, stop=stop)
        complete = "data"
        for index, (name, stage) in enumerate(stages, 2):
            stop.raise_if_stopped(f'the stage "{complete}"')
            console.start_stage(name, index, len(stages) + 1)
            opened.enter_stage(name)
            console.finish_stage(stage(work))
            complete = name
    return opened.path


def pipeline_stages(config: Config, until: str = "") -> list[tuple[str, Stage]]:
    """The stages after the data, by name, in order; `until`: without those after it.

    Raises:
        ConfigError: A judge is to score a trial, and the recipe has none.
    """
    if until == JUDGED_TRIAL and config.judge is None:
        wrong, fix = "is missing: the judge is to score a trial", "write judge, or take --until trial"
        raise ConfigError(format_issue(location_of(config, ("judge",)), None, None, "judge", wrong, fix=fix))
    stages: list[tuple[str, Stage]] = [
        ("policy", run_sft),
        ("reward", lambda work: train_reward_model(work, "reward")),
    ]
    if isinstance(config.judge, RewardSection):
        stages.append(("judge", lambda work: train_reward_model(work, "judge")))
    if until not in PRE_ALIGN_STAGES:
        stages.append(("align", align))
    if until in ("trial", JUDGED_TRIAL):
        return [*stages, ("trial", lambda work: evaluate_trial(work, with_judge=until == JUDGED_TRIAL))]
    return stages if until else [*stages, ("evaluate", evaluate_policies), ("report", run_report)]


def run_report(ctx: RunContext) -> str:
    """Write the page, and show its table."""
    path = write_report(ctx.run.path)
    numbers = read_json(ctx.path("eval", "final", "eval.json")) or {}
    ctx.console.log(f"\n{summary_table(numbers)}\n\nmodel: {ctx.path('final')}\n")
    return str(path)


def _data_summary(dataset: Dataset) -> str:
    parts = [f"prompts: {describe_prompts(dataset)}"]
    for name, found in (("reward", dataset.reward), ("judge", dataset.judge)):
        if found is not None:
            parts.append(f"{len(found.train):,} rows for the {name}")
    return "; ".join(parts)
