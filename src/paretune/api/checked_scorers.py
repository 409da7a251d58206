"""Scorers that callers wrote: their mistakes leave NaN and are counted, as those of reward functions are."""

import inspect
import reprlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from paretune.core.errors import ParetuneError, WiringError
from paretune.data.records import Sample
from paretune.reward.failures import CountedScorer, FallibleScorer, ScorerWrapper
from paretune.reward.function_calls import Attempt, describe_error
from paretune.reward.scorers import Scorer

MAX_SCORE = torch.finfo(torch.float32).max
"""Scores are 32-bit numbers."""
NEVER_SCORED = "returned NaN for every response"


@dataclass
class CheckedScorer(CountedScorer, ScorerWrapper):
    """A scorer of which nothing is known but its protocol.

    A call that raises, or returns no tensor of the right shape, leaves all its responses unscored. NaN means
    that a response is not to be scored; a scorer that has returned nothing else yet counts as failed.
    """

    scorer: Any
    names: tuple[str, ...]
    _has_scored: bool = False

    @property
    def total_flops(self) -> float:
        """Floating-point operations of all calls so far, as far as they are counted."""
        return float(getattr(self.scorer, "total_flops", 0.0))

    def __call__(self, samples: Sequence[Sample]) -> Tensor:
        """Scores [B, k] of the scorer; NaN: not scored."""
        count = len(samples)
        with Attempt() as attempt:
            attempt.value = self.scorer(samples)
        if isinstance(attempt.error, ParetuneError):  # says what is wrong and how to mend it
            raise attempt.error
        self.failures.num_responses += count
        if isinstance(self.scorer, FallibleScorer):
            self.failures.reasons.update(self.scorer.failures.take().reasons)
        scores: Tensor | None = None
        if attempt.error is not None:
            reason = describe_error(attempt.error, source_of(self.scorer))
        else:
            reason = shape_problem(attempt.value, count, len(self.names))
            scores = None if reason else attempt.value.detach()
        if scores is None:
            self.failures.reasons[reason] += count
            return torch.full((count, len(self.names)), torch.nan)
        return self._finite(scores if scores.is_floating_point() else scores.float())

    def _finite(self, scores: Tensor) -> Tensor:
        """The scores with NaN for what is no finite number of 32 bits."""
        is_infinite = scores.abs() > MAX_SCORE
        if num_infinite := int(is_infinite.any(1).sum()):
            self.failures.reasons["returned an infinite score"] += num_infinite
            scores = scores.masked_fill(is_infinite, torch.nan)
        self._has_scored = self._has_scored or bool((~scores.isnan()).any())
        if not self._has_scored and not self.failures.reasons:
            self.failures.reasons[NEVER_SCORED] += len(scores)
        return scores


def checked_scorer(scorer: Scorer) -> CheckedScorer:
    """The scorer with its mistakes counted.

    Args:
        scorer: It may have an attribute `max_failure_rate`.

    Raises:
        WiringError: It is a class, or its names are no names of objectives.
    """
    label = type(scorer).__name__
    if isinstance(scorer, type):
        fix = f"pass an object, {scorer.__name__}()"
        raise WiringError(f"the scorer {scorer.__name__} is a class; fix: {fix}")
    with Attempt() as attempt:
        attempt.value = scorer.names
    if attempt.error is not None:
        problem = f"names cannot be read ({describe_error(attempt.error, source_of(scorer))})"
        raise WiringError(f'the scorer {label}: {problem}; fix: names = ("polite",)') from attempt.error
    names = attempt.value
    is_list = isinstance(names, list | tuple) and len(names) > 0
    if not is_list or not all(isinstance(name, str) and name.strip() for name in names):
        problem = f"names is {reprlib.repr(names)}, not a tuple of names of objectives"
        raise WiringError(f'the scorer {label}: {problem}; fix: names = ("polite",)')
    if len(set(names)) < len(names):
        problem = f"names has the same name twice: {', '.join(names)}"
        raise WiringError(f"the scorer {label}: {problem}; fix: one name per column")
    rate = getattr(scorer, "max_failure_rate", CountedScorer.max_failure_rate)
    if not isinstance(rate, int | float) or not 0 <= rate <= 1:
        problem = f"max_failure_rate is {rate!r}, not a number from 0 to 1"
        raise WiringError(f"the scorer {label}: {problem}; fix: max_failure_rate = 0.2")
    return CheckedScorer(scorer, tuple(names), max_failure_rate=float(rate))


def is_scorer(value: Any) -> bool:
    """Whether a value has the protocol of a scorer, even where its names cannot be read."""
    with Attempt() as attempt:
        attempt.value = isinstance(value, Scorer)
    return bool(attempt.value) or attempt.error is not None


def shape_problem(value: Any, num_rows: int, num_names: int) -> str:
    """Why a value is no tensor of scores; empty if it is one."""
    expected = f"expected a tensor of shape [{num_rows}, {num_names}]: a row per response, a column per name"
    if not isinstance(value, Tensor):
        kind = "None" if value is None else f"a value of type {type(value).__name__}"
        return f"returned {kind}; {expected}"
    if tuple(value.shape) != (num_rows, num_names):
        return f"returned a tensor of shape {list(value.shape)}; {expected}"
    return "returned complex numbers" if value.is_complex() else ""


def source_of(scorer: Any) -> Path | None:
    """The file that defines the class of a scorer; None if it is not known."""
    try:
        name = inspect.getsourcefile(type(scorer))
    except TypeError:
        return None
    return None if name is None else Path(name)
