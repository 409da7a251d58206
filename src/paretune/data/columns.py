"""Column names, and parsing of single cells: text, messages, numbers. A bad cell raises `FieldError`."""

import math
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
    "ai": "assistant",
    "chatgpt": "assistant",
    "developer": "system",
}
"""Roles of other formats, for the suggestion in the error message."""
NO_PROMPT = "-"
"""Column name that says: there is no prompt, the responses are texts on their own."""
FLOAT32_MAX = 2.0**128 - 2.0**104
"""Largest float32 number, about 3.4e38."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ColumnNames:
    """Column names of a file; "" = the default names."""

    prompt: str = ""
    """Text (one user message) or a list of messages; default `prompt`. "-" = no prompt."""
    response: str = ""
    """Text, or a list of one assistant message; default `response` or `completion`."""
    chosen: str = ""
    rejected: str = ""
    messages: str = ""
    """A conversation whose last message is the response; default `messages`."""
    scores: str = ""
    """An object {name: number}; default `scores`."""
    objective: str = ""
    """Name of the objective that a pair was compared by; default `objective`."""
    id: str = ""
    category: str = ""
    """Becomes `Prompt.category`, free text; no default name."""
    preference_weights: str = ""
    """Becomes `Prompt.preference_weights`, an object {objective: weight}; no default name."""


DEFAULT_COLUMN_NAMES = {name: (name,) for name in ColumnNames.__dataclass_fields__} | {
    "response": ("response", "completion"),
    "category": (),
    "preference_weights": (),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelMapping:
    """Label of an objective from a column or a key of `scores`: scale * value + offset.

    A scale of -1 turns a column in which lower is better.
    """

    column: str
    scale: float = 1.0
    offset: float = 0.0


class FieldError(DataError):
    """A bad cell of one row, and further bad cells of the same row."""

    def __init__(
        self, key: str, problem: str, *, suggestion: str = "", fix: str = "", column_missing: bool = False
    ) -> None:
        key = truncate_text(key, 80)
        super().__init__(format_issue("row", None, None, key, problem, suggestion=suggestion, fix=fix))
        self.key, self.problem, self.suggestion, self.fix = key, problem, suggestion, fix
        self.other_errors: tuple[FieldError, ...] = ()
        self.column_missing = column_missing
        """True if the row does not have the column."""

    def render(self, location: str) -> str:
        """The error message for a row at `location`, such as "file:line"."""
        return format_issue(
            location, None, None, self.key, self.problem, suggestion=self.suggestion, fix=self.fix
        )

    def render_all(self, location: str) -> list[str]:
        """The messages of this error and of the others of the row."""
        return [error.render(location) for error in (self, *self.other_errors)]


def closest_match(name: str, names: Iterable[str]) -> str:
    """The most similar name for a "did you mean", or ""."""
    return truncate_text(next(iter(get_close_matches(name, list(names), 1)), ""))


def resolve_column(columns: ColumnNames, field: str, values: RowValues) -> str:
    """The column of this row that holds `field`; "" if there is none, or its cell is null."""
    configured = getattr(columns, field)
    names = (configured,) if configured else DEFAULT_COLUMN_NAMES[field]
    return next((name for name in names if values.get(name) is not None), "")


def column_value(columns: ColumnNames, field: str, values: RowValues) -> Any:
    """The cell of this row that holds `field`, or None."""
    name = resolve_column(columns, field, values)
    return values[name] if name else None


def missing_column_error(columns: ColumnNames, field: str, values: RowValues) -> FieldError:
    """Error for a row without a column for `field`."""
    configured = getattr(columns, field)
    names = [configured] if configured else list(DEFAULT_COLUMN_NAMES[field])
    absent = names[0] not in values
    problem = f"no such column; this row has {summarize_names(values)}" if absent else "null"
    suggestion = closest_match(names[0], set(values) - set(names))
    return FieldError(names[0], problem, suggestion=suggestion, fix=_fix_hint(field), column_missing=absent)


def _fix_hint(field: str) -> str:
    hint = f"name it under columns: {{{field}: ...}}"
    special = {
        "prompt": f'{hint}, or "{NO_PROMPT}" if there is none',
        "objective": f"set objective: NAME, or {hint}",
        "scores": "name the label columns under labels: {politeness: COLUMN}",
    }
    return special.get(field, hint)


def summarize_names(names: Iterable[str], max_names: int = 12) -> str:
    """The first few names for an error message, and how many more there are."""
    texts = [truncate_text(name) for name in names]
    more = f" and {len(texts) - max_names} more" if len(texts) > max_names else ""
    return ", ".join(texts[:max_names]) + more or "nothing"


def parse_text(value: object, key: str) -> str:
    """A cell as text.

    Raises:
        FieldError: It is not text, or cannot be encoded as UTF-8.
    """
    if not isinstance(value, str):
        raise FieldError(key, f"{json_type_name(value)}, not text", fix='write it as "text"')
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise FieldError(key, "contains an unpaired surrogate", fix="write the whole character") from error
    return value


def parse_messages(value: object, key: str) -> tuple[Message, ...]:
    """A cell as a list of messages.

    Raises:
        FieldError: It is not a list of objects with a known role and text content.
    """
    if not isinstance(value, list):
        fix = 'write "text" or [{"role": "user", "content": "text"}]'
        raise FieldError(key, f"{json_type_name(value)}, not text or a list of messages", fix=fix)
    return tuple(_parse_message(item, f"{key}[{i}]") for i, item in enumerate(value))


def _parse_message(item: object, key: str) -> Message:
    if not isinstance(item, dict) or "role" not in item or "content" not in item:
        description = (
            f"an object with {summarize_names(map(str, item))}"
            if isinstance(item, dict)
            else json_type_name(item)
        )
        raise FieldError(key, f"{description}, not a message", fix='write {"role": "user", "content": "..."}')
    role = parse_text(item["role"], f"{key}.role")
    if role not in ROLES:
        suggestion = ROLE_SYNONYMS.get(role.lower()) or closest_match(role.lower(), ROLES)
        raise FieldError(
            f"{key}.role",
            f'unknown role "{truncate_text(role)}"',
            suggestion=suggestion,
            fix=f"use {', '.join(ROLES)}",
        )
    return Message(role, parse_text(item["content"], f"{key}.content"))


def parse_number(value: object, key: str) -> float:
    """A cell as a number; NaN for null, NaN and empty cells.

    Raises:
        FieldError: It is not a number, or infinite.
    """
    if value is None or (isinstance(value, str) and not value.strip()):
        return math.nan
    if isinstance(value, str):
        # CSV has no booleans
        value = {"true": 1.0, "false": 0.0}.get(value.strip().lower(), value)
    if not isinstance(value, str | int | float | Decimal):
        raise FieldError(
            key, f"{json_type_name(value)}, not a number", fix="write a number, or null if not labelled"
        )
    try:
        number = float(value)
    except ValueError as error:
        fix = "write a number, or leave it empty if not labelled"
        raise FieldError(key, f'"{truncate_text(str(value))}" is not a number', fix=fix) from error
    except OverflowError:
        number = math.inf
    if math.isinf(number):
        raise FieldError(key, "infinite, or too large for a number", fix="write a finite number")
    return number


def parse_label(raw: object, key: str, mapping: LabelMapping) -> float:
    """A label with scale and offset applied; NaN if the cell is empty.

    Raises:
        FieldError: It is not a number, or outside the range of float32, in which models are trained.
    """
    number = mapping.scale * parse_number(raw, key) + mapping.offset
    if abs(number) > FLOAT32_MAX:
        problem = f"{number:.3g} exceeds the float32 range ({FLOAT32_MAX:.2g})"
        raise FieldError(key, problem, fix="write a smaller number, or leave it empty if not labelled")
    return number


def truncate_text(text: str, max_chars: int = 40) -> str:
    """The start of a text for an error message, with control characters escaped."""
    start = text if len(text) <= max_chars else text[: max_chars - 3] + "..."
    return "".join(c if c.isprintable() else f"\\u{ord(c):04x}" for c in start)
