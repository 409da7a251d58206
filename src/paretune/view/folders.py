"""Runs below the folders that were named at start, and the only files of them that a page may read.

A page names a run by its key, which is looked up among the runs that were found; no text of a request is ever
part of a path.
"""

import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal

from paretune.core.errors import ConfigError

MAX_DEPTH = 5
"""Folders below the one that was named in which runs are looked for; benchmarks have theirs three below."""
MAX_FOLDERS = 20_000
"""Folders that are looked into: a root such as / must not keep the page waiting."""
SKIPPED_FOLDERS = frozenset({"checkpoints", "final", "config", "node_modules", "__pycache__"})
RUN_FILE, EVALUATION_FILE, MODEL_FILE = "run.json", "eval.json", "config.json"
WEIGHTS_SUFFIX = ".safetensors"
RESULTS_FILES = {"benchmark.json": "comparison", "sweep.json": "sweep", "merge.json": "merges"}
"""Results of several runs -> what they are; the page beside them is their report."""
FILES = frozenset(
    {
        RUN_FILE,
        EVALUATION_FILE,
        "metrics.jsonl",
        "timing.jsonl",
        "events.jsonl",
        "rollouts.jsonl",
        "generations.parquet",
        "report.html",
        "config/recipe.yaml",
        "config/resolved.yaml",
    }
)
"""Files that may be read, besides those of an evaluation below `eval/`."""
EVALUATION_FILES = frozenset({EVALUATION_FILE, "generations.parquet"})

Kind = Literal["run", "evaluation", "results", "model"]


class FileRefused(OSError):
    """A file that no page may read: not a known name, not a regular file, or outside the named folders."""


@dataclass(frozen=True, slots=True)
class Folder:
    """A run, an evaluation of two models, the results of several runs, or a model to talk to."""

    key: str
    """Its name on the pages: the path from the folder that was named at start."""
    path: Path
    root: Path
    """The folder that was named at start, with symlinks resolved; files outside of it are refused."""
    kind: Kind
    results: str = ""
    """Kind of the results of several runs: comparison, sweep or merges."""

    def open_file(self, name: str) -> BinaryIO:
        """One of the known files, open for reading.

        Raises:
            FileNotFoundError: There is none.
            FileRefused: It is not a known name, not a regular file, or a symlink that leads out.
            OSError: It cannot be read.
        """
        head, _, last = name.rpartition("/")
        if name not in FILES and not (head in self.evaluation_paths() and last in EVALUATION_FILES):
            raise FileRefused(f"{name}: no known file of a run")
        path = (self.path / name).resolve(strict=True)
        if not path.is_relative_to(self.root):
            raise FileRefused(f"{name}: leads out of {self.root}")
        # Without O_NONBLOCK, opening a named pipe would wait for a writer.
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOFOLLOW", 0))
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            os.close(handle)
            raise FileRefused(f"{name}: no regular file")
        return os.fdopen(handle, "rb")

    @property
    def has_model(self) -> bool:
        """Whether there is a model to talk to: it is one, or a run with a trained policy."""
        return self.kind == "model" or (self.kind == "run" and (self.path / "final" / MODEL_FILE).is_file())

    def evaluation_paths(self) -> dict[str, str]:
        """Folder inside this one -> name of the evaluation in it, the last one first."""
        if self.kind == "evaluation":
            return {"": "evaluation"}
        try:
            entries = [entry.name for entry in os.scandir(self.path / "eval") if entry.is_dir()]
        except OSError:
            return {}
        # The final evaluation is the one that people look for; later checkpoints come before earlier ones.
        names = sorted(entries, key=lambda name: (name == "final", name), reverse=True)
        return {f"eval/{name}": name for name in names}


def find_folders(roots: Sequence[Path]) -> dict[str, Folder]:
    """Key -> every run, evaluation, result and model at or below the roots; the models of runs are theirs."""
    folders: dict[str, Folder] = {}
    for root in roots:
        resolved = root.resolve()
        for path, kind, results in _search(resolved):
            inside = path.relative_to(resolved).as_posix()
            key = resolved.name if inside == "." else inside
            if len(roots) > 1 and inside != ".":
                key = f"{resolved.name}/{key}"
            while key in folders:
                key += "'"
            folders[key] = Folder(key=key, path=path, root=resolved, kind=kind, results=results)
    return folders


def check_roots(roots: Sequence[Path]) -> None:
    """Refuse folders that are not there or hold no run.

    Raises:
        ConfigError: One line per folder.
    """
    issues = []
    for root in roots:
        if not root.is_dir():
            problem = "is a file" if root.exists() else "there is no such folder"
            issues.append(f"{root}: {problem}; fix: name a run folder, or a folder of runs")
        elif not find_folders([root]):
            issues.append(
                f"{root}: holds no run (no {RUN_FILE}); fix: name a run folder, or a folder of runs"
            )
    if issues:
        raise ConfigError("\n".join(issues))


def _search(root: Path) -> Iterator[tuple[Path, Kind, str]]:
    """Folders with a known file, by name; symlinks to folders are not followed."""
    waiting, num_seen = [(root, 0)], 0
    while waiting and num_seen < MAX_FOLDERS:
        path, depth = waiting.pop()
        num_seen += 1
        try:
            entries = sorted(os.scandir(path), key=lambda entry: entry.name, reverse=True)
        except OSError:
            continue
        names = {entry.name for entry in entries}
        if RUN_FILE in names or EVALUATION_FILE in names:
            yield path, "run" if RUN_FILE in names else "evaluation", ""
            continue
        if MODEL_FILE in names and any(name.endswith(WEIGHTS_SUFFIX) for name in names):
            yield path, "model", ""
            continue
        for name in names & RESULTS_FILES.keys():
            yield path, "results", RESULTS_FILES[name]
        if depth < MAX_DEPTH:
            waiting += [
                (path / entry.name, depth + 1)
                for entry in entries
                if entry.name not in SKIPPED_FOLDERS
                and not entry.name.startswith(".")
                and entry.is_dir(follow_symlinks=False)
            ]
