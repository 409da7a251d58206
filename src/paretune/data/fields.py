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
    BadField,
    Columns,
    Label,
    Values,
    found,
    label_of,
    missing,
    text_of,
    turns_of,
    value_of,
)
from paretune.data.files import kind_of
from paretune.data.records import Message

Turns = tuple[Message, ...]
SPEAKER = re.compile(r"(?:\A|\n\n)(Human|Assistant):")
WORDS = re.compile(r"(?s)(.*\S)\s")
SPEAKERS = {"Human": "user", "Assistant": "assistant"}


def prompt_of(values: Values, columns: Columns) -> Turns:
    """The turns that a response answers; none where the prompt is empty or there is said to be none."""
    if columns.prompt == NO_PROMPT:
        return ()
    name = found(columns, "prompt", values)
    if not name:
        raise missing(columns, "prompt", values)
    value = values[name]
    if isinstance(value, str):
        return (Message("user", text_of(value, name)),) if value.strip() else ()
    return _open_ended(turns_of(value, name), name)


def request_of(values: Values, columns: Columns) -> Turns:
    """The prompt of a row from which nothing else is wanted; the answer that ends `messages` is left off.

    Raises:
        BadField: No prompt, or an empty one: a policy needs something to answer.
    """
    name = found(columns, "messages", values)
    if name and not found(columns, "prompt", values):
        turns = turns_of(values[name], name)
        turns = _open_ended(turns[:-1] if turns and turns[-1].role == "assistant" else turns, name)
    else:
        name = found(columns, "prompt", values)
        turns = prompt_of(values, columns)
    if not any(turn.content.strip() for turn in turns):
        raise BadField(name or "prompt", "empty", fix="write what is to be answered, or delete the row")
    return turns


def exchange_of(values: Values, columns: Columns) -> tuple[Turns, str]:
    """Prompt and response of a row."""
    conversation = found(columns, "messages", values)
    name = found(columns, "response", values)
    if name and not columns.messages:
        return prompt_of(values, columns), _speech(values[name], name)
    if columns.response or not conversation:
        raise missing(columns, "messages" if columns.messages else "response", values)
    turns = turns_of(values[conversation], conversation)
    return _open_ended(turns[:-1], conversation), _spoken(turns[-1:], conversation)


def pair_of(values: Values, columns: Columns) -> tuple[Turns, str, str]:
    """Prompt, chosen and rejected response of a row."""
    sides = []
    for field in ("chosen", "rejected"):
        name = found(columns, field, values)
        if not name:
            raise missing(columns, field, values)
        sides.append((name, values[name]))
    (name, chosen), (other, rejected) = sides
    given = columns.prompt == NO_PROMPT or bool(columns.prompt) or bool(found(columns, "prompt", values))
    if isinstance(chosen, str) and isinstance(rejected, str) and not given:
        prompt, better, worse = _common_text(text_of(chosen, name), text_of(rejected, other))
    elif isinstance(chosen, list) and isinstance(rejected, list) and (len(chosen) > 1 or len(rejected) > 1):
        ours, theirs = turns_of(chosen, name), turns_of(rejected, other)
        prompt, (better, worse) = _common_turns(ours, theirs, (name, other))
        prompt = _behind(_given_turns(values, columns), prompt)
    else:
        prompt = prompt_of(values, columns) if given or not isinstance(chosen, list) else ()
        better, worse = _speech(chosen, name), _speech(rejected, other)
    for key, response in ((name, better), (other, worse)):
        _must_speak(response, key)
    if better == worse:
        raise BadField(name, f"the same as {other}", fix="delete the row: nobody preferred anything")
    return _open_ended(prompt, "prompt" if given else name), better, worse


def preference_of(values: Values, columns: Columns) -> tuple[tuple[str, float], ...]:
    """The weights that a prompt asks for; none where it asks for nothing.

    Raises:
        BadField: It is not an object of numbers, or no weight is a number other than 0.
    """
    name = found(columns, "preference", values)
    asked = values[name] if name else {}
    if not isinstance(asked, dict):
        raise BadField(name, f"{kind_of(asked)}, not an object", fix='write {"politeness": 0.7}')
    pairs = tuple((key, label_of(raw, f"{name}.{key}", Label(aspect=key))) for key, raw in asked.items())
    if asked and not any(weight and not math.isnan(weight) for _, weight in pairs):
        raise BadField(name, "asks for nothing: no weight is a number other than 0", fix="give one a weight")
    return tuple((key, weight) for key, weight in pairs if not math.isnan(weight))


