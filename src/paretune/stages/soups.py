"""Rewarded soups: averages of runs that were aligned to different weightings, evaluated along the way."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from paretune.config import Experiment, config_hash, load
from paretune.errors import ConfigError
from paretune.files import read_json, to_json, write_atomic
from paretune.front import hypervolume, nondominated
from paretune.learn.stop import StopRequest
from paretune.models.load import ModelSpec, load_policy, save_model
from paretune.models.soup import soup
from paretune.report.page import write_report
from paretune.rundir import Run
from paretune.stages.console import Console, make_console
from paretune.stages.gather import gather
from paretune.stages.judge import judge
from paretune.stages.manifest import folder_hash, laid_down, manifest
from paretune.stages.shared import link_stages, shared_key
from paretune.stages.work import Work, take_threads

FOUND = "soup.json"
APART = ("name", "objectives", "algorithm", "aggregate", "learn", "run")
"""Sections that members may differ in; the rest is what they start from and how they are judged."""


Mixture = tuple[float, ...]
"""A share for each run; they sum to 1."""


@dataclass(frozen=True, kw_only=True)
class Member:
    """A finished run."""

    folder: Path
    experiment: Experiment


def mixtures(members: int, steps: int) -> Iterator[Mixture]:
    """Every way to share 1 among the members in equal steps, the first member's whole share first."""
    for parts in itertools.product(range(steps, -1, -1), repeat=members):
        if sum(parts) == steps:
            yield tuple(part / steps for part in parts)


def soups(folders: Sequence[Path], folder: Path, steps: int, console: Console | None = None) -> Path:
    """Average the policies of finished runs in every mixture, evaluate each, and write soup.json.

    Each mixture is a run folder of its own, with the model in `final/`, its evaluation and its page; its
    objectives have the averaged weights, and their `run` is the first run's, threads included. The same call
    again makes only what is missing.

    Args:
        folders: Of two or more finished runs with the same start, test prompts and judge.
        folder: Where the mixtures go.
        steps: Equal steps from one run to the next: 4 mixes two runs at shares of 0, 1/4, 1/2, 3/4 and 1.
        console: Hears of what is done.

    Raises:
        ConfigError: A folder holds no finished run, or the runs do not go together.
        Stopped: SIGTERM came; what is complete stays.

    Source: Rame et al. 2023, rewarded soups, section 2.2 (arXiv:2306.04488). Differs: members may have been
        aligned to any weighting, not to one reward each; adapters are averaged as the products they add.
    """
    members = members_of(folders)
    take_threads(members[0].experiment)
    shares = list(mixtures(len(members), steps))
    console = console or make_console()
    stirred = {str(member.folder): folder_hash(member.folder / "final") for member in members}
    with console, StopRequest() as stop:
        material = gather(members[0].experiment)
        for place, mixture in enumerate(shares, 1):
            console.open("soup", place, len(shares))
            e = _mixed(members, mixture, folder)
            with Run.claim(
                e.run.folder,
                name=e.name,
                config_hash=config_hash(e),
                files=laid_down(e),
                made_from={**manifest(e, material), "soup": stirred},
            ) as run:
                link_stages(members[0].folder, run.path)
                work = Work(experiment=e, run=run, console=console, material=material, stop=stop)
                run.begin("soup")
                _stir(work, members, mixture)
                judge(work)
                write_report(run.path)
            console.close(f"{Path(e.run.folder).name}: {_means(Path(e.run.folder))}")
            stop.obey(f"mixture {place} of {len(shares)}")
    found = numbers_of(members, shares, folder)
    write_atomic(folder / FOUND, to_json(found))
    return folder / FOUND


