"""A conversation: its history per model, the events of an answer, and the scores of what was answered."""

from collections.abc import Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from paretune.chat.scoring import ChatScorer, score_answers
from paretune.chat.streaming import Answer, AnswerStream, ChatSettings, ChatSide, require_utf8, take_turns
from paretune.core.errors import ConfigError
from paretune.core.goals import Goal
from paretune.data.records import Message, Prompt

Scores = Mapping[str, Mapping[str, float | None]]
"""Scorer -> objective -> score; None: not scored."""


@dataclass(frozen=True, kw_only=True)
class ChatEvent:
    """A piece of one answer, its end, or its scores, in the order in which they are known."""

    side: int
    """Which model: its index in `Chat.sides`."""
    model: str
    """Its name."""
    event: Literal["text", "done", "scores"]
    text: str = ""
    """text: what comes next; done: the whole answer, which may differ from the pieces in white space."""
    num_tokens: int | None = None
    """done: tokens of the answer, the one that ends it included."""
    truncated: bool = False
    """done: the length limit ended it."""
    scores: Scores = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """As an object of JSON, without what this kind of event does not have."""
        values: dict[str, Any] = {"event": self.event, "side": self.side, "model": self.model}
        if self.event == "scores":
            return {**values, "scores": {name: dict(own) for name, own in self.scores.items()}}
        values["text"] = self.text
        if self.event == "done":
            values |= {"num_tokens": self.num_tokens, "truncated": self.truncated}
        return values


ChatEvents = Generator[ChatEvent, None, None]
"""The events of the answers to one prompt; closed early, the answers stay as far as they came."""


@dataclass(frozen=True)
class _Turn:
    text: str
    answers: tuple[Answer, ...]


class Chat:
    """A conversation with one or two models at the same time, each of which reads its own answers.

        chat = pt.load_chat("runs/demo")
        for event in chat.stream("My printer is on fire."):
            print(event.model, event.text or event.scores)

    The answers are those of `paretune.sample` and of the evaluation for the same seed: the first prompt of a
    conversation is prompt 0 there, the second one prompt 1; `retry` gives the further responses to a prompt.
    One answer at a time: models are not shared by threads.
    """

    def __init__(
        self,
        sides: Sequence[ChatSide],
        scorers: Sequence[ChatScorer] = (),
        settings: ChatSettings | None = None,
        notes: Sequence[str] = (),
        goals: Mapping[str, Goal] | None = None,
    ) -> None:
        """Start a conversation.

        Args:
            sides: The models.
            scorers: What scores the answers.
            settings: How answers are sampled; see `configure`.
            notes: What a reader should know, such as a scorer that cannot score here.
            goals: Objective -> which of its scores are good, where that is known.
        """
        self.sides, self.scorers, self.notes = tuple(sides), tuple(scorers), tuple(notes)
        self.settings = settings or ChatSettings()
        self.goals: Mapping[str, Goal] = goals or {}
        self._turns: list[_Turn] = []
        self._prompt_index = self._sample_index = 0
        self.last_prompt = ""
        """The prompt that was answered last."""

    @property
    def num_turns(self) -> int:
        """Prompts of the conversation so far."""
        return len(self._turns)

    @property
    def weights_bytes(self) -> int:
        """Memory of the weights of the models, without those that score."""
        weights = {id(each): each for side in self.sides for each in side.policy.model.parameters()}
        return sum(each.nbytes for each in weights.values())

    def describe_settings(self) -> str:
        """How answers are sampled, on one line."""
        temperature, seed = self.settings.temperature, self.settings.seed
        how = "most probable tokens" if temperature == 0 else f"temperature {temperature:g}"
        return f"{how}, seed {seed}, at most {self.settings.max_new_tokens} tokens"

    def configure(
        self,
        *,
        temperature: float | None = None,
        seed: int | None = None,
        max_new_tokens: int | None = None,
    ) -> None:
        """Change how the next answers are sampled; None: as before.

        Args:
            temperature: Sampling temperature; 0: always the most probable token.
            seed: Seed of the answers.
            max_new_tokens: Longest answer in tokens.

        Raises:
            WiringError: A number is out of range.
        """
        given = {"temperature": temperature, "seed": seed, "max_new_tokens": max_new_tokens}
        changes: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
        self.settings = replace(self.settings, **changes)

    def clear(self, prompt_index: int = 0) -> None:
        """Begin a new conversation.

        Args:
            prompt_index: Index of its first prompt among those of an evaluation.
        """
        self._turns, self._prompt_index = [], prompt_index

    def stream(self, prompt: str) -> ChatEvents:
        """Answer a prompt: pieces of text as they come, then the whole answers, then their scores.

        An answer whose events are not read to the end stays in the conversation as far as it came.

        Raises:
            DataError: The prompt is no UTF-8 text, or the conversation fills the context of a model.
        """
        require_utf8(prompt)
        self._sample_index = 0
        return self._answers(prompt)

    def retry(self) -> ChatEvents:
        """Answer the last prompt again: the next sample of the same seed, and the same at temperature 0.

        Raises:
            ConfigError: There is no prompt yet.
        """
        if not self._turns:
            raise ConfigError("there is no prompt to answer again; fix: write one first")
        last = self._turns.pop()
        self._prompt_index -= 1
        self._sample_index += 1
        return self._answers(last.text)

    def _answers(self, text: str) -> ChatEvents:
        self.last_prompt = text
        prompts = tuple(self._prompt(i, text) for i in range(len(self.sides)))
        streams = [
            AnswerStream(side, prompt, self.settings, self._prompt_index, self._sample_index)
            for side, prompt in zip(self.sides, prompts, strict=True)
        ]
        return self._events(text, prompts, streams)

    def _events(self, text: str, prompts: Sequence[Prompt], streams: Sequence[AnswerStream]) -> ChatEvents:
        try:
            with closing(take_turns(streams)) as pieces:
                for i, piece in pieces:
                    yield (
                        self._done(i, streams[i].answer)
                        if piece is None
                        else self._event(i, "text", text=piece)
                    )
        finally:
            answers = tuple(stream.answer for stream in streams)
            self._turns.append(_Turn(text, answers))
            self._prompt_index += 1
        if self.scorers:
            scores = score_answers(self.scorers, self.sides, prompts, answers)
            for i, own in enumerate(scores):
                yield self._event(i, "scores", scores=own)

    def _prompt(self, side: int, text: str) -> Prompt:
        messages: list[Message] = []
        for turn in self._turns:
            messages += [Message("user", turn.text), Message("assistant", turn.answers[side].text)]
        return Prompt(messages=(*messages, Message("user", text)))

    def _done(self, side: int, answer: Answer) -> ChatEvent:
        event = self._event(side, "done", text=answer.text, truncated=answer.truncated)
        return replace(event, num_tokens=answer.num_tokens)

    def _event(self, side: int, event: Literal["text", "done", "scores"], **values: Any) -> ChatEvent:
        return ChatEvent(side=side, model=self.sides[side].name, event=event, **values)
