"""A chat template and what it writes, found by rendering: turn ends, control tokens, opened thoughts.

Nothing here knows a family of models: where an answer begins, what ends a turn and which texts a template
leaves out are read off renderings of short conversations.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from typing import Any

from paretune.core.errors import DataError, format_issue
from paretune.core.types import PreTrainedTokenizerBase
from paretune.data.records import Message
from paretune.data.template_sandbox import (
    FIXED_DATE,
    TEMPLATE_ERRORS,
    TemplateRefusalError,
    compile_template,
    failed_line,
    render_messages,
    searched_texts,
)

THINK_START_TAG, THINK_END_TAG = "<think>", "</think>"
"""Tags around the thinking. They belong to an answer, so they are no control tokens."""

CHAT_TEMPLATE_KWARGS_KEY = "chat_template_kwargs"
"""Tokenizer init argument, kept in tokenizer_config.json, with the arguments of every rendering."""

RESERVED_ARGUMENTS = frozenset(
    {"messages", "conversation", "add_generation_prompt", "chat_template", "tokenize", "date_string"}
    | {"continue_final_message", "return_dict", "return_tensors", "return_assistant_tokens_mask", "padding"}
    | {"truncation", "max_length", "tokenizer_kwargs", "sanitize_control_tokens"}
)
"""Arguments that every rendering sets itself, or that are none of the template's."""

# Around a control token that is only text. Unicode reserves these two for use inside a program: no text has
# them, and no tokenizer gets to see them.
_MARK_START, _MARK_END = "\ufdd0", "\ufdd1"
_ANY_MARK = re.compile(f"[{_MARK_START}{_MARK_END}]")

# Contents of probe conversations: they differ in their first and last characters, and have nothing that a
# template could trim, split or read as a tag.
_QUESTION, _ANSWER, _OTHER_ANSWER, _SECOND_QUESTION = "kpq", "xvw", "jhz", "bfg"

CORRECT_TEMPLATE_FIX = "correct the tokenizer's chat template (chat_template.jinja or tokenizer_config.json)"


class ChatTemplateError(DataError):
    """A chat template cannot render the messages of a prompt, or would leave a part of them out."""

    fix = (
        "use roles it supports (many templates reject system messages, or two messages of one role in a row)"
    )
    is_refusal = False
    """True if the template itself refuses the messages; else it is faulty, or does not expect them."""

    def __init__(self, prompt_id: str, problem: str, *, fix: str = "", key: str = "prompt") -> None:
        self.problem, self.fix, self.key = problem, fix or self.fix, key
        super().__init__(format_issue(f'prompt "{prompt_id}"', None, None, "", problem, fix=self.fix))


@dataclass(frozen=True, slots=True)
class TurnTexts:
    """What a template writes around the texts of a conversation."""

    user_start: tuple[str, ...] = ()
    """Before the text of a user or system turn, with and without what begins a conversation."""
    generation_prompt: str = ""
    """After the last turn, to ask for an answer."""
    answer_start: str = ""
    """Between the generation prompt and the text of an answer, such as an empty thought."""
    answer_end: str = ""
    """After the text of the last answer, up to the end of the rendering."""
    end_token: str = ""
    """The part of `answer_end` up to and including its first control token; "" if it has none."""
    end_id: int | None = None
    """The control token that ends an assistant turn."""
    next_id: int | None = None
    """The control token that directly follows an assistant turn inside of a conversation."""

    @property
    def opened_thought(self) -> str:
        """The end of the generation prompt from the opening tag on, if it leaves the thinking open."""
        is_open = self.generation_prompt.rstrip().endswith(THINK_START_TAG)
        return self.generation_prompt[self.generation_prompt.rindex(THINK_START_TAG) :] if is_open else ""


