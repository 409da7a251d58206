"""Tables and warnings about a reward model, from its report.json."""

from collections.abc import Mapping
from typing import Any

from paretune.evaluate.judge_quality import label_count, unreliable_heads
from paretune.report.formatting import finite_or_none, format_compact, format_number, format_percent

MAX_EXCESS_LENGTH_CORRELATION = 0.1
"""A head is length-biased if its scores correlate with length by this much more than its labels do."""


def reward_model_table(title: str, report: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Held-out metrics of each head and its baselines, and the correlation matrix of the heads.

    Args:
        title: "Reward model" or "Judge".
        report: Content of `<run>/reward/report.json`; None if the run fitted no such model.
    """
    if report is None or not report.get("objectives"):
        return None
    rows = []
    for name, head in report["objectives"].items():
        rows.append({"objective": name, "model": "fitted", "cells": _metric_cells(head), "best": True})
        for baseline_name, baseline in (head.get("baselines") or {}).items():
            label = {"constant": "constant", "ridge": "ridge, frozen features"}.get(
                baseline_name, baseline_name
            )
            rows.append({"objective": "", "model": label, "cells": _metric_cells(baseline), "best": False})
        for category, metrics in (head.get("categories") or {}).items():
            label = f"fitted, on {category} prompts"
            rows.append({"objective": "", "model": label, "cells": _metric_cells(metrics), "best": False})
    correlation = report.get("correlation") or {}
    return {
        "title": title,
        "columns": (
            "n",
            "MAE",
            "RMSE",
            "R²",
            "Spearman",
            "Kendall",
            "pair accuracy",
            "calibration slope",
            "length ρ",
        ),
        "rows": rows,
        "heads": list(correlation.get("objectives") or ()),
        "kinds": _kind_tables(report),
        "matrix": [[format_number(cell) for cell in row] for row in correlation.get("predicted") or ()],
        "notes": _notes(report),
    }


def _kind_tables(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One table per kind of heads with metrics of its own, such as ordinal ones."""
    tables: dict[str, dict[str, Any]] = {}
    for name, head in report["objectives"].items():
        metrics = head.get("kind_metrics")
        if not metrics:
            continue
        keys = [key for key, value in metrics.items() if isinstance(value, float | int)]
        table = tables.setdefault(
            head["kind"],
            {
                "title": head["kind"],
                "columns": [key.replace("_", " ") for key in keys],
                "rows": [],
                "levels": [],
            },
        )
        constant = (head.get("baselines") or {}).get("constant", {}).get("kind_metrics")
        for model, values in (("fitted", metrics), ("constant", constant)):
            if values:
                cells = [format_number(values.get(key), 3) for key in keys]
                objective = name if model == "fitted" else ""
                table["rows"].append({"objective": objective, "model": model, "cells": cells})
        for i, level in enumerate(metrics.get("levels") or ()):
            shares = [format_percent(level[key], 1) for key in ("labels", "most_likely", "probability")]
            row = {"objective": "" if i else name, "level": f"{level['level']:g}", "cells": shares}
            table["levels"].append(row)
    return list(tables.values())


def head_warnings(reports: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """What a reader must know of the scores before any verdict: heads that no score should be trusted of.

    Args:
        reports: "Reward model" or "Judge" -> content of its report.json.
    """
    sentences = []
    for title, report in reports.items():
        section = "judge" if title == "Judge" else "reward"
        # Of a judge, the evaluation itself says it.
        if title != "Judge" and (phrases := unreliable_heads(report)):
            sentences.append(
                f"{title}: {'; '.join(phrases)}. The policy was trained on scores that were not shown to "
                f"predict the labels; fix: more labels, or a larger {section}.training.num_train_epochs."
            )
        if beaten := _beaten_heads(report):
            sentences.append(
                f"{title}: a linear model on frozen features predicts the labels of {', '.join(beaten)} as "
                f"well or better, so the fit added nothing; fix: another {section}.training.learning_rate, "
                "or more epochs."
            )
    return sentences


def _beaten_heads(report: Mapping[str, Any]) -> list[str]:
    """Heads that beat the constant baseline and no other."""
    won = {name: head.get("beats_baselines") or {} for name, head in report["objectives"].items()}
    return [name for name, by in won.items() if by.get("ridge") is False and by.get("constant") is not False]


def _metric_cells(head: Mapping[str, Any]) -> list[str]:
    calibration = head.get("calibration") or {}
    length = head.get("length") or {}
    return [
        label_count(head),
        format_compact(head.get("mae")),
        format_compact(head.get("rmse")),
        format_number(head.get("r2")),
        format_number(head.get("spearman")),
        format_number(head.get("kendall")),
        format_percent(head.get("pair_accuracy"), 1),
        format_number(calibration.get("slope")),
        format_number(length.get("predicted")),
    ]


def _notes(report: Mapping[str, Any]) -> list[str]:
    """Sentences about heads that a baseline matches, that follow length, or that duplicate each other."""
    beaten, length_biased = [], []
    for name, head in report["objectives"].items():
        baselines = [kind for kind, won in (head.get("beats_baselines") or {}).items() if won is False]
        if baselines:
            beaten.append(f"{name} (by the {' and the '.join(baselines)})")
        length = head.get("length") or {}
        predicted, label = finite_or_none(length.get("predicted")), finite_or_none(length.get("label"))
        if (
            predicted is not None
            and label is not None
            and abs(predicted) > abs(label) + MAX_EXCESS_LENGTH_CORRELATION
        ):
            length_biased.append(f"{name} ({format_number(predicted)} against {format_number(label)})")
    notes = [f"Heads that a baseline equals or beats: {', '.join(beaten)}."] if beaten else []
    if length_biased:
        notes.append(
            "Heads whose scores correlate with length more than their labels do (rank correlations): "
            f"{', '.join(length_biased)}."
        )
    for pair in report.get("redundant_heads") or ():
        correlation = format_number(pair["correlation"])
        notes.append(
            f"{pair['a']} and {pair['b']} give nearly the same scores (correlation {correlation}); "
            "one of them may be redundant."
        )
    return notes
