"""Rewarded soups: averages of runs that were aligned with different weights, each evaluated like a run."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from paretune.config import Config, config_hash, load_config
from paretune.core.errors import ConfigError
from paretune.core.pareto import hypervolume, nondominated
from paretune.experiment.console import Console, make_console
from paretune.experiment.context import RunContext
from paretune.experiment.data import load_data
from paretune.experiment.evaluate import evaluate_policies
from paretune.experiment.provenance import build_manifest, hash_model_dir, provenance_files
from paretune.experiment.resolved import ResolvedRun, resolve
from paretune.experiment.reuse import link_stages, reuse_key
from paretune.experiment.settings import set_num_threads
from paretune.models.load import ModelSpec, load_policy, save_model
from paretune.models.merge import merge_models
from paretune.report.run_page import write_report
from paretune.run.folder import Run
from paretune.run.io import read_json, to_json, write_atomic
from paretune.training.guards import StopRequest

RESULTS_FILE = "merge.json"
VARIABLE_SECTIONS = ("name", "objectives", "algorithm", "aggregate", "training", "run")
"""Sections that may differ between the runs; the others determine the initial policy and the evaluation."""


MergeWeights = tuple[float, ...]
"""Weight of each run; they sum to 1."""


@dataclass(frozen=True, kw_only=True)
class MergedRun:
    """A finished run that is merged with others."""

    run_dir: Path
    resolved: ResolvedRun

    @property
    def config(self) -> Config:
        """Its recipe."""
        return self.resolved.config


def merge_grid(num_runs: int, grid_steps: int) -> Iterator[MergeWeights]:
    """All weights that are multiples of 1 / grid_steps, starting with weight 1 for the first run."""
    for parts in itertools.product(range(grid_steps, -1, -1), repeat=num_runs):
        if sum(parts) == grid_steps:
            yield tuple(part / grid_steps for part in parts)


def merge_runs(
    run_dirs: Sequence[Path], output_dir: Path, grid_steps: int, console: Console | None = None
) -> Path:
    """Merge the policies of finished runs with all weights of a grid, evaluate each, and write merge.json.

    Each merge is a run folder of its own, with the model in `final/`, its evaluation and its report. Its
    objectives have the averaged weights, and its section `run` is the first run's, threads included. The same
    call again makes only what is missing.

    Args:
        run_dirs: Two or more finished runs with the same initial policy, test prompts and judge.
        output_dir: Folder of the merges.
        grid_steps: Steps from one run to the next: 4 merges two runs with weights 0, 1/4, 1/2, 3/4 and 1.
        console: Progress display.

    Raises:
        ConfigError: A folder holds no finished run, or the runs cannot be merged.
        RunInterrupted: SIGTERM arrived; complete merges are kept.

    Source: Rame et al. 2023, rewarded soups, section 2.2 (arXiv:2306.04488). Differs: runs may have been
        aligned with any weighting, not with one reward each; adapters are averaged as the products they add.
    """
    runs = load_finished_runs(run_dirs)
    set_num_threads(runs[0].config)
    grid = list(merge_grid(len(runs), grid_steps))
    console = console or make_console()
    model_hashes = {str(run.run_dir): hash_model_dir(run.run_dir / "final") for run in runs}
    with console, StopRequest() as stop:
        dataset = load_data(runs[0].resolved)
        for index, weights in enumerate(grid, 1):
            console.start_stage("merge", index, len(grid))
            config = _merged_config(runs, weights, output_dir)
            with Run.start_or_resume(
                config.run.output_dir,
                name=config.name,
                config_hash=config_hash(config),
                files=provenance_files(config),
                data_manifest={**build_manifest(config, dataset), "merged_models": model_hashes},
            ) as run:
                link_stages(runs[0].run_dir, run.path)
                ctx = RunContext(
                    resolved=resolve(config), run=run, console=console, dataset=dataset, stop=stop
                )
                run.enter_stage("merge")
                _merge_and_save(ctx, runs, weights)
                evaluate_policies(ctx)
                write_report(run.path)
            merge_dir = Path(config.run.output_dir)
            console.finish_stage(f"{merge_dir.name}: {_format_means(merge_dir)}")
            stop.raise_if_stopped(f"merge {index} of {len(grid)}")
    results = merge_results(runs, grid, output_dir)
    write_atomic(output_dir / RESULTS_FILE, to_json(results))
    return output_dir / RESULTS_FILE


def load_finished_runs(run_dirs: Sequence[Path]) -> list[MergedRun]:
    """Load the recipes of finished runs.

    Raises:
        ConfigError: One is not finished, there are fewer than two, or their policies or judges differ.
    """
    if len({path.resolve() for path in run_dirs}) < max(2, len(run_dirs)):
        raise ConfigError("a merge needs two or more different runs; fix: name at least two folders")
    runs = []
    for run_dir in run_dirs:
        if read_json(run_dir / "run.json") is None or not (run_dir / "final" / "config.json").exists():
            raise ConfigError(f"{run_dir}: holds no finished run; fix: name runs with a final model")
        config = load_config(run_dir / "config" / "resolved.yaml")
        runs.append(MergedRun(run_dir=run_dir, resolved=resolve(config)))
    first = runs[0]
    for other in runs[1:]:
        if reuse_key(other.resolved) != reuse_key(first.resolved) or _evaluation_settings(
            other
        ) != _evaluation_settings(first):
            raise ConfigError(
                f"{other.run_dir}: its initial policy, seed, reward, judge or evaluation is not that of "
                f"{first.run_dir}; fix: merge runs that differ in objectives, algorithm and training only"
            )
    return runs


def merge_results(
    runs: Sequence[MergedRun], grid: Sequence[MergeWeights], output_dir: Path
) -> dict[str, Any]:
    """Content of merge.json: mean scores, the Pareto front, and hypervolumes above the initial policy."""
    initial = _objective_means(output_dir / merge_dir_name(grid[0]), "before")
    names = list(initial)
    points = np.array(
        [list(_objective_means(output_dir / merge_dir_name(each), "after").values()) for each in grid]
    )
    run_indices = [i for i, weights in enumerate(grid) if max(weights) == 1.0]
    all_scored = bool(np.isfinite(points).all())
    on_front = nondominated(points).tolist() if all_scored else [None] * len(points)
    reference = np.array(list(initial.values()))
    return {
        "schema": "paretune/merge/1",
        "runs": [str(run.run_dir) for run in runs],
        "objectives": names,
        "initial": initial,
        "merges": [
            {
                "weights": list(weights),
                "dir": merge_dir_name(weights),
                "mean": dict(zip(names, row, strict=True)),
                "on_pareto_front": on,
            }
            for weights, row, on in zip(grid, points.tolist(), on_front, strict=True)
        ],
        "hypervolume": {
            "reference_point": "initial",
            "runs": hypervolume(points[run_indices], reference) if all_scored else None,
            "merges": hypervolume(points, reference) if all_scored else None,
        },
    }


def merge_dir_name(weights: MergeWeights) -> str:
    """Folder name of a merge: its weights in percent."""
    return "-".join(f"{100 * weight:.4g}" for weight in weights)


def _evaluation_settings(run: MergedRun) -> Any:
    config = run.config
    settings = config.model_dump(by_alias=True, mode="json", exclude=set(VARIABLE_SECTIONS))
    # The evaluation's default response length is that of the training.
    return settings, config.algorithm.arguments.get("max_new_tokens")


def _merged_config(runs: Sequence[MergedRun], weights: MergeWeights, output_dir: Path) -> Config:
    """The first run's recipe with the averaged weights of all runs, and a folder of its own."""
    config = runs[0].config
    pairs = list(zip(weights, runs, strict=True))
    objectives = {
        name: objective.model_copy(
            update={"weight": sum(weight * run.config.weights.get(name, 0.0) for weight, run in pairs)}
        )
        for name, objective in config.objectives.items()
    }
    merge_dir = str(output_dir / merge_dir_name(weights))
    run_section = config.run.model_copy(update={"output_dir": merge_dir})
    name = f"{config.name}-merge"
    return config.model_copy(update={"objectives": objectives, "run": run_section, "name": name})


def _merge_and_save(ctx: RunContext, runs: Sequence[MergedRun], weights: MergeWeights) -> None:
    """Save the weighted average of the policies in `final/`."""
    if ctx.path("final", "config.json").exists():
        return
    used = [(weight, run) for weight, run in zip(weights, runs, strict=True) if weight]
    policies = [load_policy(_final_policy(ctx, run)) for _, run in used]
    merged = merge_models([policy.model for policy in policies], [weight for weight, _ in used])
    save_model(merged, policies[0].tokenizer, ctx.path("final"))


def _final_policy(ctx: RunContext, run: MergedRun) -> ModelSpec:
    return replace(ctx.initial_policy, path=str(run.run_dir / "final"), revision=None)


def _objective_means(run_dir: Path, arm: str) -> dict[str, float]:
    results = read_json(run_dir / "eval" / "final" / "eval.json") or {}
    means = ((name, objective[arm]) for name, objective in results["objectives"].items())
    return {name: float("nan") if mean is None else mean for name, mean in means}


def _format_means(run_dir: Path) -> str:
    return " ".join(f"{name} {value:.2f}" for name, value in _objective_means(run_dir, "after").items())
