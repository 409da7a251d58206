"""The pipeline of `paretune run`: all stages in order."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from paretune.config import Config
from paretune.config.data_schema import RewardSection
from paretune.core import ranks
from paretune.core.errors import ConfigError
from paretune.experiment.align import align
from paretune.experiment.console import Console, make_console
from paretune.experiment.context import RunContext
from paretune.experiment.dataset import Dataset
from paretune.experiment.dry_run import check_run, describe_prompts
from paretune.experiment.evaluate import evaluate_policies
from paretune.experiment.json_console import JsonConsole
from paretune.experiment.output_folder import check_output_folder, training_hash
from paretune.experiment.preflight import check_memory_options, hub_model_notes, model_descriptions
from paretune.experiment.probe import probe_scorers
from paretune.experiment.provenance import (
    build_manifest,
    dataset_warnings,
    evaluation_entries,
    evaluation_hashes,
    provenance_files,
)
from paretune.experiment.resolved import ResolvedRun, resolve
from paretune.experiment.reuse import (
    PRE_ALIGN_STAGES,
    is_fresh_run,
    require_same_inputs,
    reuse_key,
    reuse_stages,
)
from paretune.experiment.reward import train_reward_model
from paretune.experiment.settings import joined_ranks, set_num_threads
from paretune.experiment.sft import run_sft
from paretune.experiment.tuning_trial import JUDGED_TRIAL, TRIAL, evaluate_trial
from paretune.report.reward_model import head_warnings
from paretune.report.run_page import read_model_reports, with_event_warnings, write_report
from paretune.report.tables import summary_table
from paretune.run.compat import EVALUATION_ENTRIES_KEY
from paretune.run.folder import Run, read_json
from paretune.run.liveness import watch_ranks
from paretune.trackers.process import TrackerProcesses
from paretune.training.guards import StopRequest

Stage = Callable[[RunContext], str]
"""Runs one stage, or finds it complete; returns its summary line."""


def run_pipeline(
    config: Config,
    console: Console | None = None,
    *,
    command: str = "",
    until: str = "",
    reuse_from: Path | None = None,
) -> Path:
    """Run every stage that is not complete, and return the run folder.

    All errors of the recipe and its files are found before a model is loaded and before anything is written.

    Args:
        config: The recipe.
        console: Progress display.
        command: The command line, repeated in the report.
        until: The last stage; "": all of them. A run that ends before the alignment is meant to be reused, so
            its folder is identified by the inputs of these stages alone, whatever the algorithm.
        reuse_from: Folder of a run whose stages before the alignment are reused instead of being run again.

    Raises:
        ParetuneError: With the problem and its fix.
    """
    console = console or make_console()
    trackers = TrackerProcesses()
    with joined_ranks(config.run.device), console, StopRequest() as stop, ranks.fail_together("run"):
        try:
            with trackers:
                return _run_stages(resolve(config), console, stop, command, until, reuse_from, trackers)
        finally:
            for note in trackers.notes:
                console.log(note)


def _run_stages(
    resolved: ResolvedRun,
    console: Console,
    stop: StopRequest,
    command: str,
    until: str,
    reuse_from: Path | None,
    trackers: TrackerProcesses,
) -> Path:
    config = resolved.config
    stages = pipeline_stages(resolved, until)
    if reuse_from is not None and is_fresh_run(Path(config.run.output_dir)):
        require_same_inputs(reuse_from, resolved)  # before the records are read, which may take minutes
    # The first rank alone: it makes the folder before the others have looked.
    ranks.on_first(lambda: check_output_folder(resolved, until in PRE_ALIGN_STAGES), "data")
    console.start_stage("data", 1, len(stages) + 1)
    check_memory_options(resolved)
    for line in hub_model_notes(config):
        console.log(line)

    def on_progress(done: int, total: int, note: str) -> None:
        console.progress(done, total, note)
        stop.raise_if_stopped()

    checked = check_run(resolved, on_progress)
    dataset = checked.dataset
    for line in (*model_descriptions(resolved), *filter(None, (r.describe() for r in checked.readings))):
        console.log(line)
    for line in dataset_warnings(resolved, dataset):
        console.log(f"warning: {line}")
    set_num_threads(config)
    with _open_run(resolved, dataset, until) as run, watch_ranks(run.path):
        console.finish_stage(_data_summary(dataset))
        if resume_message := run.resume_message(config.run.max_steps):
            console.log(resume_message)
        if command:
            run.update_state(command=command)
        run.on_metrics = console.step if isinstance(console, JsonConsole) else None
        trackers.start(run.path, config.trackers)
        if reuse_from is not None:
            ranks.on_first(partial(reuse_stages, run, reuse_from, resolved), "reuse of stages")
        ctx = RunContext(resolved=checked.run, run=run, console=console, dataset=dataset, stop=stop)
        # An LLM judge must not be asked once per rank.
        ranks.on_first(lambda: probe_scorers(ctx), "first responses of the scorers")
        complete = "data"
        for index, (name, stage) in enumerate(stages, 2):
            stop.share()
            stop.raise_if_stopped(f'the stage "{complete}"')
            console.start_stage(name, index, len(stages) + 1)
            run.enter_stage(name)
            console.finish_stage(stage(ctx))
            complete = name
    return run.path


def _open_run(resolved: ResolvedRun, dataset: Dataset, until: str) -> Run:
    """The run folder: the first rank has the lock and writes the files."""
    config = resolved.config
    with ranks.fail_together("run folder"):
        if ranks.is_first():
            run = Run.start_or_resume(
                config.run.output_dir,
                name=config.name,
                files=provenance_files(config),
                **_identity(resolved, dataset, until),
            )
    return run if ranks.is_first() else Run(config.run.output_dir)


def _identity(resolved: ResolvedRun, dataset: Dataset, until: str) -> dict[str, Any]:
    """What decides whether a folder holds this run, as arguments of `Run.start_or_resume`."""
    config, manifest = resolved.config, build_manifest(resolved.config, dataset)
    if until in PRE_ALIGN_STAGES:  # its judge is one of its results
        return {"config_hash": reuse_key(resolved), "data_manifest": manifest}
    return {
        "config_hash": training_hash(config),
        "evaluation": evaluation_hashes(config, manifest),
        "data_manifest": manifest | {EVALUATION_ENTRIES_KEY: evaluation_entries(config)},
    }


def pipeline_stages(resolved: ResolvedRun, until: str = "") -> list[tuple[str, Stage]]:
    """The stages after the data stage, by name, in order.

    Args:
        resolved: The resolved recipe.
        until: The last stage; "": all.

    Raises:
        ConfigError: The judge must score a tuning trial, and the recipe has none.
    """
    config = resolved.config
    if until == JUDGED_TRIAL and config.judge is None and not config.judges:
        problem = "is missing: it must score the tuning trial"
        raise ConfigError(resolved.issue(("judge",), problem, f"set judge, or use --until {TRIAL}"))
    stages: list[tuple[str, Stage]] = [("sft", run_sft)]
    if config.reward is not None:
        stages.append(("reward", lambda ctx: train_reward_model(ctx, "reward")))
    if isinstance(config.judge, RewardSection):
        stages.append(("judge", lambda ctx: train_reward_model(ctx, "judge")))
    if until not in PRE_ALIGN_STAGES:
        stages.append(("align", align))
    if until in (TRIAL, JUDGED_TRIAL):
        return [*stages, (TRIAL, lambda ctx: evaluate_trial(ctx, with_judge=until == JUDGED_TRIAL))]
    return stages if until else [*stages, ("evaluate", evaluate_policies), ("report", run_report)]


def run_report(ctx: RunContext) -> str:
    """Write the report, and print its summary table."""
    if not ranks.is_first():
        return ""
    path = write_report(ctx.run.path)
    results = with_event_warnings(read_json(ctx.path("eval", "final", "eval.json")), ctx.run.path) or {}
    warnings = head_warnings(read_model_reports(ctx.run.path))
    ctx.console.log(f"\n{summary_table(results, warnings)}\n\nmodel: {ctx.path('final')}\n")
    return str(path)


def _data_summary(dataset: Dataset) -> str:
    parts = [f"prompts: {describe_prompts(dataset)}"]
    for name, reward_data in (("reward", dataset.reward), ("judge", dataset.judge)):
        if reward_data is not None:
            parts.append(f"{len(reward_data.train):,} rows for the {name}")
    return "; ".join(parts)
