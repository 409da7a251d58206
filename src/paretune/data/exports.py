"""Rows of annotation tools and of published data sets by name, as rows of one response or one pair each.

Columns alone cannot express them: one row holds several responses, its votes are nested, or its prompt spells
the turns of a conversation. The rows that come out have the default column names, and so `columns`,
`where` and `labels` read them like any other.
"""

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import combinations, zip_longest
from typing import Any, Literal

from paretune.data.columns import ROLE_SYNONYMS, FieldError, summarize_names
from paretune.data.formats import json_type_name

RecordKind = Literal["prompts", "ratings", "pairs", "demonstrations"]
Values = Mapping[str, Any]
EXTRA_ID_PATTERN = re.compile(r"\n?<extra_id_1>(User|Assistant)\n")
"""What separates the turns of a prompt in HelpSteer2."""
SPEAKER_PATTERN = re.compile(r"(?:\A|\n\n)(Human|Assistant):")
"""What separates the turns of a prompt in HH-RLHF and Nectar."""
SPEAKER_ROLES = {"Human": "user", "Assistant": "assistant", "User": "user"}
UNSUBMITTED = frozenset({"draft", "discarded", "pending"})
"""States of an Argilla response that is no vote."""


def as_role_messages(value: Any) -> Any:
    """ShareGPT turns, {from, value}, as messages, {role, content}; anything else unchanged."""
    if isinstance(value, dict) and ("from" in value or "role" in value):
        return as_role_messages([value])  # the single answer of a pair
    if not isinstance(value, list) or not any(isinstance(turn, dict) and "from" in turn for turn in value):
        return value
    return [
        {"role": ROLE_SYNONYMS.get(str(turn["from"]).lower(), turn["from"]), "content": turn["value"]}
        if isinstance(turn, dict) and "from" in turn and "value" in turn
        else turn
        for turn in value
    ]


def parse_dialogue(text: str) -> list[dict[str, str]]:
    """The turns of a text in the format of HH-RLHF, as messages; empty if it is none."""
    _, *parts = SPEAKER_PATTERN.split(text.strip())
    if not parts or not text.strip().startswith("Human:"):
        return []
    pairs = zip(parts[::2], parts[1::2], strict=True)
    return [{"role": SPEAKER_ROLES[speaker], "content": turn.strip()} for speaker, turn in pairs]


def expand_row(export: str, values: Values, kind: RecordKind) -> Iterator[dict[str, Any]]:
    """The rows of one response, pair or prompt each that a row of a named export holds.

    Args:
        export: A key of `EXPORTS`.
        values: The row of the file.
        kind: What is read; of prompts, the first of each row is enough.

    Raises:
        FieldError: The row lacks a part that this export has.
    """
    try:
        rows = list(EXPORTS[export](values, kind))
    except (AttributeError, KeyError, TypeError, IndexError) as error:
        problem = f"this row does not have the form of {export}"
        raise FieldError("format", problem, fix="set the `format` that the file has") from error
    yield from rows[:1] if kind == "prompts" else rows


def has_empty_response(values: Values) -> bool:
    """True if a response of an expanded row is empty: of several in a row, the others are good."""
    texts = (values.get(name) for name in ("response", "chosen", "rejected"))
    return any(isinstance(text, str) and not text.strip() for text in texts)


def recognize_export(values: Values) -> str:
    """The export that a row looks like, for an error message; "" if none."""
    for export, keys in SIGNATURES.items():
        if all(key in values for key in keys):
            return export
    return ""


def _required(values: Values, name: str, kind: type, path: str = "") -> Any:
    value = values.get(name)
    if isinstance(value, kind):
        return value
    wanted = "a list" if kind is list else "an object" if kind is dict else "text"
    problem = (
        f"{json_type_name(value)}, not {wanted}"
        if name in values
        else f"no such column; this row has {summarize_names(map(str, values))}"
    )
    raise FieldError(path + name, problem, fix="set the `format` that the file has, or leave the key out")


def _objects(values: Values, name: str) -> list[tuple[str, dict[str, Any]]]:
    """The objects of a list with their paths."""
    items = [(f"{name}[{i}]", item) for i, item in enumerate(_required(values, name, list))]
    for path, item in items:
        if not isinstance(item, dict):
            raise FieldError(path, f"{json_type_name(item)}, not an object", fix="fix the row")
    return items


def _without(values: Values, *names: str) -> dict[str, Any]:
    return {key: value for key, value in values.items() if key not in names}


def _signed_preference(values: Values, prompt: Any, names: tuple[str, str], strength: str) -> dict[str, Any]:
    """A pair from two responses and a preference that is negative where the first is better; {} of a tie."""
    value = values.get(strength)
    if isinstance(value, bool) or not isinstance(value, int | float):
        problem = f"{json_type_name(value)}, not a number" if strength in values else "no such column"
        raise FieldError(strength, problem, fix="write a number from -3 (first is better) to 3 (second is)")
    if value == 0 or math.isnan(value):  # a tie, or not rated
        return {}
    first, second = (_required(values, name, str) for name in names)
    chosen, rejected = (first, second) if value < 0 else (second, first)
    return {**_without(values, *names), "prompt": prompt, "chosen": chosen, "rejected": rejected}