@dataclass(eq=False)
class ChatTemplate:
    """The chat template of a tokenizer with its arguments; without a template, texts are joined by newlines.

    Texts are marked before they are rendered: control tokens that they spell are encoded as plain text,
    those that the template writes are encoded as control tokens.
    """

    tokenizer: PreTrainedTokenizerBase
    source: str | None
    """The Jinja source; None: a base model."""
    arguments: Mapping[str, Any]
    """Passed to every rendering, such as `enable_thinking`."""
    probed: dict[tuple[Any, ...], bool] = field(default_factory=dict)
    """What probes of `chat_checks` found for conversations of these roles."""

    @cached_property
    def control_ids(self) -> Mapping[int, str]:
        """Control tokens: special tokens, and added tokens that the template writes; id -> text."""
        special, source = set(self.tokenizer.all_special_tokens), self.source or ""
        tokens = {}
        for token_id, token in self.tokenizer.added_tokens_decoder.items():
            text = token.content
            # A word that was added to the vocabulary is no control token because the template contains it.
            is_written = text in source and not text.strip().isalnum()
            if text.strip() and (token.special or text in special or is_written):
                tokens[token_id] = text
        return {k: text for k, text in tokens.items() if text not in {THINK_START_TAG, THINK_END_TAG}}

    @cached_property
    def _literals(self) -> tuple[str, ...]:
        return (THINK_START_TAG, THINK_END_TAG, *searched_texts(self.source or ""))

    def writes_unchanged(self, text: str) -> bool:
        """True if the template cannot change a text: trimmed, and with nothing that it looks for."""
        return bool(text) and text == text.strip() and not any(part in text for part in self._literals)

    @cached_property
    def hidden_ids(self) -> frozenset[int]:
        """Special tokens, which are no text, if the thinking tags are among them; else empty."""
        tokens = {
            k: token.content for k, token in self.tokenizer.added_tokens_decoder.items() if token.special
        }
        tokens |= dict(zip(self.tokenizer.all_special_ids, self.tokenizer.all_special_tokens, strict=True))
        hidden = {k for k, text in tokens.items() if text not in {THINK_START_TAG, THINK_END_TAG}}
        return frozenset(hidden if len(hidden) < len(tokens) else ())

    @cached_property
    def _control_pattern(self) -> re.Pattern[str]:
        longest_first = sorted(self.control_ids.values(), key=len, reverse=True)
        # A tokenizer that lowercases before it looks for added tokens finds them in capitals too.
        ignores_case = any(
            token_id in self._encode_with_control_tokens(text.upper())
            for token_id, text in self.control_ids.items()
            if text.upper() != text
        )
        alternatives = "|".join(map(re.escape, longest_first)) or "(?!)"
        return re.compile(alternatives, re.IGNORECASE if ignores_case else re.NOFLAG)

    def has_control_tokens(self, text: str) -> bool:
        """True if a text spells control tokens."""
        return self._control_pattern.search(text) is not None

    def mark(self, value: Any) -> Any:
        """The value with marks around the control tokens that its strings spell."""
        if isinstance(value, str):
            value = _ANY_MARK.sub("", value)
            return self._control_pattern.sub(f"{_MARK_START}\\g<0>{_MARK_END}", value)
        if isinstance(value, dict):
            return {key: self.mark(item) for key, item in value.items()}
        return [self.mark(item) for item in value] if isinstance(value, list) else value

    def encode(self, text: str) -> list[int]:
        """Token ids of a rendered or marked text; the marked parts are encoded as plain text."""
        if not _ANY_MARK.search(text):
            return self._encode_with_control_tokens(text)
        # Every second piece was marked; a mark that a template cut off from its token only splits the text.
        pieces = re.split(
            f"{_MARK_START}([^{_MARK_START}{_MARK_END}]*){_MARK_END}|[{_MARK_START}{_MARK_END}]", text
        )
        ids = self._encode_with_control_tokens(pieces[0])
        for i, piece in enumerate(pieces[1:], 1):
            if piece:
                ids += self._encode_inner(piece, as_text=i % 2 == 1)
        return ids

    def encode_all(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each of several rendered or marked texts."""
        plain = [text for text in texts if not _ANY_MARK.search(text)]
        batch = self.tokenizer(plain, add_special_tokens=False, verbose=False)["input_ids"] if plain else []
        ids_of = dict(zip(plain, batch, strict=True))
        return [list(ids_of[text]) if text in ids_of else self.encode(text) for text in texts]

    def _encode_with_control_tokens(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    def _encode_inner(self, piece: str, *, as_text: bool) -> list[int]:
        """Encode a piece from inside of a text, as plain text or with control tokens.

        After a newline that is then removed, since SentencePiece puts a space before the start of a text.
        """
        encode = self._encode_as_text if as_text else self._encode_with_control_tokens
        newline, ids = encode("\n"), encode("\n" + piece)
        ids = ids[len(newline) :] if ids[: len(newline)] == newline else encode(piece)
        if as_text and len(piece) > 1 and self.control_ids.keys() & set(ids):
            # A vocabulary of whole words has the token as a word.
            return [
                token for part in (piece[0], piece[1:]) for token in self._encode_inner(part, as_text=True)
            ]
        return ids

    def _encode_as_text(self, text: str) -> list[int]:
        if not self.tokenizer.is_fast:
            return list(self.tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True))
        # `split_special_tokens` would still find added tokens that are not special.
        backend: Any = self.tokenizer.backend_tokenizer
        text = backend.normalizer.normalize_str(text) if backend.normalizer is not None else text
        words = [text]
        if backend.pre_tokenizer is not None:
            words = [word for word, _ in backend.pre_tokenizer.pre_tokenize_str(text)]
        return [token.id for word in words for token in backend.model.tokenize(word)]

    def render(
        self, messages: Sequence[Message], *, add_generation_prompt: bool = False, prompt_id: str = ""
    ) -> str:
        """The template's rendering of messages.

        Raises:
            ChatTemplateError: The template rejects them.
        """
        return self._render(messages, add_generation_prompt, prompt_id, as_parts=self.content_as_parts)

    def _render(
        self, messages: Sequence[Message], add_generation_prompt: bool, prompt_id: str, *, as_parts: bool
    ) -> str:
        from jinja2 import TemplateError

        assert self.source is not None
        variables = {
            **self.tokenizer.special_tokens_map,
            "add_generation_prompt": add_generation_prompt,
            "date_string": FIXED_DATE,
            **self.arguments,
        }
        try:
            return render_messages(
                compile_template(self.source),
                [message_as_dict(message, as_parts=as_parts) for message in messages],
                variables,
            )
        except (TemplateError, *TEMPLATE_ERRORS) as error:
            roles = ", ".join(message.role for message in messages)
            reason, line = " ".join(str(error).split()), failed_line(error)
            failure = ChatTemplateError(
                prompt_id, f"line {line} of the chat template fails: {reason}", fix=CORRECT_TEMPLATE_FIX
            )
            if isinstance(error, TemplateRefusalError):
                problem = f"the chat template rejects messages of the roles {roles}: {reason}"
                failure = ChatTemplateError(prompt_id, problem)
                failure.is_refusal = True
            raise failure from error

    @cached_property
    def content_as_parts(self) -> bool:
        """True for templates that read contents as lists of parts only, as those of vision models do."""
        found = []
        for as_parts in (False, True):
            try:
                text = self._render([Message("user", _QUESTION)], False, "", as_parts=as_parts)
            except ChatTemplateError:
                text = ""
            found.append(_QUESTION in text)
        return found == [False, True]

    def marked(self, messages: Sequence[Message]) -> tuple[Message, ...]:
        """The messages with marks around the control tokens that their texts spell."""
        return tuple(
            Message(
                message.role,
                self.mark(message.content),
                tuple((key, json.dumps(self.mark(json.loads(value)))) for key, value in message.extra),
            )
            for message in messages
        )

    @cached_property
    def turns(self) -> TurnTexts:
        """What the template writes around texts; empty where it rejects the probe conversation."""
        question = Message("user", _QUESTION)
        try:
            alone, prompt = self.render([question]), self.render([question], add_generation_prompt=True)
        except ChatTemplateError:
            return TurnTexts()
        texts = TurnTexts(
            user_start=tuple(_texts_before_content(self, alone)),
            generation_prompt=prompt.removeprefix(alone) if prompt.startswith(alone) else "",
        )
        try:
            answered = [self.render([question, Message("assistant", a)]) for a in (_ANSWER, _OTHER_ANSWER)]
        except ChatTemplateError:
            return texts
        start = answered[0][: shared_length(*answered)]
        end = answered[0][len(answered[0]) - shared_length(*(text[::-1] for text in answered)) :]
        if answered[0] == answered[1]:
            return texts  # the template leaves out answers
        texts = replace(
            texts, answer_end=end, answer_start=start.removeprefix(prompt) if start.startswith(prompt) else ""
        )
        for token_id, text in self._control_tokens_in(end):
            return replace(texts, end_id=token_id, end_token=end[: end.index(text) + len(text)])
        return replace(texts, next_id=self._next_turn_id())

    def _next_turn_id(self) -> int | None:
        turns = [("user", _QUESTION), ("assistant", _ANSWER), ("user", _SECOND_QUESTION)]
        try:
            text = self.render([Message(*turn) for turn in turns])
        except ChatTemplateError:
            return None
        between = text.partition(_ANSWER)[2].partition(_SECOND_QUESTION)[0]
        tokens = self._control_tokens_in(between)
        return tokens[0][0] if tokens and between.lstrip().startswith(tokens[0][1]) else None

    def _control_tokens_in(self, text: str) -> list[tuple[int, str]]:
        """Control tokens (id and text) of a piece of a rendering, in order."""
        return [
            (token_id, self.control_ids[token_id])
            for token_id in self._encode_with_control_tokens(text)
            if token_id in self.control_ids and self.control_ids[token_id] in text
        ]

    def answer_position(self, messages: Sequence[Message], prompt_id: str) -> str:
        """What the template writes before the text of an answer to these messages."""
        renderings = [
            self.render([*messages, Message("assistant", text)], prompt_id=prompt_id)
            for text in (_ANSWER, _OTHER_ANSWER)
        ]
        return renderings[0][: shared_length(*renderings)]

    def mentions(self, name: str) -> bool:
        """True if the template contains this name outside of its comments."""
        return bool(re.search(rf"\b{re.escape(name)}\b", re.sub(r"(?s)\{#.*?#\}", "", self.source or "")))


def shared_length(first: Sequence[Any], second: Sequence[Any]) -> int:
    """Length of the longest common prefix."""
    shortest = min(len(first), len(second))
    return next((i for i in range(shortest) if first[i] != second[i]), shortest)


def message_as_dict(message: Message, *, as_parts: bool = False) -> dict[str, Any]:
    """A message as chat templates read it, with its content as text or as a list of one part."""
    extra = {key: json.loads(value) for key, value in message.extra}
    content = [{"type": "text", "text": message.content}] if as_parts else message.content
    return {"role": message.role, "content": content, **extra}


def _texts_before_content(template: ChatTemplate, user_turn: str) -> list[str]:
    """What the template writes before the text of a first user turn, a system turn, and a later user turn."""
    starts = [user_turn.partition(_QUESTION)[0]]
    question, second_question = Message("user", _QUESTION), Message("user", _SECOND_QUESTION)
    for turns, before in (
        ([Message("system", _SECOND_QUESTION), question], ""),
        ([question, Message("assistant", _ANSWER), second_question], _ANSWER),
    ):
        try:
            text = template.render(turns).partition(before)[2] if before else template.render(turns)
        except ChatTemplateError:
            continue
        start = text.partition(_SECOND_QUESTION)[0] if _SECOND_QUESTION in text else ""
        # The end of the answer's turn is no part of the next one, which begins at a control token.
        turn = max((start.rfind(token) for token in template.control_ids.values()), default=-1)
        starts.append(start[max(turn, 0) :] if before else start)
    bos = template.tokenizer.bos_token or ""
    starts += [start.removeprefix(bos) for start in starts]
    return [start for start in dict.fromkeys(starts) if start.strip() not in {"", bos}]


def chat_template_of(tokenizer: PreTrainedTokenizerBase) -> ChatTemplate:
    """The chat template of a tokenizer, with the arguments that are stored with it.

    Raises:
        DataError: The tokenizer has several templates and none of them is the default.
    """
    source: Any = tokenizer.chat_template  # text, or texts by name
    if isinstance(source, dict):
        if "default" not in source:
            raise DataError(
                f"{tokenizer.name_or_path}: has {len(source)} chat templates ({', '.join(sorted(source))}), "
                "and none is named default; fix: choose one with tokenizer.chat_template = "
                f'tokenizer.chat_template["{min(source)}"], then tokenizer.save_pretrained'
            )
        source = source["default"]
    stored = tokenizer.init_kwargs.get(CHAT_TEMPLATE_KWARGS_KEY) or {}
    arguments = json.dumps({k: v for k, v in stored.items() if k not in RESERVED_ARGUMENTS}, sort_keys=True)
    return _cached_chat_template(tokenizer, source, arguments, len(tokenizer), tokenizer.eos_token)


# The last three arguments are what may change on one tokenizer.
@lru_cache(maxsize=16)
def _cached_chat_template(
    tokenizer: PreTrainedTokenizerBase, source: str | None, arguments: str, size: int, eos_token: str | None
) -> ChatTemplate:
    return ChatTemplate(tokenizer, source, json.loads(arguments))


def set_chat_template_kwargs(tokenizer: PreTrainedTokenizerBase, arguments: Mapping[str, Any]) -> None:
    """Store arguments for every rendering with the tokenizer; they are saved and loaded with it."""
    if arguments:
        tokenizer.init_kwargs[CHAT_TEMPLATE_KWARGS_KEY] = dict(arguments)
