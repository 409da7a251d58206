"""Judgements that teach a reward model what a stated confidence is worth."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.random import Generator

from paretune.chance import numpy_generator
from paretune.data.confidence import with_confidence, without_confidence
from paretune.data.records import Preference, Rating

Judgement = Rating | Preference

HIGH, LOW = (7, 10), (0, 3)
"""The least and the most that is claimed by the sure and by the unsure."""


def calibrated(records: Sequence[Judgement], heads: Mapping[str, float | None], seed: int) -> list[Judgement]:
    """The records, and pairs that differ in nothing but the confidence that the response states.

    What is right with a high confidence is chosen before itself with a low one; what is wrong the other way
    round. Right are the chosen response of a pair, and a rated one whose label reaches the head's level. The
    records themselves stay: they keep what is right above what is wrong.

    Args:
        records: Ratings and pairs.
        heads: Objectives to be calibrated, and from which label on a response is right; None: the median.
        seed: Draws the confidences, uniformly from 7 to 10 and from 0 to 3.

    Source: Leng et al. 2024, PPO-M (arXiv:2410.09724): two of these for every pair, whose losses add up to
    `CalibratedPairs`. Differs: rated responses bring one each; the records are kept, where theirs starts from
    a model that was fitted to them.
    """
    rng = numpy_generator(seed, 0, "calibrated")
    levels = {name: _level(records, name, level) for name, level in heads.items()}
    return [*records, *(pair for record in records for pair in _pairs(record, levels, rng))]


def _level(records: Sequence[Judgement], name: str, level: float | None) -> float:
    labels = [r.labels.get(name, math.nan) for r in records if isinstance(r, Rating)]
    known = [label for label in labels if not math.isnan(label)]
    return level if level is not None else float(np.median(known)) if known else 0.0


def _pairs(record: Judgement, levels: Mapping[str, float], rng: Generator) -> Iterator[Preference]:
    if isinstance(record, Preference):
        if record.objective in levels:
            yield _pair(replace(record, rejected=record.chosen), right=True, rng=rng)
            yield _pair(replace(record, chosen=record.rejected), right=False, rng=rng)
        return
    for name, level in levels.items():
        label = record.labels.get(name, math.nan)
        if not math.isnan(label):
            same = Preference(
                prompt=record.prompt, chosen=record.response, rejected=record.response, objective=name
            )
            yield _pair(same, right=label >= level, rng=rng)


def _pair(record: Preference, *, right: bool, rng: Generator) -> Preference:
    """The one response of this record, sure and unsure; the better of the two is chosen."""
    bare = without_confidence(record.chosen)
    sure = with_confidence(bare, int(rng.integers(HIGH[0], HIGH[1] + 1)))
    unsure = with_confidence(bare, int(rng.integers(LOW[0], LOW[1] + 1)))
    return replace(record, chosen=sure if right else unsure, rejected=unsure if right else sure)
