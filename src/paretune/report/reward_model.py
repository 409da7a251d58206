"""The reward model's own report, as rows of a table."""

from collections.abc import Mapping
from typing import Any

from paretune.report.formatting import finite_or_none, format_compact, format_number, format_percent


def reward_model_table(title: str, report: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Tables of one model's heads beside their baselines, and of the correlation between heads.

    Args:
        title: "Reward model" or "Judge".
        report: Of `<run>/reward/report.json`; None where the model was not fitted in this run.
    """
    if report is None or not report.get("objectives"):
        return None
    rows = []
    for name, head in report["objectives"].items():
        rows.append({"objective": name, "model": "fitted", "cells": _metric_cells(head), "best": True})
        for kind, baseline in (head.get("baselines") or {}).items():
            label = {"constant": "constant", "ridge": "ridge, frozen features"}.get(kind, kind)
            rows.append({"objective": "", "model": label, "cells": _metric_cells(baseline), "best": False})
        for kind, part in (head.get("kinds") or {}).items():
            cells = _metric_cells(part)
            rows.append(
                {"objective": "", "model": f"fitted, on {kind} prompts", "cells": cells, "best": False}
            )
    between = report.get("correlation") or {}
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
            "with length",
        ),
        "rows": rows,
        "heads": list(between.get("objectives") or ()),
        "matrix": [[format_number(cell) for cell in row] for row in between.get("predicted") or ()],
        "notes": _notes(report),
    }


def unreliable_heads(report: Mapping[str, Any]) -> list[str]:
    """The heads that nothing speaks for.

    No label was held out for them, a constant does as well, or they rank responses against their labels.

    Args:
        report: Of `<run>/reward/report.json`.
    """
    found = []
    for name, head in report["objectives"].items():
        if not head.get("n") and not head.get("pairs"):
            found.append(f"{name} has no held-out labels (n = 0)")
        elif (head.get("beats") or {}).get("constant") is False:
            found.append(f"{name} does no better than a constant (n = {_label_count(head)})")
        elif (rank := finite_or_none(head.get("spearman"))) is not None and rank <= 0:
            found.append(
                f"{name} does not rank responses as the labels do (rank correlation {format_number(rank)}, "
                f"n = {_label_count(head)})"
            )
    return found


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
    count = f"{head.get('n') or 0:,}"
    if head.get("pairs"):
        return f"{head['pairs']:,} pairs" if not head.get("n") else f"{count} + {head['pairs']:,} pairs"
    return count


def _notes(report: Mapping[str, Any]) -> list[str]:
    beaten, longer = [], []
    for name, head in report["objectives"].items():
        by = [kind for kind, won in (head.get("beats") or {}).items() if won is False]
        if by:
            beaten.append(f"{name} (by the {' and the '.join(by)})")
        length = head.get("length") or {}
        said, meant = finite_or_none(length.get("predicted")), finite_or_none(length.get("label"))
        if said is not None and meant is not None and abs(said) > abs(meant) + 0.1:
            longer.append(f"{name} ({format_number(said)} against {format_number(meant)})")
    found = [f"Heads that a baseline equals or beats: {', '.join(beaten)}."] if beaten else []
    if longer:
        found.append(
            "Heads whose scores follow length more closely than the labels do, by rank correlation: "
            f"{', '.join(longer)}."
        )
    for pair in report.get("copies") or ():
        found.append(
            f"{pair['a']} and {pair['b']} say nearly the same (correlation {format_number(pair['correlation'])})."
        )
    return found
