"""Judgements that teach a reward model what a stated confidence is worth."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.random import Generator

from paretune.core.rng import numpy_generator
from paretune.data.chat import append_confidence, strip_confidence
from paretune.data.records import PreferencePair, Rating

LabelledRow = Rating | PreferencePair

HIGH_CONFIDENCE_RANGE, LOW_CONFIDENCE_RANGE = (7, 10), (0, 3)
"""The least and the most that is claimed by the sure and by the unsure."""


def add_confidence_pairs(
    records: Sequence[LabelledRow], thresholds: Mapping[str, float | None], seed: int
) -> list[LabelledRow]:
    """The records, and pairs that differ in nothing but the confidence that the response states.

    What is right with a high confidence is chosen before itself with a low one; what is wrong the other way
    round. Right are the chosen response of a pair, and a rated one whose label reaches the head's level. The
    records themselves stay: they keep what is right above what is wrong.

    Args:
        records: Ratings and pairs.
        thresholds: Objectives to be calibrated, and from which label on a response is right; None: the median.
        seed: Draws the confidences, uniformly from 7 to 10 and from 0 to 3.

    Source: Leng et al. 2024, PPO-M (arXiv:2410.09724): two of these for every pair, whose losses add up to
    `CalibratedPairs`. Differs: rated responses bring one each; the records are kept, where theirs starts from
    a model that was fitted to them.
    """
    rng = numpy_generator(seed, 0, "calibrated")
    levels = {name: _resolve_threshold(records, name, level) for name, level in thresholds.items()}
    return [*records, *(pair for record in records for pair in _confidence_pairs(record, levels, rng))]


def _resolve_threshold(records: Sequence[LabelledRow], objective: str, threshold: float | None) -> float:
    labels = [r.labels.get(objective, math.nan) for r in records if isinstance(r, Rating)]
    known = [label for label in labels if not math.isnan(label)]
    return threshold if threshold is not None else float(np.median(known)) if known else 0.0


def _confidence_pairs(
    record: LabelledRow, thresholds: Mapping[str, float], rng: Generator
) -> Iterator[PreferencePair]:
    if isinstance(record, PreferencePair):
        if record.objective in thresholds:
            yield _confidence_pair(replace(record, rejected=record.chosen), is_correct=True, rng=rng)
            yield _confidence_pair(replace(record, chosen=record.rejected), is_correct=False, rng=rng)
        return
    for name, level in thresholds.items():
        label = record.labels.get(name, math.nan)
        if not math.isnan(label):
            same = PreferencePair(
                prompt=record.prompt, chosen=record.response, rejected=record.response, objective=name
            )
            yield _confidence_pair(same, is_correct=label >= level, rng=rng)


def _confidence_pair(record: PreferencePair, *, is_correct: bool, rng: Generator) -> PreferencePair:
    """The one response of this record, sure and unsure; the better of the two is chosen."""
    bare = strip_confidence(record.chosen)
    sure = append_confidence(bare, int(rng.integers(HIGH_CONFIDENCE_RANGE[0], HIGH_CONFIDENCE_RANGE[1] + 1)))
    unsure = append_confidence(bare, int(rng.integers(LOW_CONFIDENCE_RANGE[0], LOW_CONFIDENCE_RANGE[1] + 1)))
    return replace(record, chosen=sure if is_correct else unsure, rejected=unsure if is_correct else sure)
