"""Numbers and verdicts as a person reads them; one place, so that page and terminal say the same."""

import math
from collections.abc import Mapping
from typing import Any

ABSENT = "–"
"""Stands where there is no number."""

HUGE = 1e9
"""From here on numbers are written with a power of ten."""

SIGNS = {
    "better": "▲",
    "worse": "▼",
    "not worse": "◆",
    "no evidence": "●",
    "inconclusive": "◇",
    "not measured": "○",
}
"""A shape for each verdict, so that nothing hangs on colour."""


def known(value: Any) -> float | None:
    """The number, or None where there is none: null in the files, NaN in memory."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) else None


def number(value: Any, digits: int = 2) -> str:
    """A plain number with a true minus sign; powers of ten where it is too long to be read."""
    found = known(value)
    if found is None:
        return ABSENT
    text = f"{found:.{digits}f}" if abs(found) < HUGE else f"{found:.2e}"
    return f"−{text[1:]}" if text.startswith("-") and float(text) else text.lstrip("-")


def signed(value: Any, digits: int = 2) -> str:
    """A change: always with its sign."""
    text = number(value, digits)
    return text if text == ABSENT or text.startswith("−") or not float(text) else f"+{text}"


def interval(low: Any, high: Any, digits: int = 2, times: int = 1) -> str:
    """[low, high] of a change, or nothing where there is none."""
    if known(low) is None or known(high) is None:
        return ""
    return f"[{signed(low * times, digits)}, {signed(high * times, digits)}]"


def percent(value: Any, digits: int = 0) -> str:
    """A share as a percentage."""
    found = known(value)
    return ABSENT if found is None else f"{number(100 * found, digits)} %"


def compact(value: Any) -> str:
    """Three significant digits, whatever the size."""
    found = known(value)
    if found is None:
        return ABSENT
    if found != 0 and not 1e-3 <= abs(found) < 1e6:
        return f"{found:.2e}".replace("-", "−")
    return number(found, max(0, 2 - math.floor(math.log10(abs(found))))) if found else "0"


def digits_for(objective: Mapping[str, Any]) -> int:
    """Decimals that tell the interval of an objective's change from a point, and its ends from 0."""
    low, high = known(objective["low"]), known(objective["high"])
    if low is None or high is None or high <= low:
        return 2
    half = (high - low) / 2
    digits = min(5, max(2 if half < 10 else 1, -math.floor(math.log10(half))))
    while digits < 5 and any(end != 0 and round(end, digits) == 0 for end in (low, high)):
        digits += 1
    return digits


def verdict_words(objective: Mapping[str, Any]) -> str:
    """The verdict and, in brackets, its reason where it has one."""
    reason = verdict_reason(objective)
    return f"{objective['verdict']} ({reason})" if reason else str(objective["verdict"])


def verdict_reason(objective: Mapping[str, Any]) -> str:
    """Why there is no evidence: who judged, what could have been seen, or that nothing moved at all."""
    if objective["verdict"] != "no evidence":
        return ""
    low = known(objective["low"])
    if low is not None and low > 0:
        return "judge = training reward"
    detectable = known(objective.get("detectable"))
    if detectable is None:
        return ""
    if detectable == 0:
        return "no score changed"
    text = number(detectable, digits_for(objective))
    return f"could have seen ≥ {text if float(text) else compact(detectable)}"


def arrow(pair: Mapping[str, Any], digits: int = 2) -> str:
    """Before → after."""
    return f"{number(pair['before'], digits)} → {number(pair['after'], digits)}"


def percent_arrow(pair: Mapping[str, Any]) -> str:
    """Before → after as percentages, with the interval of the change in points."""
    text = f"{percent(pair['before'])} → {percent(pair['after'])}"
    bounds = interval(pair.get("low"), pair.get("high"), 0, times=100)
    return f"{text} {bounds}" if bounds else text
