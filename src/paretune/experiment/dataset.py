"""The dataset of a run: its records, their length limits, and checks that none of its parts is empty."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from paretune.config import Config
from paretune.config.data_schema import RewardSection
from paretune.config.schema import WorldSection
from paretune.config.validate import reward_sections
from paretune.config.yaml import KeyPath
from paretune.core.errors import DataError
from paretune.core.types import PreTrainedTokenizerBase
from paretune.data.chat import encode_prompt, encode_rows, has_control_tokens
from paretune.data.chat_checks import check_prompt
from paretune.data.chat_template import ChatTemplateError
from paretune.data.columns import FieldError
from paretune.data.loader import PromptStream, has_distinct_scores, prompt_key
from paretune.data.prompt_formats import PromptFormat, add_format_instruction, format_instructions_for
from paretune.data.raters import ReadSummary
from paretune.data.records import Demonstration, LazySequence, PreferencePair, Prompt, Rating, ResponseGroup
from paretune.experiment.heads import check_labels
from paretune.experiment.resolved import ResolvedRun
from paretune.loss.listwise import PreferenceRanking
from paretune.loss.pairwise import PairLoss
from paretune.reward.training import label_scale_and_offset
from paretune.worlds import get_world

OTHER_ROWS_FIX = "name other files, or other rows with `where`"


@dataclass
class LengthFilter:
    """Applied to every record of a file: keeps, truncates, drops or rejects it by its length in tokens."""

    tokenizer: PreTrainedTokenizerBase
    max_length: int
    """Maximum record length in tokens."""
    overlong: str
    """How to handle a longer record: "error", "drop" or "truncate"."""
    limit_reason: str = ""
    """Where the limit comes from."""
    prompt_format: PromptFormat = ""
    """Format instruction that is appended to prompts and counts as part of them."""
    num_dropped: int = 0
    num_with_control_tokens: int = 0
    """Records whose texts spell control tokens of the chat template."""
    num_embeddings: int | None = None
    """Rows of the model's embedding, if the tokenizer has more tokens than that."""

    def __call__(self, record: Any) -> Any:
        """The record if it is short enough, truncated if configured; None if it is dropped.

        With `overlong: truncate`, as many of the oldest turns are removed as needed. The rest begins with a
        user turn, as chat templates require; the last user turn is always kept.

        Raises:
            FieldError: It is too long and `overlong` is "error", or the chat template rejects its turns,
                leaves out a part of them, or was applied to them beforehand.
        """
        try:
            check_prompt(self.tokenizer, record if isinstance(record, Prompt) else record.prompt)
            record, length = self._truncate(record)
        except ChatTemplateError as error:
            raise FieldError(error.key, error.problem, fix=error.fix) from error
        self.num_with_control_tokens += has_control_tokens(self.tokenizer, _texts_of(record))
        if length <= self.max_length:
            self._require_embeddings(record)
            return record
        if self.overlong == "error":
            fix = "shorten it, or write `overlong: drop` to skip such rows"
            reason = f" ({self.limit_reason})" if self.limit_reason else ""
            problem = f"{length} tokens, but the limit is {self.max_length}{reason}"
            raise FieldError("prompt", problem, fix=fix)
        self.num_dropped += 1
        return None

    def control_token_notes(self, name: str) -> list[str]:
        """One line if texts of the file spell control tokens."""
        count = self.num_with_control_tokens
        rows = f"{count:,} row{'s' if count != 1 else ''} of {name}"
        tokens = f"contain{'s' if count == 1 else ''} control tokens of the chat template"
        return [f"{rows} {tokens}; they are encoded as plain text"] if count else []

    def _truncate(self, record: Any) -> tuple[Any, int]:
        """The record, truncated if configured, and its length."""
        length = self._length(record)
        if self.overlong == "truncate":
            for shorter in _drop_oldest_turns(record):
                if length <= self.max_length:
                    break
                record, length = shorter, self._length(shorter)
        return record, length

    def _length(self, record: Any) -> int:
        """Tokens of a prompt, or of the longest row of a record with responses."""
        return max(map(len, self._token_ids(record)))

    def _token_ids(self, record: Any) -> list[list[int]]:
        """Token ids of a prompt, or of every row of a record with responses."""
        if isinstance(record, Prompt):
            return [encode_prompt(self.tokenizer, self._with_format_instruction(record))]
        pairs = [(record.prompt, text) for text in _responses_of(record)]
        # The id of the token at the end of a row does not change its length.
        return [list(row.input_ids) for row in encode_rows(self.tokenizer, pairs, eos_id=0)]

    def _require_embeddings(self, record: Any) -> None:
        """Reject a record with a token that only the tokenizer has: the model would fail at that row."""
        if self.num_embeddings is None:
            return
        token_id = max(max(ids, default=0) for ids in self._token_ids(record))
        if token_id >= self.num_embeddings:
            token = self.tokenizer.convert_ids_to_tokens(token_id)
            problem = (
                f'uses the token "{token}" (id {token_id}), and the embedding of the model has '
                f"{self.num_embeddings:,} rows"
            )
            fix = "call model.resize_token_embeddings and save the model, or take the token out of the text"
            raise FieldError("prompt", problem, fix=fix)

    def _with_format_instruction(self, prompt: Prompt) -> Prompt:
        if self.prompt_format and not (prompt.messages and prompt.messages[-1].role == "user"):
            problem = "its last turn is not the user's, so no format instruction can be appended"
            fix = "end it with a user turn, or do not ask for thinking or confidence"
            raise FieldError("prompt", problem, fix=fix)
        return add_format_instruction(prompt, self.prompt_format, format_instructions_for(self.tokenizer))


