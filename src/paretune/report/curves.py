"""Which curves the page draws, from the lines of metrics.jsonl and timing.jsonl."""

from collections.abc import Mapping, Sequence
from typing import Any

from paretune.metrics import find_metric
from paretune.report.figures import LineChart, line_chart, metric_series
from paretune.report.words import finite_or_none

MetricLines = Sequence[Mapping[str, Any]]

OBJECTIVE_METRICS = (
    ("score/{}/mean", "raw score"),
    ("weighted_score/{}/mean", "weighted, gates applied"),
    ("variance_share/{}", "share of the advantage"),
)
TRAINING_METRICS = (
    ("kl/k3", "KL to the start"),
    ("entropy", "entropy"),
    ("length", "response length"),
    ("truncated", "truncated responses"),
    ("groups/zero_variance", "prompts that teach nothing"),
    ("clip_fraction/high", "clipped above"),
    ("clip_fraction/low", "clipped below"),
    ("grad_norm", "gradient norm"),
    ("loss/total", "loss"),
    ("lr", "learning rate"),
)


def objective_curves(lines: MetricLines, objectives: Sequence[str]) -> list[dict[str, Any]]:
    """For each objective, a chart a kind of curve, None where the run did not write it."""
    found = []
    any_drawn = False
    for name in objectives:
        drawn = []
        for pattern, title in OBJECTIVE_METRICS:
            key = pattern.format(name)
            bounds = (0.0, 1.0) if pattern.startswith("share") else None
            drawn.append(_titled_chart(title, key, lines, bounds))
        any_drawn |= any(item["chart"] is not None for item in drawn)
        unscored = [finite_or_none(line.get(f"score/{name}/unscored_fraction")) for line in lines]
        worst = max((value for value in unscored if value is not None), default=0.0)
        found.append({"objective": name, "charts": drawn, "unscored": worst})
    return found if any_drawn else []


def scored_objectives(lines: MetricLines) -> list[str]:
    """Names of the objectives that the lines hold scores of, in their order."""
    first, last = "score/", "/mean"
    keys = dict.fromkeys(
        key for line in lines for key in line if key.startswith(first) and key.endswith(last)
    )
    return [key[len(first) : -len(last)] for key in keys]


def training_curves(lines: MetricLines) -> list[dict[str, Any]]:
    """Charts of the training's own numbers, those the run wrote."""
    drawn = [_titled_chart(title, key, lines, None) for key, title in TRAINING_METRICS]
    return [item for item in drawn if item["chart"] is not None]


PHASES = ("sample", "score", "measure", "learn", "save", "idle")
"""Of a training step; "idle" is what no other phase accounts for."""


def time_by_stage(lines: MetricLines) -> list[dict[str, Any]]:
    """Seconds and tokens of the steps of each stage, and which phases took the seconds."""
    stages: dict[str, dict[str, float]] = {}
    for line in lines:
        stage = stages.setdefault(
            str(line.get("stage")), dict.fromkeys(("steps", "seconds", "tokens", *PHASES), 0.0)
        )
        stage["steps"] += 1
        for key in ("seconds", "tokens", *PHASES):
            stage[key] += finite_or_none(line.get(key)) or 0.0
    return [{"stage": name, **sums, "phases": _format_phase_shares(sums)} for name, sums in stages.items()]


def _format_phase_shares(sums: Mapping[str, float]) -> str:
    """The phases with their shares, the largest first; "" where a stage has none."""
    whole = sum(sums[phase] for phase in PHASES)
    shares = sorted(((sums[phase] / whole, phase) for phase in PHASES), reverse=True) if whole else []
    return ", ".join(f"{phase} {share:.0%}" for share, phase in shares if share >= 0.005)


def _titled_chart(
    title: str, key: str, lines: MetricLines, y_range: tuple[float, float] | None
) -> dict[str, Any]:
    points = metric_series(lines, key)
    drawn: LineChart | None = line_chart(points, y_range) if points else None
    entry = find_metric(key)
    return {"title": title, "chart": drawn, "unit": entry.unit if entry else "", "key": key}
