"""The points that can be chosen: of a sweep, a comparison, merges, or the evaluated steps of a run."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paretune.core.errors import ConfigError
from paretune.report.merge_page import weights_label
from paretune.run.io import read_json


@dataclass(frozen=True)
class Candidate:
    """A point that can be chosen."""

    label: str
    run_dirs: tuple[Path, ...]
    """Its run folders, one per training seed; each has a final policy and its evaluation."""
    evaluation: str = "final"
    """Name of the evaluation, a folder below `eval/`."""
    missing_policy: str = ""
    """Why there is no policy to export; "": there is one."""


def load_candidates(folder: Path) -> list[Candidate]:
    """The points of a sweep, a comparison, or merges, or the evaluated steps of a run.

    Raises:
        ConfigError: The folder has none.
    """
    readers = {"sweep.json": _sweep_points, "benchmark.json": _benchmark_points, "merge.json": _merge_points}
    for name, reader in readers.items():
        results = read_json(folder / name)
        if results is not None:
            return list(reader(folder, results))
    if steps := sorted((folder / "eval").glob("step-*/eval.json")):
        return [_step_point(folder, file.parent.name) for file in steps]
    problem = "there is no such folder"
    if folder.is_dir():
        problem = (
            "holds no sweep, comparison or merges (no sweep.json, benchmark.json or merge.json), and no run "
            "with evaluations of its steps"
        )
    raise ConfigError(f"{folder}: {problem}; fix: name the folder of a finished one")


def _sweep_points(folder: Path, results: Mapping[str, Any]) -> Iterator[Candidate]:
    names = " : ".join(results["over"])
    for point in results["points"]:
        label = f"{names} = {weights_label([*point['shares'].values()])}"
        yield Candidate(label, tuple(folder / each for each in point["dirs"]))


def _benchmark_points(folder: Path, results: Mapping[str, Any]) -> Iterator[Candidate]:
    several = len(results["weightings"]) > 1
    for method in results["methods"]:
        for weighting in results["weightings"]:
            label = f"{method} {weighting}" if several else method
            dirs = (folder / method / weighting / f"seed-{seed}" for seed in results["seeds"])
            yield Candidate(label, tuple(dirs))


def _merge_points(folder: Path, results: Mapping[str, Any]) -> Iterator[Candidate]:
    for merge in results["merges"]:
        yield Candidate(f"merge {weights_label(merge['weights'])}", (folder / merge["dir"],))


def _step_point(run_dir: Path, evaluation: str) -> Candidate:
    """An evaluated training step of a run, which keeps the weights of one step."""
    step = int(evaluation.removeprefix("step-"))
    kept = (read_json(run_dir / "run.json") or {}).get("selected_step")
    missing = "" if step == kept else f"the run kept the weights of step {kept} only"
    return Candidate(f"step {step}", (run_dir,), evaluation, missing)
