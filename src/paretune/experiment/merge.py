"""Rewarded soups: averages of runs that were aligned to different weightings, evaluated along the way."""

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
from paretune.experiment.context import RunContext, set_num_threads
from paretune.experiment.data import load_data
from paretune.experiment.evaluate import evaluate_policies
from paretune.experiment.provenance import build_manifest, hash_model_dir, provenance_files
from paretune.experiment.reuse import link_stages, reuse_key
from paretune.models.load import ModelSpec, load_policy, save_model
from paretune.models.merge import merge_models
from paretune.report.run_page import write_report
from paretune.run.folder import Run
from paretune.run.io import read_json, to_json, write_atomic
from paretune.training.guards import StopRequest

RESULTS_FILE = "soup.json"
VARIABLE_SECTIONS = ("name", "objectives", "algorithm", "aggregate", "learn", "run")
"""Sections that members may differ in; the rest is what they start from and how they are judged."""


MergeWeights = tuple[float, ...]
"""A share for each run; they sum to 1."""


@dataclass(frozen=True, kw_only=True)
class MergedRun:
    """A finished run."""

    run_dir: Path
    config: Config


def merge_grid(num_runs: int, grid_steps: int) -> Iterator[MergeWeights]:
    """Every way to share 1 among the members in equal steps, the first member's whole share first."""
    for parts in itertools.product(range(grid_steps, -1, -1), repeat=num_runs):
        if sum(parts) == grid_steps:
            yield tuple(part / grid_steps for part in parts)


def merge_runs(
    run_dirs: Sequence[Path], output_dir: Path, grid_steps: int, console: Console | None = None
) -> Path:
    """Average the policies of finished runs in every mixture, evaluate each, and write soup.json.

    Each mixture is a run folder of its own, with the model in `final/`, its evaluation and its page; its
    objectives have the averaged weights, and their `run` is the first run's, threads included. The same call
    again makes only what is missing.

    Args:
        run_dirs: Of two or more finished runs with the same start, test prompts and judge.
        output_dir: Where the mixtures go.
        grid_steps: Equal steps from one run to the next: 4 mixes two runs at shares of 0, 1/4, 1/2, 3/4 and 1.
        console: Hears of what is done.

    Raises:
        ConfigError: A folder holds no finished run, or the runs do not go together.
        Stopped: SIGTERM came; what is complete stays.

    Source: Rame et al. 2023, rewarded soups, section 2.2 (arXiv:2306.04488). Differs: members may have been
        aligned to any weighting, not to one reward each; adapters are averaged as the products they add.
    """
    members = load_finished_runs(run_dirs)
    set_num_threads(members[0].config)
    shares = list(merge_grid(len(members), grid_steps))
    console = console or make_console()
    stirred = {str(member.run_dir): hash_model_dir(member.run_dir / "final") for member in members}
    with console, StopRequest() as stop:
        material = load_data(members[0].config)
        for place, mixture in enumerate(shares, 1):
            console.start_stage("soup", place, len(shares))
            e = _merged_config(members, mixture, output_dir)
            with Run.start_or_resume(
                e.run.output_dir,
                name=e.name,
                config_hash=config_hash(e),
                files=provenance_files(e),
                data_manifest={**build_manifest(e, material), "soup": stirred},
            ) as run:
                link_stages(members[0].run_dir, run.path)
                work = RunContext(config=e, run=run, console=console, dataset=material, stop=stop)
                run.enter_stage("soup")
                _merge_and_save(work, members, mixture)
                evaluate_policies(work)
                write_report(run.path)
            console.finish_stage(f"{Path(e.run.output_dir).name}: {_format_means(Path(e.run.output_dir))}")
            stop.raise_if_stopped(f"mixture {place} of {len(shares)}")
    found = merge_results(members, shares, output_dir)
    write_atomic(output_dir / RESULTS_FILE, to_json(found))
    return output_dir / RESULTS_FILE


