"""Whether a record is short enough for the model that reads it, and what to do when it is not.

What an experiment is made of once everything was read, and whether anything of it is empty.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from paretune.config import Config, location_of
from paretune.config.build import build_spec
from paretune.config.validate import reward_sections
from paretune.config.yaml import KeyPath
from paretune.core.errors import DataError, format_issue
from paretune.core.types import PreTrainedTokenizerBase
from paretune.data.chat import (
    ChatTemplateError,
    PromptFormat,
    add_format_instruction,
    encode_prompt,
    encode_response,
    format_instructions_for,
)
from paretune.data.columns import FieldError
from paretune.data.loader import PromptStream, has_distinct_scores
from paretune.data.records import Demonstration, LazySequence, PreferencePair, Prompt, Rating, ResponseGroup
from paretune.loss.listwise import PreferenceRanking
from paretune.loss.pairwise import PairLoss
from paretune.reward.training import label_scale_and_offset
from paretune.rl.algorithm_spec import AlgorithmSpec, phase_specs
from paretune.rollout.sampler import StoredResponses


@dataclass
class LengthFilter:
    """Asked of the records of one file: gives back those that are taken."""

    tokenizer: PreTrainedTokenizerBase
    max_length: int
    """Longest record in tokens."""
    overlong: str
    """What to do with a longer one: "error", "drop" or "cut"."""
    num_dropped: int = 0
    prompt_format: PromptFormat = ""
    """What is asked beside prompts that are to be answered."""

    def __call__(self, record: Any) -> Any:
        """The record if it is short enough, cut where that is wanted; None if it is left out.

        With `longer: cut`, it lacks its oldest turns, as many as it takes to fit. What is left begins with a
        user turn, as chat templates ask for; the last of them is never cut off.

        Raises:
            BadField: It is too long and `overlong` is "error", or the chat template refuses its turns.
        """
        shorter, tokens = self._truncate(record)
        if tokens <= self.max_length:
            return shorter
        if self.overlong == "error":
            fix = "shorten it, or write `longer: drop` to leave such rows out"
            raise FieldError("prompt", f"{tokens} tokens, and there is room for {self.max_length}", fix=fix)
        self.num_dropped += 1
        return None

    def _truncate(self, record: Any) -> tuple[Any, int]:
        """The record, cut where that is wanted, and its tokens."""
        answers, tokens = self._response_length(record), self._prompt_length(record)
        if self.overlong == "cut":
            for shorter in _drop_oldest_turns(record):
                if answers + tokens <= self.max_length:
                    break
                record, tokens = shorter, self._prompt_length(shorter)
        return record, answers + tokens

    def _prompt_length(self, record: Any) -> int:
        """Tokens of the prompt."""
        try:
            prompt = self._with_format_instruction(record) if isinstance(record, Prompt) else record.prompt
            return len(encode_prompt(self.tokenizer, prompt))
        except ChatTemplateError as error:
            raise FieldError("prompt", error.problem, fix=error.fix) from error

    def _with_format_instruction(self, prompt: Prompt) -> Prompt:
        if self.prompt_format and not (prompt.messages and prompt.messages[-1].role == "user"):
            fix = "end it with a turn of the user, or ask for nothing beside the prompts"
            raise FieldError("prompt", "its last turn is not the user's, and more is to be asked", fix=fix)
        return add_format_instruction(prompt, self.prompt_format, format_instructions_for(self.tokenizer))

    def _response_length(self, record: Any) -> int:
        """Tokens of the response, or of the longest one."""
        if isinstance(record, Prompt):
            return 0
        texts = (record.chosen, record.rejected) if isinstance(record, PreferencePair) else (record.response,)
        return max(len(encode_response(self.tokenizer, text, eos_id=0)) for text in texts)


def _drop_oldest_turns(record: Any) -> Iterator[Any]:
    """The record from its next user turn on, then from the one after that, ..."""
    turns = record.prompt.messages
    for start, turn in enumerate(turns):
        if start and turn.role == "user":
            yield replace(record, prompt=replace(record.prompt, messages=turns[start:]))


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
