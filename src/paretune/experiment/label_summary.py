"""Statistics of the labels that a reward model is fitted to, as `paretune check` shows them."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paretune.core.goals import Goal
from paretune.data.raters import LabelSummary
from paretune.data.records import LazySequence, PreferencePair, Rating
from paretune.report.formatting import format_number, format_signed

LabelledRow = Rating | PreferencePair
Vector = NDArray[np.float64]

LAZY_SAMPLE_SIZE = 200
"""Generated records that are summarized: making all of them takes seconds."""
NUM_BARS = 10
"""Bars of a histogram; fewer different labels get one bar each."""
BARS = " ▁▂▃▄▅▆▇█"
MIN_ROWS = 3
"""Fewer responses give no correlation: that of two is always -1 or 1."""
MIN_TELLING_ROWS = 20
"""Correlation and agreement of fewer responses are mostly chance, and no warning."""
TELLING_CORRELATION = 0.3
"""A correlation with the response length of this size is a warning: length may be all that is learnt."""
MIN_AGREEMENT = 0.4
"""Raters with a lower alpha agree so little that the label is mostly noise."""


@dataclass(frozen=True, kw_only=True)
class LabelStatistics:
    """The labels of one objective, counted in responses, in the units of the label."""

    name: str
    num_labels: int
    """Rows with a label; of votes that are kept apart, the responses."""
    num_responses: int
    """Different responses among them."""
    num_missing: int
    """Rated rows without a label of this objective."""
    num_pairs: int
    """Preference pairs, which have no label."""
    low: float = math.nan
    high: float = math.nan
    mean: float = math.nan
    std: float = math.nan
    histogram: tuple[int, ...] = ()
    length_correlation: float = math.nan
    """Spearman's correlation with the number of characters of the response; NaN if it is not defined."""
    is_sample: bool = False
    """Only the first records were read."""

    def worst(self, goal: Goal) -> float:
        """The label that an objective of this goal should avoid most."""
        return min(self.low, self.high, key=goal.orient)


def label_statistics(
    rows: Sequence[LabelledRow], objectives: Sequence[str], *, sample: bool = True
) -> dict[str, LabelStatistics]:
    """Statistics of each objective, in float64.

    Args:
        rows: Ratings and pairs.
        objectives: Names of the labels.
        sample: Of generated records, read the first `LAZY_SAMPLE_SIZE` only.
    """
    is_sample = sample and isinstance(rows, LazySequence) and len(rows) > LAZY_SAMPLE_SIZE
    read = list(islice(rows, LAZY_SAMPLE_SIZE)) if is_sample else list(rows)
    ratings = [row for row in read if isinstance(row, Rating)]
    pairs = [row.objective for row in read if isinstance(row, PreferencePair)]
    return {
        name: _statistics_of(name, ratings, pairs.count(name), is_sample=is_sample) for name in objectives
    }


def _statistics_of(
    name: str, ratings: Sequence[Rating], num_pairs: int, *, is_sample: bool
) -> LabelStatistics:
    labelled = [rating for rating in ratings if not math.isnan(rating.labels.get(name, math.nan))]
    labels = np.array([rating.labels[name] for rating in labelled], dtype=np.float64)
    counts: dict[str, Any] = {
        "name": name,
        # Rows of single votes have weights that add up to 1 over those of a response.
        "num_labels": round(sum(rating.label_weights.get(name, 1.0) for rating in labelled)),
        "num_responses": len({(rating.prompt.messages, rating.response) for rating in labelled}),
        "num_missing": len(ratings) - len(labels),
        "num_pairs": num_pairs,
        "is_sample": is_sample,
    }
    if not len(labels):
        return LabelStatistics(**counts)
    lengths = np.array([len(rating.response) for rating in labelled], dtype=np.float64)
    return LabelStatistics(
        **counts,
        low=float(labels.min()),
        high=float(labels.max()),
        mean=float(labels.mean()),
        std=float(labels.std()),
        histogram=histogram(labels),
        length_correlation=rank_correlation(labels, lengths),
    )


