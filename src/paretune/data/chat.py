"""Conversations as token rows, and the text of responses.

A prompt to sample from is rendered by the tokenizer's chat template with the generation prompt. A response
from data is rendered together with its prompt: its row is the template's own rendering of the conversation.
Control tokens that a text spells are encoded as plain text.
"""

import hashlib
import json
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from paretune.core.types import PreTrainedTokenizerBase
from paretune.data.chat_checks import writes_answers_unchanged
from paretune.data.chat_template import (
    CORRECT_TEMPLATE_FIX,
    THINK_END_TAG,
    THINK_START_TAG,
    ChatTemplate,
    ChatTemplateError,
    chat_template_of,
    shared_length,
)
from paretune.data.prompt_formats import PromptFormat
from paretune.data.records import Message, Prompt


@dataclass(frozen=True, slots=True)
class EncodedRow:
    """A conversation in tokens."""

    prompt_ids: list[int]
    response_ids: list[int]
    """From the first token that belongs to the answer to the token that ends its turn."""

    @property
    def input_ids(self) -> list[int]:
        """The whole row."""
        return self.prompt_ids + self.response_ids


def encode_prompt(tokenizer: PreTrainedTokenizerBase, prompt: Prompt) -> list[int]:
    """Token ids of everything before a sampled response.

    With a chat template: its rendering with the generation prompt and no further special tokens, since
    templates write BOS themselves. Without one: BOS if the tokenizer has it, then the message contents, one
    per line. A prompt without messages is the generation prompt alone, or BOS alone, or empty if the
    tokenizer has neither.

    Raises:
        ChatTemplateError: The chat template rejects the prompt, as some do with a system message.
    """
    template = chat_template_of(tokenizer)
    return _encode_prompt_text(template, prompt, _render_prompt(template, prompt, marked=True))


def _encode_prompt_text(template: ChatTemplate, prompt: Prompt, text: str) -> list[int]:
    ids = template.encode(text)
    is_empty = not prompt.messages and not ids
    bos_id = template.tokenizer.bos_token_id if template.source is None or is_empty else None
    return ids if bos_id is None else [bos_id, *ids]


def render_prompt(tokenizer: PreTrainedTokenizerBase, prompt: Prompt) -> str:
    """The text of a prompt before tokenization.

    Raises:
        ChatTemplateError: The chat template rejects the prompt.
    """
    return _render_prompt(chat_template_of(tokenizer), prompt, marked=False)


def _render_prompt(template: ChatTemplate, prompt: Prompt, *, marked: bool) -> str:
    messages = template.marked(prompt.messages) if marked else prompt.messages
    if template.source is None:
        return "\n".join(message.content for message in messages)
    if messages:
        return template.render(messages, add_generation_prompt=True, prompt_id=prompt.id)
    return template.turns.generation_prompt  # templates fail on an empty conversation


def encode_response(tokenizer: PreTrainedTokenizerBase, response: str, *, eos_id: int) -> list[int]:
    """Token ids of a text on its own, followed by EOS; control tokens that it spells are plain text."""
    template = chat_template_of(tokenizer)
    return [*template.encode(template.mark(response)), eos_id]


def encode_row(
    tokenizer: PreTrainedTokenizerBase, prompt: Prompt, response: str, *, eos_id: int
) -> EncodedRow:
    """A prompt and a response from data in tokens; see `encode_rows`."""
    return encode_rows(tokenizer, [(prompt, response)], eos_id=eos_id)[0]


def encode_rows(
    tokenizer: PreTrainedTokenizerBase, rows: Iterable[tuple[Prompt, str]], *, eos_id: int
) -> list[EncodedRow]:
    """Prompts and responses from data in tokens.

    A row is the chat template's own rendering of the conversation, up to the token that ends the answer. The
    answer begins where the rendering leaves the generation prompt. Templates whose generation prompt opens a
    thought write none before an answer without one: there it begins where the template writes its text.

    Args:
        tokenizer: The tokenizer, with or without a chat template.
        rows: Prompts and responses; each prompt is encoded once.
        eos_id: Ends the response where the template writes no control token after it.

    Raises:
        ChatTemplateError: The chat template rejects a conversation.
    """
    template = chat_template_of(tokenizer)
    rows = list(rows)
    alone = [template.source is None or not prompt.messages for prompt, _ in rows]
    kinds = {True: _encode_alone, False: _encode_conversations}
    encoded = {
        kind: iter(encode(template, [row for row, a in zip(rows, alone, strict=True) if a == kind], eos_id))
        for kind, encode in kinds.items()
    }
    return [next(encoded[kind]) for kind in alone]


