"""The cost of a run in one line."""

from collections.abc import Mapping, Sequence
from typing import Any

from paretune.report.formatting import finite_or_none

STAGE_NAMES = {"sft": "supervised", "reward": "reward model", "judge": "judge", "align": "alignment"}
COUNTS = (
    ("rollout_tokens", "tokens sampled"),
    ("trained_tokens", "tokens trained on"),
    ("reward_calls", "responses scored"),
)


def cost_phrases(lines: Sequence[Mapping[str, Any]]) -> list[str]:
    """Time per stage, tokens, scored responses and peak memory, from the lines of timing.jsonl."""
    if not lines:
        return []
    seconds: dict[str, float] = {}
    for line in lines:
        stage = str(line.get("stage"))
        seconds[stage] = seconds.get(stage, 0.0) + (finite_or_none(line.get("seconds")) or 0.0)
    parts = [f"{STAGE_NAMES.get(stage, stage)} {format_duration(time)}" for stage, time in seconds.items()]
    phrases = [f"{format_duration(sum(seconds.values()))} in steps ({', '.join(parts)})"]
    for key, words in COUNTS:
        if total := sum(finite_or_none(line.get(key)) or 0.0 for line in lines):
            phrases.append(f"{_format_count(total)} {words}")
    if peak := max(finite_or_none(line.get("peak_memory")) or 0.0 for line in lines):
        phrases.append(f"peak memory {peak / 1e9:.1f} GB")
    return phrases


def format_duration(seconds: float) -> str:
    """Seconds below two minutes, minutes below two hours, else hours."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _format_count(number: float) -> str:
    for size, unit in ((1e9, " billion"), (1e6, " million")):
        if number >= size:
            return f"{number / size:.3g}{unit}"
    return f"{number:,.0f}"