def load_finished_runs(run_dirs: Sequence[Path]) -> list[MergedRun]:
    """The runs of these folders.

    Raises:
        ConfigError: One is not finished, there are fewer than two, or they have other starts or judges.
    """
    if len({folder.resolve() for folder in run_dirs}) < max(2, len(run_dirs)):
        raise ConfigError("a soup is made of two or more different runs; fix: name at least two folders")
    found = []
    for folder in run_dirs:
        book = read_json(folder / "run.json")
        if book is None or not (folder / "final" / "config.json").exists():
            raise ConfigError(f"{folder}: holds no finished run; fix: name runs with a final model")
        found.append(MergedRun(run_dir=folder, config=load_config(folder / "config" / "resolved.yaml")))
    first = found[0]
    for other in found[1:]:
        if reuse_key(other.config) != reuse_key(first.config) or _evaluation_settings(
            other
        ) != _evaluation_settings(first):
            raise ConfigError(
                f"{other.run_dir}: has another start, seed, reward, judge or evaluation than {first.run_dir}; "
                "fix: mix runs that differ in objectives, algorithm and learning only"
            )
    return found


def merge_results(
    runs: Sequence[MergedRun], grid: Sequence[MergeWeights], output_dir: Path
) -> dict[str, Any]:
    """What soup.json holds: the points, which of them nothing dominates, and volumes above the start."""
    before = _objective_means(output_dir / merge_dir_name(grid[0]), "before")
    names = list(before)
    points = np.array(
        [list(_objective_means(output_dir / merge_dir_name(each), "after").values()) for each in grid]
    )
    corners = [i for i, each in enumerate(grid) if max(each) == 1.0]
    known = bool(np.isfinite(points).all())
    front = nondominated(points).tolist() if known else [None] * len(points)
    start = np.array(list(before.values()))
    return {
        "schema": "paretune/soup/1",
        "runs": [str(member.run_dir) for member in runs],
        "objectives": names,
        "start": before,
        "mixtures": [
            {
                "shares": list(each),
                "folder": merge_dir_name(each),
                "mean": dict(zip(names, row, strict=True)),
                "front": on,
            }
            for each, row, on in zip(grid, points.tolist(), front, strict=True)
        ],
        "hypervolume": {
            "above": "the start",
            "runs": hypervolume(points[corners], start) if known else None,
            "soups": hypervolume(points, start) if known else None,
        },
    }


def merge_dir_name(weights: MergeWeights) -> str:
    """The folder of a mixture: its shares in per cent."""
    return "-".join(f"{100 * share:.4g}" for share in weights)


def _evaluation_settings(run: MergedRun) -> Any:
    e = run.config
    return e.model_dump(
        by_alias=True, mode="json", exclude=set(VARIABLE_SECTIONS)
    ), e.algorithm.arguments.get("max_new")


def _merged_config(runs: Sequence[MergedRun], weights: MergeWeights, output_dir: Path) -> Config:
    """The first run's experiment with the averaged weights of all, in a folder of its own."""
    e = runs[0].config
    pairs = list(zip(weights, runs, strict=True))
    objectives = {
        name: o.model_copy(update={"weight": sum(s * m.config.weights.get(name, 0.0) for s, m in pairs)})
        for name, o in e.objectives.items()
    }
    run = e.run.model_copy(update={"folder": str(output_dir / merge_dir_name(weights))})
    name = f"{e.name}-soup"
    return e.model_copy(update={"objectives": objectives, "run": run, "name": name})


def _merge_and_save(ctx: RunContext, runs: Sequence[MergedRun], weights: MergeWeights) -> None:
    """Save the average of the policies in `final/`."""
    if ctx.path("final", "config.json").exists():
        return
    used = [(share, member) for share, member in zip(weights, runs, strict=True) if share]
    policies = [load_policy(_final_policy(ctx, member)) for _, member in used]
    mixed = merge_models([policy.model for policy in policies], [share for share, _ in used])
    save_model(mixed, policies[0].tokenizer, ctx.path("final"))


def _final_policy(ctx: RunContext, run: MergedRun) -> ModelSpec:
    return replace(ctx.initial_policy, path=str(run.run_dir / "final"), revision=None)


def _objective_means(run_dir: Path, arm: str) -> dict[str, float]:
    numbers = read_json(run_dir / "eval" / "final" / "eval.json") or {}
    known = ((name, o[arm]) for name, o in numbers["objectives"].items())
    return {name: float("nan") if value is None else value for name, value in known}


def _format_means(run_dir: Path) -> str:
    return " ".join(f"{name} {value:.2f}" for name, value in _objective_means(run_dir, "after").items())