def histogram(labels: Vector) -> tuple[int, ...]:
    """Labels per bar: one bar per value if there are few values, else bars of equal width."""
    values, counts = np.unique(labels, return_counts=True)
    if len(values) <= NUM_BARS:
        return tuple(counts.tolist())
    return tuple(np.histogram(labels, NUM_BARS)[0].tolist())


def format_bars(counts: Sequence[int]) -> str:
    """A histogram in one line; a bar without labels is blank, and one with any is not."""
    top = max(counts, default=0)
    heights = (math.ceil((len(BARS) - 1) * count / top) if top else 0 for count in counts)
    return "".join(BARS[height] for height in heights)


def rank_correlation(x: Vector, y: Vector) -> float:
    """Spearman's correlation, ties by their mean rank; NaN for few rows or a constant side.

    Without scipy, whose import takes longer than the whole check of a recipe.
    """
    if len(x) < MIN_ROWS:
        return math.nan
    a, b = _mean_ranks(x), _mean_ranks(y)
    a, b = a - a.mean(), b - b.mean()
    norm = math.sqrt(float((a**2).sum()) * float((b**2).sum()))
    return float((a * b).sum()) / norm if norm else math.nan


def _mean_ranks(x: Vector) -> Vector:
    _, group, counts = np.unique(x, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return np.asarray((last - (counts - 1) / 2)[group], dtype=np.float64)


def spread_shares(spreads: Mapping[str, float]) -> dict[str, float]:
    """Objective -> its fraction of the sum of all spreads; empty if one of them is not known.

    Args:
        spreads: Objective -> |weight| times the standard deviation of its label.
    """
    total = math.fsum(spreads.values())
    if not total > 0 or any(math.isnan(spread) for spread in spreads.values()):
        return {}
    return {name: spread / total for name, spread in spreads.items()}


def describe_labels(statistics: LabelStatistics, votes: Sequence[LabelSummary] = ()) -> Iterator[str]:
    """Lines about the labels of an objective: counts and range, then raters, then what the labels follow.

    Args:
        statistics: Of the training rows.
        votes: What the readers of its files counted.
    """
    s = statistics
    if s.num_labels:
        of = " (the first ones)" if s.is_sample else ""
        missing = f", {s.num_missing:,} without label" if s.num_missing else ""
        rows = f"{s.num_labels:,} responses"
        if s.num_responses < s.num_labels:
            rows = f"{s.num_labels:,} rows of {s.num_responses:,} responses"
        yield f"{rows}{of}{missing}"
        yield f"{s.low:.4g} to {s.high:.4g}, mean {s.mean:.3g}   {format_bars(s.histogram)}"
    if s.num_pairs:
        yield f"{s.num_pairs:,} preference pairs, which have no scale"
    if not (s.num_labels or s.num_pairs):
        yield "no labels"
    for file in votes:
        if file.num_votes > file.num_responses:
            alpha = "not defined" if math.isnan(file.agreement) else format_number(file.agreement)
            # Of the whole file: whether raters agree does not depend on which prompts are held out.
            yield (
                f"{file.num_votes:,} votes by {file.num_raters:,} raters on the {file.num_responses:,} "
                f"responses of the file, agreement alpha {alpha}"
            )
    if not math.isnan(s.length_correlation):
        few = f" (only {s.num_responses} responses)" if s.num_responses < MIN_TELLING_ROWS else ""
        yield f"with response length: ρ {format_signed(s.length_correlation)}{few}"


def label_warnings(statistics: LabelStatistics, votes: Sequence[LabelSummary] = ()) -> Iterator[str]:
    """What makes the labels of an objective doubtful."""
    s = statistics
    if s.num_responses >= MIN_TELLING_ROWS and abs(s.length_correlation) >= TELLING_CORRELATION:
        kind = "longer" if s.length_correlation > 0 else "shorter"
        yield (
            f"{s.name}: {kind} responses have higher labels (ρ {format_signed(s.length_correlation)}), so "
            "the reward may be little more than length; fix: rate responses of similar lengths"
        )
    for file in votes:
        if file.num_responses >= MIN_TELLING_ROWS and file.agreement < MIN_AGREEMENT:
            yield (
                f"{s.name}: the raters hardly agree (alpha {format_number(file.agreement)}), so the label is "
                "mostly noise; fix: clarify what to rate, or collect more votes a response"
            )