def _encode_conversations(
    template: ChatTemplate, rows: Sequence[tuple[Prompt, str]], eos_id: int
) -> list[EncodedRow]:
    rendered: dict[Prompt, _RenderedPrompt] = {}
    encoded: list[EncodedRow] = []
    texts: list[tuple[str, str]] = []
    for prompt, response in rows:
        if prompt not in rendered:
            rendered[prompt] = _RenderedPrompt(_render_prompt(template, prompt, marked=True))
        texts.append(_conversation_text(template, prompt, response, rendered[prompt]))
    # One call for all texts: that of a tokenizer takes longer than its work on a short text.
    distinct = list(dict.fromkeys(text for pair in texts for text in pair))
    ids_of = dict(zip(distinct, template.encode_all(distinct), strict=True))
    for prompt_text, text in texts:
        prompt_ids, ids = ids_of[prompt_text], ids_of[text]
        # A token may span the boundary: the answer begins with the first token that differs.
        length = shared_length(prompt_ids, ids)
        end = [] if template.turns.end_id is not None else [eos_id]
        encoded.append(EncodedRow(ids[:length], [*ids[length:], *end]))
    return encoded


def _encode_alone(
    template: ChatTemplate, rows: Sequence[tuple[Prompt, str]], eos_id: int
) -> list[EncodedRow]:
    """Rows whose response is encoded on its own: those without a chat template, or without messages."""
    end_id = None if template.source is None else template.turns.end_id
    prompts = {prompt: _render_prompt(template, prompt, marked=True) for prompt in dict(rows)}
    prompt_ids = {prompt: _encode_prompt_text(template, prompt, text) for prompt, text in prompts.items()}
    responses = template.encode_all([template.mark(response) for _, response in rows])
    return [
        EncodedRow(prompt_ids[prompt], [*ids, eos_id if end_id is None else end_id])
        for (prompt, _), ids in zip(rows, responses, strict=True)
    ]


@dataclass
class _RenderedPrompt:
    """A prompt, and what surrounds the answers to it."""

    text: str
    """Rendering of the prompt with the generation prompt."""
    before_answer: str | None = None
    """Rendering of a conversation up to its answer; None: not known."""


def _conversation_text(
    template: ChatTemplate, prompt: Prompt, response: str, rendered: _RenderedPrompt
) -> tuple[str, str]:
    """Renderings of a prompt and of a conversation up to the end of its answer, with marks.

    Several answers to one prompt share its rendering, if the template writes them as they are.
    """
    turns, prompt_text, answer = template.turns, rendered.text, template.mark(response)
    as_it_is = template.writes_unchanged(answer)
    if as_it_is and rendered.before_answer is not None:
        text = rendered.before_answer + answer + turns.end_token
        return _shared_prompt(template, prompt, prompt_text, text), text
    if turns.opened_thought and THINK_END_TAG in answer and THINK_START_TAG not in answer:
        answer = turns.opened_thought + answer  # as sampled: the generation prompt has the opening tag
    messages = template.marked(prompt.messages)
    text = template.render([*messages, Message("assistant", answer)], prompt_id=prompt.id)
    if not text.endswith(turns.answer_end):
        problem = f"the chat template ends this answer otherwise than others ({turns.answer_end!r})"
        raise ChatTemplateError(prompt.id, problem, fix=CORRECT_TEMPLATE_FIX)
    text = text.removesuffix(turns.answer_end) + turns.end_token
    is_shared = as_it_is and text.endswith(answer + turns.end_token)
    if is_shared and writes_answers_unchanged(template, prompt.messages):
        rendered.before_answer = text.removesuffix(answer + turns.end_token)
    thought = _thought(answer)
    if thought and thought not in text[shared_length(text, prompt_text) :]:
        # The template drops the thoughts of earlier turns, and of the last one too. A policy samples them.
        if turns.opened_thought:
            answer = answer.lstrip().removeprefix(THINK_START_TAG).lstrip("\n")
        text = prompt_text + answer + turns.end_token
    return _shared_prompt(template, prompt, prompt_text, text), text


