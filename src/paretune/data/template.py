"""Text to tokens and back: the only file that knows of chat templates and special tokens.

A prompt is rendered by the tokenizer's own chat template up to the point where the assistant begins to speak,
and a response is what follows: its tokens and a stop token. The two are tokenized apart, in training as in
sampling.
"""

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from paretune.data.frame import BASE_MODEL_INSTRUCTIONS, CHAT_MODEL_INSTRUCTIONS, FormatInstructions
from paretune.data.records import Message, Prompt
from paretune.data.world_model import HELPDESK_INSTRUCTIONS, is_helpdesk_tokenizer
from paretune.elsewhere import PreTrainedTokenizerBase
from paretune.errors import DataError, format_issue

FIXED_DATE = "26 Jul 2024"
DATE_MACRO = "{% macro strftime_now(format) %}" + FIXED_DATE + "{% endmacro %}{{ '' }}"
"""Put before templates that ask for today's date: a prompt is the same on every day that a run goes on."""


class ChatTemplateError(DataError):
    """A chat template that cannot render the turns of a prompt."""

    fix = "use turns it knows (many refuse system turns, or two turns of one role in a row)"

    def __init__(self, prompt_id: str, problem: str) -> None:
        super().__init__(format_issue(f'prompt "{prompt_id}"', None, None, "", problem, fix=self.fix))
        self.problem = problem


def encode_prompt(tokenizer: PreTrainedTokenizerBase, prompt: Prompt) -> list[int]:
    """Tokens of everything before the response.

    With a chat template, its rendering with the generation prompt; nothing is added to it, since templates
    write their own beginning-of-sequence token. Without one, the contents of the turns, one below the other,
    behind the tokenizer's beginning-of-sequence token if it has one. An empty prompt is the generation prompt
    alone, or that token alone; it is empty where a tokenizer has neither.

    Raises:
        Refused: The chat template refuses the prompt, as some do with a system turn.
    """
    ids = list(
        tokenizer(render_prompt(tokenizer, prompt), add_special_tokens=False, verbose=False)["input_ids"]
    )
    bare = not prompt.messages and not ids
    begin = tokenizer.bos_token_id if tokenizer.chat_template is None or bare else None
    return ids if begin is None else [begin, *ids]


def render_prompt(tokenizer: PreTrainedTokenizerBase, prompt: Prompt) -> str:
    """The text whose tokens a prompt is.

    Raises:
        Refused: The chat template refuses the prompt.
    """
    if tokenizer.chat_template is None:
        return "\n".join(message.content for message in prompt.messages)
    turns = [{"role": message.role, "content": message.content} for message in prompt.messages]
    if turns:
        return _apply_chat_template(tokenizer, turns, prompt.id, add_generation_prompt=True)
    # A template cannot render nothing, so the generation prompt is what it adds to a conversation.
    turns = [{"role": "user", "content": "x"}]
    closed = _apply_chat_template(tokenizer, turns, prompt.id, add_generation_prompt=False)
    opened = _apply_chat_template(tokenizer, turns, prompt.id, add_generation_prompt=True)
    return opened.removeprefix(closed) if opened.startswith(closed) else ""


def _apply_chat_template(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Mapping[str, str]],
    prompt_id: str,
    *,
    add_generation_prompt: bool,
) -> str:
    from jinja2 import TemplateError

    try:
        template = tokenizer.get_chat_template()
        dated = DATE_MACRO + template if "strftime_now" in template else template
        text = tokenizer.apply_chat_template(
            list(messages),
            chat_template=dated,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            date_string=FIXED_DATE,
        )
    except (TemplateError, ValueError) as error:
        roles = ", ".join(turn["role"] for turn in messages)
        raise ChatTemplateError(
            prompt_id, f"the chat template refuses turns of {roles}: {' '.join(str(error).split())}"
        ) from error
    assert isinstance(text, str)
    return text


def format_instructions_for(tokenizer: PreTrainedTokenizerBase) -> FormatInstructions:
    """How a model of this tokenizer is asked by a frame: an instruction, or the bare form of the reply.

    Models of the built-in world are asked in words they have.
    """
    if is_helpdesk_tokenizer(tokenizer):
        return HELPDESK_INSTRUCTIONS
    return BASE_MODEL_INSTRUCTIONS if tokenizer.chat_template is None else CHAT_MODEL_INSTRUCTIONS


def encode_response(tokenizer: PreTrainedTokenizerBase, response: str, *, eos_id: int) -> list[int]:
    """Tokens of a response, and the stop token that ends it."""
    return [*tokenizer(response, add_special_tokens=False, verbose=False)["input_ids"], eos_id]


def decode_response(
    tokenizer: PreTrainedTokenizerBase, token_ids: Sequence[int], eos_ids: Collection[int]
) -> str:
    """The text of response tokens up to the first stop token, as scorers and people read it."""
    end = next((i for i, token in enumerate(token_ids) if token in eos_ids), len(token_ids))
    text = tokenizer.decode(
        list(token_ids[:end]), skip_special_tokens=True, clean_up_tokenization_spaces=False
    )
    assert isinstance(text, str)
    return text


def template_hash(tokenizer: PreTrainedTokenizerBase) -> str:
    """SHA-256 of how this tokenizer renders; two that agree show a model the same text for a prompt."""
    conversations = (
        (),
        (Message("user", " a\nb "),),
        (Message("user", "a"), Message("assistant", "b"), Message("user", "c")),
        (Message("system", "s"), Message("user", "a")),
    )
    shown: dict[str, Any] = {"begin": tokenizer.bos_token, "bare": tokenizer.chat_template is None}
    for i, messages in enumerate(conversations):
        try:
            shown[str(i)] = render_prompt(tokenizer, Prompt(messages=messages))
        except ChatTemplateError:
            shown[str(i)] = None
    return hashlib.sha256(json.dumps(shown, sort_keys=True).encode()).hexdigest()