def _helpsteer2(values: Values, kind: RecordKind) -> Iterator[dict[str, Any]]:
    first, *parts = EXTRA_ID_PATTERN.split(_required(values, "prompt", str))
    turns = [("User", first), *zip(parts[::2], parts[1::2], strict=True)]
    if turns[-1][0] == "Assistant" and not turns[-1][1].strip():
        turns.pop()  # some rows end with the empty turn of the answer
    prompt = [{"role": SPEAKER_ROLES[speaker], "content": turn.strip()} for speaker, turn in turns]
    if kind == "pairs":
        pair = _signed_preference(values, prompt, ("response_1", "response_2"), "preference_strength")
        yield from [pair] if pair else []
    else:
        yield {**values, "prompt": prompt}


def _helpsteer3(values: Values, kind: RecordKind) -> Iterator[dict[str, Any]]:
    prompt = _required(values, "context", list)
    if kind == "prompts":
        yield {**values, "prompt": prompt}
        return
    pair = _signed_preference(values, prompt, ("response1", "response2"), "overall_preference")
    yield from [pair] if pair else []


def _ultrafeedback(values: Values, kind: RecordKind) -> Iterator[dict[str, Any]]:
    del kind
    shared = {**_without(values, "completions"), "prompt": _required(values, "instruction", str)}
    for path, completion in _objects(values, "completions"):
        scores = {}
        for name, annotation in (completion.get("annotations") or {}).items():
            votes = annotation if isinstance(annotation, list) else [annotation]
            ratings = [vote.get("Rating") if isinstance(vote, dict) else vote for vote in votes]
            scores[name] = ratings[0] if len(ratings) == 1 else ratings
        for name in ("overall_score", "fine-grained_score"):
            if name in completion:
                scores[name] = completion[name]
        is_null = "response" in completion and completion["response"] is None
        response = "" if is_null else _required(completion, "response", str, f"{path}.")
        yield {**shared, "response": response, "model": completion.get("model"), "scores": scores}


def _pku_saferlhf(values: Values, kind: RecordKind) -> Iterator[dict[str, Any]]:
    prompt = _required(values, "prompt", str)
    responses = [_required(values, f"response_{i}", str) for i in (0, 1)]
    better = {name: values.get(f"{name}_response_id") for name in ("better", "safer")}
    shared = {**values, "prompt": prompt}
    if kind != "pairs":
        for i, response in enumerate(responses):
            scores: dict[str, Any] = {
                name: float(side == i) for name, side in better.items() if side in (0, 1)
            }
            scores["safe"] = values.get(f"is_response_{i}_safe")
            scores["severity_level"] = values.get(f"response_{i}_severity_level")
            yield {**shared, "response": response, "scores": scores}
        return
    for name, side in better.items():
        if side in (0, 1):
            pair: dict[str, Any] = {"chosen": responses[side], "rejected": responses[1 - side]}
            yield {**shared, **pair, "comparison": name, "objective": name}


def _ranked_rows(
    shared: dict[str, Any], rows: Sequence[tuple[dict[str, Any], Any]], kind: RecordKind
) -> Iterator[dict[str, Any]]:
    """Rows of a response each; for pairs, every two responses whose score differs, the higher one chosen."""
    if kind != "pairs":
        yield from ({**shared, **row} for row, _ in rows)
        return
    scored = [(row["response"], score) for row, score in rows if _is_score(score)]
    for (first, score), (second, other) in combinations(scored, 2):
        if score != other and first != second:
            chosen, rejected = (first, second) if score > other else (second, first)
            yield {**shared, "chosen": chosen, "rejected": rejected}


def _is_score(value: Any) -> bool:
    return isinstance(value, int | float) and not math.isnan(value)


def _nectar(values: Values, kind: RecordKind) -> Iterator[dict[str, Any]]:
    text = _required(values, "prompt", str)
    turns = parse_dialogue(text)
    if turns and turns[-1]["role"] == "assistant":
        turns.pop()  # ends with "Assistant:", after which the answers stand
    rows = []
    for path, answer in _objects(values, "answers"):
        response = _required(answer, "answer", str, f"{path}.")
        rank = answer.get("rank")
        row = {**_without(answer, "answer"), "response": response}
        rows.append((row, -rank if isinstance(rank, int | float) else None))
    yield from _ranked_rows({**_without(values, "answers"), "prompt": turns or text}, rows, kind)


def _distilabel(values: Values, kind: RecordKind) -> Iterator[dict[str, Any]]:
    generations = _required(values, "generations", list)
    parallel = {
        name: column
        for name, column in values.items()
        if isinstance(column, list) and len(column) == len(generations) and name != "generations"
    }
    ratings = parallel.get("ratings", parallel.get("scores", [None] * len(generations)))
    shared = {"prompt": values.get("instruction"), **_without(values, "generations", *parallel)}
    rows = [
        ({**{name: column[i] for name, column in parallel.items()}, "response": text}, ratings[i])
        for i, text in enumerate(generations)
        if text is not None  # a generation that failed
    ]
    yield from _ranked_rows(shared, rows, kind)


