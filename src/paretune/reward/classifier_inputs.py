"""Responses as token rows of sequence classifiers: alone, with the prompt, or as a conversation."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from paretune.core.types import PreTrainedTokenizerBase
from paretune.data.chat_template import ChatTemplate, ChatTemplateError, chat_template_of
from paretune.data.records import Message, Prompt, Sample
from paretune.reward.failures import FailureCounts

_PROBE_PROMPT = Prompt(messages=(Message("user", "a"),))
Reads = Literal["response", "prompt_and_response", "conversation"]
"""What a classifier reads."""


@dataclass(frozen=True, slots=True)
class ClassifierRow:
    """A text in tokens, special tokens included."""

    input_ids: list[int]
    token_type_ids: list[int]
    """Segment of each token."""


class UnreadableTextError(ValueError):
    """A classifier cannot read a text; the message is the reason."""


@dataclass(frozen=True)
class ClassifierEncoder:
    """Encodes responses for a classifier; control tokens that a text spells are encoded as plain text."""

    tokenizer: PreTrainedTokenizerBase
    reads: Reads = "response"

    def __call__(self, prompt: Prompt, response: str) -> ClassifierRow:
        """The row of a response.

        With `prompt_and_response`, the contents of all messages are the first text, one per line. With
        `conversation`, the row is the whole rendering of the chat template and nothing else.

        Raises:
            UnreadableTextError: There is no prompt, or the chat template rejects the conversation.
        """
        if self.reads == "conversation":
            row = conversation_row(self.tokenizer, prompt, response)
        elif self.reads == "response":
            row = self._response_frame.fill([self._encode(response)])
        elif prompt.messages:
            texts = ("\n".join(message.content for message in prompt.messages), response)
            row = self._pair_frame.fill([self._encode(text) for text in texts])
        else:
            raise UnreadableTextError("there is no prompt")
        return row

    def _encode(self, text: str) -> list[int]:
        template = chat_template_of(self.tokenizer)
        return template.encode(template.mark(text))

    @cached_property
    def _response_frame(self) -> "_Frame":
        return _frame_of(self.tokenizer, chat_template_of(self.tokenizer), ("ab",))

    @cached_property
    def _pair_frame(self) -> "_Frame":
        return _frame_of(self.tokenizer, chat_template_of(self.tokenizer), ("ab", "cd"))


def conversation_row(tokenizer: PreTrainedTokenizerBase, prompt: Prompt, response: str) -> ClassifierRow:
    """The whole rendering of a conversation by the tokenizer's chat template.

    Published reward models read it so, up to and including what the template writes after the last turn.

    Raises:
        UnreadableTextError: The chat template rejects the conversation.
    """
    template = chat_template_of(tokenizer)
    answer = Message("assistant", template.mark(response))
    try:
        text = template.render([*template.marked(prompt.messages), answer], prompt_id=prompt.id)
    except ChatTemplateError as error:
        raise UnreadableTextError(error.problem) from error
    ids = template.encode(text)
    return ClassifierRow(ids, [0] * len(ids))


def conversation_problem(tokenizer: PreTrainedTokenizerBase) -> str:
    """Why the tokenizer's chat template cannot render conversations for scoring; "" if it can."""
    if chat_template_of(tokenizer).source is None:
        return "it has no chat template, so how it reads a conversation is unknown"
    try:
        rows = [conversation_row(tokenizer, _PROBE_PROMPT, response).input_ids for response in ("b", "cd")]
    except UnreadableTextError as error:
        return str(error)
    if not any(rows):
        return "the chat template renders no text"
    return "the chat template leaves out the response" if rows[0] == rows[1] else ""


def up_to_last_read(ids: list[int], pad_id: int | None) -> list[int]:
    """The row up to its last token that is not the padding token: there transformers reads a classifier.

    Where padding and EOS are one token, that is a token before the end, also in the training of the model.
    """
    end = next((i for i in range(len(ids), 0, -1) if ids[i - 1] != pad_id), 1)
    return ids[:end]


