"""What the columns of one row say: prompts, responses, pairs and labels, in the forms that are in use.

Prompts and responses are text, or lists of turns (`{"role", "content"}`). Without a column for the
prompt, the prompt of a pair is what its two sides share; without one for the response, it is the last turn of
`messages`.
"""

import math
import re
from collections.abc import Mapping
from itertools import takewhile

from paretune.data.columns import (
    NO_PROMPT,
    ColumnNames,
    FieldError,
    LabelMapping,
    RowValues,
    column_value,
    missing_column_error,
    parse_label,
    parse_messages,
    parse_text,
    resolve_column,
)
from paretune.data.formats import json_type_name
from paretune.data.records import Message

Messages = tuple[Message, ...]
SPEAKER_PATTERN = re.compile(r"(?:\A|\n\n)(Human|Assistant):")
WHOLE_WORDS_PATTERN = re.compile(r"(?s)(.*\S)\s")
SPEAKER_ROLES = {"Human": "user", "Assistant": "assistant"}


def extract_prompt(values: RowValues, columns: ColumnNames) -> Messages:
    """The turns that a response answers; none where the prompt is empty or there is said to be none."""
    if columns.prompt == NO_PROMPT:
        return ()
    name = resolve_column(columns, "prompt", values)
    if not name:
        raise missing_column_error(columns, "prompt", values)
    value = values[name]
    if isinstance(value, str):
        return (Message("user", parse_text(value, name)),) if value.strip() else ()
    return _require_no_final_response(parse_messages(value, name), name)


def extract_generation_prompt(values: RowValues, columns: ColumnNames) -> Messages:
    """The prompt of a row from which nothing else is wanted; the answer that ends `messages` is left off.

    Raises:
        BadField: No prompt, or an empty one: a policy needs something to answer.
    """
    name = resolve_column(columns, "messages", values)
    if name and not resolve_column(columns, "prompt", values):
        turns = parse_messages(values[name], name)
        turns = _require_no_final_response(
            turns[:-1] if turns and turns[-1].role == "assistant" else turns, name
        )
    else:
        name = resolve_column(columns, "prompt", values)
        turns = extract_prompt(values, columns)
    if not any(turn.content.strip() for turn in turns):
        raise FieldError(name or "prompt", "empty", fix="write what is to be answered, or delete the row")
    return turns


def extract_prompt_and_response(values: RowValues, columns: ColumnNames) -> tuple[Messages, str]:
    """Prompt and response of a row."""
    conversation = resolve_column(columns, "messages", values)
    name = resolve_column(columns, "response", values)
    if name and not columns.messages:
        return extract_prompt(values, columns), _parse_response(values[name], name)
    if columns.response or not conversation:
        raise missing_column_error(columns, "messages" if columns.messages else "response", values)
    turns = parse_messages(values[conversation], conversation)
    return _require_no_final_response(turns[:-1], conversation), _single_assistant_response(
        turns[-1:], conversation
    )


def extract_preference_pair(values: RowValues, columns: ColumnNames) -> tuple[Messages, str, str]:
    """Prompt, chosen and rejected response of a row."""
    sides = []
    for field in ("chosen", "rejected"):
        name = resolve_column(columns, field, values)
        if not name:
            raise missing_column_error(columns, field, values)
        sides.append((name, values[name]))
    (name, chosen), (other, rejected) = sides
    given = (
        columns.prompt == NO_PROMPT or bool(columns.prompt) or bool(resolve_column(columns, "prompt", values))
    )
    if isinstance(chosen, str) and isinstance(rejected, str) and not given:
        prompt, better, worse = _split_shared_text(parse_text(chosen, name), parse_text(rejected, other))
    elif isinstance(chosen, list) and isinstance(rejected, list) and (len(chosen) > 1 or len(rejected) > 1):
        ours, theirs = parse_messages(chosen, name), parse_messages(rejected, other)
        prompt, (better, worse) = _split_shared_messages(ours, theirs, (name, other))
        prompt = _prepend_prompt(_explicit_prompt_messages(values, columns), prompt)
    else:
        prompt = extract_prompt(values, columns) if given or not isinstance(chosen, list) else ()
        better, worse = _parse_response(chosen, name), _parse_response(rejected, other)
    for key, response in ((name, better), (other, worse)):
        _require_nonempty(response, key)
    if better == worse:
        raise FieldError(name, f"the same as {other}", fix="delete the row: nobody preferred anything")
    return _require_no_final_response(prompt, "prompt" if given else name), better, worse


