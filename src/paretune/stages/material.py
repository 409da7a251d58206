"""What an experiment is made of once everything was read, and whether anything of it is empty."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from paretune.config import Experiment, written_at
from paretune.config.rules import sections
from paretune.config.tree import PathKey
from paretune.data.records import Demonstration, Preference, Prompt, Rating
from paretune.errors import DataError, complaint
from paretune.learn.reward_fit import label_scale

Judgement = Rating | Preference


@dataclass(frozen=True, kw_only=True)
class Judgements:
    """What one reward model is fitted on, and what it is reported on."""

    train: tuple[Judgement, ...]
    test: tuple[Judgement, ...]


@dataclass(frozen=True, kw_only=True)
class Material:
    """All records of an experiment."""

    pools: Mapping[str, tuple[Prompt, ...]]
    test: tuple[Prompt, ...]
    demonstrations: tuple[Demonstration, ...] = ()
    reward: Judgements | None = None
    judge: Judgements | None = None
    notes: tuple[str, ...] = ()
    """What was left out, and why; one line each."""
    files: Mapping[str, str] = field(default_factory=dict)
    """SHA-256 of every file that was read."""

    def manifest(self) -> dict[str, Any]:
        """Counts, hashes and exclusions, for data/manifest.json."""
        judgements = {
            name: {"train": len(found.train), "test": len(found.test)}
            for name, found in (("reward", self.reward), ("judge", self.judge))
            if found is not None
        }
        return {
            "schema": "paretune/data/1",
            "prompts": {name: len(pool) for name, pool in self.pools.items()},
            "test": len(self.test),
            "demonstrations": len(self.demonstrations),
            **judgements,
            "left_out": list(self.notes),
            "sha256": dict(self.files),
        }


def lacking(e: Experiment, found: Material) -> Iterator[str]:
    """Complaints about what is empty, and about heads that no row is left for."""
    others = "name other files, or other rows by `where`"
    for name, pool in found.pools.items():
        if not pool:
            key = ("data", "world") if e.data.world is not None else ("data", "prompts", name)
            yield _empty(e, key, f"every prompt of {name} is among the test prompts", others)
    if e.policy.sft is not None and not found.demonstrations:
        key = ("policy", "sft", "demonstrations")
        yield _empty(e, key, "the prompt of every row is among the test prompts", others)
    for name, section in sections(e):
        judgements: Judgements | None = getattr(found, name)
        if judgements is None:
            continue
        if not judgements.test:
            fix = f"add rows, raise {name}.held_out, or name {name}.test_ratings or {name}.test_pairs"
            yield _empty(e, (name,), "not one row is held out to report on", fix)
        if not judgements.train:
            yield _empty(e, (name,), "no row is left to learn from: every prompt is held out", others)
            continue
        try:
            label_scale(judgements.train, tuple(section.objectives))
        except DataError as error:
            yield from (f"{written_at(e, (name,))}: {name}.{line}" for line in str(error).splitlines())


def _empty(e: Experiment, path: PathKey, wrong: str, fix: str) -> str:
    return complaint(written_at(e, path), None, None, ".".join(map(str, path)), wrong, fix=fix)
