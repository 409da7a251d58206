"""How many prompts a reward model or judge with a context of its own cannot read."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain

from paretune.config.scorer_schema import ClassifierScorerSection, RewardModelScorerSection
from paretune.config.scorers import scorer_sections
from paretune.config.validate import reward_sections
from paretune.config.yaml import KeyPath
from paretune.core.types import PreTrainedTokenizerBase
from paretune.data.chat import encode_prompt
from paretune.data.chat_template import ChatTemplateError
from paretune.data.records import Prompt
from paretune.experiment.data_limits import policy_tokenizer
from paretune.experiment.dataset import Dataset
from paretune.experiment.resolved import ResolvedRun
from paretune.models.classifiers import read_classifier
from paretune.models.load import load_tokenizer, stored_context_length
from paretune.models.model_limits import NO_LIMIT
from paretune.reward.classifier_inputs import ClassifierEncoder, Reads, UnreadableTextError


@dataclass(frozen=True, kw_only=True)
class PromptReading:
    """The prompts of one kind, as one scorer reads them."""

    scorer: str
    """Section of the recipe: "reward", "judge", or one such as "scorers.toxicity"."""
    kind: str
    """"training" or "test"."""
    context_length: int
    num_prompts: int
    num_unreadable: int
    """Prompts that leave no room for a single token: no response to them is scored."""
    num_tight: int
    """Further prompts that leave no room for a response of the length limit."""
    max_policy_tokens: int
    """Prompts of at most this many tokens of the policy can all be read."""
    response_limit: int | None = None
    """Tokens of the longest responses, of a scorer that reads them alone; None: it reads the prompt too."""

    def describe(self) -> str:
        """What cannot be scored, and what to do about it; "" if everything can."""
        if not (self.num_unreadable or self.num_tight):
            return ""
        if self.response_limit is not None:
            section = "algorithm" if self.kind == "training" else "evaluate"
            return (
                f"{self.scorer} reads {self.context_length:,} tokens, and responses may have "
                f"{self.response_limit:,}: longer ones will not be scored; fix: a smaller "
                f"{section}.max_new_tokens, or a model that reads more"
            )
        parts = []
        if self.num_unreadable:
            parts.append(
                f"{self.num_unreadable:,} of {self.num_prompts:,} {self.kind} prompts are too long for it, "
                "and no response to them will be scored"
            )
        if self.num_tight:
            more = "more " if self.num_unreadable else f"of {self.num_prompts:,} {self.kind} prompts "
            parts.append(f"{self.num_tight:,} {more}leave too little room for the longest responses")
        key = "data.prompts" if self.kind == "training" else "data.test_prompts"
        limit = f"max_length: {self.max_policy_tokens} and overlong: drop in {key}, or " * bool(
            self.max_policy_tokens > 0
        )
        text = f"{self.scorer} reads {self.context_length:,} tokens: {'; '.join(parts)}"
        return f"{text}; fix: {limit}a model that reads more"


def prompt_readings(run: ResolvedRun, dataset: Dataset) -> Iterator[PromptReading]:
    """The prompts as each scorer reads them; one made from the policy has its limits, which they keep."""
    limit = int(run.config.algorithm.arguments.get("max_new_tokens", 256))
    test_limit = run.config.evaluate.max_new_tokens or limit
    training = list(chain(*dataset.train_prompts.values())) if run.algorithm.rollout.generates else []
    for name, section in reward_sections(run.config):
        if section.pretrained_model is None:
            continue
        is_judge_of_tests = name == "judge" or run.config.judge is None
        kinds = [("training", training, limit)] * (name == "reward")
        kinds += [("test", list(dataset.test_prompts), test_limit)] * is_judge_of_tests
        kinds = [kind for kind in kinds if kind[1]]
        if not kinds:
            continue
        _, path = section.pretrained_model
        arguments = section.chat_template_kwargs
        tokenizer = load_tokenizer(path, revision=section.revision, chat_template_kwargs=arguments)
        context_length = stored_context_length(path, revision=section.revision)
        count = partial(_num_prompt_tokens, tokenizer)
        for kind, prompts, response_limit in kinds:
            yield _read_prompts(run, name, kind, count, context_length, prompts, response_limit)
    tests = ("test", list(dataset.test_prompts), test_limit)
    for own, _, typed in scorer_sections(run.config):
        if isinstance(typed, ClassifierScorerSection | RewardModelScorerSection):
            kinds = [("training", training, limit), tests] if own[0] == "scorers" else [tests]
            yield from _typed_readings(run, own, typed, [kind for kind in kinds if kind[1]])


def _typed_readings(
    run: ResolvedRun,
    path: KeyPath,
    section: ClassifierScorerSection | RewardModelScorerSection,
    kinds: Sequence[tuple[str, Sequence[Prompt], int]],
) -> Iterator[PromptReading]:
    """The prompts as a classifier or ready-made reward model reads them."""
    stored = read_classifier(section.path, revision=section.revision)
    context_length = stored.max_length
    if context_length >= NO_LIMIT or not kinds:
        return
    arguments = getattr(section, "chat_template_kwargs", {})
    tokenizer = load_tokenizer(section.path, revision=section.revision, chat_template_kwargs=arguments)
    reads: Reads = section.reads if isinstance(section, ClassifierScorerSection) else "conversation"
    encode = ClassifierEncoder(tokenizer, reads)

    def count(prompt: Prompt) -> int:
        is_own = stored.from_paretune  # its rows end where the turn ends
        return _num_prompt_tokens(tokenizer, prompt) if is_own else len(encode(prompt, "").input_ids)

    name = ".".join(map(str, path))
    if reads == "response":
        # The prompt plays no part: one reading, of the longest responses, says it all.
        kind, prompts, response_limit = max(kinds, key=lambda each: each[2])
        reading = _read_prompts(run, name, kind, count, context_length, prompts[:1], response_limit)
        yield replace(reading, response_limit=response_limit)
        return
    for kind, prompts, response_limit in kinds:
        yield _read_prompts(run, name, kind, count, context_length, prompts, response_limit)


def _num_prompt_tokens(tokenizer: PreTrainedTokenizerBase, prompt: Prompt) -> int:
    return len(encode_prompt(tokenizer, prompt))


def unreadable_issues(run: ResolvedRun, readings: Sequence[PromptReading]) -> Iterator[str]:
    """Errors of scorers that can score nothing."""
    for reading in readings:
        if reading.num_unreadable == reading.num_prompts:
            own = getattr(run.config, reading.scorer, None)  # of the sections reward and judge
            key = "path" if own is None else own.pretrained_model[0]
            problem = (
                f"reads {reading.context_length:,} tokens, and every one of the {reading.num_prompts:,} "
                f"{reading.kind} prompts is longer: nothing could be scored"
            )
            path = (*reading.scorer.split("."), key)
            yield run.issue(path, problem, "name a model that reads more tokens")


def _read_prompts(
    run: ResolvedRun,
    name: str,
    kind: str,
    count: Callable[[Prompt], int],
    context_length: int,
    prompts: Sequence[Prompt],
    response_limit: int,
) -> PromptReading:
    lengths = []
    for prompt in prompts:
        try:
            lengths.append(count(prompt))
        except (
            ChatTemplateError,
            UnreadableTextError,
        ):  # its template rejects the turns: it cannot read this prompt either
            lengths.append(context_length)
    too_long = [n >= context_length for n in lengths]
    limit = context_length - response_limit
    unfit = [prompt for prompt, n in zip(prompts, lengths, strict=True) if n > limit]
    max_policy_tokens = 0
    if unfit:
        policy = policy_tokenizer(run.config)
        max_policy_tokens = min(len(encode_prompt(policy, prompt)) for prompt in unfit) - 1
    return PromptReading(
        scorer=name,
        kind=kind,
        context_length=context_length,
        num_prompts=len(prompts),
        num_unreadable=sum(too_long),
        num_tight=len(unfit) - sum(too_long),
        max_policy_tokens=max_policy_tokens,
    )
