"""Stage 1: every record the recipe names, read and checked before any model is loaded."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import sha256
from itertools import chain
from pathlib import Path
from typing import Any

from paretune.config import Config, location_of
from paretune.config.build import build_spec
from paretune.config.data_schema import DataSource, DemonstrationSource, RewardSection
from paretune.config.validate import WORLD, data_sources
from paretune.core.errors import ConfigError, DataError, format_issue
from paretune.core.types import PreTrainedTokenizerBase
from paretune.data.chat import PromptFormat
from paretune.data.columns import ColumnNames, FieldError, LabelMapping
from paretune.data.loader import group_responses, prompt_key, split_by_prompt
from paretune.data.readers import read_demonstrations, read_preference_pairs, read_prompts, read_ratings
from paretune.data.records import Demonstration, LazySequence, Prompt
from paretune.experiment.dataset import Dataset, LabelledRow, LengthFilter, RewardData, dataset_issues
from paretune.experiment.helpdesk_data import synthetic_demonstrations, synthetic_prompts, synthetic_ratings
from paretune.experiment.preflight import (
    as_config_error,
    critic_tokenizer_issues,
    gradient_checkpointing_issues,
    model_config_issues,
)
from paretune.models.load import load_tokenizer, stored_context_length
from paretune.worlds.helpdesk.model import CONTEXT_LENGTH, max_request_tokens
from paretune.worlds.helpdesk.model import helpdesk_tokenizer as world_tokenizer

__all__ = ["Dataset", "RewardData", "load_data", "policy_context_length", "policy_tokenizer"]

ProgressCallback = Callable[[int, int, str], None]


def load_data(config: Config, on_progress: ProgressCallback = lambda done, total, note: None) -> Dataset:
    """Read every file of the recipe; what it names no files for is made by the built-in world.

    Args:
        config: The recipe.
        on_progress: Hears of every file before it is read: files done, files in all, the file.

    Raises:
        ConfigError: A model cannot be read, a ready-made one does not know the objectives, an adapter fits
            nothing, layers cannot be worked out again as asked for, or responses are so long that the policy
            could read no prompt; bad rows are told with it.
        DataError: One line for every bad row of every file, for rows that are too long for their model, and
            for what is empty once all that is to be unseen was taken out.
    """
    frame = build_spec(config).prompt_format
    models = [
        *model_config_issues(config),
        *critic_tokenizer_issues(config, policy_tokenizer),
        *gradient_checkpointing_issues(config),
    ]
    return _DataReader(config, on_progress, model_issues=models, prompt_format=frame).load()


def policy_tokenizer(config: Config) -> PreTrainedTokenizerBase:
    """The tokenizer the policy will have."""
    path, world = config.policy.path, config.data.world
    if path == WORLD:
        return world_tokenizer(world.prompt_format if world is not None else "")
    return load_tokenizer(path, revision=config.policy.revision)


def policy_context_length(config: Config) -> int:
    """The longest row that the policy can read, in tokens."""
    policy = config.policy
    if policy.path == WORLD:
        return CONTEXT_LENGTH
    return stored_context_length(policy.path, revision=policy.revision)


@dataclass
class _DataReader:
    """Reads the files of one experiment; collects the complaints of all files before it gives up."""

    config: Config
    on_progress: ProgressCallback
    model_issues: list[str]
    """What is wrong with the models."""
    prompt_format: PromptFormat = ""
    """What the policy is asked beside every prompt, which must fit too."""
    files_read: int = 0
    exclusions: list[str] = field(default_factory=list)
    row_issues: list[str] = field(default_factory=list)
    file_hashes: dict[str, str] = field(default_factory=dict)

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """That of the policy; nobody asks for it where the built-in world brings everything."""
        with as_config_error(self.config, ("policy", "path")):
            return policy_tokenizer(self.config)

    def load(self) -> Dataset:
        e = self.config
        with as_config_error(e, ("policy", "path")):
            context = policy_context_length(e)
        pools, test = self._load_prompts(_max_prompt_length(e, context))
        shown = self._load_sft_demonstrations(context)
        remembered = self._load_demonstrations(e.data.demonstrations, context)
        stored = self._load_stored_responses(context)
        reward = self._load_reward_data("reward", e.reward)
        judge = self._load_reward_data("judge", e.judge) if isinstance(e.judge, RewardSection) else None
        self._raise_issues()
        if e.evaluate.max_prompts is not None:
            test = _subsample_by_category(test, e.evaluate.max_prompts)
        held = {prompt_key(p) for p in test}
        # What the built-in world draws is of other splits than its test prompts: nothing to look for.
        found = Dataset(
            train_prompts={
                name: self._exclude_prompts(f"prompts of {name}", pool, held) for name, pool in pools.items()
            },
            test_prompts=tuple(test),
            sft_demonstrations=shown
            if isinstance(shown, LazySequence)
            else self._exclude_prompts("demonstrations", shown, held),
            auxiliary_demonstrations=self._exclude_prompts("demonstrations", remembered, held),
            stored_responses=tuple(group_responses(self._exclude_prompts("stored responses", stored, held))),
            reward=self._without_test_prompts("reward", reward, held),
            judge=self._without_test_prompts("judge", judge, set()),
            exclusions=tuple(self.exclusions),
            file_hashes=self.file_hashes,
        )
        self.row_issues += dataset_issues(e, found)
        self._raise_issues()
        return found

    def _raise_issues(self) -> None:
        if self.model_issues:
            raise ConfigError("\n".join([*self.model_issues, *self.row_issues]))
        if self.row_issues:
            raise DataError("\n".join(self.row_issues))

    def _load_prompts(self, max_length: int) -> tuple[dict[str, list[Prompt]], list[Prompt]]:
        """What the policy is aligned on, pool by pool, and what it is evaluated on."""
        data = self.config.data
        if data.world is not None:
            pools, test = synthetic_prompts(self.config)
            self._check_synthetic_lengths([*chain(*pools.values()), *test], max_length)
            return pools, test
        pools = {name: self._read_prompts(name, source, max_length) for name, source in data.prompts.items()}
        return pools, [
            p
            for name, source in data.test_prompts.items()
            for p in self._read_prompts(name, source, max_length)
        ]

    def _check_synthetic_lengths(self, prompts: Sequence[Prompt], max_length: int) -> None:
        """Complain of the first request of the built-in world that is too long for the policy."""
        if self.config.policy.path == WORLD and max_request_tokens(prompts, self.prompt_format) <= max_length:
            return
        fits = LengthFilter(self.tokenizer, max_length, "error", prompt_format=self.prompt_format)
        try:
            all(fits(prompt) for prompt in prompts)
        except FieldError as error:
            self.row_issues.append(error.render(f"{location_of(self.config, ('data', 'world'))}: data.world"))

    def _load_sft_demonstrations(self, context_length: int) -> Sequence[Demonstration]:
        """What the starting policy learns from."""
        sft = self.config.policy.sft
        if sft is None:
            return []
        if not sft.demonstrations:
            return synthetic_demonstrations(self.config)
        return self._load_demonstrations(sft.demonstrations, context_length)

    def _load_demonstrations(
        self, sources: Mapping[str, DemonstrationSource], context_length: int
    ) -> list[Demonstration]:
        found: list[Demonstration] = []
        for name, source in sources.items():
            fits = LengthFilter(
                self.tokenizer, min(source.max_length or context_length, context_length), source.overlong
            )
            found += self._read_file(name, source, read_demonstrations, fits)
        return found

    def _load_stored_responses(self, context_length: int) -> list[LabelledRow]:
        given = self.config.data.stored_responses
        if not (given.ratings or given.pairs):
            return []
        return self._read_labelled_rows("stored", given.ratings, given.pairs, self.tokenizer, context_length)

    def _without_test_prompts(
        self, name: str, reward_data: RewardData | None, test_keys: set[str]
    ) -> RewardData | None:
        """Without the rows whose prompt the policy is evaluated on, or the model itself is reported on."""
        if reward_data is None or isinstance(reward_data.train, LazySequence):
            return reward_data
        train = self._exclude_prompts(f"rows of {name}", reward_data.train, test_keys)
        own = {prompt_key(record) for record in reward_data.test}
        train = self._exclude_prompts(f"rows of {name}", train, own, "those of its own test rows")
        return RewardData(train=train, test=reward_data.test)

    def _exclude_prompts(
        self,
        description: str,
        records: Sequence[Any],
        excluded_keys: set[str],
        reason: str = "among the test prompts",
    ) -> tuple[Any, ...]:
        """The records whose prompt is none of those that are held out."""
        kept = tuple(record for record in records if prompt_key(record) not in excluded_keys)
        if len(kept) < len(records):
            self.exclusions.append(
                f"{len(records) - len(kept)} {description} left out: their prompts are {reason}"
            )
        return kept

    def _read_file(
        self,
        name: str,
        source: DataSource,
        reader: Callable[..., list[Any]],
        length_filter: LengthFilter,
        **reader_kwargs: Any,
    ) -> list[Any]:
        self.on_progress(self.files_read, len(list(data_sources(self.config))), source.file)
        self.files_read += 1
        root = Path(self.config.data.root)
        columns = ColumnNames(**source.columns.model_dump(exclude_defaults=True))
        try:
            found = reader(
                source.file,
                root=root,
                columns=columns,
                where=source.where,
                most=source.max_rows,
                seed=self.config.run.seed,
                admit=length_filter,
                **reader_kwargs,
            )
        except DataError as error:
            self.row_issues.append(str(error))
            return []
        if length_filter.num_dropped:
            self.exclusions.append(
                f"{length_filter.num_dropped} rows of {name} left out: longer than {length_filter.max_length} tokens"
            )
        path = root / source.file
        if path.is_file() and source.file not in self.file_hashes:
            self.file_hashes[source.file] = sha256(path.read_bytes()).hexdigest()
        return found

    def _read_prompts(self, name: str, source: Any, max_length: int) -> list[Prompt]:
        fits = LengthFilter(
            self.tokenizer,
            min(source.max_tokens or max_length, max_length),
            source.longer,
            prompt_format=self.prompt_format,
        )
        return self._read_file(name, source, read_prompts, fits, kind=source.kind)

    def _load_reward_data(self, name: str, section: RewardSection) -> RewardData | None:
        """All rows of one reward model; none where it is ready made."""
        e = self.config
        if section.path is not None:
            return None
        if not (section.ratings or section.pairs):
            made = synthetic_ratings(e, section.objectives)
            return RewardData(train=made[0], test=made[1])
        reads, room = self.tokenizer, policy_context_length(e)
        if section.init_from != "policy":
            with as_config_error(e, (name, "body")):
                reads = load_tokenizer(section.init_from, revision=section.revision)
                room = stored_context_length(section.init_from, revision=section.revision)
        train = self._read_labelled_rows(name, section.ratings, section.pairs, reads, room)
        test = self._read_labelled_rows(f"{name} test", section.test_ratings, section.test_pairs, reads, room)
        if not (section.test_ratings or section.test_pairs):
            train, test = split_by_prompt(train, section.holdout_fraction, e.run.seed)
        return RewardData(train=tuple(train), test=tuple(test))

    def _read_labelled_rows(
        self,
        name: str,
        ratings: Mapping[str, Any],
        pairs: Mapping[str, Any],
        tokenizer: PreTrainedTokenizerBase,
        max_length: int,
    ) -> list[LabelledRow]:
        rows: list[LabelledRow] = []
        for key, source in ratings.items():
            labels = {
                objective: LabelMapping(column=label.source, scale=label.scale, offset=label.offset)
                for objective, label in source.labels.items()
            }
            fits = LengthFilter(tokenizer, min(source.max_tokens or max_length, max_length), source.longer)
            rows += self._read_file(f"{name} {key}", source, read_ratings, fits, labels=labels)
        for key, source in pairs.items():
            fits = LengthFilter(tokenizer, min(source.max_tokens or max_length, max_length), source.longer)
            rows += self._read_file(
                f"{name} {key}", source, read_preference_pairs, fits, objective=source.objective or ""
            )
        return rows


def _max_prompt_length(config: Config, context_length: int) -> int:
    """The longest prompt that leaves room for a response, in tokens."""
    longest = {
        ("algorithm", "max_new_tokens"): int(config.algorithm.arguments.get("max_new", 256)),
        ("evaluate", "max_new_tokens"): config.evaluate.max_new_tokens or 0,
    }
    path = max(longest, key=lambda key: longest[key])
    if longest[path] >= context_length:
        wrong = f"{longest[path]} tokens leave no room for a prompt: the policy reads {context_length} in all"
        raise ConfigError(
            format_issue(location_of(config, path), None, None, ".".join(path), wrong, fix="make it smaller")
        )
    return context_length - longest[path]


def _subsample_by_category(prompts: list[Prompt], max_prompts: int) -> list[Prompt]:
    """At most that many prompts, every kind keeping its share, in their order."""
    if len(prompts) <= max_prompts:
        return prompts
    by_kind = sorted(range(len(prompts)), key=lambda i: prompts[i].category)
    return [
        prompts[i]
        for i in sorted(by_kind[place * len(prompts) // max_prompts] for place in range(max_prompts))
    ]