def score_readable(
    samples: Sequence[Sample],
    num_columns: int,
    failures: FailureCounts,
    encode: Callable[[Sample], ClassifierRow],
    score: Callable[[Sequence[ClassifierRow]], Tensor],
) -> Float[Tensor, "B k"]:
    """Scores of the samples that can be read; NaN for the others, whose reasons are counted.

    Args:
        samples: Prompts and responses.
        num_columns: Scores per sample.
        failures: Is added to.
        encode: Row of a sample; raises UnreadableTextError.
        score: Scores [b, num_columns] of rows.
    """
    scores = torch.full((len(samples), num_columns), torch.nan)
    failures.num_responses += len(samples)
    rows: dict[int, ClassifierRow] = {}
    for i, sample in enumerate(samples):
        try:
            _require_whole_characters(sample)
            rows[i] = encode(sample)
        except UnreadableTextError as error:
            failures.reasons[str(error)] += 1
    if rows:
        values = score(list(rows.values()))
        is_finite = values.isfinite().all(-1, keepdim=True)
        scores[list(rows)] = torch.where(is_finite, values, torch.nan)
        if num_infinite := int((~is_finite).sum()):
            failures.reasons["the model returned NaN or infinity"] += num_infinite
    return scores


def _require_whole_characters(sample: Sample) -> None:
    """JSON can hold half a character (a lone surrogate), which tokenizers reject."""
    try:
        for text in (sample.response, *(message.content for message in sample.prompt.messages)):
            text.encode()
    except UnicodeEncodeError as error:
        raise UnreadableTextError("the text holds half a character") from error


def require_readable(row: ClassifierRow, *, max_length: int, num_embeddings: int) -> ClassifierRow:
    """The row itself.

    Raises:
        UnreadableTextError: It is empty, longer than the model reads, or has a token without an embedding.
    """
    if not row.input_ids:
        raise UnreadableTextError("there is no text")
    if len(row.input_ids) > max_length:
        raise UnreadableTextError(f"longer than the {max_length:,} tokens that the model reads")
    if max(row.input_ids) >= num_embeddings:
        raise UnreadableTextError("a token has no embedding in the model")
    return row


@dataclass(frozen=True, slots=True)
class _Frame:
    """The special tokens around one text or a pair of texts."""

    pieces: tuple[ClassifierRow, ...]
    """Before, between and after the texts."""
    text_types: tuple[int, ...]
    """Segment of the tokens of each text."""

    def fill(self, texts: Sequence[list[int]]) -> ClassifierRow:
        row = ClassifierRow(list(self.pieces[0].input_ids), list(self.pieces[0].token_type_ids))
        for ids, segment, piece in zip(texts, self.text_types, self.pieces[1:], strict=True):
            row.input_ids.extend([*ids, *piece.input_ids])
            row.token_type_ids.extend([*[segment] * len(ids), *piece.token_type_ids])
        return row


def _frame_of(tokenizer: PreTrainedTokenizerBase, template: ChatTemplate, probes: tuple[str, ...]) -> _Frame:
    """What the tokenizer puts around texts, read off its encoding of short ones.

    Texts that spell control tokens have to be encoded in pieces, so the tokenizer's own call cannot be used.
    """
    encoded = tokenizer(*probes)
    ids = list(encoded["input_ids"])
    types = list(encoded.get("token_type_ids") or [0] * len(ids))
    pieces, text_types, start = [], [], 0
    for probe in probes:
        text = template.encode(probe)
        end = next(i for i in range(start, len(ids)) if ids[i : i + len(text)] == text)
        pieces.append(ClassifierRow(ids[start:end], types[start:end]))
        text_types.append(types[end])
        start = end + len(text)
    pieces.append(ClassifierRow(ids[start:], types[start:]))
    return _Frame(tuple(pieces), tuple(text_types))
