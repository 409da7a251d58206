"""Preference pairs that teach a reward model to calibrate stated confidence."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.random import Generator

from paretune.core.rng import numpy_generator
from paretune.data.prompt_formats import append_confidence, strip_confidence
from paretune.data.records import PreferencePair, Rating

LabelledRow = Rating | PreferencePair

HIGH_CONFIDENCE_RANGE, LOW_CONFIDENCE_RANGE = (7, 10), (0, 3)
"""Lowest and highest confidence, out of 10, that a confident and an unconfident response states."""


def add_confidence_pairs(
    records: Sequence[LabelledRow], thresholds: Mapping[str, float | None], seed: int
) -> list[LabelledRow]:
    """The records, and pairs of one response with a high and with a low stated confidence.

    For a correct response the high confidence is chosen, for a wrong one the low confidence. Correct are the
    chosen response of a pair, and a rated response whose label reaches the threshold. The records themselves
    are kept: they keep correct responses above wrong ones.

    Args:
        records: Ratings and pairs.
        thresholds: Objectives to calibrate, with the lowest label of a correct response; None: the median.
        seed: Draws the confidences, uniformly from 7 to 10 and from 0 to 3.

    Source: Leng et al. 2024, PPO-M (arXiv:2410.09724): each pair gives two of these, whose Bradley-Terry
    losses add up to -log sigmoid(chosen high - chosen low) - log sigmoid(rejected low - rejected high).
    Differs: rated responses give one each; the records are kept, where theirs starts from a model that was
        fitted to them.
    """
    rng = numpy_generator(seed, 0, "calibrated")
    resolved = {name: _resolve_threshold(records, name, value) for name, value in thresholds.items()}
    return [*records, *(pair for record in records for pair in _confidence_pairs(record, resolved, rng))]


def _resolve_threshold(records: Sequence[LabelledRow], objective: str, threshold: float | None) -> float:
    labels = [r.labels.get(objective, math.nan) for r in records if isinstance(r, Rating)]
    known = [label for label in labels if not math.isnan(label)]
    # With pairs only, no label is compared with the threshold.
    return threshold if threshold is not None else float(np.median(known)) if known else 0.0


def _confidence_pairs(
    record: LabelledRow, thresholds: Mapping[str, float], rng: Generator
) -> Iterator[PreferencePair]:
    if isinstance(record, PreferencePair):
        if record.objective in thresholds:
            yield _confidence_pair(replace(record, rejected=record.chosen), is_correct=True, rng=rng)
            yield _confidence_pair(replace(record, chosen=record.rejected), is_correct=False, rng=rng)
        return
    for name, threshold in thresholds.items():
        label = record.labels.get(name, math.nan)
        if not math.isnan(label):
            same_response = PreferencePair(
                prompt=record.prompt, chosen=record.response, rejected=record.response, objective=name
            )
            yield _confidence_pair(same_response, is_correct=label >= threshold, rng=rng)


def _confidence_pair(record: PreferencePair, *, is_correct: bool, rng: Generator) -> PreferencePair:
    """The response of this record with a high and with a low confidence."""
    # The response may already state a confidence of its own.
    response = strip_confidence(record.chosen)
    high = append_confidence(response, _draw_confidence(HIGH_CONFIDENCE_RANGE, rng))
    low = append_confidence(response, _draw_confidence(LOW_CONFIDENCE_RANGE, rng))
    return replace(record, chosen=high if is_correct else low, rejected=low if is_correct else high)


def _draw_confidence(bounds: tuple[int, int], rng: Generator) -> int:
    return int(rng.integers(bounds[0], bounds[1] + 1))