def _shared_prompt(template: ChatTemplate, prompt: Prompt, prompt_text: str, text: str) -> str:
    """The part of a conversation's rendering that is the prompt: all before the text of the answer."""
    if text.startswith(prompt_text):
        return prompt_text
    return text[: shared_length(text, template.answer_position(template.marked(prompt.messages), prompt.id))]


def _thought(answer: str) -> str:
    """The thinking in the text of an answer; "" if it has none."""
    before, end, _ = answer.partition(THINK_END_TAG)
    return before.rpartition(THINK_START_TAG)[2].strip() if end else ""


def decode_response(
    tokenizer: PreTrainedTokenizerBase, token_ids: Sequence[int], eos_ids: Collection[int]
) -> str:
    """Text of response tokens up to the first EOS, without special tokens except the tags of the thinking."""
    end = next((i for i, token in enumerate(token_ids) if token in eos_ids), len(token_ids))
    # Decoding without special tokens would drop the tags too, where they are special.
    hidden = chat_template_of(tokenizer).hidden_ids
    ids = [token for token in token_ids[:end] if token not in hidden]
    text = tokenizer.decode(ids, skip_special_tokens=not hidden, clean_up_tokenization_spaces=False)
    assert isinstance(text, str)
    return text


def decode_generation(
    tokenizer: PreTrainedTokenizerBase,
    token_ids: Sequence[int],
    eos_ids: Collection[int],
    prompt_format: PromptFormat = "",
) -> str:
    """Text of a sampled response as scorers and readers get it.

    A thought that the generation prompt opened begins with its tag, which the policy did not have to write.
    What the template itself writes before every answer, such as an empty thought, is no part of the text; in
    the format "think" it is, since the policy is asked for it.
    """
    template = chat_template_of(tokenizer)
    if template.source is None:
        return decode_response(tokenizer, token_ids, eos_ids)
    start = template.turns.answer_start
    if start and not (prompt_format == "think" and THINK_START_TAG in start):
        start_ids = template.encode(start)
        if list(token_ids[: len(start_ids)]) == start_ids:
            token_ids = token_ids[len(start_ids) :]
    return template.turns.opened_thought + decode_response(tokenizer, token_ids, eos_ids)


def has_control_tokens(tokenizer: PreTrainedTokenizerBase, texts: Iterable[str]) -> bool:
    """True if one of the texts spells control tokens of the tokenizer; they are encoded as plain text."""
    return any(map(chat_template_of(tokenizer).has_control_tokens, texts))


def template_hash(tokenizer: PreTrainedTokenizerBase) -> str:
    """SHA-256 of the renderings of four conversations: equal for tokenizers that render prompts equally."""
    conversations = (
        (),
        (Message("user", " a\nb "),),
        (Message("user", "a"), Message("assistant", "b"), Message("user", "c")),
        (Message("system", "s"), Message("user", "a")),
    )
    # The keys are hashed too: renaming one invalidates every stored hash.
    renderings: dict[str, Any] = {"begin": tokenizer.bos_token, "bare": tokenizer.chat_template is None}
    if arguments := chat_template_of(tokenizer).arguments:
        renderings["arguments"] = arguments
    for i, messages in enumerate(conversations):
        try:
            renderings[str(i)] = render_prompt(tokenizer, Prompt(messages=messages))
        except ChatTemplateError:
            renderings[str(i)] = None
    return hashlib.sha256(json.dumps(renderings, sort_keys=True).encode()).hexdigest()