def _responses_of(record: Any) -> tuple[str, ...]:
    if isinstance(record, PreferencePair):
        return record.chosen, record.rejected
    return () if isinstance(record, Prompt) else (record.response,)


def _texts_of(record: Any) -> tuple[str, ...]:
    prompt = record if isinstance(record, Prompt) else record.prompt
    return (*(message.content for message in prompt.messages), *_responses_of(record))


def _drop_oldest_turns(record: Any) -> Iterator[Any]:
    """The record from its second user turn on, then from its third, ..."""
    turns = record.prompt.messages
    for start, turn in enumerate(turns):
        if start and turn.role == "user":
            yield replace(record, prompt=replace(record.prompt, messages=turns[start:]))


LabelledRow = Rating | PreferencePair


@dataclass(frozen=True, kw_only=True)
class RewardData:
    """Training and test rows of one reward model."""

    train: Sequence[LabelledRow]
    test: Sequence[LabelledRow]


def world_ratings(world: WorldSection, seed: int, section: RewardSection) -> RewardData:
    """Ratings by the simulated raters of the built-in world."""
    train, test = get_world().ratings(
        num_ratings=world.num_ratings,
        num_raters=world.num_raters,
        rater_noise=world.rater_noise,
        length_bias=world.length_bias,
        missing_rate=world.missing_rate,
        confidence_bias=world.confidence_bias,
        seed=seed,
        objectives=section.objectives,
        prompt_format=world.prompt_format,
    )
    return RewardData(train=train, test=test)


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """All records of a run."""

    train_prompts: Mapping[str, tuple[Prompt, ...]]
    """Pool name -> prompts to align on."""
    test_prompts: tuple[Prompt, ...]
    validation_prompts: tuple[Prompt, ...] = ()
    """Prompts of the evaluations during the training, which decide what its result is; no test prompts."""
    sft_demonstrations: Sequence[Demonstration] = ()
    """Training data of the SFT stage."""
    auxiliary_demonstrations: tuple[Demonstration, ...] = ()
    """Data of the auxiliary LM loss, unless it uses `sft_demonstrations`."""
    stored_responses: tuple[ResponseGroup, ...] = ()
    """Training data of offline methods."""
    reward: RewardData | None = None
    judge: RewardData | None = None
    exclusions: tuple[str, ...] = ()
    """What was excluded and why; one line each."""
    file_hashes: Mapping[str, str] = field(default_factory=dict)
    """File -> SHA-256."""
    notes: tuple[str, ...] = ()
    """What is to be known about the files, such as what was read as a missing value; one line each."""
    warnings: tuple[str, ...] = ()
    """What makes the records doubtful, such as rows that look like several raters'; one line each."""
    read_summaries: Mapping[str, ReadSummary] = field(default_factory=dict)
    """Source, such as "reward raters" or "reward test raters" -> rows, labels, votes, raters, agreement."""

    def manifest(self) -> dict[str, Any]:
        """Counts, hashes and exclusions, for data/manifest.json."""
        reward_counts = {
            name: {"train": len(data.train), "test": len(data.test)}
            for name, data in (("reward", self.reward), ("judge", self.judge))
            if data is not None
        }
        return {
            "schema": "paretune/data/2",
            "train_prompts": {name: len(pool) for name, pool in self.train_prompts.items()},
            "test_prompts": len(self.test_prompts),
            **({"validation_prompts": len(self.validation_prompts)} if self.validation_prompts else {}),
            "demonstrations": len(self.sft_demonstrations) + len(self.auxiliary_demonstrations),
            **({"stored_responses": len(self.stored_responses)} if self.stored_responses else {}),
            **reward_counts,
            "exclusions": list(self.exclusions),
            "file_sha256": dict(self.file_hashes),
        }


