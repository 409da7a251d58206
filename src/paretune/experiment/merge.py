"""Rewarded soups: averages of runs that were aligned with different weights, each evaluated like a run."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paretune.config import Config, config_hash, load_config
from paretune.core.errors import ConfigError
from paretune.core.goals import Goal
from paretune.core.pareto import hypervolume, nondominated
from paretune.evaluate.paired import CHANGE_KEYS, mean_per_prompt
from paretune.evaluate.statistics import bootstrap_means, mean_over_seeds, percentile_intervals
from paretune.evaluate.stored_scores import read_generations
from paretune.evaluate.verdicts import ONE_SEED
from paretune.evaluate.warnings import few_prompts_warning, unreliable_judge_warnings
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
from paretune.report.merge_page import SCHEMA, write_merge_report
from paretune.report.run_page import write_report
from paretune.run.folder import Run
from paretune.run.io import read_json, to_json, write_atomic
from paretune.training.guards import StopRequest

RESULTS_FILE = "merge.json"
BOOTSTRAP_SAMPLES = 1000
"""Bootstrap samples of a hypervolume, each of which computes two."""
ENTRY_KEYS = ("before", "after", *CHANGE_KEYS)
"""Keys of eval.json that merge.json repeats."""
VARIABLE_SECTIONS = ("name", "objectives", "algorithm", "aggregate", "training", "run", "trackers")
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
    """Merge finished runs with all weights of a grid, evaluate each merge, and write merge.json and its page.

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
    results = merge_results([run.run_dir for run in runs], grid, output_dir)
    write_atomic(output_dir / RESULTS_FILE, to_json(results))
    write_merge_report(output_dir)
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
        if other.config.goals != first.config.goals:
            raise ConfigError(
                f"{other.run_dir}: the goals of its objectives are not those of {first.run_dir}; "
                "fix: merge runs that agree on which scores are good"
            )
        if reuse_key(other.resolved) != reuse_key(first.resolved) or _evaluation_settings(
            other
        ) != _evaluation_settings(first):
            raise ConfigError(
                f"{other.run_dir}: its initial policy, seed, reward, judge or evaluation is not that of "
                f"{first.run_dir}; fix: merge runs that differ in objectives, algorithm and training only"
            )
    return runs


def merge_results(run_dirs: Sequence[Path], grid: Sequence[MergeWeights], output_dir: Path) -> dict[str, Any]:
    """Content of merge.json: the evaluation of every merge, the Pareto front, and hypervolumes.

    Each merge has the entries of its own eval.json: numbers, verdicts and cautions. Front and hypervolume are
    of oriented scores, of which higher ones are better, above the initial policy.
    """
    dirs = [output_dir / merge_dir_name(weights) for weights in grid]
    evaluations = [read_json(each / "eval" / "final" / "eval.json") or {} for each in dirs]
    first = evaluations[0]
    names = list(first["objectives"])
    points = np.array([_oriented_means(each, "after") for each in evaluations])
    all_scored = bool(np.isfinite(points).all())
    on_front = nondominated(points).tolist() if all_scored else [None] * len(points)
    single_runs = [i for i, weights in enumerate(grid) if max(weights) == 1.0]
    return {
        "schema": SCHEMA,
        "runs": [str(run_dir) for run_dir in run_dirs],
        "objectives": {
            name: {key: entry[key] for key in ("goal", "target", "judge", "independent", "judge_quality")}
            for name, entry in first["objectives"].items()
        },
        "num_prompts": first["num_prompts"],
        "confidence_level": first["confidence_level"],
        "initial": {name: _number(entry["before"]) for name, entry in first["objectives"].items()},
        "merges": [
            {
                "weights": list(weights),
                "dir": each.name,
                "mean": {name: _number(evaluation["objectives"][name]["after"]) for name in names},
                "scores": {
                    name: {key: entry[key] for key in ENTRY_KEYS}
                    for name, entry in evaluation["objectives"].items()
                },
                "on_pareto_front": on,
            }
            for weights, each, evaluation, on in zip(grid, dirs, evaluations, on_front, strict=True)
        ],
        "hypervolume": _hypervolumes(dirs, first, single_runs) if all_scored else None,
        "warnings": [
            *unreliable_judge_warnings(first["objectives"]),
            *few_prompts_warning(first["num_prompts"]),
            *(line for line in first["warnings"] if line.startswith("Judge not independent")),
            ONE_SEED,
            f"{len(grid)} merges on the same prompts: the best of them looks better than it is; evaluate the "
            "one that you choose on other prompts.",
        ],
    }


def _hypervolumes(dirs: Sequence[Path], evaluation: Mapping[str, Any], runs: Sequence[int]) -> dict[str, Any]:
    """Hypervolumes of the runs alone and of all merges, and their difference, with intervals over prompts."""
    objectives: Mapping[str, Any] = evaluation["objectives"]
    goals, tables = {name: Goal.of(entry) for name, entry in objectives.items()}, []
    for each in dirs:
        _, columns = read_generations(each)
        oriented = np.stack([goals[name].orient(columns[name]) for name in objectives], -1)
        tables.append([mean_per_prompt(arm) for arm in oriented])
    # [P, (1 + merges) K]: the initial policy, then every merge, on the same prompts.
    scores = np.concatenate([tables[0][0], *(after for _, after in tables)], 1)
    samples = bootstrap_means([scores], shared_prompts=False, bootstrap_samples=BOOTSTRAP_SAMPLES)
    values = np.concatenate([mean_over_seeds([scores])[None], samples])

    def volumes(indices: Sequence[int]) -> NDArray[np.float64]:
        points = values.reshape(len(values), len(dirs) + 1, -1)
        return np.array([hypervolume(row[1:][list(indices)], row[0]) for row in points])

    of_runs, of_merges = volumes(runs), volumes(range(len(dirs)))
    parts = {"runs": of_runs, "merges": of_merges, "difference": of_merges - of_runs}
    level = evaluation["confidence_level"]
    return {"reference_point": "initial"} | {
        name: {"value": float(part[0]), "low": float(low[0]), "high": float(high[0])}
        for name, part in parts.items()
        for low, high in [percentile_intervals(part[1:, None], level)]
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


def _oriented_means(evaluation: Mapping[str, Any], arm: str) -> list[float]:
    return [_number(entry["oriented"][arm]) for entry in evaluation["objectives"].values()]


def _number(value: float | None) -> float:
    return float("nan") if value is None else value


def _format_means(run_dir: Path) -> str:
    objectives = (read_json(run_dir / "eval" / "final" / "eval.json") or {})["objectives"]
    return " ".join(f"{name} {_number(entry['after']):.2f}" for name, entry in objectives.items())
