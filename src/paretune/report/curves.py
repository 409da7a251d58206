"""Which curves the page draws, from the lines of metrics.jsonl and timing.jsonl."""

from collections.abc import Mapping, Sequence
from typing import Any

from paretune.metrics import metric
from paretune.report.figures import Chart, chart, series
from paretune.report.words import known

Lines = Sequence[Mapping[str, Any]]

PER_OBJECTIVE = (
    ("score/{}/mean", "raw score"),
    ("weighted/{}/mean", "weighted, gates applied"),
    ("share/{}", "share of the advantage"),
)
HEALTH = (
    ("kl/k3", "KL to the start"),
    ("entropy", "entropy"),
    ("length", "response length"),
    ("truncated", "truncated responses"),
    ("groups/flat", "prompts that teach nothing"),
    ("clip/high", "clipped above"),
    ("clip/low", "clipped below"),
    ("grad_norm", "gradient norm"),
    ("loss/total", "loss"),
    ("lr", "learning rate"),
)


def objective_curves(lines: Lines, objectives: Sequence[str]) -> list[dict[str, Any]]:
    """For each objective, a chart a kind of curve, None where the run did not write it."""
    found = []
    any_drawn = False
    for name in objectives:
        drawn = []
        for pattern, title in PER_OBJECTIVE:
            key = pattern.format(name)
            bounds = (0.0, 1.0) if pattern.startswith("share") else None
            drawn.append(_titled(title, key, lines, bounds))
        any_drawn |= any(item["chart"] is not None for item in drawn)
        unscored = [known(line.get(f"score/{name}/unscored")) for line in lines]
        worst = max((value for value in unscored if value is not None), default=0.0)
        found.append({"objective": name, "charts": drawn, "unscored": worst})
    return found if any_drawn else []


def scored(lines: Lines) -> list[str]:
    """Names of the objectives that the lines hold scores of, in their order."""
    first, last = "score/", "/mean"
    keys = dict.fromkeys(
        key for line in lines for key in line if key.startswith(first) and key.endswith(last)
    )
    return [key[len(first) : -len(last)] for key in keys]


def health(lines: Lines) -> list[dict[str, Any]]:
    """Charts of the training's own numbers, those the run wrote."""
    drawn = [_titled(title, key, lines, None) for key, title in HEALTH]
    return [item for item in drawn if item["chart"] is not None]


PHASES = ("sample", "score", "measure", "learn", "save", "idle")
"""Of a training step; "idle" is what no other phase accounts for."""


def spent(lines: Lines) -> list[dict[str, Any]]:
    """Seconds and tokens of the steps of each stage, and which phases took the seconds."""
    stages: dict[str, dict[str, float]] = {}
    for line in lines:
        stage = stages.setdefault(
            str(line.get("stage")), dict.fromkeys(("steps", "seconds", "tokens", *PHASES), 0.0)
        )
        stage["steps"] += 1
        for key in ("seconds", "tokens", *PHASES):
            stage[key] += known(line.get(key)) or 0.0
    return [{"stage": name, **sums, "phases": _phases(sums)} for name, sums in stages.items()]


def _phases(sums: Mapping[str, float]) -> str:
    """The phases with their shares, the largest first; "" where a stage has none."""
    whole = sum(sums[phase] for phase in PHASES)
    shares = sorted(((sums[phase] / whole, phase) for phase in PHASES), reverse=True) if whole else []
    return ", ".join(f"{phase} {share:.0%}" for share, phase in shares if share >= 0.005)


def _titled(title: str, key: str, lines: Lines, bounds: tuple[float, float] | None) -> dict[str, Any]:
    points = series(lines, key)
    drawn: Chart | None = chart(points, bounds) if points else None
    entry = metric(key)
    return {"title": title, "chart": drawn, "unit": entry.unit if entry else "", "key": key}
