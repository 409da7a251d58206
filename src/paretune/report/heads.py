"""The reward model's own report, as rows of a table."""

from collections.abc import Mapping
from typing import Any

from paretune.report.words import compact, known, number, percent


def reward_model(title: str, report: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Tables of one model's heads beside their baselines, and of the correlation between heads.

    Args:
        title: "Reward model" or "Judge".
        report: Of `<run>/reward/report.json`; None where the model was not fitted in this run.
    """
    if report is None or not report.get("objectives"):
        return None
    rows = []
    for name, head in report["objectives"].items():
        rows.append({"objective": name, "model": "fitted", "cells": _cells(head), "best": True})
        for kind, baseline in (head.get("baselines") or {}).items():
            label = {"constant": "constant", "ridge": "ridge, frozen features"}.get(kind, kind)
            rows.append({"objective": "", "model": label, "cells": _cells(baseline), "best": False})
        for kind, part in (head.get("kinds") or {}).items():
            cells = _cells(part)
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
        "matrix": [[number(cell) for cell in row] for row in between.get("predicted") or ()],
        "notes": _notes(report),
    }


def doubtful(report: Mapping[str, Any]) -> list[str]:
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
            found.append(f"{name} does no better than a constant (n = {_count(head)})")
        elif (rank := known(head.get("spearman"))) is not None and rank <= 0:
            found.append(
                f"{name} does not rank responses as the labels do (rank correlation {number(rank)}, "
                f"n = {_count(head)})"
            )
    return found


def _cells(head: Mapping[str, Any]) -> list[str]:
    calibration = head.get("calibration") or {}
    length = head.get("length") or {}
    return [
        _count(head),
        compact(head.get("mae")),
        compact(head.get("rmse")),
        number(head.get("r2")),
        number(head.get("spearman")),
        number(head.get("kendall")),
        percent(head.get("pair_accuracy"), 1),
        number(calibration.get("slope")),
        number(length.get("predicted")),
    ]


def _count(head: Mapping[str, Any]) -> str:
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
        said, meant = known(length.get("predicted")), known(length.get("label"))
        if said is not None and meant is not None and abs(said) > abs(meant) + 0.1:
            longer.append(f"{name} ({number(said)} against {number(meant)})")
    found = [f"Heads that a baseline equals or beats: {', '.join(beaten)}."] if beaten else []
    if longer:
        found.append(
            "Heads whose scores follow length more closely than the labels do, by rank correlation: "
            f"{', '.join(longer)}."
        )
    for pair in report.get("copies") or ():
        found.append(
            f"{pair['a']} and {pair['b']} say nearly the same (correlation {number(pair['correlation'])})."
        )
    return found