def _argilla(values: Values, kind: RecordKind) -> Iterator[dict[str, Any]]:
    del kind
    row = {**values, **(values.get("fields") or {})}
    votes: dict[str, list[dict[str, Any]]] = {}
    for question, value, rater, status in _argilla_answers(values):
        row.pop(question, None)
        submitted = value is not None and str(status or "submitted") not in UNSUBMITTED
        votes.setdefault(question, []).extend([{"value": value, "rater": rater}] if submitted else [])
    if not votes and not isinstance(values.get("fields"), dict):
        raise FieldError("responses", "no such column", fix="set the `format` that the file has")
    yield {**row, "scores": votes}


def _argilla_answers(values: Values) -> Iterator[tuple[str, Any, Any, Any]]:
    """Question, value, rater and status of each answer, in the four forms that Argilla has exported."""
    responses = values.get("responses")
    if isinstance(responses, dict):  # version 2: by question
        for question, items in responses.items():
            for item in items or []:
                yield question, item.get("value"), item.get("user_id"), item.get("status")
    elif isinstance(responses, list):  # version 1: by rater
        for item in responses:
            for question, answer in (item.get("values") or {}).items():
                value = answer.get("value") if isinstance(answer, dict) else answer
                yield question, value, item.get("user_id"), item.get("status")
    yield from _argilla_columns(values)


def _argilla_columns(values: Values) -> Iterator[tuple[str, Any, Any, Any]]:
    for name, column in values.items():
        question, _, part = name.rpartition(".")
        if part == "responses" and isinstance(column, list):  # version 2 as a data set
            users, states = (values.get(f"{name}.{key}") or [] for key in ("users", "status"))
            for value, user, status in zip_longest(column, users, states):
                yield question, value, user, status
        elif isinstance(column, list) and column and isinstance(column[0], dict) and "user_id" in column[0]:
            for item in column:  # version 1 as a data set
                yield name, item.get("value"), item.get("user_id"), item.get("status")


def _label_studio(values: Values, kind: RecordKind) -> Iterator[dict[str, Any]]:
    del kind
    votes: dict[str, list[dict[str, Any]]] = {}
    for path, annotation in _objects(values, "annotations"):
        if annotation.get("was_cancelled"):
            continue
        rater = annotation.get("completed_by")
        rater = rater.get("id", rater.get("email")) if isinstance(rater, dict) else rater
        for result in annotation.get("result") or []:
            if not isinstance(result, dict) or not isinstance(result.get("value"), dict):
                raise FieldError(f"{path}.result", "a part without a value", fix="export as JSON")
            vote = next((result["value"][key] for key in CONTROL_KEYS if key in result["value"]), None)
            vote = vote[0] if isinstance(vote, list) and len(vote) == 1 else vote
            votes.setdefault(str(result.get("from_name")), []).append({"value": vote, "rater": rater})
    yield {**_without(values, "annotations", "data"), **_required(values, "data", dict), "scores": votes}


CONTROL_KEYS = ("rating", "number", "choices", "text", "datetime")
"""Where the controls of Label Studio keep their value."""


def _sharegpt(values: Values, kind: RecordKind) -> Iterator[dict[str, Any]]:
    turns = as_role_messages(_required(values, "conversations", list))
    if isinstance(system := values.get("system"), str) and system.strip():
        turns = [{"role": "system", "content": system}, *turns]
    row = _without(values, "conversations", "system")
    if kind == "pairs":
        sides: dict[str, Any] = {
            name: as_role_messages(row[name]) for name in ("chosen", "rejected") if name in row
        }
        yield {**row, **sides, "prompt": turns}
    else:
        yield {**row, "messages": turns}


Expand = Callable[[Values, RecordKind], Iterator[dict[str, Any]]]
EXPORTS: dict[str, Expand] = {
    "helpsteer2": _helpsteer2,
    "helpsteer3": _helpsteer3,
    "ultrafeedback": _ultrafeedback,
    "pku_saferlhf": _pku_saferlhf,
    "nectar": _nectar,
    "argilla": _argilla,
    "label_studio": _label_studio,
    "distilabel": _distilabel,
    "sharegpt": _sharegpt,
}
UNSUPPORTED_KINDS: dict[str, tuple[RecordKind, ...]] = {
    "helpsteer3": ("ratings", "demonstrations"),
    "ultrafeedback": ("pairs",),
    "pku_saferlhf": ("demonstrations",),
    "nectar": ("demonstrations",),
}
"""What an export does not hold."""
SIGNATURES = {
    "helpsteer3": ("context", "response1", "response2"),
    "ultrafeedback": ("instruction", "completions"),
    "pku_saferlhf": ("prompt", "response_0", "response_1"),
    "helpsteer2": ("prompt", "response_1", "response_2", "preference_strength"),
    "nectar": ("prompt", "answers"),
    "argilla": ("fields", "responses"),
    "label_studio": ("annotations", "data"),
    "distilabel": ("instruction", "generations"),
    "sharegpt": ("conversations", "chosen"),
}
"""Columns by which an export is recognized when no `format` is set."""
