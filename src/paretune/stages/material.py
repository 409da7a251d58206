"""What an experiment is made of once everything was read, and whether anything of it is empty."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from paretune.config import Config, location_of
from paretune.config.algorithm import build_spec
from paretune.config.rules import reward_sections
from paretune.config.tree import KeyPath
from paretune.data.drawn import LazySequence
from paretune.data.records import Demonstration, PreferencePair, Prompt, Rating, ResponseGroup
from paretune.data.stored import has_distinct_scores
from paretune.data.stream import PromptStream
from paretune.errors import DataError, format_issue
from paretune.learn.recipe import AlgorithmSpec, phase_specs
from paretune.learn.reward_fit import label_scale_and_offset
from paretune.loss.preference import PairLoss
from paretune.loss.ranking import PreferenceRanking
from paretune.rollout.sample import StoredResponses

LabelledRow = Rating | PreferencePair


@dataclass(frozen=True, kw_only=True)
class RewardData:
    """What one reward model is fitted on, and what it is reported on."""

    train: Sequence[LabelledRow]
    test: Sequence[LabelledRow]


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """All records of an experiment."""

    train_prompts: Mapping[str, tuple[Prompt, ...]]
    test_prompts: tuple[Prompt, ...]
    sft_demonstrations: Sequence[Demonstration] = ()
    """What the starting policy learns from."""
    auxiliary_demonstrations: tuple[Demonstration, ...] = ()
    """What is learnt beside an alignment, where it is something else."""
    stored_responses: tuple[ResponseGroup, ...] = ()
    """What offline methods learn from."""
    reward: RewardData | None = None
    judge: RewardData | None = None
    exclusions: tuple[str, ...] = ()
    """What was left out, and why; one line each."""
    file_hashes: Mapping[str, str] = field(default_factory=dict)
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
            "prompts": {name: len(pool) for name, pool in self.train_prompts.items()},
            "test": len(self.test_prompts),
            "demonstrations": len(self.sft_demonstrations) + len(self.auxiliary_demonstrations),
            **({"stored": len(self.stored_responses)} if self.stored_responses else {}),
            **judgements,
            "left_out": list(self.exclusions),
            "sha256": dict(self.file_hashes),
        }


def prompt_stream(config: Config, train_prompts: Mapping[str, tuple[Prompt, ...]]) -> PromptStream:
    """Which prompts every step gets; pools of the built-in world have the shares of their sizes."""
    given = config.data.prompts
    shares = tuple(
        given[name].sampling_weight if name in given else float(len(pool))
        for name, pool in train_prompts.items()
    )
    return PromptStream(
        tuple(train_prompts.values()), shares, config.training.prompts_per_step, config.run.seed
    )


def dataset_issues(config: Config, dataset: Dataset) -> Iterator[str]:
    """Complaints about what is empty, and about heads that no row is left for."""
    others = "name other files, or other rows by `where`"
    for name, pool in dataset.train_prompts.items():
        if not pool:
            key = ("data", "world") if config.data.world is not None else ("data", "prompts", name)
            yield _issue(config, key, f"every prompt of {name} is among the test prompts", others)
    if all(dataset.train_prompts.values()):
        yield from _unsampled_pool_issues(config, dataset)
    yield from _preference_issues(config, dataset)
    yield from _budget_issues(config)
    yield from _stored_data_issues(config, dataset)
    if config.policy.sft is not None and not dataset.sft_demonstrations:
        key = ("policy", "sft", "demonstrations")
        yield _issue(config, key, "the prompt of every row is among the test prompts", others)
    for name, section in reward_sections(config):
        judgements: RewardData | None = getattr(dataset, name)
        if judgements is None:
            continue
        if not judgements.test:
            fix = f"add rows, raise {name}.held_out, or name {name}.test_ratings or {name}.test_pairs"
            yield _issue(config, (name,), "not one row is held out to report on", fix)
        if not judgements.train:
            yield _issue(config, (name,), "no row is left to learn from: every prompt is held out", others)
            continue
        try:
            names = tuple(section.objectives)
            label_scale_and_offset(_rows_with_label_spread(judgements.train, names), names)
        except DataError as error:
            yield from (f"{location_of(config, (name,))}: {name}.{line}" for line in str(error).splitlines())


def _rows_with_label_spread(rows: Sequence[LabelledRow], objectives: Sequence[str]) -> Sequence[LabelledRow]:
    """The rows; of those that are drawn, as many as have two labels of every objective, if there are so many.

    More rows take nothing away from that: what these are not refused for, all are not.
    """
    if not isinstance(rows, LazySequence):
        return rows
    seen: dict[str, set[float]] = {name: set() for name in objectives}
    for count, row in enumerate(rows, 1):
        for name in seen.keys() & row.labels:
            seen[name].add(row.labels[name])
        if all(len(labels) > 1 for labels in seen.values()):
            return rows[:count]
    return rows


def _unsampled_pool_issues(config: Config, dataset: Dataset) -> Iterator[str]:
    """Pools whose share is so small that no step of any run gets a prompt of them."""
    quotas, total = (
        prompt_stream(config, dataset.train_prompts).pool_quotas(),
        sum(map(len, dataset.train_prompts.values())),
    )
    whole = sum(source.sampling_weight for source in config.data.prompts.values())
    for name, quota in zip(dataset.train_prompts, quotas, strict=True):
        if not quota:
            share = config.data.prompts[name].sampling_weight
            wrong = f"{share:g} of {whole:g} in all comes to none of the {total:,} prompts that are mixed"
            fix = f"make it at least {(whole - share) / (total - 1):.1g}"
            yield _issue(config, ("data", "prompts", name, "share"), wrong, fix)


def _stored_data_issues(config: Config, dataset: Dataset) -> Iterator[str]:
    """Stored responses and demonstrations of which nothing is left, or nothing that could be compared."""
    others = "name other files, or other rows by `where`"
    if config.data.demonstrations and not dataset.auxiliary_demonstrations:
        yield _issue(
            config, ("data", "demonstrations"), "every row is too long or among the test prompts", others
        )
    if not (config.data.stored_responses.ratings or config.data.stored_responses.pairs):
        return
    path: KeyPath = ("data", "stored_responses")
    filled = config.aggregate.missing in {"renormalise", "group_mean"}
    if not dataset.stored_responses:
        yield _issue(config, path, "every row is too long or among the test prompts", others)
    elif _uses_ranking_loss(config) and not any(
        has_distinct_scores(each, config.weights, fill_missing=filled) for each in dataset.stored_responses
    ):
        wrong = "no prompt has two responses that all weighted objectives tell apart"
        fix = "write aggregate: {missing: renormalise}, or give several rated responses to a prompt"
        yield _issue(config, path, wrong, fix)


def _budget_issues(config: Config) -> Iterator[str]:
    """A budget that stored responses never spend, and by which the learning rate would never rise."""
    budget, recipe = config.run.budget, build_spec(config)
    if (
        budget is not None
        and isinstance(recipe.rollout, StoredResponses)
        and budget.resource != "trained_tokens"
    ):
        wrong = f"is {budget.resource}: stored responses cost none, and the budget would never end"
        yield _issue(config, ("run", "budget", "resource"), wrong, "take trained_tokens")


def _uses_ranking_loss(config: Config) -> bool:
    """Whether responses are held against each other, and not only imitated."""
    recipe = build_spec(config)
    every = [recipe, *phase_specs(recipe.phases)]
    losses = [term.loss for each in every if isinstance(each, AlgorithmSpec) for term in each.losses]
    return any(isinstance(loss, PairLoss | PreferenceRanking) for loss in losses)


def _preference_issues(config: Config, dataset: Dataset) -> Iterator[str]:
    """Prompts that ask for no objective, or for one that is none, where they are aligned to what they ask."""
    wanted = config.aggregate.name == "preference"
    for name, pool in dataset.train_prompts.items():
        path: KeyPath = ("data", "prompts", name)
        if config.data.world is not None:
            path = ("data", "world")
        silent = [prompt for prompt in pool if not prompt.preference_weights]
        strange = sorted(
            {key for prompt in pool for key, _ in prompt.preference_weights} - set(config.objectives)
        )
        if wanted and silent:
            fix = "name the column that holds {objective: weight} by columns: {preference: ...}"
            wrong = f"{len(silent)} of {len(pool)} prompts ask for nothing, and aggregate.name is preference"
            yield _issue(config, path, wrong, fix)
        if strange:
            yield _issue(
                config, path, f'prompts ask for "{strange[0]}"', f"one of {', '.join(config.objectives)}"
            )
        if not wanted and any(prompt.preference_weights for prompt in pool):
            yield _issue(
                config, path, "prompts ask for objectives to no effect", "write aggregate: {name: preference}"
            )


def _issue(config: Config, path: KeyPath, problem: str, fix: str) -> str:
    return format_issue(location_of(config, path), None, None, ".".join(map(str, path)), problem, fix=fix)
