"""Whether a record is short enough for the model that reads it, and what to do when it is not."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from paretune.data.columns import FieldError
from paretune.data.frame import PromptFormat, add_format_instruction
from paretune.data.records import PreferencePair, Prompt
from paretune.data.template import ChatTemplateError, encode_prompt, encode_response, format_instructions_for
from paretune.elsewhere import PreTrainedTokenizerBase


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
