"""Tables and warnings about a reward model, from its report.json."""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from paretune.evaluate.statistics import wilson
from paretune.report.formatting import finite_or_none, format_compact, format_number, format_percent

MAX_EXCESS_LENGTH_CORRELATION = 0.1
"""A head is length-biased if its scores correlate with length by this much more than its labels do."""

USEFUL_CORRELATION = 0.3
"""Rank correlation with held-out ratings below which a head is of little use as a reward. The heads of the
shipped recipes reach 0.33 to 0.95."""
USEFUL_ACCURACY = 0.6
"""The same on held-out pairs: the accuracy that goes with a correlation of 0.3 of two normal variables."""
MIN_HOLDOUT_ROWS = 20
"""Fewer held-out ratings or pairs never stop a run: their intervals are no good approximations."""
NORMAL_QUANTILE = 1.96
"""For intervals of 95 %."""


@dataclass(frozen=True)
class HeadEvidence:
    """What the held-out labels say of one head."""

    verdict: Literal["ranks", "no better than a constant", "cannot tell"]
    """ranks: the interval lies above a constant. No better: it contains a constant, or lies below it, and
    ends below a useful head. Cannot tell: it contains both."""
    description: str
    """The statistic with its interval and the number of labels."""


def head_evidence(head: Mapping[str, Any]) -> HeadEvidence:
    """Whether a head ranks held-out responses better than a constant does.

    The alignment compares scores, so their order counts and not their error: Spearman's rank correlation
    with the ratings, and the accuracy on the pairs. A head whose true correlation is `USEFUL_CORRELATION` or
    more is called no better than a constant with a probability of at most 2.5 %.

    Args:
        head: One head of `<run>/reward/report.json`.

    Source: interval of the rank correlation: Bonett & Wright 2000 (Psychometrika 65:1); of the accuracy:
    Wilson 1927 (JASA 22:158).
    """
    parts = [part for part in (_rating_evidence(head), _pair_evidence(head)) if part is not None]
    for verdict in ("ranks", "no better than a constant"):
        for part in parts:
            if part.verdict == verdict:
                return part
    return parts[0] if parts else HeadEvidence("cannot tell", "no held-out labels")


def weak_heads(report: Mapping[str, Any], names: Collection[str]) -> list[str]:
    """The heads of these names that are no better than a constant, with what shows it.

    Args:
        report: Content of `<run>/reward/report.json`.
        names: Heads that the objectives use.
    """
    return [
        f"{name} ({evidence.description})"
        for name, head in report["objectives"].items()
        if name in names and (evidence := head_evidence(head)).verdict == "no better than a constant"
    ]


def _rating_evidence(head: Mapping[str, Any]) -> HeadEvidence | None:
    n = int(head.get("num_ratings") or 0)
    if not n:
        return None
    rank = finite_or_none(head.get("spearman"))
    if rank is None:
        # Labels that differ, and predictions that do not.
        if n >= MIN_HOLDOUT_ROWS and head.get("r2") is not None and head.get("calibration") is None:
            return HeadEvidence("no better than a constant", f"the same score for all {n:,} ratings")
        return HeadEvidence("cannot tell", f"no rank correlation, n = {n:,}")
    if n <= 3:
        return HeadEvidence("cannot tell", f"rank correlation {format_number(rank)}, n = {n:,}")
    clipped = min(max(rank, -0.999), 0.999)
    half = NORMAL_QUANTILE * math.sqrt((1 + clipped**2 / 2) / (n - 3))
    low, high = math.tanh(math.atanh(clipped) - half), math.tanh(math.atanh(clipped) + half)
    text = f"rank correlation {format_number(rank)} [{format_number(low)}, {format_number(high)}], n = {n:,}"
    return HeadEvidence(_verdict(low, high, 0.0, USEFUL_CORRELATION, n), text)


def _pair_evidence(head: Mapping[str, Any]) -> HeadEvidence | None:
    n, accuracy = int(head.get("num_pairs") or 0), finite_or_none(head.get("pair_accuracy"))
    if not n or accuracy is None:
        return None
    low, high = wilson(accuracy * n, n)
    text = f"{format_percent(accuracy)} [{format_percent(low)}, {format_percent(high)}] of {n:,} pairs"
    return HeadEvidence(_verdict(low, high, 0.5, USEFUL_ACCURACY, n), text)


def _verdict(
    low: float, high: float, constant: float, useful: float, n: int
) -> Literal["ranks", "no better than a constant", "cannot tell"]:
    if low > constant:
        return "ranks"
    return "no better than a constant" if high < useful and n >= MIN_HOLDOUT_ROWS else "cannot tell"


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


def unreliable_heads(report: Mapping[str, Any]) -> list[str]:
    """One phrase per head without evidence that it predicts its labels.

    A head is unreliable if it has no held-out labels, if a constant predicts them as well, if its rank
    correlation with them is not positive, or if `head_evidence` calls it no better than a constant.

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
        elif (evidence := head_evidence(head)).verdict == "no better than a constant":
            phrases.append(f"{name} does not rank responses better than a constant ({evidence.description})")
    return phrases


def head_warnings(reports: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """What a reader must know of the scores before any verdict: heads that no score should be trusted of.

    Args:
        reports: "Reward model" or "Judge" -> content of its report.json.
    """
    sentences = []
    for title, report in reports.items():
        section = "judge" if title == "Judge" else "reward"
        if phrases := unreliable_heads(report):
            rests = "Verdicts on these objectives rest" if title == "Judge" else "The policy was trained"
            sentences.append(
                f"{title}: {'; '.join(phrases)}. {rests} on scores that were not shown to predict the "
                f"labels; fix: more labels, or a larger {section}.training.num_train_epochs."
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
