"""What an experiment is made of once everything was read, and whether anything of it is empty."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from paretune.config import Experiment, written_at
from paretune.config.algorithm import recipe_of
from paretune.config.rules import sections
from paretune.config.tree import PathKey
from paretune.data.drawn import Drawn
from paretune.data.records import Candidates, Demonstration, Preference, Prompt, Rating
from paretune.data.stored import comparable
from paretune.data.stream import PromptStream
from paretune.errors import DataError, complaint
from paretune.learn.recipe import Recipe, phase_recipes
from paretune.learn.reward_fit import label_scale
from paretune.loss.preference import PairLoss
from paretune.loss.ranking import Ranking
from paretune.rollout.sample import Offline

Judgement = Rating | Preference


@dataclass(frozen=True, kw_only=True)
class Judgements:
    """What one reward model is fitted on, and what it is reported on."""

    train: Sequence[Judgement]
    test: Sequence[Judgement]


@dataclass(frozen=True, kw_only=True)
class Material:
    """All records of an experiment."""

    pools: Mapping[str, tuple[Prompt, ...]]
    test: tuple[Prompt, ...]
    demonstrations: Sequence[Demonstration] = ()
    """What the starting policy learns from."""
    remembered: tuple[Demonstration, ...] = ()
    """What is learnt beside an alignment, where it is something else."""
    stored: tuple[Candidates, ...] = ()
    """What offline methods learn from."""
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
            "demonstrations": len(self.demonstrations) + len(self.remembered),
            **({"stored": len(self.stored)} if self.stored else {}),
            **judgements,
            "left_out": list(self.notes),
            "sha256": dict(self.files),
        }


def stream_of(e: Experiment, pools: Mapping[str, tuple[Prompt, ...]]) -> PromptStream:
    """Which prompts every step gets; pools of the built-in world have the shares of their sizes."""
    given = e.data.prompts
    shares = tuple(given[name].share if name in given else float(len(pool)) for name, pool in pools.items())
    return PromptStream(tuple(pools.values()), shares, e.learn.prompts, e.run.seed)


def lacking(e: Experiment, found: Material) -> Iterator[str]:
    """Complaints about what is empty, and about heads that no row is left for."""
    others = "name other files, or other rows by `where`"
    for name, pool in found.pools.items():
        if not pool:
            key = ("data", "world") if e.data.world is not None else ("data", "prompts", name)
            yield _empty(e, key, f"every prompt of {name} is among the test prompts", others)
    if all(found.pools.values()):
        yield from _never(e, found)
    yield from _unasked(e, found)
    yield from _endless(e)
    yield from _unstored(e, found)
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
            names = tuple(section.objectives)
            label_scale(_telling(judgements.train, names), names)
        except DataError as error:
            yield from (f"{written_at(e, (name,))}: {name}.{line}" for line in str(error).splitlines())


def _telling(rows: Sequence[Judgement], objectives: Sequence[str]) -> Sequence[Judgement]:
    """The rows; of those that are drawn, as many as have two labels of every objective, if there are so many.

    More rows take nothing away from that: what these are not refused for, all are not.
    """
    if not isinstance(rows, Drawn):
        return rows
    seen: dict[str, set[float]] = {name: set() for name in objectives}
    for count, row in enumerate(rows, 1):
        for name in seen.keys() & row.labels:
            seen[name].add(row.labels[name])
        if all(len(labels) > 1 for labels in seen.values()):
            return rows[:count]
    return rows


def _never(e: Experiment, found: Material) -> Iterator[str]:
    """Pools whose share is so small that no step of any run gets a prompt of them."""
    quotas, total = stream_of(e, found.pools).quotas(), sum(map(len, found.pools.values()))
    whole = sum(source.share for source in e.data.prompts.values())
    for name, quota in zip(found.pools, quotas, strict=True):
        if not quota:
            share = e.data.prompts[name].share
            wrong = f"{share:g} of {whole:g} in all comes to none of the {total:,} prompts that are mixed"
            fix = f"make it at least {(whole - share) / (total - 1):.1g}"
            yield _empty(e, ("data", "prompts", name, "share"), wrong, fix)


def _unstored(e: Experiment, found: Material) -> Iterator[str]:
    """Stored responses and demonstrations of which nothing is left, or nothing that could be compared."""
    others = "name other files, or other rows by `where`"
    if e.data.demonstrations and not found.remembered:
        yield _empty(e, ("data", "demonstrations"), "every row is too long or among the test prompts", others)
    if not (e.data.stored.ratings or e.data.stored.pairs):
        return
    path: PathKey = ("data", "stored")
    filled = e.aggregate.missing in {"renormalise", "group_mean"}
    if not found.stored:
        yield _empty(e, path, "every row is too long or among the test prompts", others)
    elif _compares(e) and not any(comparable(each, e.weights, filled=filled) for each in found.stored):
        wrong = "no prompt has two responses that all weighted objectives tell apart"
        fix = "write aggregate: {missing: renormalise}, or give several rated responses to a prompt"
        yield _empty(e, path, wrong, fix)


def _endless(e: Experiment) -> Iterator[str]:
    """A budget that stored responses never spend, and by which the learning rate would never rise."""
    budget, recipe = e.run.budget, recipe_of(e)
    if budget is not None and isinstance(recipe.source, Offline) and budget.currency != "trained_tokens":
        wrong = f"is {budget.currency}: stored responses cost none, and the budget would never end"
        yield _empty(e, ("run", "budget", "currency"), wrong, "take trained_tokens")


def _compares(e: Experiment) -> bool:
    """Whether responses are held against each other, and not only imitated."""
    recipe = recipe_of(e)
    every = [recipe, *phase_recipes(recipe.before)]
    losses = [term.loss for each in every if isinstance(each, Recipe) for term in each.losses]
    return any(isinstance(loss, PairLoss | Ranking) for loss in losses)


def _unasked(e: Experiment, found: Material) -> Iterator[str]:
    """Prompts that ask for no objective, or for one that is none, where they are aligned to what they ask."""
    wanted = e.aggregate.name == "preference"
    for name, pool in found.pools.items():
        path: PathKey = ("data", "prompts", name)
        if e.data.world is not None:
            path = ("data", "world")
        silent = [prompt for prompt in pool if not prompt.preference]
        strange = sorted({key for prompt in pool for key, _ in prompt.preference} - set(e.objectives))
        if wanted and silent:
            fix = "name the column that holds {objective: weight} by columns: {preference: ...}"
            wrong = f"{len(silent)} of {len(pool)} prompts ask for nothing, and aggregate.name is preference"
            yield _empty(e, path, wrong, fix)
        if strange:
            yield _empty(e, path, f'prompts ask for "{strange[0]}"', f"one of {', '.join(e.objectives)}")
        if not wanted and any(prompt.preference for prompt in pool):
            yield _empty(
                e, path, "prompts ask for objectives to no effect", "write aggregate: {name: preference}"
            )


def _empty(e: Experiment, path: PathKey, wrong: str, fix: str) -> str:
    return complaint(written_at(e, path), None, None, ".".join(map(str, path)), wrong, fix=fix)
