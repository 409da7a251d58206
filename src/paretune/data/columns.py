"""Which column of a file says what, and single values: text, turns, numbers; a wrong one is a `BadField`."""

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from difflib import get_close_matches
from typing import Any

from paretune.core.errors import DataError, format_issue
from paretune.data.formats import json_type_name
from paretune.data.records import Message

RowValues = Mapping[str, Any]
ROLES = ("system", "user", "assistant")
ROLE_SYNONYMS = {
    "human": "user",
    "prompter": "user",
    "gpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
}
ROLE_SYNONYMS |= {"ai": "assistant", "chatgpt": "assistant", "developer": "system"}
REFUSAL_CATEGORIES = ("harmful", "lookalike")
"""Kinds of prompts whose refusals are counted apart."""
NOT_REFUSAL_CATEGORY = "is not a kind whose refusals are counted apart"
RENAME_CATEGORY_FIX = "write {}, or a word less like it"
"""What to do about it; of the kind that was meant."""
NO_PROMPT = "-"
FLOAT32_MAX = 2.0**128 - 2.0**104
"""Of the numbers that float32 holds, about 3.4e38."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ColumnNames:
    """Names of a file's columns; an empty one stands for the usual names."""

    prompt: str = ""
    """Text (one user turn) or a list of turns; usually `prompt`. "-" = none, responses stand alone."""
    response: str = ""
    """Text, or a list of one assistant turn; usually `response` or `completion`."""
    chosen: str = ""
    rejected: str = ""
    messages: str = ""
    """A whole conversation, whose last assistant turn is the response; usually `messages`."""
    scores: str = ""
    """An object {aspect: number}; usually `scores`."""
    objective: str = ""
    """Which objective a pair was compared by; usually `objective`."""
    id: str = ""
    category: str = ""
    """Becomes `Prompt.kind`; no usual name."""
    preference_weights: str = ""
    """Becomes `Prompt.preference`, an object {objective: weight}; no usual name."""


