"""Tables and warnings about a reward model, from its report.json."""

from collections.abc import Mapping
from typing import Any

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
        "matrix": [[format_number(cell) for cell in row] for row in correlation.get("predicted") or ()],
        "notes": _notes(report),
    }


def unreliable_heads(report: Mapping[str, Any]) -> list[str]:
    """One phrase per head without evidence that it predicts its labels.

    A head is unreliable if it has no held-out labels, if a constant predicts them as well, or if its rank
    correlation with them is not positive.

    Args:
        report: Content of `<run>/reward/report.json`.
    """
    phrases = []
    for name, head in report["objectives"].items():
        if not head.get("num_ratings") and not head.get("num_pairs"):
            phrases.append(f"{name} has no held-out labels (n = 0)")
        elif (head.get("beats_baselines") or {}).get("constant") is False:
            phrases.append(f"{name} does no better than a constant (n = {_label_count(head)})")
        elif (rank := finite_or_none(head.get("spearman"))) is not None and rank <= 0:
            phrases.append(
                f"{name} does not rank responses as the labels do (rank correlation {format_number(rank)}, "
                f"n = {_label_count(head)})"
            )
    return phrases


def _metric_cells(head: Mapping[str, Any]) -> list[str]:
    calibration = head.get("calibration") or {}
    length = head.get("length") or {}
    return [
        _label_count(head),
        format_compact(head.get("mae")),
        format_compact(head.get("rmse")),
        format_number(head.get("r2")),
        format_number(head.get("spearman")),
        format_number(head.get("kendall")),
        format_percent(head.get("pair_accuracy"), 1),
        format_number(calibration.get("slope")),
        format_number(length.get("predicted")),
    ]


def _label_count(head: Mapping[str, Any]) -> str:
    count = f"{head.get('num_ratings') or 0:,}"
    if head.get("num_pairs"):
        return (
            f"{head['num_pairs']:,} pairs"
            if not head.get("num_ratings")
            else f"{count} + {head['num_pairs']:,} pairs"
        )
    return count


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
