"""Whether a record is short enough for the model that reads it, and what to do when it is not."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from paretune.data.columns import BadField
from paretune.data.frame import Frame, framed
from paretune.data.records import Preference, Prompt
from paretune.data.template import Refused, encode_prompt, encode_response, wording_for
from paretune.elsewhere import PreTrainedTokenizerBase


@dataclass
class Fits:
    """Asked of the records of one file: gives back those that are taken."""

    tokenizer: PreTrainedTokenizerBase
    most: int
    """Longest record in tokens."""
    longer: str
    """What to do with a longer one: "error", "drop" or "cut"."""
    dropped: int = 0
    frame: Frame = ""
    """What is asked beside prompts that are to be answered."""

    def __call__(self, record: Any) -> Any:
        """The record if it is short enough, cut where that is wanted; None if it is left out.

        With `longer: cut`, it lacks its oldest turns, as many as it takes to fit. What is left begins with a
        user turn, as chat templates ask for; the last of them is never cut off.

        Raises:
            BadField: It is too long and `longer` is "error", or the chat template refuses its turns.
        """
        shorter, tokens = self._cut(record)
        if tokens <= self.most:
            return shorter
        if self.longer == "error":
            fix = "shorten it, or write `longer: drop` to leave such rows out"
            raise BadField("prompt", f"{tokens} tokens, and there is room for {self.most}", fix=fix)
        self.dropped += 1
        return None

    def _cut(self, record: Any) -> tuple[Any, int]:
        """The record, cut where that is wanted, and its tokens."""
        answers, tokens = self._answers(record), self._asks(record)
        if self.longer == "cut":
            for shorter in _shorter(record):
                if answers + tokens <= self.most:
                    break
                record, tokens = shorter, self._asks(shorter)
        return record, answers + tokens

    def _asks(self, record: Any) -> int:
        """Tokens of the prompt."""
        try:
            prompt = self._framed(record) if isinstance(record, Prompt) else record.prompt
            return len(encode_prompt(self.tokenizer, prompt))
        except Refused as error:
            raise BadField("prompt", error.wrong, fix=error.fix) from error

    def _framed(self, prompt: Prompt) -> Prompt:
        if self.frame and not (prompt.messages and prompt.messages[-1].role == "user"):
            fix = "end it with a turn of the user, or ask for nothing beside the prompts"
            raise BadField("prompt", "its last turn is not the user's, and more is to be asked", fix=fix)
        return framed(prompt, self.frame, wording_for(self.tokenizer))

    def _answers(self, record: Any) -> int:
        """Tokens of the response, or of the longest one."""
        if isinstance(record, Prompt):
            return 0
        texts = (record.chosen, record.rejected) if isinstance(record, Preference) else (record.response,)
        return max(len(encode_response(self.tokenizer, text, stop=0)) for text in texts)


def _shorter(record: Any) -> Iterator[Any]:
    """The record from its next user turn on, then from the one after that, ..."""
    turns = record.prompt.messages
    for start, turn in enumerate(turns):
        if start and turn.role == "user":
            yield replace(record, prompt=replace(record.prompt, messages=turns[start:]))
