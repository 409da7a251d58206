"""Checks of chat templates, and of prompts that a template would render wrongly without an error."""

from collections.abc import Sequence
from dataclasses import replace

from paretune.core.types import PreTrainedTokenizerBase
from paretune.data.chat_template import (
    CORRECT_TEMPLATE_FIX,
    ChatTemplate,
    ChatTemplateError,
    chat_template_of,
    shared_length,
)
from paretune.data.records import Message, Prompt

_LONG_TEXT = f"kpq{' hz' * 30_000}"
"""Text of a probe: so long that a template that cuts texts cuts this one."""


def check_template(tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse a chat template that fails, or that loses texts of users or assistants.

    A template may refuse a conversation, or need a system turn: that depends on the data.

    Raises:
        DataError: The tokenizer has several templates and none of them is the default.
        ChatTemplateError: The template has a mistake, takes too much text or time, makes random choices, or
            leaves out, cuts or changes the text of a turn.
    """
    template = chat_template_of(tokenizer)
    if template.source is None:
        return
    system, question = Message("system", "bfg"), Message("user", "jqw")
    for text in ("kpq", _LONG_TEXT):  # a template that runs away does so sooner with a short text
        for turns in ((Message("user", text),), (question, Message("assistant", text))):
            failure = _failure(template, turns)
            if failure is not None and _failure(template, (system, *turns)) is not None:
                raise failure


def _failure(template: ChatTemplate, turns: Sequence[Message]) -> ChatTemplateError | None:
    """Why the text of the last turn is not rendered; None if it is, or if the template refuses the turns."""
    role, text = turns[-1].role, turns[-1].content
    try:
        rendering = template.render(turns, add_generation_prompt=role == "user")
    except ChatTemplateError as error:
        return None if error.is_refusal else error
    if text in rendering:
        return None
    if len(text) > 3 and text[:3] in rendering:
        length = shared_length(text, rendering[rendering.index(text[:3]) :])
        problem = f"the chat template cuts or changes the text of {role} turns after {length:,} characters"
    else:
        problem = f"the chat template leaves out or changes the text of {role} turns"
    return ChatTemplateError("", problem, fix=CORRECT_TEMPLATE_FIX)


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
    left_out = missing_turn(template, prompt.messages, prompt.id) if prompt.messages else None
    if left_out is not None:
        problem = f"the chat template leaves out this turn of the role {prompt.messages[left_out].role}"
        fix = "merge it into another turn, or use another template"
        raise ChatTemplateError(prompt.id, problem, fix=fix, key=f"prompt[{left_out}]")


def missing_turn(template: ChatTemplate, messages: Sequence[Message], prompt_id: str) -> int | None:
    """Index of the first message whose text the template does not render; None if it renders all."""
    roles = tuple(message.role for message in messages)
    has_extra = any(message.extra for message in messages)
    if roles in template.kept_turns and not has_extra:
        return None
    probes = [f"kq{i}xz" if message.content.strip() else "" for i, message in enumerate(messages)]
    text = template.render(
        [replace(message, content=probe) for message, probe in zip(messages, probes, strict=True)],
        add_generation_prompt=True,
        prompt_id=prompt_id,
    )
    missing = next((i for i, probe in enumerate(probes) if probe not in text), None)
    if missing is None and all(probes) and not has_extra:
        template.kept_turns.add(roles)
    return missing


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
