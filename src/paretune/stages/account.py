"""What a run took, read from its timing.jsonl: tokens, calls, seconds, memory."""

from collections.abc import Iterable, Mapping
from typing import Any

from paretune.learn.progress import BUDGET_RESOURCES
from paretune.stages.shared import PRE_ALIGN_STAGES

TimingLines = Iterable[Mapping[str, Any]]


def total_usage(lines: TimingLines, *, phases_only: bool = False) -> dict[str, int]:
    """What an alignment took in each currency, models that it made beforehand included.

    Args:
        lines: Of timing.jsonl.
        phases_only: Only what those models took.
    """
    counted = [line for line in _alignment_lines(lines) if not (phases_only and line["stage"] == "align")]
    return {currency: sum(int(line.get(currency, 0)) for line in counted) for currency in BUDGET_RESOURCES}


def time_and_peak_memory(lines: TimingLines) -> dict[str, float]:
    """Seconds in steps of an alignment and of what it made beforehand, and its peaks of memory in bytes."""
    counted = _alignment_lines(lines)
    found = {"seconds": float(sum(float(line.get("seconds", 0.0)) for line in counted))}
    for key in ("memory", "device_memory"):
        peaks = [float(line[key]) for line in counted if key in line]
        if peaks:
            found[f"peak_{key}"] = max(peaks)
    return found


def _alignment_lines(lines: TimingLines) -> list[Mapping[str, Any]]:
    return [line for line in lines if line["stage"] not in PRE_ALIGN_STAGES]
