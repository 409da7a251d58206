"""Formatting of numbers, intervals and verdicts, and escaping of untrusted text.

The page and the terminal share these functions, so that both show the same digits and words.
"""

import math
import re
import unicodedata
from collections.abc import Mapping
from typing import Any

from paretune.core.goals import Goal

# Zero-width characters that Persian, Indic scripts and emoji sequences need.
_ALLOWED_ZERO_WIDTH = {"\u200c", "\u200d"}

MISSING = "–"
"""Placeholder for a missing number."""

SCIENTIFIC_THRESHOLD = 1e9
"""Numbers of at least this size are written in scientific notation."""

NO_JUDGE = "none"
"""`judge` of an objective in eval.json that no judge scores."""

VERDICT_SYMBOLS = {
    "better": "▲",
    "worse": "▼",
    "not worse": "◆",
    "no evidence": "●",
    "inconclusive": "◇",
    "judge unreliable": "⊘",
    "not measured": "○",
}
"""A shape per verdict, so that no verdict depends on color alone."""


def escape_invisible(text: str) -> str:
    """Write every control, bidirectional and invisible character as ⟨U+202E⟩.

    Line feeds and tabs stay. The result can be encoded as UTF-8, including text with lone surrogates.
    """
    # Fast path: printable ASCII needs no look-up per character.
    if text.isascii() and text.replace("\n", "").replace("\t", "").isprintable():
        return text
    text = text.replace("\r\n", "\n")
    # Texts have millions of characters and few different ones.
    escapes = {ord(c): escaped for c in set(text) if (escaped := _escape(c)) != c}
    return text.translate(escapes) if escapes else text


def sanitize(text: str) -> str:
    """Text that is safe to print on a terminal; an alias of `escape_invisible`."""
    return escape_invisible(text)


def one_line(text: str, max_chars: int | None = None) -> str:
    """The text on one line; longer than `max_chars` characters it is truncated with an ellipsis."""
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
    """Letters and marks without a glyph: fillers, and variation selectors beyond the first sixteen."""
    code = ord(character)
    return code in (0x034F, 0x115F, 0x1160, 0x17B4, 0x17B5, 0x3164, 0xFFA0) or 0xE0100 <= code <= 0xE01EF


