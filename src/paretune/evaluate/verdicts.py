"""Verdicts: the one place where a change becomes a word, with what a reader must know of it.

Run page, terminal, eval.json, comparison and soup all ask `judge_change`, so that the same evidence has the
same words everywhere.
"""

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from paretune.evaluate.judge_quality import JudgeQuality

BETTER, WORSE, NOT_WORSE = "better", "worse", "not worse"
NO_EVIDENCE = "no evidence"
INCONCLUSIVE = "inconclusive"
"""Too many judgments are missing."""
JUDGE_UNRELIABLE = "judge unreliable"
"""The judge ranks held-out responses against their labels, or no better than a constant."""
NOT_MEASURED = "not measured"
LABELS = (BETTER, WORSE, NOT_WORSE, NO_EVIDENCE, INCONCLUSIVE, JUDGE_UNRELIABLE, NOT_MEASURED)
"""All words of verdicts."""

MAX_MISSING_FRACTION = 0.02
"""Largest fraction of missing judgments with which a gain is still claimed."""
MIN_VERDICT_PROMPTS = 6
"""With fewer prompts no change is claimed: where all of five changed alike, a sign test has p = 0.06."""
UNEQUAL_MISSING_P_VALUE = 0.01
"""p-value of Fisher's exact test below which the two arms count as missing judgments unequally."""

ONE_SEED = "One training run: the variance between training seeds is not known."
"""About any result of a single seed; the same words on every page."""
ALL, MAJORITY = "all", "majority"


@dataclass(frozen=True, kw_only=True)
class ChangeEvidence:
    """All that a verdict on a change rests on; `low` and `high` are of the oriented score."""

    objective: str
    low: float
    """Lower bound of the change of the oriented score, where higher is better; NaN: not measured."""
    high: float
    independent: bool = True
    """The judge shares neither weights nor data with the training reward."""
    shared: str = ""
    """What it shares, such as "is the same rule"."""
    quality: JudgeQuality | None = None
    """Measured quality of the judge; None: it was not measured."""
    num_prompts: int | None = None
    """Different prompts that were scored; None: the interval is over several training seeds."""
    missing_fraction: float = 0.0
    unequal_missing: bool = False
    """One of the two arms lacks judgments more often than the other."""
    worst_low: float | None = None
    """The lower bound if every missing judgment had gone against the change; None: none is missing."""
    margin: float | None = None
    """Largest loss that still counts as "not worse"."""


@dataclass(frozen=True)
class Verdict:
    """A word, and the sentences that belong to it."""

    label: str
    """One of `LABELS`."""
    cautions: tuple[str, ...] = ()
    """What a reader must know of this verdict, most important first."""

    def entry(self) -> dict[str, Any]:
        """The keys `verdict` and `cautions` of files."""
        return {"verdict": self.label, "cautions": list(self.cautions)}


def judge_change(evidence: ChangeEvidence) -> Verdict:
    """The verdict on a change, from its interval and a fixed rule.

    not measured: no interval. judge unreliable: its measured quality says so. no evidence: fewer than six
    prompts were scored. worse: the interval is below 0, whatever else. inconclusive: more than 2 % of the
    judgments are missing, or more in one arm, or so many that they could undo the result. better: the
    interval is above 0 and the judge is independent of the training reward. not worse: the lower bound is
    above -margin. no evidence: none of these.
    """
    label = _label(evidence)
    return Verdict(label, tuple(_cautions(evidence, label)))


def _label(e: ChangeEvidence) -> str:
    if math.isnan(e.low) or math.isnan(e.high):
        return NOT_MEASURED
    # Before "worse": the loss that such a judge sees may be a gain.
    if e.quality is not None and e.quality.status == "unreliable":
        return JUDGE_UNRELIABLE
    if _has_too_few_prompts(e):
        return NO_EVIDENCE
    # A loss is reported even where a gain would not be believed: the rule errs on the side of caution.
    if e.high < 0:
        return WORSE
    if e.missing_fraction > MAX_MISSING_FRACTION or e.unequal_missing:
        return INCONCLUSIVE
    worst_low = e.low if e.worst_low is None else e.worst_low
    if e.low > 0 and e.independent:
        return BETTER if worst_low > 0 else INCONCLUSIVE
    if e.margin is not None and e.low > -e.margin:
        return NOT_WORSE if worst_low > -e.margin else INCONCLUSIVE
    return NO_EVIDENCE


def _has_too_few_prompts(e: ChangeEvidence) -> bool:
    return e.num_prompts is not None and e.num_prompts < MIN_VERDICT_PROMPTS


def _cautions(e: ChangeEvidence, label: str) -> Iterator[str]:
    if label == NOT_MEASURED:
        return
    if label == JUDGE_UNRELIABLE and e.quality is not None:
        yield f"The judge of {e.objective} {e.quality.reason}, so no verdict rests on its scores."
    elif e.quality is not None and e.quality.status == "cannot tell":
        yield f"Whether the judge of {e.objective} ranks responses is not known: it {e.quality.reason}."
    if not e.independent:
        yield (
            f"Judge not independent for {e.objective}: it {shared_words(e.shared)} the training reward, so a "
            "gain may be overoptimization."
        )
    if _has_too_few_prompts(e):
        yield (
            f"{e.objective}: {e.num_prompts} different prompts were scored, and fewer than "
            f"{MIN_VERDICT_PROMPTS} cannot show a change."
        )
    if label == INCONCLUSIVE:
        yield f"{e.objective}: {_missing_words(e)}, so no gain is claimed."


def shared_words(shared: str) -> str:
    """The verb of a sentence that ends with the training reward, such as "is the same rule as"."""
    return f"{shared or 'shares weights or data'} {'as' if ' same' in shared else 'with'}"


def _missing_words(e: ChangeEvidence) -> str:
    if e.unequal_missing:
        reason = "not equally often before and after"
    elif e.missing_fraction > MAX_MISSING_FRACTION:
        reason = f"more than {100 * MAX_MISSING_FRACTION:.0f} % of them"
    else:
        reason = "enough to undo the result, had they gone against it"
    return f"{100 * e.missing_fraction:.1f} % of the judgments are missing ({reason})"


def combine_verdicts(verdicts: Mapping[str, str], rule: str) -> str:
    """One verdict out of those of several judges.

    Args:
        verdicts: Judge -> its verdict; "not measured" and "judge unreliable" do not count.
        rule: "all": the verdict that all share. "majority": the one of more than half of them. Else the name
            of the judge that decides; where it does not judge, all must agree. Without such a verdict: "no
            evidence".
    """
    if rule in verdicts:
        return verdicts[rule]
    measured = [verdict for verdict in verdicts.values() if verdict not in (NOT_MEASURED, JUDGE_UNRELIABLE)]
    if not measured:
        return JUDGE_UNRELIABLE if JUDGE_UNRELIABLE in verdicts.values() else NOT_MEASURED
    verdict, count = Counter(measured).most_common(1)[0]
    needed = len(measured) // 2 + 1 if rule == MAJORITY else len(measured)
    return verdict if count >= needed else NO_EVIDENCE