def extract_preference_weights(values: RowValues, columns: ColumnNames) -> tuple[tuple[str, float], ...]:
    """The weights that a prompt asks for; none where it asks for nothing.

    Raises:
        BadField: It is not an object of numbers, or no weight is a number other than 0.
    """
    name = resolve_column(columns, "preference", values)
    asked = values[name] if name else {}
    if not isinstance(asked, dict):
        raise FieldError(name, f"{json_type_name(asked)}, not an object", fix='write {"politeness": 0.7}')
    pairs = tuple(
        (key, parse_label(raw, f"{name}.{key}", LabelMapping(column=key))) for key, raw in asked.items()
    )
    if asked and not any(weight and not math.isnan(weight) for _, weight in pairs):
        raise FieldError(
            name, "asks for nothing: no weight is a number other than 0", fix="give one a weight"
        )
    return tuple((key, weight) for key, weight in pairs if not math.isnan(weight))


def extract_labels(
    values: RowValues, columns: ColumnNames, label_mappings: Mapping[str, LabelMapping] | None
) -> dict[str, float]:
    """The labels that somebody gave, in the units asked for; without `label_mappings`, every aspect as it is.

    Raises:
        BadField: All that is wrong with the labels of the row.
    """
    name = resolve_column(columns, "scores", values)
    scores = values[name] if name else {}
    if not isinstance(scores, dict) and label_mappings is not None and not columns.scores:
        scores = {}
    if not isinstance(scores, dict):
        raise FieldError(name, f"{json_type_name(scores)}, not an object", fix='write {"politeness": 0.7}')
    if label_mappings is None:
        if not name:
            raise missing_column_error(columns, "scores", values)
        label_mappings = {aspect: LabelMapping(column=aspect) for aspect in scores}
    labels: dict[str, float] = {}
    wrong: list[FieldError] = []
    for objective, label in label_mappings.items():
        inside = label.column in scores
        raw = scores[label.column] if inside else values.get(label.column)
        try:
            number = parse_label(raw, f"{name}.{label.column}" if inside else label.column, label)
        except FieldError as error:
            wrong.append(error)
            continue
        if not math.isnan(number):
            labels[objective] = number
    if wrong:
        wrong[0].other_errors = tuple(wrong[1:])
        raise wrong[0]
    return labels


def _require_no_final_response(messages: Messages, key: str) -> Messages:
    if messages and messages[-1].role == "assistant":
        raise FieldError(key, "the prompt ends with an assistant turn", fix="end it with a user turn")
    return messages


def _parse_response(value: object, key: str) -> str:
    return (
        _require_nonempty(parse_text(value, key), key)
        if isinstance(value, str)
        else _single_assistant_response(parse_messages(value, key), key)
    )


def _single_assistant_response(messages: Messages, key: str) -> str:
    if len(messages) != 1 or messages[0].role != "assistant":
        roles = ", ".join(turn.role for turn in messages) or "no turn"
        raise FieldError(
            key, f"one assistant turn expected, but got {roles}", fix="move the others into the prompt"
        )
    return _require_nonempty(messages[0].content, key)


def _require_nonempty(response: str, key: str) -> str:
    if not response.strip():
        raise FieldError(key, "an empty response", fix="write a response, or delete the row")
    return response


def _explicit_prompt_messages(values: RowValues, columns: ColumnNames) -> Messages:
    """The prompt where it is a list of turns; as text, it is said again in the turns of both sides."""
    value = column_value(columns, "prompt", values)
    return parse_messages(value, resolve_column(columns, "prompt", values)) if isinstance(value, list) else ()


def _prepend_prompt(explicit_prompt: Messages, shared_prompt: Messages) -> Messages:
    return (
        shared_prompt
        if shared_prompt[: len(explicit_prompt)] == explicit_prompt
        else explicit_prompt + shared_prompt
    )


def _split_shared_messages(
    chosen: Messages, rejected: Messages, keys: tuple[str, str]
) -> tuple[Messages, tuple[str, str]]:
    """The turns both sides begin with, and the one response that is left of each."""
    pairs = zip(chosen[:-1], rejected[:-1], strict=False)
    same = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
    return chosen[:same], (
        _single_assistant_response(chosen[same:], keys[0]),
        _single_assistant_response(rejected[same:], keys[1]),
    )


def _split_shared_text(chosen: str, rejected: str) -> tuple[Messages, str, str]:
    """The same for text: dialogues of "Human:" and "Assistant:" are cut into turns, else words are shared."""
    dialogues = [_parse_dialogue(text) for text in (chosen, rejected)]
    if all(dialogues):
        prompt, (better, worse) = _split_shared_messages(dialogues[0], dialogues[1], ("chosen", "rejected"))
        return prompt, better, worse
    same = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(chosen, rejected, strict=False)))
    words = WHOLE_WORDS_PATTERN.match(chosen[:same])
    shared = words.group(1) if words else ""
    return (Message("user", shared),) if shared else (), chosen[len(shared) :], rejected[len(shared) :]


def _parse_dialogue(text: str) -> Messages:
    _, *parts = SPEAKER_PATTERN.split(text.strip())
    if not parts or not text.strip().startswith("Human:"):
        return ()
    pairs = zip(parts[::2], parts[1::2], strict=True)
    return tuple(Message(SPEAKER_ROLES[speaker], said.strip()) for speaker, said in pairs)
