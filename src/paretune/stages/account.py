"""What a run took, read from its timing.jsonl: tokens, calls, seconds, memory."""

from collections.abc import Iterable, Mapping
from typing import Any

from paretune.learn.progress import CURRENCIES
from paretune.stages.shared import BEFORE_ALIGN

Lines = Iterable[Mapping[str, Any]]


def paid(lines: Lines, *, phases: bool = False) -> dict[str, int]:
    """What an alignment took in each currency, models that it made beforehand included.

    Args:
        lines: Of timing.jsonl.
        phases: Only what those models took.
    """
    counted = [line for line in _aligning(lines) if not (phases and line["stage"] == "align")]
    return {currency: sum(int(line.get(currency, 0)) for line in counted) for currency in CURRENCIES}


def resources(lines: Lines) -> dict[str, float]:
    """Seconds in steps of an alignment and of what it made beforehand, and its peaks of memory in bytes."""
    counted = _aligning(lines)
    found = {"seconds": float(sum(float(line.get("seconds", 0.0)) for line in counted))}
    for key in ("memory", "device_memory"):
        peaks = [float(line[key]) for line in counted if key in line]
        if peaks:
            found[f"peak_{key}"] = max(peaks)
    return found


def _aligning(lines: Lines) -> list[Mapping[str, Any]]:
    return [line for line in lines if line["stage"] not in BEFORE_ALIGN]
