"""Text of unknown origin, made safe to show: nothing invisible, nothing that moves a cursor.

Numbers and verdicts as a person reads them; one place, so that page and terminal say the same.
"""

import math
import unicodedata
from collections.abc import Mapping
from typing import Any

_ALLOWED_ZERO_WIDTH = {"\u200c", "\u200d"}
"""Zero-width, but Persian, Indic scripts and emoji are spelt with them."""


def escape_invisible(text: str) -> str:
    """The text with every control, direction and invisible character written out as ⟨U+202E⟩.

    Line feeds and tabs stay. The result can be encoded as UTF-8, lone surrogates included.
    """
    if text.isascii() and text.replace("\n", "").replace("\t", "").isprintable():
        return text
    return "".join(_escape(character) for character in text.replace("\r\n", "\n"))


def sanitize(text: str) -> str:
    """What may be printed on a terminal: `visible`, under the name the printing code knows it by."""
    return escape_invisible(text)


def one_line(text: str, max_chars: int | None = None) -> str:
    """The text on one line and, when longer than `max_chars` characters, cut with an ellipsis."""
    line = " ".join(escape_invisible(text).split())
    return line if max_chars is None or len(line) <= max_chars else line[: max(max_chars - 1, 0)] + "…"


def _escape(character: str) -> str:
    if character in "\n\t" or character in _ALLOWED_ZERO_WIDTH:
        return character
    # Cc control, Cf format (bidi, tags, zero width), Cs surrogate, Zl and Zp separators that end a line.
    if unicodedata.category(character) in ("Cc", "Cf", "Cs", "Zl", "Zp") or _is_blank(character):
        return f"⟨U+{ord(character):04X}⟩"
    return character


def _is_blank(character: str) -> bool:
    """Letters and marks that draw nothing: fillers and variation selectors past the common two."""
    code = ord(character)
    return code in (0x034F, 0x115F, 0x1160, 0x17B4, 0x17B5, 0x3164, 0xFFA0) or 0xE0100 <= code <= 0xE01EF


MISSING = "–"
"""Stands where there is no number."""

SCIENTIFIC_THRESHOLD = 1e9
"""From here on numbers are written with a power of ten."""

VERDICT_SYMBOLS = {
    "better": "▲",
    "worse": "▼",
    "not worse": "◆",
    "no evidence": "●",
    "inconclusive": "◇",
    "not measured": "○",
}
"""A shape for each verdict, so that nothing hangs on colour."""


def finite_or_none(value: Any) -> float | None:
    """The number, or None where there is none: null in the files, NaN in memory."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) else None


def format_number(value: Any, decimals: int = 2) -> str:
    """A plain number with a true minus sign; powers of ten where it is too long to be read."""
    found = finite_or_none(value)
    if found is None:
        return MISSING
    text = f"{found:.{decimals}f}" if abs(found) < SCIENTIFIC_THRESHOLD else f"{found:.2e}"
    return f"−{text[1:]}" if text.startswith("-") and float(text) else text.lstrip("-")


def format_signed(value: Any, decimals: int = 2) -> str:
    """A change: always with its sign."""
    text = format_number(value, decimals)
    return text if text == MISSING or text.startswith("−") or not float(text) else f"+{text}"


def format_interval(low: Any, high: Any, decimals: int = 2, scale: int = 1) -> str:
    """[low, high] of a change, or nothing where there is none."""
    if finite_or_none(low) is None or finite_or_none(high) is None:
        return ""
    return f"[{format_signed(low * scale, decimals)}, {format_signed(high * scale, decimals)}]"


def format_percent(value: Any, decimals: int = 0) -> str:
    """A share as a percentage."""
    found = finite_or_none(value)
    return MISSING if found is None else f"{format_number(100 * found, decimals)} %"


def format_compact(value: Any) -> str:
    """Three significant digits, whatever the size."""
    found = finite_or_none(value)
    if found is None:
        return MISSING
    if found != 0 and not 1e-3 <= abs(found) < 1e6:
        return f"{found:.2e}".replace("-", "−")
    return format_number(found, max(0, 2 - math.floor(math.log10(abs(found))))) if found else "0"


def decimals_for(objective: Mapping[str, Any]) -> int:
    """Decimals that tell the interval of an objective's change from a point, and its ends from 0."""
    low, high = finite_or_none(objective["low"]), finite_or_none(objective["high"])
    if low is None or high is None or high <= low:
        return 2
    half = (high - low) / 2
    digits = min(5, max(2 if half < 10 else 1, -math.floor(math.log10(half))))
    while digits < 5 and any(end != 0 and round(end, digits) == 0 for end in (low, high)):
        digits += 1
    return digits


def format_verdict(objective: Mapping[str, Any]) -> str:
    """The verdict and, in brackets, its reason where it has one."""
    reason = explain_verdict(objective)
    return f"{objective['verdict']} ({reason})" if reason else str(objective["verdict"])


def explain_verdict(objective: Mapping[str, Any]) -> str:
    """Why there is no evidence: who judged, what could have been seen, or that nothing moved at all."""
    if objective["verdict"] != "no evidence":
        return ""
    low = finite_or_none(objective["low"])
    if low is not None and low > 0:
        return "judge = training reward"
    detectable = finite_or_none(objective.get("detectable"))
    if detectable is None:
        return ""
    if detectable == 0:
        return "no score changed"
    text = format_number(detectable, decimals_for(objective))
    return f"could have seen ≥ {text if float(text) else format_compact(detectable)}"


def format_before_after(pair: Mapping[str, Any], decimals: int = 2) -> str:
    """Before → after."""
    return f"{format_number(pair['before'], decimals)} → {format_number(pair['after'], decimals)}"


def format_percent_before_after(pair: Mapping[str, Any]) -> str:
    """Before → after as percentages, with the interval of the change in points."""
    text = f"{format_percent(pair['before'])} → {format_percent(pair['after'])}"
    bounds = format_interval(pair.get("low"), pair.get("high"), 0, scale=100)
    return f"{text} {bounds}" if bounds else text
