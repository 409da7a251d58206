"""Several raters of one response: joining of their votes, and their agreement."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import median
from typing import Literal

import numpy as np

from paretune.data.records import NO_VOTES, PreferencePair, Prompt, Rating

RaterRule = Literal["mean", "median", "separate"]
"""How votes become labels: one label per response, or one per vote with weights that add up to 1."""


def join_votes(votes: Sequence[float], rule: RaterRule) -> float:
    """The label of a response: the mean of its votes, or their median.

    With `separate` it is the mean as well, for reports and held-out responses; `separate_votes` gives the
    rows to train on.
    """
    first = votes[0]
    if all(vote == first for vote in votes):
        return first  # the rounded mean of equal votes need not be equal to them
    return median(votes) if rule == "median" else math.fsum(votes) / len(votes)


def joined_rating(
    prompt: Prompt, response: str, votes: Mapping[str, Sequence[float]], rule: RaterRule
) -> Rating:
    """A rating with labels joined from votes; `votes` holds the objectives with more than one."""
    labels = {
        objective: values[0] if len(values) == 1 else join_votes(values, rule)
        for objective, values in votes.items()
    }
    several = {objective: tuple(values) for objective, values in votes.items() if len(values) > 1}
    return Rating(prompt=prompt, response=response, labels=labels, votes=several or NO_VOTES)


def merge_raters(ratings: Iterable[Rating], rule: RaterRule) -> Rating:
    """One rating from those of several raters of the same response; prompt and id are the first one's."""
    ratings = list(ratings)
    votes: dict[str, list[float]] = {}
    for rating in ratings:
        for objective, label in rating.labels.items():
            votes.setdefault(objective, []).extend(rating.votes.get(objective, (label,)))
    return joined_rating(ratings[0].prompt, ratings[0].response, votes, rule)


def separate_votes(ratings: Iterable[Rating | PreferencePair]) -> Iterator[Rating | PreferencePair]:
    """One rating per vote, of weight 1 / votes in each objective; those with single votes are unchanged."""
    for rating in ratings:
        if isinstance(rating, PreferencePair) or not rating.votes:
            yield rating
            continue
        votes = {name: rating.votes.get(name, (label,)) for name, label in rating.labels.items()}
        for i in range(max(map(len, votes.values()))):
            labels = {name: values[i] for name, values in votes.items() if i < len(values)}
            weights = {name: 1.0 / len(votes[name]) for name in labels if len(votes[name]) > 1}
            yield replace(rating, labels=labels, votes=NO_VOTES, label_weights=weights)


def krippendorff_alpha(units: Iterable[Sequence[float]]) -> float:
    """Krippendorff's alpha of interval data: 1 = perfect agreement, 0 = that of chance.

        alpha = 1 - D_o / D_e

    with the mean squared difference of two votes on the same unit, D_o, and of any two votes, D_e. Units with
    fewer than two votes do not count. NaN if no unit has two votes, or all votes are equal.

    Source: Krippendorff 2011, "Computing Krippendorff's Alpha-Reliability", section E.
    """
    pairable = [np.asarray(votes, dtype=np.float64) for votes in units if len(votes) > 1]
    if not pairable:
        return math.nan
    center = float(np.concatenate(pairable).mean())  # else squares of large numbers cancel
    total = num_votes = 0.0
    squares = observed = 0.0
    for votes in pairable:
        shifted, count = votes - center, len(votes)
        unit_sum, unit_squares = float(shifted.sum()), float((shifted**2).sum())
        observed += 2 * (count * unit_squares - unit_sum**2) / (count - 1)
        total, squares, num_votes = total + unit_sum, squares + unit_squares, num_votes + count
    expected = 2 * (num_votes * squares - total**2) / (num_votes - 1)
    return 1 - observed / expected if expected > 0 else math.nan


@dataclass(frozen=True, kw_only=True)
class LabelSummary:
    """The labels of one objective in a file, counted in responses."""

    num_responses: int
    """Responses with a label."""
    num_votes: int
    num_raters: int
    """Raters that the file tells apart; else the most votes that a response has."""
    num_missing: int
    """Cells whose value means "not rated", such as "N/A"; empty cells do not count."""
    agreement: float
    """Krippendorff's alpha of interval data; NaN if no response has two votes."""


@dataclass
class ReadSummary:
    """What a reader has to report besides the records."""

    num_rows: int = 0
    """Rows of the file, before filters and limits."""
    num_empty: int = 0
    """Empty responses and pairs of a named export, which are left out."""
    notes: list[str] = field(default_factory=list)
    """Things to know about the file, one line each."""
    warnings: list[str] = field(default_factory=list)
    """Things that make the records doubtful, one line each."""
    labels: dict[str, LabelSummary] = field(default_factory=dict)
    """Objective -> its labels; of ratings only."""


def summarize_labels(
    ratings: Sequence[Rating], raters: Mapping[str, Iterable[str]], num_missing: Mapping[str, int]
) -> dict[str, LabelSummary]:
    """Counts and agreement of each objective.

    Args:
        ratings: The records of a file.
        raters: Objective -> raters that the file tells apart.
        num_missing: Objective -> cells that mean "not rated".
    """
    summaries = {}
    for name in dict.fromkeys(name for rating in ratings for name in rating.labels):
        units = [r.votes.get(name, (r.labels[name],)) for r in ratings if name in r.labels]
        known_raters = set(raters.get(name, ()))
        summaries[name] = LabelSummary(
            num_responses=len(units),
            num_votes=sum(map(len, units)),
            num_raters=len(known_raters) or max(map(len, units)),
            num_missing=num_missing.get(name, 0),
            agreement=krippendorff_alpha(units),
        )
    return summaries


def has_repeats(ratings: Sequence[Rating]) -> bool:
    """True if two ratings are of the same response to the same prompt."""
    if len({rating.response for rating in ratings}) == len(ratings):
        return False  # cheap, and the usual case
    return len({(rating.prompt.messages, rating.response) for rating in ratings}) < len(ratings)


RATER_NAMES = frozenset(
    """
    annotator annotatorid rater raterid worker workerid user userid username completedby labeler labelerid
    labeller labellerid coder coderid reviewer reviewerid evaluator evaluatorid expert expertid participant
    participantid respondent respondentid assessor assessorid
    """.split()
)
"""Names of columns that say who rated, in lower case and without separators."""


def rater_column(names: Iterable[str]) -> str:
    """The column that looks like the rater; "" if none does."""
    return next((n for n in names if n.lower().replace("_", "").replace(" ", "") in RATER_NAMES), "")
