"""Data stage: reads and checks every record of the recipe, before any model is loaded."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

from paretune.config import Config, location_of
from paretune.config.data_schema import (
    DataSource,
    DemonstrationSource,
    PairSource,
    PromptSource,
    RatingSource,
    RewardSection,
)
from paretune.config.schema import WorldSection
from paretune.config.sources import data_sources
from paretune.config.validate import WORLD
from paretune.config.yaml import KeyPath
from paretune.core.errors import ConfigError, DataError, MissingDependencyError
from paretune.core.types import PreTrainedTokenizerBase
from paretune.data.columns import FieldError
from paretune.data.loader import group_responses, hold_out_prompts, prompt_key, split_by_prompt
from paretune.data.raters import ReadSummary, separate_votes
from paretune.data.readers import read_demonstrations, read_preference_pairs, read_prompts, read_ratings
from paretune.data.records import Demonstration, LazySequence, Prompt
from paretune.experiment.chat_templates import chat_template_issues
from paretune.experiment.data_limits import (
    length_filter_of,
    max_prompt_length,
    policy_context_length,
    policy_tokenizer,
    prompt_filter,
    reward_tokenizer,
    sample_by_category,
    source_issue,
    source_key,
)
from paretune.experiment.dataset import (
    Dataset,
    LabelledRow,
    LengthFilter,
    RewardData,
    dataset_issues,
    world_ratings,
)
from paretune.experiment.file_issues import FileIssues
from paretune.experiment.preflight import (
    critic_tokenizer_issues,
    gradient_checkpointing_issues,
    model_config_issues,
)
from paretune.experiment.resolved import ResolvedRun, as_config_error
from paretune.experiment.scorers import reads_columns, typed_scorer_issues
from paretune.experiment.settings import column_names, label_mappings
from paretune.experiment.validation_prompts import hold_out_validation_prompts
from paretune.models.load import load_model_config
from paretune.run.io import hash_file
from paretune.worlds import get_world

__all__ = ["Dataset", "RewardData", "load_data", "policy_context_length", "policy_tokenizer"]

ProgressCallback = Callable[[int, int, str], None]
"""Called before each file is read, with the number of files read, the total, and the file."""

TEST_PROMPT_REASON = "their prompts are among the test prompts"


def load_data(run: ResolvedRun, on_progress: ProgressCallback = lambda done, total, note: None) -> Dataset:
    """Read every file of the recipe; the built-in world generates what has no files.

    Args:
        run: The resolved recipe.
        on_progress: Progress callback.

    Raises:
        ConfigError: A model cannot be read, a pretrained one lacks an objective, an adapter matches no
            module, layers do not support gradient checkpointing, or responses are so long that no prompt fits
            into the policy's context. Invalid rows are reported with it.
        DataError: One line per invalid row of every file, per row that is too long for its model, and per
            dataset that is empty after the test prompts were excluded from it.
    """
    issues = [
        *model_config_issues(run),
        *critic_tokenizer_issues(run),
        *gradient_checkpointing_issues(run),
    ]
    template_issues = list(chat_template_issues(run))
    if template_issues:  # every row would be reported for the same reason
        raise ConfigError("\n".join([*issues, *template_issues]))
    return DataReader(run, on_progress, model_issues=issues).load()


@dataclass
class DataReader:
    """Reads the files of one run; collects the errors of all files before it raises them."""

    run: ResolvedRun
    on_progress: ProgressCallback
    model_issues: list[str]
    files_read: int = 0
    exclusions: list[str] = field(default_factory=list)
    row_issues: list[str] = field(default_factory=list)
    file_issues: FileIssues = field(default_factory=FileIssues)
    file_hashes: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    read_summaries: dict[str, ReadSummary] = field(default_factory=dict)

    @property
    def config(self) -> Config:
        """The recipe."""
        return self.run.config

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The policy's tokenizer, loaded on first use: the built-in world does not need it."""
        with as_config_error(self.run, ("policy", "path")):
            return policy_tokenizer(self.config)

    @cached_property
    def num_embeddings(self) -> int | None:
        """Rows of the policy's embedding, if its tokenizer has more tokens than that."""
        policy = self.config.policy
        if policy.path == WORLD:
            return None
        config = load_model_config(policy.path, revision=policy.revision).get_text_config()
        return config.vocab_size if config.vocab_size < len(self.tokenizer) else None

    @property
    def world(self) -> WorldSection:
        """The built-in world of the recipe."""
        world = self.config.data.world
        assert world is not None  # a recipe without files and without a world is rejected when it is loaded
        return world

    def load(self) -> Dataset:
        """See `load_data`."""
        config = self.config
        with as_config_error(self.run, ("policy", "path")):
            context_length = policy_context_length(config)
        pools, test_prompts = self._load_prompts(max_prompt_length(self.run, context_length))
        self.model_issues += typed_scorer_issues(self.run, list(chain(*pools.values())), test_prompts)
        sft_demonstrations = self._load_sft_demonstrations(context_length)
        auxiliary = self.read_demonstrations(config.data.demonstrations, context_length)
        stored = self._load_stored_responses(context_length)
        reward = None if config.reward is None else self._load_reward_data("reward", config.reward)
        section = config.judge
        judge = self._load_reward_data("judge", section) if isinstance(section, RewardSection) else None
        self._raise_issues()
        if config.evaluate.max_prompts is not None:
            test_prompts = sample_by_category(test_prompts, config.evaluate.max_prompts)
        test_keys = {prompt_key(prompt) for prompt in test_prompts}
        dataset = Dataset(
            train_prompts={
                name: self._exclude_prompts(f"prompts of {name}", pool, test_keys)
                for name, pool in pools.items()
            },
            test_prompts=tuple(test_prompts),
            # Lazy records are the built-in world's, whose splits are disjoint: nothing to exclude.
            sft_demonstrations=sft_demonstrations
            if isinstance(sft_demonstrations, LazySequence)
            else self._exclude_prompts("demonstrations", sft_demonstrations, test_keys),
            auxiliary_demonstrations=self._exclude_prompts("demonstrations", auxiliary, test_keys),
            stored_responses=tuple(
                group_responses(self._exclude_prompts("stored responses", stored, test_keys))
            ),
            reward=self._without_test_prompts("reward", reward, test_keys),
            judge=self._without_test_prompts("judge", judge, set()),
            exclusions=tuple(self.exclusions),
            # A file that is read for several purposes would say the same each time.
            notes=tuple(dict.fromkeys(self.notes)),
            warnings=tuple(dict.fromkeys(self.warnings)),
            read_summaries=self.read_summaries,
            file_hashes=self.file_hashes,
        )
        dataset, issues = hold_out_validation_prompts(self.run, dataset)
        self.row_issues += [*issues, *dataset_issues(self.run, dataset)]
        self._raise_issues()
        return dataset

    def _raise_issues(self) -> None:
        row_issues = [*self.file_issues.lines(), *self.row_issues]
        if self.model_issues:
            raise ConfigError("\n".join([*self.model_issues, *row_issues]))
        if row_issues:
            raise DataError("\n".join(row_issues))

    def _load_prompts(self, max_length: int) -> tuple[dict[str, list[Prompt]], list[Prompt]]:
        """Training prompts by pool, and test prompts."""
        data = self.config.data
        if data.world is not None:
            pools, test_prompts = get_world().prompts(
                num_prompts=data.world.num_prompts,
                num_test_prompts=data.world.num_test_prompts,
                seed=self.config.run.seed,
            )
            self._check_synthetic_lengths([*chain(*pools.values()), *test_prompts], max_length)
            return pools, test_prompts
        pools = {name: self.read_prompts(name, source, max_length) for name, source in data.prompts.items()}
        if data.holdout_fraction is not None:
            return hold_out_prompts(pools, data.holdout_fraction, self.config.run.seed)
        sources = data.test_prompts.items()
        return pools, [*chain(*(self.read_prompts(name, source, max_length) for name, source in sources))]

    def _check_synthetic_lengths(self, prompts: Sequence[Prompt], max_length: int) -> None:
        """Report the first prompt of the built-in world that is too long for the policy."""
        world = get_world()
        # The world counts without its tokenizer, which would load transformers.
        if (
            self.config.policy.path == WORLD
            and world.max_prompt_tokens(prompts, self.run.algorithm.prompt_format) <= max_length
        ):
            return
        length_filter = prompt_filter(self.run, self.tokenizer, max_length)
        try:
            for prompt in prompts:
                length_filter(prompt)
        except FieldError as error:
            self.row_issues.append(error.render(f"{location_of(self.config, ('data', 'world'))}: data.world"))

    def _load_sft_demonstrations(self, context_length: int) -> Sequence[Demonstration]:
        sft = self.config.policy.sft
        if sft is None:
            return []
        if not sft.demonstrations:
            return get_world().demonstrations(
                num_demonstrations=self.world.num_demonstrations,
                seed=self.config.run.seed,
                prompt_format=self.world.prompt_format,
            )
        return self.read_demonstrations(sft.demonstrations, context_length)

    def read_demonstrations(
        self, sources: Mapping[str, DemonstrationSource], context_length: int
    ) -> list[Demonstration]:
        """The demonstrations of some files."""
        demonstrations: list[Demonstration] = []
        for name, source in sources.items():
            length_filter = length_filter_of(source, self.tokenizer, context_length)
            length_filter.num_embeddings = self.num_embeddings
            demonstrations += self._read_file(name, source, read_demonstrations, length_filter)
        return demonstrations

    def _load_stored_responses(self, context_length: int) -> list[LabelledRow]:
        stored = self.config.data.stored_responses
        if not (stored.ratings or stored.pairs):
            return []
        self._refuse_separate(("data", "stored_responses", "ratings"), stored.ratings)
        return self.read_labelled_rows(
            "stored", stored.ratings, stored.pairs, self.tokenizer, context_length, self.num_embeddings
        )

    def _without_test_prompts(
        self, name: str, reward_data: RewardData | None, test_keys: set[str]
    ) -> RewardData | None:
        """Without the training rows whose prompt is a test prompt of the policy or of the model itself."""
        if reward_data is None or isinstance(reward_data.train, LazySequence):
            return reward_data
        train = self._exclude_prompts(f"rows of {name}", reward_data.train, test_keys)
        own_keys = {prompt_key(record) for record in reward_data.test}
        reason = "their prompts are those of its own test rows"
        train = self._exclude_prompts(f"rows of {name}", train, own_keys, reason)
        return RewardData(train=train, test=reward_data.test)

    def _exclude_prompts(
        self,
        description: str,
        records: Sequence[Any],
        excluded_keys: set[str],
        reason: str = TEST_PROMPT_REASON,
    ) -> tuple[Any, ...]:
        """The records whose prompt is not excluded; the number of the others goes into the manifest."""
        kept = tuple(record for record in records if prompt_key(record) not in excluded_keys)
        if len(kept) < len(records):
            self.exclusions.append(f"{len(records) - len(kept)} {description} excluded: {reason}")
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
        root, summary = Path(self.config.data.root), ReadSummary()
        try:
            if source.format is not None:
                reader_kwargs["format"] = source.format
            records = reader(
                source.file,
                root=root,
                summary=summary,
                columns=column_names(source.columns),
                where=source.where,
                max_rows=source.max_rows,
                seed=self.config.run.seed,
                transform=length_filter,
                **reader_kwargs,
            )
        except MissingDependencyError as error:
            raise MissingDependencyError(source_issue(self.run, source, str(error))) from error
        except DataError as error:
            key = source_key(self.run, source)
            self.file_issues.add(str(error), ".".join(map(str, key)), reader_kwargs.get("labels"))
            return []
        self.notes += summary.notes
        self.warnings += summary.warnings
        self.read_summaries[name] = summary
        if length_filter.num_dropped:
            reason = f"longer than {length_filter.max_length} tokens"
            self.exclusions.append(f"{length_filter.num_dropped} rows of {name} excluded: {reason}")
        self.notes += length_filter.control_token_notes(name)
        path = root / source.file
        if path.is_file() and source.file not in self.file_hashes:
            self.file_hashes[source.file] = hash_file(path)
        return records

    def read_prompts(self, name: str, source: PromptSource, max_length: int) -> list[Prompt]:
        """The prompts of one file."""
        length_filter = prompt_filter(self.run, self.tokenizer, max_length, source)
        length_filter.num_embeddings = self.num_embeddings
        return self._read_file(
            name,
            source,
            read_prompts,
            length_filter,
            category=source.category,
            keep_columns=reads_columns(self.config),
        )

    def _load_reward_data(self, name: str, section: RewardSection) -> RewardData | None:
        """All rows of one reward model; None if it is pretrained."""
        if section.path is not None:
            return None
        if not (section.ratings or section.pairs):
            return world_ratings(self.world, self.config.run.seed, section)
        tokenizer, max_length = reward_tokenizer(self.run, name, section)
        train = self.read_labelled_rows(name, section.ratings, section.pairs, tokenizer, max_length)
        test = self.read_labelled_rows(
            f"{name} test", section.test_ratings, section.test_pairs, tokenizer, max_length
        )
        if not (section.test_ratings or section.test_pairs):
            train, test = split_by_prompt(train, section.holdout_fraction, self.config.run.seed)
        self._refuse_separate((name, "test_ratings"), section.test_ratings)
        # Test rows stay joined: reports count responses, not votes.
        return RewardData(train=tuple(separate_votes(train)), test=tuple(test))

    def _refuse_separate(self, path: KeyPath, sources: Mapping[str, RatingSource]) -> None:
        """Report `raters: separate` where rows are not what a reward model is fitted to."""
        for name, source in sources.items():
            if source.raters == "separate":
                problem = "separate is for the rows that a reward model is fitted to; others have one label"
                self.row_issues.append(
                    self.run.issue((*path, name, "raters"), problem, "write mean or median")
                )

    def read_labelled_rows(
        self,
        name: str,
        ratings: Mapping[str, RatingSource],
        pairs: Mapping[str, PairSource],
        tokenizer: PreTrainedTokenizerBase,
        max_length: int,
        num_embeddings: int | None = None,
    ) -> list[LabelledRow]:
        """The rated responses and pairs of some files."""
        rows: list[LabelledRow] = []
        for key, source in ratings.items():
            length_filter = length_filter_of(source, tokenizer, max_length)
            length_filter.num_embeddings = num_embeddings
            ratings_read = self._read_file(
                f"{name} {key}",
                source,
                read_ratings,
                length_filter,
                labels=label_mappings(source),
                missing=source.missing,
                raters=source.raters,
                group_by=source.group_by,
            )
            # Votes to learn from one by one stay with their rows, and those of test rows for ordinal heads.
            keep_votes = source.raters == "separate" or name.endswith(" test")
            rows += ratings_read if keep_votes else (replace(row, votes={}) for row in ratings_read)
        for key, pair_source in pairs.items():
            length_filter = length_filter_of(pair_source, tokenizer, max_length)
            length_filter.num_embeddings = num_embeddings
            objective = pair_source.objective or ""
            rows += self._read_file(
                f"{name} {key}", pair_source, read_preference_pairs, length_filter, objective=objective
            )
        return rows