def labels_of(values: Values, columns: Columns, wanted: Mapping[str, Label] | None) -> dict[str, float]:
    """The labels that somebody gave, in the units asked for; without `wanted`, every aspect as it is.

    Raises:
        BadField: All that is wrong with the labels of the row.
    """
    name = found(columns, "scores", values)
    scores = values[name] if name else {}
    if not isinstance(scores, dict) and wanted is not None and not columns.scores:
        scores = {}
    if not isinstance(scores, dict):
        raise BadField(name, f"{kind_of(scores)}, not an object", fix='write {"politeness": 0.7}')
    if wanted is None:
        if not name:
            raise missing(columns, "scores", values)
        wanted = {aspect: Label(aspect=aspect) for aspect in scores}
    labels: dict[str, float] = {}
    wrong: list[BadField] = []
    for objective, label in wanted.items():
        inside = label.aspect in scores
        raw = scores[label.aspect] if inside else values.get(label.aspect)
        try:
            number = label_of(raw, f"{name}.{label.aspect}" if inside else label.aspect, label)
        except BadField as error:
            wrong.append(error)
            continue
        if not math.isnan(number):
            labels[objective] = number
    if wrong:
        wrong[0].further = tuple(wrong[1:])
        raise wrong[0]
    return labels


def _open_ended(turns: Turns, key: str) -> Turns:
    if turns and turns[-1].role == "assistant":
        raise BadField(key, "the prompt ends with an assistant turn", fix="end it with a user turn")
    return turns


def _speech(value: object, key: str) -> str:
    return (
        _must_speak(text_of(value, key), key)
        if isinstance(value, str)
        else _spoken(turns_of(value, key), key)
    )


def _spoken(turns: Turns, key: str) -> str:
    if len(turns) != 1 or turns[0].role != "assistant":
        roles = ", ".join(turn.role for turn in turns) or "no turn"
        raise BadField(
            key, f"one assistant turn expected, but got {roles}", fix="move the others into the prompt"
        )
    return _must_speak(turns[0].content, key)


def _must_speak(response: str, key: str) -> str:
    if not response.strip():
        raise BadField(key, "an empty response", fix="write a response, or delete the row")
    return response


def _given_turns(values: Values, columns: Columns) -> Turns:
    """The prompt where it is a list of turns; as text, it is said again in the turns of both sides."""
    value = value_of(columns, "prompt", values)
    return turns_of(value, found(columns, "prompt", values)) if isinstance(value, list) else ()


def _behind(given: Turns, shared: Turns) -> Turns:
    return shared if shared[: len(given)] == given else given + shared


def _common_turns(ours: Turns, theirs: Turns, keys: tuple[str, str]) -> tuple[Turns, tuple[str, str]]:
    """The turns both sides begin with, and the one response that is left of each."""
    pairs = zip(ours[:-1], theirs[:-1], strict=False)
    same = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
    return ours[:same], (_spoken(ours[same:], keys[0]), _spoken(theirs[same:], keys[1]))


def _common_text(ours: str, theirs: str) -> tuple[Turns, str, str]:
    """The same for text: dialogues of "Human:" and "Assistant:" are cut into turns, else words are shared."""
    dialogues = [_dialogue(text) for text in (ours, theirs)]
    if all(dialogues):
        prompt, (better, worse) = _common_turns(dialogues[0], dialogues[1], ("chosen", "rejected"))
        return prompt, better, worse
    same = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(ours, theirs, strict=False)))
    words = WORDS.match(ours[:same])
    shared = words.group(1) if words else ""
    return (Message("user", shared),) if shared else (), ours[len(shared) :], theirs[len(shared) :]


def _dialogue(text: str) -> Turns:
    _, *parts = SPEAKER.split(text.strip())
    if not parts or not text.strip().startswith("Human:"):
        return ()
    pairs = zip(parts[::2], parts[1::2], strict=True)
    return tuple(Message(SPEAKERS[speaker], said.strip()) for speaker, said in pairs)
