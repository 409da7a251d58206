"""Column names, and parsing of single cells: text, messages, numbers. A bad cell raises `FieldError`."""

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from difflib import get_close_matches
from typing import Any

from paretune.core.errors import DataError, format_issue
from paretune.data.formats import json_type_name
from paretune.data.number_texts import leading_numbers, number_problem
from paretune.data.records import Message

RowValues = Mapping[str, Any]
Scalar = str | int | float | bool
ROLES = ("system", "user", "assistant", "tool", "developer")
ROLE_SYNONYMS = {
    "observation": "tool",
    "human": "user",
    "prompter": "user",
    "gpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "ai": "assistant",
    "chatgpt": "assistant",
    "function": "tool",
}
"""Roles of other formats, for the suggestion in the error message."""
NO_PROMPT = "-"
"""Column name that says: there is no prompt, the responses are texts on their own."""
MAX_LABEL = 1e18
"""Largest label: its square, which training and evaluation compute, is within the range of float32."""


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
    """An object {name: number}; default `scores`. "-" = none, labels are columns."""
    objective: str = ""
    """Name of the objective that a pair was compared by; default `objective`."""
    id: str = ""
    category: str = ""
    """Becomes `Prompt.category`, free text; no default name."""
    preference_weights: str = ""
    """Becomes `Prompt.preference_weights`, an object {objective: weight}; no default name."""
    rater: str = ""
    """Who rated, if each row is one rater's; rows of the same response are joined. No default name."""


DEFAULT_COLUMN_NAMES = {name: (name,) for name in ColumnNames.__dataclass_fields__} | {
    "response": ("response", "completion"),
    "messages": ("messages", "conversations"),
    "category": (),
    "rater": (),
    "preference_weights": (),
}

LIKELY_COLUMN_NAMES = {
    "prompt": ("question", "instruction", "query", "input"),
    "response": ("answer", "output", "text", "reply", "generation"),
    "chosen": ("preferred", "accepted", "winner"),
    "rejected": ("dispreferred", "loser"),
}
"""Names that a complaint proposes for a column; none of them is read unless the recipe names it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelMapping:
    """Label of an objective from a column or a key of `scores`: scale * value + offset.

    A scale of -1 turns a column in which lower is better.
    """

    column: str | tuple[str, ...]
    """Several columns are one rater each."""
    scale: float = 1.0
    offset: float = 0.0
    missing: tuple[Scalar, ...] = ()
    """Values that mean "not rated"."""
    keep: tuple[Scalar, ...] = ()
    """Values that are real although they look like a code for "not rated"."""
    value_map: Mapping[str, float] = field(default_factory=dict)
    """Text of a cell -> the number that it stands for."""

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns, one per rater."""
        return (self.column,) if isinstance(self.column, str) else self.column


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


def add_nested_values(values: dict[str, Any], paths: Iterable[str]) -> None:
    """Add the values that dotted paths such as `responses.safety.value` lead to, under these names.

    A number is an index; `*`, or a key where there is a list, takes it from every item. A column whose own
    name has dots is left as it is, and a path that leads nowhere adds nothing.
    """
    for path in paths:
        if path not in values:
            value = _descend(values, path.split("."))
            if value is not None:
                values[path] = value


def _descend(value: Any, parts: list[str]) -> Any:
    """The value below; None if there is none."""
    for i, part in enumerate(parts):
        if isinstance(value, dict):
            value = value.get(part)
        elif isinstance(value, list) and part.isdecimal():
            value = value[int(part)] if int(part) < len(value) else None
        elif isinstance(value, list):
            rest = parts[i + (part == "*") :]
            items = [_descend(item, rest) for item in value if not is_unsubmitted(item)]
            return [item for item in items if item is not None]
        else:
            return None
    return value


def is_unsubmitted(vote: object) -> bool:
    """True for a vote that its rater has not handed in."""
    return isinstance(vote, dict) and vote.get("status") in ("draft", "discarded", "pending")


def resolve_column(columns: ColumnNames, field: str, values: RowValues) -> str:
    """The column of this row that holds `field`; "" if there is none, or its cell is null."""
    configured: str = getattr(columns, field)
    if configured:
        return configured if values.get(configured) is not None else ""
    # A loop, as this runs several times per row: a generator takes twice as long.
    for name in DEFAULT_COLUMN_NAMES[field]:
        if values.get(name) is not None:
            return name
    return ""


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
    likely = next((name for name in LIKELY_COLUMN_NAMES.get(field, ()) if absent and name in values), "")
    suggestion = "" if likely else closest_match(names[0], set(values) - set(names))
    fix = _fix_hint(field, likely or "...")
    return FieldError(names[0], problem, suggestion=suggestion, fix=fix, column_missing=absent)


