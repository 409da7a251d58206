"""The measured quality of a fitted judge or reward model: whether its heads rank held-out labels."""

import math
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from paretune.evaluate.statistics import wilson
from paretune.run.io import read_json

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
    rank = _finite(head.get("spearman"))
    if rank is None:
        # Labels that differ, and predictions that do not.
        if n >= MIN_HOLDOUT_ROWS and head.get("r2") is not None and head.get("calibration") is None:
            return HeadEvidence("no better than a constant", f"the same score for all {n:,} ratings")
        return HeadEvidence("cannot tell", f"no rank correlation, n = {n:,}")
    if n <= 3:
        return HeadEvidence("cannot tell", f"rank correlation {_number(rank)}, n = {n:,}")
    clipped = min(max(rank, -0.999), 0.999)
    half = NORMAL_QUANTILE * math.sqrt((1 + clipped**2 / 2) / (n - 3))
    low, high = math.tanh(math.atanh(clipped) - half), math.tanh(math.atanh(clipped) + half)
    text = f"rank correlation {_number(rank)} [{_number(low)}, {_number(high)}], n = {n:,}"
    return HeadEvidence(_verdict(low, high, 0.0, USEFUL_CORRELATION, n), text)


def _pair_evidence(head: Mapping[str, Any]) -> HeadEvidence | None:
    n, accuracy = int(head.get("num_pairs") or 0), _finite(head.get("pair_accuracy"))
    if not n or accuracy is None:
        return None
    low, high = wilson(accuracy * n, n)
    text = f"{_percent(accuracy)} [{_percent(low)}, {_percent(high)}] of {n:,} pairs"
    return HeadEvidence(_verdict(low, high, 0.5, USEFUL_ACCURACY, n), text)


def _verdict(
    low: float, high: float, constant: float, useful: float, n: int
) -> Literal["ranks", "no better than a constant", "cannot tell"]:
    if low > constant:
        return "ranks"
    return "no better than a constant" if high < useful and n >= MIN_HOLDOUT_ROWS else "cannot tell"


@dataclass(frozen=True, kw_only=True)
class JudgeQuality:
    """How well one head of a fitted judge ranks responses that it was not fitted to."""

    status: Literal["ranks", "cannot tell", "unreliable"]
    """unreliable: it ranks responses against its labels, or is no better than a constant. No verdict rests on
    such a judge."""
    reason: str
    """What shows it, as the end of a sentence about the judge."""
    num_labels: int = 0
    num_pairs: int = 0
    spearman: float | None = None
    """Rank correlation with the held-out ratings."""
    pair_accuracy: float | None = None
    """Share of the held-out pairs that it orders as their labels do."""

    def entry(self) -> dict[str, Any]:
        """The value of `judge_quality` in eval.json."""
        return asdict(self)


def judge_quality(report: Mapping[str, Any] | None, head_name: str) -> JudgeQuality | None:
    """The quality of one head; None if the report does not know it.

    Args:
        report: Content of `<run>/judge/report.json` or `<run>/reward/report.json`.
        head_name: Name of the head.
    """
    head = ((report or {}).get("objectives") or {}).get(head_name)
    if head is None:
        return None
    flaw, evidence = head_flaw(head), head_evidence(head)
    num_labels, num_pairs = int(head.get("num_ratings") or 0), int(head.get("num_pairs") or 0)
    is_unreliable = bool(flaw) and num_labels + num_pairs > 0
    return JudgeQuality(
        status="unreliable" if is_unreliable else "ranks" if evidence.verdict == "ranks" else "cannot tell",
        reason=flaw or f"has {evidence.description}",
        num_labels=num_labels,
        num_pairs=num_pairs,
        spearman=_finite(head.get("spearman")),
        pair_accuracy=_finite(head.get("pair_accuracy")),
    )


def fitted_report(model_dir: str | Path) -> dict[str, Any]:
    """The report of a model in the folder of a run that fitted it; empty elsewhere.

    Args:
        model_dir: `<run>/judge/model` or `<run>/reward/model`.
    """
    folder = Path(model_dir)
    is_fitted = folder.name == "model" and folder.is_dir()
    return (read_json(folder.parent / "report.json") if is_fitted else None) or {}


def head_qualities(report: Mapping[str, Any], heads: Mapping[str, str | int]) -> dict[str, JudgeQuality]:
    """Objective -> quality of its head, of those that the report knows.

    Args:
        report: Content of report.json; may be empty.
        heads: Objective -> name or index of the head.
    """
    names = list(report.get("objectives") or ())
    qualities = {}
    for objective, head in heads.items():
        name = head if isinstance(head, str) else dict(enumerate(names)).get(head, "")
        # A model with a single output scores the objective that its user names.
        quality = judge_quality(report, names[0] if len(names) == 1 else name)
        if quality is not None:
            qualities[objective] = quality
    return qualities


def unreliable_heads(report: Mapping[str, Any]) -> list[str]:
    """One phrase per head without evidence that it predicts its labels.

    A head is unreliable if it has no held-out labels, if a constant predicts them as well, if its rank
    correlation with them is not positive, or if `head_evidence` calls it no better than a constant.

    Args:
        report: Content of `<run>/reward/report.json`.
    """
    flaws = {name: head_flaw(head) for name, head in report["objectives"].items()}
    return [f"{name} {flaw}" for name, flaw in flaws.items() if flaw]


def head_flaw(head: Mapping[str, Any]) -> str:
    """Why a head is unreliable, as the end of a sentence; "" for one that is not."""
    if not head.get("num_ratings") and not head.get("num_pairs"):
        return "has no held-out labels (n = 0)"
    if (head.get("beats_baselines") or {}).get("constant") is False:
        return f"does no better than a constant (n = {label_count(head)})"
    if (rank := _finite(head.get("spearman"))) is not None and rank <= 0:
        count = label_count(head)
        return f"does not rank responses as the labels do (rank correlation {_number(rank)}, n = {count})"
    accuracy = _finite(head.get("pair_accuracy"))
    if rank is None and accuracy is not None and accuracy <= 0.5:
        return f"orders only {_percent(accuracy)} of pairs as the labels do (n = {label_count(head)})"
    if (evidence := head_evidence(head)).verdict == "no better than a constant":
        return f"does not rank responses better than a constant ({evidence.description})"
    return ""


def label_count(head: Mapping[str, Any]) -> str:
    """The number of held-out labels, in words where there are pairs."""
    count = f"{head.get('num_ratings') or 0:,}"
    if not head.get("num_pairs"):
        return count
    pairs = f"{head['num_pairs']:,} pairs"
    return f"{count} + {pairs}" if head.get("num_ratings") else pairs


def _finite(value: Any) -> float | None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_number and math.isfinite(value) else None


def _number(value: float) -> str:
    text = f"{value:.2f}"
    return text.lstrip("-") if not float(text) else text.replace("-", "−")


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.0f} %"