def members_of(folders: Sequence[Path]) -> list[Member]:
    """The runs of these folders.

    Raises:
        ConfigError: One is not finished, there are fewer than two, or they have other starts or judges.
    """
    if len({folder.resolve() for folder in folders}) < max(2, len(folders)):
        raise ConfigError("a soup is made of two or more different runs; fix: name at least two folders")
    found = []
    for folder in folders:
        book = read_json(folder / "run.json")
        if book is None or not (folder / "final" / "config.json").exists():
            raise ConfigError(f"{folder}: holds no finished run; fix: name runs with a final model")
        found.append(Member(folder=folder, experiment=load(folder / "config" / "resolved.yaml")))
    first = found[0]
    for other in found[1:]:
        if shared_key(other.experiment) != shared_key(first.experiment) or _judged(other) != _judged(first):
            raise ConfigError(
                f"{other.folder}: has another start, seed, reward, judge or evaluation than {first.folder}; "
                "fix: mix runs that differ in objectives, algorithm and learning only"
            )
    return found


def numbers_of(members: Sequence[Member], shares: Sequence[Mixture], folder: Path) -> dict[str, Any]:
    """What soup.json holds: the points, which of them nothing dominates, and volumes above the start."""
    before = _table(folder / slug(shares[0]), "before")
    names = list(before)
    points = np.array([list(_table(folder / slug(each), "after").values()) for each in shares])
    corners = [i for i, each in enumerate(shares) if max(each) == 1.0]
    known = bool(np.isfinite(points).all())
    front = nondominated(points).tolist() if known else [None] * len(points)
    start = np.array(list(before.values()))
    return {
        "schema": "paretune/soup/1",
        "runs": [str(member.folder) for member in members],
        "objectives": names,
        "start": before,
        "mixtures": [
            {
                "shares": list(each),
                "folder": slug(each),
                "mean": dict(zip(names, row, strict=True)),
                "front": on,
            }
            for each, row, on in zip(shares, points.tolist(), front, strict=True)
        ],
        "hypervolume": {
            "above": "the start",
            "runs": hypervolume(points[corners], start) if known else None,
            "soups": hypervolume(points, start) if known else None,
        },
    }


def slug(mixture: Mixture) -> str:
    """The folder of a mixture: its shares in per cent."""
    return "-".join(f"{100 * share:.4g}" for share in mixture)


def _judged(member: Member) -> Any:
    e = member.experiment
    return e.model_dump(by_alias=True, mode="json", exclude=set(APART)), e.algorithm.arguments.get("max_new")


def _mixed(members: Sequence[Member], mixture: Mixture, folder: Path) -> Experiment:
    """The first run's experiment with the averaged weights of all, in a folder of its own."""
    e = members[0].experiment
    pairs = list(zip(mixture, members, strict=True))
    objectives = {
        name: o.model_copy(update={"weight": sum(s * m.experiment.weights.get(name, 0.0) for s, m in pairs)})
        for name, o in e.objectives.items()
    }
    run = e.run.model_copy(update={"folder": str(folder / slug(mixture))})
    name = f"{e.name}-soup"
    return e.model_copy(update={"objectives": objectives, "run": run, "name": name})


def _stir(work: Work, members: Sequence[Member], mixture: Mixture) -> None:
    """Save the average of the policies in `final/`."""
    if work.folder("final", "config.json").exists():
        return
    used = [(share, member) for share, member in zip(mixture, members, strict=True) if share]
    policies = [load_policy(_policy(work, member)) for _, member in used]
    mixed = soup([policy.model for policy in policies], [share for share, _ in used])
    save_model(mixed, policies[0].tokenizer, work.folder("final"))


def _policy(work: Work, member: Member) -> ModelSpec:
    return replace(work.start, path=str(member.folder / "final"), revision=None)


def _table(folder: Path, arm: str) -> dict[str, float]:
    numbers = read_json(folder / "eval" / "final" / "eval.json") or {}
    known = ((name, o[arm]) for name, o in numbers["objectives"].items())
    return {name: float("nan") if value is None else value for name, value in known}


def _means(folder: Path) -> str:
    return " ".join(f"{name} {value:.2f}" for name, value in _table(folder, "after").items())