def finite_or_none(value: Any) -> float | None:
    """The number as a float; None for null (JSON), NaN, infinity and non-numbers."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:  # a whole number of a JSON file may be larger than any float
        return None
    return number if math.isfinite(number) else None


def format_number(value: Any, decimals: int = 2) -> str:
    """A fixed-point number with a typographic minus sign; scientific notation from 1e9 on."""
    number = finite_or_none(value)
    if number is None:
        return MISSING
    text = f"{number:.{decimals}f}" if abs(number) < SCIENTIFIC_THRESHOLD else f"{number:.2e}"
    # A negative number that rounds to zero loses its sign: "-0.00" reads as a loss.
    return f"−{text[1:]}" if text.startswith("-") and float(text) else text.lstrip("-")


def format_signed(value: Any, decimals: int = 2) -> str:
    """A change, with an explicit plus or minus sign."""
    text = format_number(value, decimals)
    return text if text == MISSING or text.startswith("−") or not float(text) else f"+{text}"


def format_interval(low: Any, high: Any, decimals: int = 2, scale: int = 1) -> str:
    """The interval of a change as [low, high]; empty where an end is missing."""
    if finite_or_none(low) is None or finite_or_none(high) is None:
        return ""
    return f"[{format_signed(low * scale, decimals)}, {format_signed(high * scale, decimals)}]"


def format_percent(value: Any, decimals: int = 0) -> str:
    """A fraction as a percentage."""
    number = finite_or_none(value)
    return MISSING if number is None else f"{format_number(100 * number, decimals)} %"


def keep_units(text: str) -> str:
    """The text with percent signs that no line break parts from their number."""
    return re.sub(r"(?<=\d) %", "\u00a0%", text)


def format_compact(value: Any) -> str:
    """Three significant digits at any magnitude."""
    number = finite_or_none(value)
    if number is None:
        return MISSING
    if number != 0 and not 1e-3 <= abs(number) < 1e6:
        return f"{number:.2e}".replace("-", "−")
    return format_number(number, max(0, 2 - math.floor(math.log10(abs(number))))) if number else "0"


def decimals_for(objective: Mapping[str, Any]) -> int:
    """Decimals at which the interval of a change has a visible width and its ends differ from 0.

    They are also enough that the change is about the difference of `before` and `after` as they are shown:
    "3.22 → 3.23" beside "0.00" would contradict itself.

    Args:
        objective: Any mapping with `low` and `high`, and with or without `before`, `after` and `change`.
    """
    low, high = finite_or_none(objective["low"]), finite_or_none(objective["high"])
    if low is None or high is None or high <= low:
        return 2
    half_width = (high - low) / 2
    # At most five decimals: more would be noise in any table.
    decimals = min(5, max(2 if half_width < 10 else 1, -math.floor(math.log10(half_width))))
    while decimals < 5 and (
        any(end != 0 and round(end, decimals) == 0 for end in (low, high))
        or _contradicts_itself(objective, decimals)
    ):
        decimals += 1
    return decimals


def _contradicts_itself(objective: Mapping[str, Any], decimals: int) -> bool:
    """True if the change as shown is off the difference of `before` and `after` by more than a quarter."""
    before, after, change = (finite_or_none(objective.get(key)) for key in ("before", "after", "change"))
    if before is None or after is None or change is None:
        return False
    if not math.isclose(after - before, change, rel_tol=1e-3, abs_tol=1e-9):
        return False  # the means are over other prompts than the change: no digits reconcile them
    shown = round(change, decimals)
    return abs(round(after, decimals) - round(before, decimals) - shown) > abs(shown) / 4 + 1e-9


def format_verdict(objective: Mapping[str, Any]) -> str:
    """The verdict, followed by its reason in parentheses where there is one."""
    reason = explain_verdict(objective)
    return f"{objective['verdict']} ({reason})" if reason else str(objective["verdict"])


def explain_verdict(objective: Mapping[str, Any]) -> str:
    """Reason of "no evidence" (the judge is the reward, low power, no score changed) or another verdict.

    Args:
        objective: Entry of an objective in eval.json, or a change in benchmark.json.
    """
    verdict, quality = objective["verdict"], objective.get("judge_quality")
    if verdict == "not measured" and objective.get("judge") == NO_JUDGE:
        return "no judge"
    if verdict == "judge unreliable" and quality:
        rank = finite_or_none(quality["spearman"])
        # The whole reason is among the cautions.
        return "" if rank is None else f"rank correlation with its labels {format_number(rank)}"
    if verdict != "no evidence":
        return ""
    low = finite_or_none(objective["oriented"]["low"])
    if low is not None and low > 0:
        return "judge not independent"
    detectable = finite_or_none(objective.get("min_detectable_effect"))
    if detectable is None:
        return ""
    if detectable == 0:
        return "no score changed"
    text = format_number(detectable, decimals_for(objective["oriented"]))
    return f"detectable change ≥ {text if float(text) else format_compact(detectable)}"


def goal_arrow(objective: Mapping[str, Any]) -> str:
    """The direction of an objective as a sign: "↑", "↓", or "→ 120" for a target."""
    return Goal.of(objective).arrow


def goal_words(objective: Mapping[str, Any]) -> str:
    """The direction of an objective in words, such as "lower is better"."""
    return Goal.of(objective).words


def format_before_after(pair: Mapping[str, Any], decimals: int = 2) -> str:
    """Before → after."""
    return f"{format_number(pair['before'], decimals)} → {format_number(pair['after'], decimals)}"


def format_percent_before_after(pair: Mapping[str, Any]) -> str:
    """Before → after as percentages, with the interval of the change in percentage points."""
    text = f"{format_percent(pair['before'])} → {format_percent(pair['after'])}"
    bounds = format_interval(pair.get("low"), pair.get("high"), 0, scale=100)
    return f"{text} {bounds}" if bounds else text
