"""Extraction of prompts, responses, pairs and labels from one row, in the formats of common data sets.

Prompts and responses are text or lists of messages (`{"role", "content"}`). Without a prompt column, the
prompt of a pair is the part that its two sides share; without a response column, the response is the last of
`messages`.
"""

import math
import re
from itertools import takewhile

from paretune.data.columns import (
    NO_PROMPT,
    ColumnNames,
    FieldError,
    RowValues,
    check_label_range,
    column_value,
    missing_column_error,
    parse_messages,
    parse_number,
    parse_text,
    resolve_column,
    response_text,
)
from paretune.data.exports import as_role_messages, parse_dialogue
from paretune.data.formats import json_type_name
from paretune.data.message_cells import require_one_prompt
from paretune.data.records import Message

Messages = tuple[Message, ...]
WHOLE_WORDS_PATTERN = re.compile(r"(?s)(.*\S)\s")
"""Text up to its last complete word."""


def extract_prompt(values: RowValues, columns: ColumnNames) -> Messages:
    """The messages before a response; empty if the prompt is empty or the columns say that there is none."""
    if columns.prompt == NO_PROMPT:
        return ()
    name = resolve_column(columns, "prompt", values)
    if not name:
        raise missing_column_error(columns, "prompt", values)
    value = values[name]
    if isinstance(value, str):
        return (Message("user", parse_text(value, name)),) if value.strip() else ()
    return _require_no_final_response(_messages(value, name), name)


def extract_generation_prompt(values: RowValues, columns: ColumnNames) -> Messages:
    """The prompt of a row for generation; a final assistant message of `messages` is dropped.

    Raises:
        FieldError: There is no prompt, or it is empty.
    """
    require_one_prompt(values, columns)
    name = resolve_column(columns, "messages", values)
    if name and not resolve_column(columns, "prompt", values):
        messages = _messages(values[name], name)
        messages = _require_no_final_response(
            messages[:-1] if messages and messages[-1].role == "assistant" else messages, name
        )
    else:
        name = resolve_column(columns, "prompt", values)
        messages = extract_prompt(values, columns)
    if not any(message.content.strip() for message in messages):
        raise FieldError(name or "prompt", "empty", fix="write a prompt, or delete the row")
    return messages


def extract_prompt_and_response(values: RowValues, columns: ColumnNames) -> tuple[Messages, str]:
    """Prompt and response of a row.

    Raises:
        FieldError: One of the two is missing or malformed.
    """
    conversation = resolve_column(columns, "messages", values)
    if conversation:
        require_one_prompt(values, columns)
    name = resolve_column(columns, "response", values)
    if name and not columns.messages:
        return extract_prompt(values, columns), _parse_response(values[name], name)
    if columns.response or not conversation:
        raise missing_column_error(columns, "messages" if columns.messages else "response", values)
    messages = _messages(values[conversation], conversation)
    prompt = _require_no_final_response(messages[:-1], conversation)
    return prompt, _single_assistant_response(messages[-1:], conversation)


def extract_preference_pair(values: RowValues, columns: ColumnNames) -> tuple[Messages, str, str]:
    """Prompt, chosen and rejected response of a row.

    Raises:
        FieldError: A side is missing or malformed, or both are equal.
    """
    sides = []
    for field in ("chosen", "rejected"):
        name = resolve_column(columns, field, values)
        if not name:
            raise missing_column_error(columns, field, values)
        sides.append((name, values[name]))
    (chosen_key, chosen), (rejected_key, rejected) = sides
    has_prompt = (
        columns.prompt == NO_PROMPT or bool(columns.prompt) or bool(resolve_column(columns, "prompt", values))
    )
    if isinstance(chosen, str) and isinstance(rejected, str) and not has_prompt:
        prompt, better, worse = _split_shared_text(
            parse_text(chosen, chosen_key), parse_text(rejected, rejected_key)
        )
    elif isinstance(chosen, list) and isinstance(rejected, list) and (len(chosen) > 1 or len(rejected) > 1):
        prompt, (better, worse) = _split_shared_messages(
            _messages(chosen, chosen_key),
            _messages(rejected, rejected_key),
            (chosen_key, rejected_key),
        )
        prompt = _prepend_prompt(_explicit_prompt_messages(values, columns), prompt)
    else:
        prompt = extract_prompt(values, columns) if has_prompt or not isinstance(chosen, list) else ()
        better, worse = _parse_response(chosen, chosen_key), _parse_response(rejected, rejected_key)
    for key, response in ((chosen_key, better), (rejected_key, worse)):
        _require_nonempty(response, key)
    if better == worse:
        raise FieldError(chosen_key, f"equal to {rejected_key}", fix="delete the row")
    return _require_no_final_response(prompt, "prompt" if has_prompt else chosen_key), better, worse


