"""Which column of a file says what, and single values: text, turns, numbers; a wrong one is a `BadField`."""

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from difflib import get_close_matches
from typing import Any

from paretune.data.files import kind_of
from paretune.data.records import Message
from paretune.errors import DataError, complaint

Values = Mapping[str, Any]
ROLES = ("system", "user", "assistant")
SYNONYMS = {"human": "user", "prompter": "user", "gpt": "assistant", "bot": "assistant", "model": "assistant"}
SYNONYMS |= {"ai": "assistant", "chatgpt": "assistant", "developer": "system"}
COUNTED = ("harmful", "lookalike")
"""Kinds of prompts whose refusals are counted apart."""
UNCOUNTED = "is not a kind whose refusals are counted apart"
LESS_LIKE = "write {}, or a word less like it"
"""What to do about it; of the kind that was meant."""
NO_PROMPT = "-"
LARGEST = 2.0**128 - 2.0**104
"""Of the numbers that float32 holds, about 3.4e38."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Columns:
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
    kind: str = ""
    """Becomes `Prompt.kind`; no usual name."""
    preference: str = ""
    """Becomes `Prompt.preference`, an object {objective: weight}; no usual name."""


USUAL = {name: (name,) for name in Columns.__dataclass_fields__} | {
    "response": ("response", "completion"),
    "kind": (),
    "preference": (),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Label:
    """An objective's label as a file has it: scale * aspect + offset; scale -1 where lower is better."""

    aspect: str
    scale: float = 1.0
    offset: float = 0.0


class BadField(DataError):
    """What is wrong with one column of one row, and with further ones where several were looked at."""

    def __init__(self, key: str, wrong: str, *, meant: str = "", fix: str = "", absent: bool = False) -> None:
        key = shortened(key, 80)
        super().__init__(complaint("row", None, None, key, wrong, meant=meant, fix=fix))
        self.key, self.wrong, self.meant, self.fix = key, wrong, meant, fix
        self.further: tuple[BadField, ...] = ()
        self.absent = absent
        """The row has no such column."""

    def at(self, place: str) -> str:
        """The complaint, for a row that stands at `place`."""
        return complaint(place, None, None, self.key, self.wrong, meant=self.meant, fix=self.fix)

    def every(self, place: str) -> list[str]:
        """This complaint and the further ones about the same row."""
        return [error.at(place) for error in (self, *self.further)]


def nearest(name: str, names: Iterable[str]) -> str:
    """The name that was probably meant, or nothing."""
    return shortened(next(iter(get_close_matches(name, list(names), 1)), ""))


def counted_kind(word: str) -> str:
    """The kind whose refusals are counted that a word is all but spelt as; "" for one, and for other words.

    An "unharmful" prompt is of another kind: what stands before the word is no slip.
    """
    bare = re.sub(r"[\W_]", "", word.lower())
    meant = next(iter(get_close_matches(bare, COUNTED, 1, 0.85)), "")
    return "" if word == meant or (bare != meant and bare.endswith(meant)) else meant


def found(columns: Columns, field: str, values: Values) -> str:
    """The column of this row that holds `field`; "" where there is none, or only a null."""
    given = getattr(columns, field)
    names = (given,) if given else USUAL[field]
    return next((name for name in names if values.get(name) is not None), "")


def value_of(columns: Columns, field: str, values: Values) -> Any:
    """What this row has in the column of `field`; None where it has nothing."""
    name = found(columns, field, values)
    return values[name] if name else None


def missing(columns: Columns, field: str, values: Values) -> BadField:
    """The complaint that no column holds `field`."""
    given = getattr(columns, field)
    names = [given] if given else list(USUAL[field])
    absent = names[0] not in values
    wrong = f"no such column; this row has {some(values)}" if absent else "null"
    meant = nearest(names[0], set(values) - set(names))
    return BadField(names[0], wrong, meant=meant, fix=_remedy(field), absent=absent)


def _remedy(field: str) -> str:
    named = f"name it under columns: {{{field}: ...}}"
    further = {
        "prompt": f'{named}, or "{NO_PROMPT}" where there is none',
        "objective": f"say objective: NAME, or {named}",
        "scores": "say which columns hold labels: {politeness: COLUMN}",
    }
    return further.get(field, named)


def some(names: Iterable[str], most: int = 12) -> str:
    """The first few names, for a message."""
    every = [shortened(name) for name in names]
    return (
        ", ".join(every[:most]) + (f" and {len(every) - most} more" if len(every) > most else "") or "nothing"
    )


def text_of(value: object, key: str) -> str:
    """A value that must be text which can be written as UTF-8."""
    if not isinstance(value, str):
        raise BadField(key, f"{kind_of(value)}, not text", fix='write it as "text"')
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise BadField(key, "holds half of a surrogate pair", fix="write the whole character") from error
    return value


def turns_of(value: object, key: str) -> tuple[Message, ...]:
    """A value that must be a list of turns."""
    if not isinstance(value, list):
        fix = 'write "text" or [{"role": "user", "content": "text"}]'
        raise BadField(key, f"{kind_of(value)}, neither text nor a list of turns", fix=fix)
    return tuple(_turn(item, f"{key}[{i}]") for i, item in enumerate(value))


def _turn(item: object, key: str) -> Message:
    if not isinstance(item, dict) or "role" not in item or "content" not in item:
        holds = f"an object with {some(map(str, item))}" if isinstance(item, dict) else kind_of(item)
        raise BadField(key, f"{holds}, not a turn", fix='write {"role": "user", "content": "..."}')
    role = text_of(item["role"], f"{key}.role")
    if role not in ROLES:
        meant = SYNONYMS.get(role.lower()) or nearest(role.lower(), ROLES)
        raise BadField(
            f"{key}.role", f'unknown role "{shortened(role)}"', meant=meant, fix=f"use {', '.join(ROLES)}"
        )
    return Message(role, text_of(item["content"], f"{key}.content"))


def number_of(value: object, key: str) -> float:
    """A value that must be a number; NaN where nobody was asked, which is null, NaN or an empty cell."""
    if value is None or (isinstance(value, str) and not value.strip()):
        return math.nan
    if isinstance(value, str):
        value = {"true": 1.0, "false": 0.0}.get(value.strip().lower(), value)
    if not isinstance(value, str | int | float | Decimal):
        raise BadField(key, f"{kind_of(value)}, not a number", fix="write a number, or null for not asked")
    try:
        number = float(value)
    except ValueError as error:
        fix = "write a number, or nothing for not asked"
        raise BadField(key, f'"{shortened(str(value))}" is not a number', fix=fix) from error
    except OverflowError:
        number = math.inf
    if math.isinf(number):
        raise BadField(key, "infinite, or too large for a number", fix="write a finite number")
    return number


def label_of(raw: object, key: str, label: Label) -> float:
    """A label in the units asked for; NaN where nobody was asked.

    Raises:
        BadField: Not a number, or one that float32, in which models are fitted, cannot hold.
    """
    number = label.scale * number_of(raw, key) + label.offset
    if abs(number) > LARGEST:
        wrong = f"{number:.3g} is more than float32 holds ({LARGEST:.2g})"
        raise BadField(key, wrong, fix="write a smaller number, or nothing for not asked")
    return number


def shortened(text: str, most: int = 40) -> str:
    """The beginning of a text, for a message; control characters written out."""
    shown = text if len(text) <= most else text[: most - 3] + "..."
    return "".join(c if c.isprintable() else f"\\u{ord(c):04x}" for c in shown)