def prompt_stream(config: Config, train_prompts: Mapping[str, tuple[Prompt, ...]]) -> PromptStream:
    """The prompts of every step; pools of the built-in world are weighted by their sizes."""
    sources = config.data.prompts
    sampling_weights = tuple(
        sources[name].sampling_weight if name in sources else float(len(pool))
        for name, pool in train_prompts.items()
    )
    return PromptStream(
        tuple(train_prompts.values()), sampling_weights, config.training.prompts_per_step, config.run.seed
    )


def dataset_issues(run: ResolvedRun, dataset: Dataset) -> Iterator[str]:
    """Errors of datasets that are empty or cannot be trained on."""
    config = run.config
    for name, pool in dataset.train_prompts.items():
        if not pool:
            problem = f"every prompt of {name} is also a test prompt"
            yield run.issue(_pool_path(config, name), problem, OTHER_ROWS_FIX)
    if config.data.holdout_fraction is not None and not dataset.test_prompts:
        num_prompts = len({prompt_key(prompt) for pool in dataset.train_prompts.values() for prompt in pool})
        problem = f"{config.data.holdout_fraction:g} holds out none of {_count_prompts(num_prompts)}"
        yield run.issue(("data", "holdout_fraction"), problem, "add prompts")
    if all(dataset.train_prompts.values()):
        yield from _unsampled_pool_issues(run, dataset)
    yield from _preference_issues(run, dataset)
    yield from _budget_issues(run)
    yield from _stored_data_issues(run, dataset)
    if config.policy.sft is not None and not dataset.sft_demonstrations:
        path = ("policy", "sft", "demonstrations")
        yield run.issue(path, "the prompt of every row is also a test prompt", OTHER_ROWS_FIX)
    for name, section in reward_sections(config):
        reward_data: RewardData | None = getattr(dataset, name)
        if reward_data is not None:
            yield from _reward_data_issues(run, name, section, reward_data, dataset)


def _count_prompts(count: int) -> str:
    return f"the {count:,} different prompts" if count != 1 else "1 prompt: all rows have the same one"


def _pool_path(config: Config, name: str) -> KeyPath:
    return ("data", "world") if config.data.world is not None else ("data", "prompts", name)


def _reward_data_issues(
    run: ResolvedRun, name: str, section: RewardSection, data: RewardData, dataset: Dataset
) -> Iterator[str]:
    if not data.test:
        has_own_test = section.test_ratings or section.test_pairs
        fix = f"add rows of other prompts, or set {name}.test_ratings or {name}.test_pairs"
        if has_own_test or not data.train:
            yield run.issue((name,), "there are no test rows", fix)
        else:
            num_prompts = _count_prompts(len({prompt_key(row) for row in data.train}))
            problem = f"{section.holdout_fraction:g} holds out none of {num_prompts}"
            yield run.issue((name, "holdout_fraction"), f"{problem}, so there are no test rows", fix)
    if not data.train:
        problem = "there are no training rows: every prompt is a test prompt"
        yield run.issue((name,), problem, OTHER_ROWS_FIX)
        return
    objectives = tuple(section.objectives)
    try:
        label_scale_and_offset(_rows_with_label_spread(data.train, objectives), objectives)
        check_labels(name, section, data, dataset.read_summaries)
    except DataError as error:
        for line in str(error).splitlines():
            key, _, problem = line.partition(": ")
            yield run.issue((name, *key.split(".")), problem)


