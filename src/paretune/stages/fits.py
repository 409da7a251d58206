"""Whether a record is short enough for the model that reads it, and what to do when it is not."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from transformers import PreTrainedTokenizerBase

from paretune.data.columns import BadField
from paretune.data.records import Preference, Prompt
from paretune.data.template import Refused, encode_prompt, encode_response


@dataclass
class Fits:
    """Asked of every record of one file: True for those that are taken."""

    tokenizer: PreTrainedTokenizerBase
    most: int
    """Longest record in tokens."""
    longer: str
    """What to do with a longer one: "error", "drop" or "cut"."""
    dropped: int = 0

    def __call__(self, record: Any) -> bool:
        """Whether the record, cut where that is wanted, is short enough.

        Raises:
            BadField: It is too long and `longer` is "error", or the chat template refuses its turns.
        """
        _, tokens = self._cut(record)
        if tokens <= self.most:
            return True
        if self.longer == "error":
            fix = "shorten it, or write `longer: drop` to leave such rows out"
            raise BadField("prompt", f"{tokens} tokens, and there is room for {self.most}", fix=fix)
        self.dropped += 1
        return False

    def shortened(self, record: Any) -> Any:
        """With `longer: cut`, the record without its oldest turns, as many as it takes to fit.

        What is left begins with a user turn, as chat templates ask for; the last of them is never cut off.
        """
        return self._cut(record)[0] if self.longer == "cut" else record

    def _cut(self, record: Any) -> tuple[Any, int]:
        """The record, cut where that is wanted, and its tokens."""
        tokens = self._tokens(record)
        if self.longer == "cut":
            for shorter in _shorter(record):
                if tokens <= self.most:
                    break
                record, tokens = shorter, self._tokens(shorter)
        return record, tokens

    def _tokens(self, record: Any) -> int:
        try:
            if isinstance(record, Prompt):
                return len(encode_prompt(self.tokenizer, record))
            prompt = len(encode_prompt(self.tokenizer, record.prompt))
        except Refused as error:
            raise BadField("prompt", error.wrong, fix=error.fix) from error
        texts = (record.chosen, record.rejected) if isinstance(record, Preference) else (record.response,)
        return prompt + max(len(encode_response(self.tokenizer, text, stop=0)) for text in texts)


def _shorter(record: Any) -> Iterator[Any]:
    """The record from its next user turn on, then from the one after that, ..."""
    turns = record.prompt.messages
    for start, turn in enumerate(turns):
        if start and turn.role == "user":
            yield replace(record, prompt=replace(record.prompt, messages=turns[start:]))
