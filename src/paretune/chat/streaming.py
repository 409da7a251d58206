"""One answer, token by token, from the sampler of the evaluation: the same tokens for the same seed."""

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass

from paretune.core.errors import DataError, WiringError
from paretune.core.rng import numpy_generator
from paretune.data.chat import decode_generation
from paretune.data.prompt_formats import (
    PromptFormat,
    ScorerView,
    add_format_instruction,
    format_instructions_for,
)
from paretune.data.records import Prompt
from paretune.models.load import PolicyModel, context_length
from paretune.rollout.decoding import decode_steps
from paretune.rollout.sampler import encode_prompts

UNFINISHED = "\ufffd"
"""End of a text whose last character has tokens to come."""


@dataclass(frozen=True, kw_only=True)
class ChatSide:
    """One of the models that answer."""

    name: str
    policy: PolicyModel
    prompt_format: PromptFormat = ""
    """Format instruction that is appended to the last message, as in the run that trained the model."""
    scorer_view: ScorerView = "full"
    """The part of its answers that scorers get."""


@dataclass(frozen=True, kw_only=True)
class ChatSettings:
    """How answers are sampled."""

    temperature: float = 1.0
    """0: always the most probable token."""
    max_new_tokens: int = 256
    """Longest answer in tokens."""
    seed: int = 1000

    def __post_init__(self) -> None:
        if not 0.0 <= self.temperature < float("inf"):
            raise WiringError(
                f"temperature: {self.temperature:g} is not a number from 0; "
                "fix: 1 samples as the evaluation does, 0 takes the most probable token"
            )
        if self.seed < 0 or self.max_new_tokens < 1:
            name, value = ("seed", self.seed) if self.seed < 0 else ("max_new_tokens", self.max_new_tokens)
            raise WiringError(f"{name}: {value} is too small; fix: a larger whole number")


@dataclass(frozen=True, kw_only=True)
class Answer:
    """An answer, complete or as far as it came."""

    text: str = ""
    num_tokens: int = 0
    """Including the token that ends it."""
    truncated: bool = False
    """It reached the length limit."""


class AnswerStream:
    """An answer that is being generated: iterate over the pieces of its text, then read `answer`."""

    def __init__(
        self, side: ChatSide, prompt: Prompt, settings: ChatSettings, prompt_index: int, sample_index: int
    ) -> None:
        """Read the prompt.

        Args:
            side: The model.
            prompt: The conversation so far.
            settings: How it is sampled.
            prompt_index: Index of the prompt among those of an evaluation with the same seed.
            sample_index: Number of the answer among those to this prompt.

        Raises:
            DataError: The conversation fills the context of the model, or its template rejects it.
        """
        policy = side.policy
        instructions = format_instructions_for(policy.tokenizer)
        formatted = add_format_instruction(prompt, side.prompt_format, instructions)
        (self._prompt_ids,) = _encode(side, formatted)
        room = context_length(policy.model) - len(self._prompt_ids)
        self._side, self._limit = side, min(settings.max_new_tokens, room)
        self._temperature = settings.temperature
        # The numbers of `LocalSampler` in step 0; a shorter limit takes the first of them.
        generator = numpy_generator(settings.seed, 0, "sample", prompt_index, sample_index)
        self._uniform = generator.random(settings.max_new_tokens)[: self._limit]
        self._ids: list[int] = []
        self._is_complete = False

    def __iter__(self) -> Iterator[str]:
        policy, shown = self._side.policy, ""
        policy.model.eval()
        steps = decode_steps(
            policy.model,
            [self._prompt_ids],
            [0],
            self._uniform[None],
            eos_ids=policy.eos_ids,
            temperature=self._temperature,
            pad_id=policy.pad_id,
        )
        for new_tokens in steps:
            self._ids.append(int(new_tokens))
            text = self._text()
            piece = text.removeprefix(shown) if text.startswith(shown) else ""
            if piece and not text.endswith(UNFINISHED):
                shown = text
                yield piece
            else:
                yield ""
        self._is_complete = True
        rest = self._text()
        if rest != shown and rest.startswith(shown):
            yield rest.removeprefix(shown)

    @property
    def answer(self) -> Answer:
        """The answer so far."""
        ended = bool(self._ids) and self._ids[-1] in self._side.policy.eos_ids
        return Answer(text=self._text(), num_tokens=len(self._ids), truncated=self._is_complete and not ended)

    def _text(self) -> str:
        policy = self._side.policy
        return decode_generation(policy.tokenizer, self._ids, policy.eos_ids, self._side.prompt_format)


def _encode(side: ChatSide, prompt: Prompt) -> list[list[int]]:
    try:
        return encode_prompts(side.policy, [prompt], max_new_tokens=1)
    except DataError as error:
        limit = context_length(side.policy.model)
        if "too long" not in str(error):
            raise
        is_first = sum(message.role == "user" for message in prompt.messages) == 1
        whole, fix = ("prompt", "shorten it") if is_first else ("conversation", "begin a new one (/clear)")
        problem = f"the {whole} fills its context of {limit:,} tokens"
        raise DataError(f"{side.name}: {problem}; fix: {fix}") from error


def require_utf8(prompt: str) -> None:
    """Refuse a prompt with bytes that no tokenizer takes: what Python reads from a file that is not UTF-8.

    Raises:
        DataError: It has some.
    """
    try:
        prompt.encode()
    except UnicodeEncodeError as error:
        problem = f"the prompt is not valid UTF-8 at character {error.start + 1}"
        raise DataError(f"{problem}; fix: convert it, for example with iconv -t UTF-8") from error


def take_turns(streams: Sequence[AnswerStream]) -> Generator[tuple[int, str | None], None, None]:
    """The pieces of several answers, one token of each in turn: (number of the answer, piece).

    The piece is None when that answer is complete.
    """
    waiting = {i: iter(stream) for i, stream in enumerate(streams)}
    while waiting:
        for i in list(waiting):
            piece = next(waiting[i], None)
            if piece is None:
                del waiting[i]
            if piece != "":
                yield i, piece
