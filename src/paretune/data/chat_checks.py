"""Checks of chat templates, and of prompts that a template would render wrongly without an error."""

import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace

from paretune.core.types import PreTrainedTokenizerBase
from paretune.data.chat_template import (
    CORRECT_TEMPLATE_FIX,
    ChatTemplate,
    ChatTemplateError,
    TurnTexts,
    chat_template_of,
    shared_length,
)
from paretune.data.records import Message, Prompt

_LONG_TEXT = f"kpq{' hz' * 30_000}"
"""Text of a probe: so long that a template that cuts texts cuts this one."""

_RICH_TEXT = "Ab <b>Cd</b> & \"ef\" 'G' 1,234.5%\n  ### Ж日ß | {x} *y*"
"""What templates change that treat contents as markup, as one line or without case."""

_THOUGHT_AT_END = re.compile(r"<think>\s*(?:</think>\s*)?$")

# The first characters of the turns of a probe: sorting the turns by their texts changes their order.
_PROBE_STARTS = "mcth"
_UNORDERED_ROLES = frozenset({"system", "developer"})
"""Some templates write these texts into the first or last turn of the user."""


def check_template(tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse a chat template that fails, or that loses, changes or reorders texts of users or assistants.

    A template may refuse a conversation, or need a system turn: that depends on the data.

    Raises:
        DataError: The tokenizer has several templates and none of them is the default.
        ChatTemplateError: The template has a mistake, takes too much text or time, makes random choices,
            leaves out, cuts, changes or reorders the texts of turns, or ends later answers otherwise.
    """
    template = chat_template_of(tokenizer)
    if template.source is None:
        return
    for turns in _probe_conversations():
        failure = _failure(template, turns)
        if failure is not None and _failure(template, (Message("system", "bfg"), *turns)) is not None:
            raise failure


def _probe_conversations() -> Iterator[tuple[Message, ...]]:
    question = Message("user", "jqw")
    for text in ("kpq", _LONG_TEXT):  # a template that runs away does so sooner with a short text
        yield (Message("user", text),)
        yield (question, Message("assistant", text))
    turns = [
        Message("user" if i % 2 == 0 else "assistant", f"{start}{i}q {_RICH_TEXT} z{i}")
        for i, start in enumerate(_PROBE_STARTS)
    ]
    for count in range(1, len(turns) + 1):
        yield tuple(turns[:count])
    yield tuple(replace(turn, content="kpq") for turn in turns)


def _failure(template: ChatTemplate, turns: Sequence[Message]) -> ChatTemplateError | None:
    """Why texts are not rendered as they are; None if they are, or if the template refuses the turns."""
    try:
        rendering = template.render(turns, add_generation_prompt=turns[-1].role == "user")
    except ChatTemplateError as error:
        return None if error.is_refusal else error
    # A system turn is tried for the others: whether it is written itself depends on the data.
    fault = _fault(rendering, [turn for turn in turns if turn.role != "system"])
    if fault is not None:
        return ChatTemplateError("", f"the chat template {fault[1]}", fix=CORRECT_TEMPLATE_FIX)
    end, texts = rendering.rpartition(turns[-1].content)[2], template.turns
    if turns[-1].role == "assistant" and texts != TurnTexts() and end != texts.answer_end:
        problem = (
            f"the chat template writes {_shown(texts.answer_end)} after the answer to a first question, and "
            f"{_shown(end)} after a later or longer one"
        )
        return ChatTemplateError("", problem, fix=CORRECT_TEMPLATE_FIX)
    return None


def _fault(rendering: str, turns: Sequence[Message]) -> tuple[int, str] | None:
    """The first turn whose text is not written once and in order, and what is wrong with it.

    Args:
        rendering: The template's rendering of the turns.
        turns: Messages whose texts are equal, or no parts of each other.
    """
    counts = Counter(turn.content for turn in turns if turn.content)
    for index, turn in enumerate(turns):
        found, expected = rendering.count(turn.content), counts[turn.content]
        if not turn.content or found == expected:
            continue
        if found > expected:
            return index, f"writes the text of {turn.role} turns more than once"
        if found:
            last = max(i for i, other in enumerate(turns) if other.content == turn.content)
            return last, f"leaves out {turns[last].role} turns whose text an earlier turn has too"
        return index, _change(rendering, turn)
    position = 0
    for index, turn in enumerate(turns):
        if turn.role not in _UNORDERED_ROLES:
            found = rendering.find(turn.content, position)
            if found < 0:
                return index, f"writes {turn.role} turns before turns that precede them"
            position = found + len(turn.content)
    return None


def _change(rendering: str, turn: Message) -> str:
    """How the text of a turn is changed that the rendering does not have."""
    text = turn.content
    if len(text) <= 3 or text[:3] not in rendering:
        return f"leaves out or changes the text of {turn.role} turns"
    written = rendering[rendering.index(text[:3]) :]
    length = shared_length(text, written)
    problem = f"cuts or changes the text of {turn.role} turns after {length:,} characters"
    if len(text) > 2 * len(_RICH_TEXT):
        return problem
    return f"{problem}: {_shown(text[length : length + 8])} becomes {_shown(written[length : length + 8])}"


def _shown(text: str) -> str:
    return json.dumps(text, ensure_ascii=False) if text else "nothing"


def check_prompt(tokenizer: PreTrainedTokenizerBase, prompt: Prompt) -> None:
    """Refuse a prompt that the chat template would render wrongly without an error.

    Raises:
        ChatTemplateError: The template rejects the prompt, leaves out a message, does not use a further key
            of one, does not know its role, or the text was rendered beforehand.
    """
    template = chat_template_of(tokenizer)
    if template.source is None:
        extra = next((key for message in prompt.messages for key, _ in message.extra), None)
        if extra is not None:
            problem, fix = (
                f"there is no chat template to write {extra}",
                f"remove {extra}, or write it as text",
            )
            raise ChatTemplateError(prompt.id, problem, fix=fix)
        return
    for index, message in enumerate(prompt.messages):
        key = f"prompt[{index}]" if len(prompt.messages) > 1 else "prompt"
        if is_rendering(template, message.content):
            problem = "was rendered with a chat template beforehand, and would be rendered twice"
            fix = "write the text alone, or a list of messages"
            raise ChatTemplateError(prompt.id, problem, fix=fix, key=key)
        if message.role == "developer" and not template.mentions("developer"):
            problem = "the chat template does not know the role developer"
            raise ChatTemplateError(prompt.id, problem, fix="write system", key=f"{key}.role")
        for name, _ in message.extra:
            if not uses_extra(template, prompt.messages, index, name):
                problem = f"the chat template does not use this key of a turn of the role {message.role}"
                raise ChatTemplateError(prompt.id, problem, fix="remove it", key=f"{key}.{name}")
    if prompt.messages:
        _require_every_turn(template, prompt)


def _require_every_turn(template: ChatTemplate, prompt: Prompt) -> None:
    """Refuse messages whose texts the template does not write once and in order.

    Tried with short texts, which are equal where those of the messages are.
    """
    messages, contents = prompt.messages, [message.content for message in prompt.messages]
    firsts = tuple(contents.index(content) for content in contents)
    has_extra = any(message.extra for message in messages)
    key = ("turns", firsts, *(message.role for message in messages))
    if key in template.probed and not has_extra:
        return
    probes = [f"kq{i}xz" if messages[i].content.strip() else "" for i in firsts]
    turns = [replace(message, content=probe) for message, probe in zip(messages, probes, strict=True)]
    text = template.render(turns, add_generation_prompt=True, prompt_id=prompt.id)
    fault = _fault(text, turns)
    if fault is not None:
        index, problem = fault
        fix, key_of_turn = CORRECT_TEMPLATE_FIX, f"prompt[{index}]"
        if text.count(probes[index]) < probes.count(probes[index]):
            problem = f"leaves out this turn of the role {messages[index].role}"
            fix = "merge it into another turn, or use another template"
        raise ChatTemplateError(prompt.id, f"the chat template {problem}", fix=fix, key=key_of_turn)
    if all(probes) and not has_extra:
        template.probed[key] = True


def writes_answers_unchanged(template: ChatTemplate, messages: Sequence[Message]) -> bool:
    """True if the template writes the same around two very different answers, and both as they are.

    Found once for conversations of the same roles. A template may write the length of an answer before it,
    or lower its case: then every answer needs a rendering of its own.
    """
    key = ("answers", *((message.role, message.extra) for message in messages))
    if key not in template.probed:
        turns = [replace(message, content=f"kq{i}xz") for i, message in enumerate(messages)]
        answers = ("w", f"kv {_RICH_TEXT} " * 8 + "xz")
        texts = [template.render([*turns, Message("assistant", answer)]) for answer in answers]
        around = [text.rpartition(answer) for text, answer in zip(texts, answers, strict=True)]
        same = (around[0][0], around[0][2]) == (around[1][0], around[1][2])
        template.probed[key] = same and all(written for _, written, _ in around)
    return template.probed[key]


def uses_extra(template: ChatTemplate, messages: Sequence[Message], index: int, key: str) -> bool:
    """True if a further key of a message changes what the template renders.

    Some templates write the reasoning of the last turn only, so an assistant message is tried there too.
    """
    message = messages[index]
    without = replace(message, extra=tuple(item for item in message.extra if item[0] != key))
    places = [(list(messages), index)]
    if message.role == "assistant":
        places.append(([Message("user", "kpq"), message], 1))
    for turns, position in places:
        shorter = [*turns[:position], without, *turns[position + 1 :]]
        try:
            if template.render(turns) != template.render(shorter):
                return True
        except ChatTemplateError:
            # An invalid conversation is reported when it is encoded.
            return True
    return False


def is_rendering(template: ChatTemplate, text: str) -> bool:
    """True if a text was rendered beforehand: it begins or ends as the template's own turns do."""
    text, turns = text.strip(), template.turns
    starts = [start.strip() for start in turns.user_start if text.startswith(start.strip())]
    end = turns.generation_prompt.strip()
    ends = [end] if end and text.endswith(end) else []
    if any(template.has_control_tokens(found) for found in (*starts, *ends)):
        return True
    # Words such as "USER:" alone may stand in any text.
    return bool(starts and ends)


def template_warnings(tokenizer: PreTrainedTokenizerBase) -> Iterator[str]:
    """What is allowed in a chat template, and makes sampled answers differ from those of the data."""
    template = chat_template_of(tokenizer)
    if template.source is None:
        return
    question, answer = Message("user", "kpq"), Message("assistant", "xvw\n\njhz")
    try:
        alone, asked = template.render([question]), template.render([question], add_generation_prompt=True)
        before = template.answer_position([question], "")
        answered = template.render([question, answer])
    except ChatTemplateError:
        return  # depends on the data, or is reported by `check_template`
    common = alone if asked.startswith(alone) and before.startswith(alone) else ""
    request, header = (_without_thought(text.removeprefix(common)) for text in (asked, before))
    is_continued = header.startswith(request) and (request or not header)
    if not is_continued and request.strip() != header.strip():
        yield (
            f"the chat template asks for an answer with {_shown(request)}, and writes {_shown(header)} "
            f"before the answers of the data; fix: {CORRECT_TEMPLATE_FIX}"
        )
    if answer.content not in answered:
        yield "the chat template removes blank lines from the answers of the data; sampled ones may have them"


def _without_thought(text: str) -> str:
    """A text before an answer, without a thought at its end and with single spaces and line breaks."""
    text = _THOUGHT_AT_END.sub("", text)
    return re.sub(r"\s+", lambda run: "\n" if "\n" in run[0] else " ", text).lstrip().rstrip(" ")