def _rows_with_label_spread(rows: Sequence[LabelledRow], objectives: Sequence[str]) -> Sequence[LabelledRow]:
    """The rows; of lazy rows only as many as needed for two different labels of every objective.

    Generating all of them takes long, and further rows cannot invalidate a scale that these determine.
    """
    if not isinstance(rows, LazySequence):
        return rows
    labels: dict[str, set[float]] = {name: set() for name in objectives}
    for count, row in enumerate(rows, 1):
        for name in labels.keys() & row.labels:
            labels[name].add(row.labels[name])
        if all(len(values) > 1 for values in labels.values()):
            return rows[:count]
    return rows


def _unsampled_pool_issues(run: ResolvedRun, dataset: Dataset) -> Iterator[str]:
    """Pools whose sampling weight is so small that no step of any run gets a prompt of them."""
    sources = run.config.data.prompts
    quotas = prompt_stream(run.config, dataset.train_prompts).pool_quotas()
    num_prompts = sum(map(len, dataset.train_prompts.values()))
    total_weight = sum(source.sampling_weight for source in sources.values())
    for name, quota in zip(dataset.train_prompts, quotas, strict=True):
        if not quota:
            weight = sources[name].sampling_weight
            problem = f"{weight:g} of {total_weight:g} in total rounds to 0 of the {num_prompts:,} prompts"
            fix = f"write at least {(total_weight - weight) / (num_prompts - 1):.1g}"
            yield run.issue(("data", "prompts", name, "sampling_weight"), problem, fix)


def _stored_data_issues(run: ResolvedRun, dataset: Dataset) -> Iterator[str]:
    """Stored responses and demonstrations that are empty, or that contain no comparison."""
    config = run.config
    problem = "every row is too long or has a test prompt"
    if config.data.demonstrations and not dataset.auxiliary_demonstrations:
        yield run.issue(("data", "demonstrations"), problem, OTHER_ROWS_FIX)
    if not (config.data.stored_responses.ratings or config.data.stored_responses.pairs):
        return
    path = ("data", "stored_responses")
    fill_missing = config.aggregate.missing in {"renormalize", "group_mean"}
    if not dataset.stored_responses:
        yield run.issue(path, problem, OTHER_ROWS_FIX)
    elif _uses_ranking_loss(run) and not any(
        has_distinct_scores(group, config.weights, fill_missing=fill_missing)
        for group in dataset.stored_responses
    ):
        problem = "no prompt has two responses with different scores on all weighted objectives"
        fix = "write aggregate: {missing: renormalize}, or add rated responses to the same prompt"
        yield run.issue(path, problem, fix)


def _budget_issues(run: ResolvedRun) -> Iterator[str]:
    """A budget that stored responses never use, so that its learning rate schedule would not advance."""
    budget = run.config.run.budget
    if budget is not None and not run.algorithm.rollout.generates and budget.resource != "trained_tokens":
        problem = f"is {budget.resource}, of which stored responses use none: the budget would never end"
        yield run.issue(("run", "budget", "resource"), problem, "write trained_tokens")


def _uses_ranking_loss(run: ResolvedRun) -> bool:
    """True if some loss compares the responses to a prompt, rather than imitating each."""
    losses = [term.loss for spec in run.specs for term in spec.losses]
    return any(isinstance(loss, PairLoss | PreferenceRanking) for loss in losses)


def _preference_issues(run: ResolvedRun, dataset: Dataset) -> Iterator[str]:
    """Prompts whose preference weights are missing, unused, or name an unknown objective."""
    config = run.config
    uses_weights = config.aggregate.name == "preference_weighted_sum"
    for name, pool in dataset.train_prompts.items():
        path = _pool_path(config, name)
        num_without = sum(not prompt.preference_weights for prompt in pool)
        names = {key for prompt in pool for key, _ in prompt.preference_weights}
        unknown = sorted(names - set(config.objectives))
        if uses_weights and num_without:
            aggregate = "aggregate.name is preference_weighted_sum"
            problem = f"{num_without} of {len(pool)} prompts have no preference weights, and {aggregate}"
            fix = "name the column that holds {objective: weight} with columns: {preference_weights: ...}"
            yield run.issue(path, problem, fix)
        if unknown:
            problem = f'prompts have preference weights of "{unknown[0]}", which is not an objective'
            yield run.issue(path, problem, f"one of {', '.join(config.objectives)}")
        if not uses_weights and names:
            problem = "the preference weights of the prompts have no effect"
            yield run.issue(path, problem, "write aggregate: {name: preference_weighted_sum}")