def extract_preference_weights(values: RowValues, columns: ColumnNames) -> tuple[tuple[str, float], ...]:
    """(objective, weight) pairs of a prompt; empty if the row has none.

    Raises:
        FieldError: The cell is not an object of numbers, a weight is below 0, or none is a number above 0.
    """
    name = resolve_column(columns, "preference_weights", values)
    weights = values[name] if name else {}
    if not isinstance(weights, dict):
        raise FieldError(name, f"{json_type_name(weights)}, not an object", fix='write {"politeness": 0.7}')
    pairs = tuple(
        (key, check_label_range(parse_number(raw, f"{name}.{key}"), f"{name}.{key}"))
        for key, raw in weights.items()
    )
    if weights and not any(weight and not math.isnan(weight) for _, weight in pairs):
        raise FieldError(name, "no weight is a number other than 0", fix="give an objective a weight")
    if negative := next((key for key, weight in pairs if weight < 0), None):
        fix = f"write weights of at least 0, and objectives.{negative}.goal: lower in the recipe"
        raise FieldError(f"{name}.{negative}", "a weight below 0", fix=fix)
    return tuple((key, weight) for key, weight in pairs if not math.isnan(weight))


def _messages(value: object, key: str) -> Messages:
    """A cell as messages; turns of ShareGPT are understood."""
    return parse_messages(as_role_messages(value), key)


def _require_no_final_response(messages: Messages, key: str) -> Messages:
    if messages and messages[-1].role == "assistant":
        raise FieldError(key, "the prompt ends with an assistant message", fix="end it with a user message")
    return messages


def _parse_response(value: object, key: str) -> str:
    return (
        _require_nonempty(parse_text(value, key), key)
        if isinstance(value, str)
        else _single_assistant_response(_messages(value, key), key)
    )


def _single_assistant_response(messages: Messages, key: str) -> str:
    if len(messages) != 1 or messages[0].role != "assistant":
        roles = ", ".join(message.role for message in messages) or "no message"
        raise FieldError(
            key, f"expected one assistant message, got {roles}", fix="move the others into the prompt"
        )
    return _require_nonempty(response_text(messages[0], key), key)


def _require_nonempty(response: str, key: str) -> str:
    if not response.strip():
        raise FieldError(key, "empty response", fix="write a response, or delete the row")
    return response


def _explicit_prompt_messages(values: RowValues, columns: ColumnNames) -> Messages:
    """The prompt column if it is a list of messages; both sides repeat a prompt that is text."""
    value = column_value(columns, "prompt", values)
    return _messages(value, resolve_column(columns, "prompt", values)) if isinstance(value, list) else ()


def _prepend_prompt(explicit_prompt: Messages, shared_prompt: Messages) -> Messages:
    return (
        shared_prompt
        if shared_prompt[: len(explicit_prompt)] == explicit_prompt
        else explicit_prompt + shared_prompt
    )


def _split_shared_messages(
    chosen: Messages, rejected: Messages, keys: tuple[str, str]
) -> tuple[Messages, tuple[str, str]]:
    """The messages that both sides start with, and the remaining response of each."""
    pairs = zip(chosen[:-1], rejected[:-1], strict=False)
    num_shared = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
    return chosen[:num_shared], (
        _single_assistant_response(chosen[num_shared:], keys[0]),
        _single_assistant_response(rejected[num_shared:], keys[1]),
    )


def _split_shared_text(chosen: str, rejected: str) -> tuple[Messages, str, str]:
    """Split two texts by their common start: "Human:"/"Assistant:" messages, or whole words."""
    dialogues = [_messages(parse_dialogue(text), "") for text in (chosen, rejected)]
    if all(dialogues):
        prompt, (better, worse) = _split_shared_messages(dialogues[0], dialogues[1], ("chosen", "rejected"))
        return prompt, better, worse
    pairs = zip(chosen, rejected, strict=False)
    num_shared = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
    words = WHOLE_WORDS_PATTERN.match(chosen[:num_shared])
    shared = words.group(1) if words else ""
    return (Message("user", shared),) if shared else (), chosen[len(shared) :], rejected[len(shared) :]