DEFAULT_COLUMN_NAMES = {name: (name,) for name in ColumnNames.__dataclass_fields__} | {
    "response": ("response", "completion"),
    "kind": (),
    "preference": (),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelMapping:
    """An objective's label as a file has it: scale * aspect + offset; scale -1 where lower is better."""

    column: str
    scale: float = 1.0
    offset: float = 0.0


class FieldError(DataError):
    """What is wrong with one column of one row, and with further ones where several were looked at."""

    def __init__(
        self, key: str, problem: str, *, suggestion: str = "", fix: str = "", column_missing: bool = False
    ) -> None:
        key = truncate_text(key, 80)
        super().__init__(format_issue("row", None, None, key, problem, suggestion=suggestion, fix=fix))
        self.key, self.problem, self.suggestion, self.fix = key, problem, suggestion, fix
        self.other_errors: tuple[FieldError, ...] = ()
        self.column_missing = column_missing
        """The row has no such column."""

    def render(self, location: str) -> str:
        """The complaint, for a row that stands at `location`."""
        return format_issue(
            location, None, None, self.key, self.problem, suggestion=self.suggestion, fix=self.fix
        )

    def render_all(self, location: str) -> list[str]:
        """This complaint and the further ones about the same row."""
        return [error.render(location) for error in (self, *self.other_errors)]


def closest_match(name: str, names: Iterable[str]) -> str:
    """The name that was probably meant, or nothing."""
    return truncate_text(next(iter(get_close_matches(name, list(names), 1)), ""))


def misspelled_category(word: str) -> str:
    """The kind whose refusals are counted that a word is all but spelt as; "" for one, and for other words.

    An "unharmful" prompt is of another kind: what stands before the word is no slip.
    """
    bare = re.sub(r"[\W_]", "", word.lower())
    meant = next(iter(get_close_matches(bare, REFUSAL_CATEGORIES, 1, 0.85)), "")
    return "" if word == meant or (bare != meant and bare.endswith(meant)) else meant


def resolve_column(columns: ColumnNames, field: str, values: RowValues) -> str:
    """The column of this row that holds `field`; "" where there is none, or only a null."""
    given = getattr(columns, field)
    names = (given,) if given else DEFAULT_COLUMN_NAMES[field]
    return next((name for name in names if values.get(name) is not None), "")


def column_value(columns: ColumnNames, field: str, values: RowValues) -> Any:
    """What this row has in the column of `field`; None where it has nothing."""
    name = resolve_column(columns, field, values)
    return values[name] if name else None


def missing_column_error(columns: ColumnNames, field: str, values: RowValues) -> FieldError:
    """The complaint that no column holds `field`."""
    given = getattr(columns, field)
    names = [given] if given else list(DEFAULT_COLUMN_NAMES[field])
    absent = names[0] not in values
    wrong = f"no such column; this row has {summarize_names(values)}" if absent else "null"
    meant = closest_match(names[0], set(values) - set(names))
    return FieldError(names[0], wrong, suggestion=meant, fix=_fix_hint(field), column_missing=absent)


def _fix_hint(field: str) -> str:
    named = f"name it under columns: {{{field}: ...}}"
    further = {
        "prompt": f'{named}, or "{NO_PROMPT}" where there is none',
        "objective": f"say objective: NAME, or {named}",
        "scores": "say which columns hold labels: {politeness: COLUMN}",
    }
    return further.get(field, named)


def summarize_names(names: Iterable[str], max_names: int = 12) -> str:
    """The first few names, for a message."""
    every = [truncate_text(name) for name in names]
    return (
        ", ".join(every[:max_names])
        + (f" and {len(every) - max_names} more" if len(every) > max_names else "")
        or "nothing"
    )


def parse_text(value: object, key: str) -> str:
    """A value that must be text which can be written as UTF-8."""
    if not isinstance(value, str):
        raise FieldError(key, f"{json_type_name(value)}, not text", fix='write it as "text"')
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise FieldError(key, "holds half of a surrogate pair", fix="write the whole character") from error
    return value


def parse_messages(value: object, key: str) -> tuple[Message, ...]:
    """A value that must be a list of turns."""
    if not isinstance(value, list):
        fix = 'write "text" or [{"role": "user", "content": "text"}]'
        raise FieldError(key, f"{json_type_name(value)}, neither text nor a list of turns", fix=fix)
    return tuple(_parse_message(item, f"{key}[{i}]") for i, item in enumerate(value))


def _parse_message(item: object, key: str) -> Message:
    if not isinstance(item, dict) or "role" not in item or "content" not in item:
        holds = (
            f"an object with {summarize_names(map(str, item))}"
            if isinstance(item, dict)
            else json_type_name(item)
        )
        raise FieldError(key, f"{holds}, not a turn", fix='write {"role": "user", "content": "..."}')
    role = parse_text(item["role"], f"{key}.role")
    if role not in ROLES:
        meant = ROLE_SYNONYMS.get(role.lower()) or closest_match(role.lower(), ROLES)
        raise FieldError(
            f"{key}.role",
            f'unknown role "{truncate_text(role)}"',
            suggestion=meant,
            fix=f"use {', '.join(ROLES)}",
        )
    return Message(role, parse_text(item["content"], f"{key}.content"))


def parse_number(value: object, key: str) -> float:
    """A value that must be a number; NaN where nobody was asked, which is null, NaN or an empty cell."""
    if value is None or (isinstance(value, str) and not value.strip()):
        return math.nan
    if isinstance(value, str):
        value = {"true": 1.0, "false": 0.0}.get(value.strip().lower(), value)
    if not isinstance(value, str | int | float | Decimal):
        raise FieldError(
            key, f"{json_type_name(value)}, not a number", fix="write a number, or null for not asked"
        )
    try:
        number = float(value)
    except ValueError as error:
        fix = "write a number, or nothing for not asked"
        raise FieldError(key, f'"{truncate_text(str(value))}" is not a number', fix=fix) from error
    except OverflowError:
        number = math.inf
    if math.isinf(number):
        raise FieldError(key, "infinite, or too large for a number", fix="write a finite number")
    return number


def parse_label(raw: object, key: str, mapping: LabelMapping) -> float:
    """A label in the units asked for; NaN where nobody was asked.

    Raises:
        BadField: Not a number, or one that float32, in which models are fitted, cannot hold.
    """
    number = mapping.scale * parse_number(raw, key) + mapping.offset
    if abs(number) > FLOAT32_MAX:
        wrong = f"{number:.3g} is more than float32 holds ({FLOAT32_MAX:.2g})"
        raise FieldError(key, wrong, fix="write a smaller number, or nothing for not asked")
    return number


def truncate_text(text: str, max_chars: int = 40) -> str:
    """The beginning of a text, for a message; control characters written out."""
    shown = text if len(text) <= max_chars else text[: max_chars - 3] + "..."
    return "".join(c if c.isprintable() else f"\\u{ord(c):04x}" for c in shown)