def _fix_hint(field: str, name: str = "...") -> str:
    hint = f"name it under columns: {{{field}: {name}}}"
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
    """A cell as a list of messages; further keys of a message are kept for the chat template.

    Raises:
        FieldError: It is not a list of objects with a known role and text content.
    """
    if not isinstance(value, list):
        fix = 'write "text" or [{"role": "user", "content": "text"}]'
        raise FieldError(key, f"{json_type_name(value)}, not text or a list of messages", fix=fix)
    return tuple(_parse_message(item, f"{key}[{i}]") for i, item in enumerate(value))


def _parse_message(item: object, key: str) -> Message:
    if not isinstance(item, dict) or "role" not in item or not item.keys() & {"content", "tool_calls"}:
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
    # Parquet has every key of any row in all rows: empty ones say nothing.
    extra = {k: v for k, v in item.items() if k not in {"role", "content"} and v not in (None, "", [], {})}
    content = item.get("content")
    if content in (None, []) and "tool_calls" in extra:
        content = ""
    return Message(role, _parse_content(content, f"{key}.content"), _extra_keys(extra, key))


def _parse_content(content: object, key: str) -> str:
    """The text of a message, which may be a list of parts."""
    if not isinstance(content, list):
        return parse_text(content, key)
    if not content:
        raise FieldError(key, "an empty list", fix='write "text", or delete the row')
    texts = []
    for i, part in enumerate(content):
        kind = part.get("type", "text") if isinstance(part, dict) else json_type_name(part)
        if not isinstance(part, dict) or kind != "text" or "text" not in part:
            problem = f'a part of the type "{truncate_text(str(kind))}": only text can be read'
            fix = 'write {"type": "text", "text": "..."}, or delete the row'
            raise FieldError(f"{key}[{i}]", problem, fix=fix)
        texts.append(parse_text(part["text"], f"{key}[{i}].text"))
    return "".join(texts)


def _extra_keys(extra: Mapping[str, object], key: str) -> tuple[tuple[str, str], ...]:
    """Further keys of a message as JSON, so that the message stays immutable and hashable."""
    pairs = []
    for name, value in extra.items():
        try:
            pairs.append((str(name), json.dumps(value, default=float)))
        except (TypeError, ValueError) as error:
            raise FieldError(
                f"{key}.{name}", "not a value that JSON has", fix="write text or numbers"
            ) from error
    return tuple(pairs)


def response_text(message: Message, key: str) -> str:
    """The text of an assistant message as an answer; its reasoning is written before it, in tags.

    Raises:
        FieldError: The message has another key, whose content no text expresses.
    """
    extra = dict(message.extra)
    reasoning = json.loads(extra.pop("reasoning_content", '""'))
    if extra:
        problem = "an answer is text alone, so this key would be lost"
        raise FieldError(f"{key}.{next(iter(extra))}", problem, fix="remove it, or write it as text")
    return f"<think>\n{reasoning}\n</think>\n\n{message.content}" if reasoning else message.content


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
        if isinstance(value, str) and "_" in value:  # Python's spelling of digit groups, which no file means
            raise ValueError(value)
        number = float(value)
    except ValueError as error:
        text = truncate_text(str(value).strip())
        if known := number_problem(text):
            raise FieldError(key, known[0], fix=known[1]) from error
        raise FieldError(key, f'"{text}" is not a number', fix=text_value_fix([text])) from error
    except OverflowError:
        number = math.inf
    if math.isinf(number):
        raise FieldError(key, "infinite, or too large for a number", fix="write a finite number")
    return number


def text_value_fix(texts: Iterable[str]) -> str:
    """How to say what the texts of label cells mean: as numbers, if they begin with one, or as missing."""
    texts = list(texts)
    known = [text for text in texts if not text.endswith("...")]
    numbers = leading_numbers(known)
    if known and len(numbers) == len(known):
        ordered = sorted(numbers.items(), key=lambda item: float(item[1]))
        return f"map: {{{', '.join(f'{quote_text(text)}: {number}' for text, number in ordered)}}}"
    names = ", ".join(map(quote_text, known)) or '"..."'
    first = quote_text(known[0]) if known else '"..."'
    return f"missing: [{names}] if not rated, or map: {{{first}: NUMBER}}"


def quote_text(text: str) -> str:
    """A text in double quotes, as YAML reads it."""
    return json.dumps(text, ensure_ascii=False)


def check_label_range(number: float, key: str) -> float:
    """The number.

    Raises:
        FieldError: It is too large for a model that is trained in float32.
    """
    if abs(number) > MAX_LABEL:
        problem = f"{number:.3g} is too large for training in float32 (up to {MAX_LABEL:.0e})"
        raise FieldError(key, problem, fix="write a smaller number, or leave it empty if not labelled")
    return number


def truncate_text(text: str, max_chars: int = 40) -> str:
    """The start of a text for an error message, with control characters escaped."""
    start = text if len(text) <= max_chars else text[: max_chars - 3] + "..."
    return "".join(c if c.isprintable() else f"\\u{ord(c):04x}" for c in start)
