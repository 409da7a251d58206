"""Responses that a scorer could not score: NaN with a reason, counted."""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from paretune.core.errors import ScoringError
from paretune.data.records import Sample


@dataclass
class FailureCounts:
    """Reasons for which responses were not scored, since they were last taken."""

    num_responses: int = 0
    """Responses that were to be scored."""
    reasons: Counter[str] = field(default_factory=Counter)
    """Reason, such as "timeout" or "ValueError: no number found" -> responses that it left unscored."""

    @property
    def rate(self) -> float:
        """Share of the responses that failed; 0 if there were none."""
        return self.reasons.total() / self.num_responses if self.num_responses else 0.0

    def take(self) -> "FailureCounts":
        """The counts so far, which start again from 0."""
        taken = FailureCounts(self.num_responses, self.reasons)
        self.num_responses, self.reasons = 0, Counter()
        return taken


@runtime_checkable
class FallibleScorer(Protocol):
    """A scorer whose calls can fail; `reward.scorers.Scorer` with counts of its failures."""

    max_failure_rate: float
    """Largest share of responses that may fail before the run stops."""
    failures: FailureCounts

    @property
    def metrics(self) -> Mapping[str, float]:
        """Further numbers of its last call, such as those a function logged; may be empty."""
        ...


OnFailures = Callable[[str, FailureCounts], None]
"""Called with the name of a scorer and what it could not score in one call."""

MIN_RESPONSES = 8
"""Responses below which a share of failures stops no run, unless all failed: one of four is no rate."""


@dataclass(kw_only=True)
class CountedScorer:
    """Base of scorers whose calls can fail: the counts of their failures."""

    max_failure_rate: float = 0.2
    """Largest share of responses that may stay unscored before the run stops."""
    failures: FailureCounts = field(default_factory=FailureCounts, repr=False, compare=False)

    @property
    def metrics(self) -> Mapping[str, float]:
        """None beside the scores."""
        return {}


class ScorerWrapper:
    """Base of scorers that only pass on what the scorer in their field `scorer` scores."""


@dataclass
class GuardedScorer(ScorerWrapper):
    """A scorer with a name, whose failures are reported and stop the run if they are too many."""

    name: str
    """Its name in the recipe."""
    scorer: Any
    on_failures: OnFailures | None = None
    in_run: bool = False
    """It scores for a run of a recipe, which can be resumed."""

    @property
    def names(self) -> tuple[str, ...]:
        """The objectives of its columns."""
        names: tuple[str, ...] = self.scorer.names
        return names

    @property
    def total_flops(self) -> float:
        """Floating-point operations of all calls so far, as far as they are counted."""
        return float(getattr(self.scorer, "total_flops", 0.0))

    def __call__(self, samples: Sequence[Sample]) -> Float[Tensor, "B k"]:
        """Scores of the scorer.

        Raises:
            ScoringError: A larger share of the responses than `max_failure_rate` failed.
        """
        scores: Tensor = self.scorer(samples)
        self._report_failures()
        return scores

    def preferences(self, pairs: Sequence[tuple[Sample, Sample]]) -> Float[Tensor, "2 N k"]:
        """Preferences of a scorer that compares pairs (`PairwiseScorer`).

        Raises:
            ScoringError: A larger share of the comparisons than `max_failure_rate` failed.
        """
        preferred: Tensor = self.scorer.preferences(pairs)
        self._report_failures()
        return preferred

    def _report_failures(self) -> None:
        if isinstance(self.scorer, FallibleScorer):
            counts = self.scorer.failures.take()
            if counts.reasons and self.on_failures is not None:
                self.on_failures(self.name, counts)
            self._check(counts, self.scorer.max_failure_rate)

    def _check(self, counts: FailureCounts, max_rate: float) -> None:
        is_enough = counts.num_responses >= MIN_RESPONSES or counts.rate == 1
        if counts.rate > max_rate and is_enough:
            resume = "; the run resumes when it is started again" if self.in_run else ""
            raise ScoringError(
                f"{self.name} did not score {counts.reasons.total():,} of {counts.num_responses:,} responses "
                f"({describe_reasons(counts)}); max_failure_rate is {max_rate:g}; fix: mend the cause, or "
                f"raise max_failure_rate{resume}"
            )


def describe_reasons(counts: FailureCounts, max_reasons: int = 3) -> str:
    """The most frequent reasons with their numbers."""
    listed = [f"{count:,} x {reason}" for reason, count in counts.reasons.most_common(max_reasons)]
    others = len(counts.reasons) - len(listed)
    return ", ".join([*listed, *([f"{others} other reasons"] if others else [])])


@runtime_checkable
class ReadsProgress(Protocol):
    """A scorer that is told the progress of the training."""

    def set_progress(self, step: int, max_steps: int) -> None:
        """Called before the responses of a step are scored."""
        ...


def unwrapped(scorer: Any) -> Any:
    """The scorer inside of wrappers."""
    while isinstance(scorer, ScorerWrapper):
        scorer = scorer.scorer  # type: ignore[attr-defined]
    return scorer


def inner_scorers(scorers: Iterable[Any]) -> Iterator[tuple[str, Any]]:
    """The scorers inside of wrappers, each once, with their names in the recipe; "" if they have none."""
    seen: set[int] = set()
    for scorer in scorers:
        inner, name = scorer, ""
        while isinstance(inner, ScorerWrapper):
            name = inner.name if isinstance(inner, GuardedScorer) else name
            inner = inner.scorer  # type: ignore[attr-defined]
        if id(inner) not in seen:
            seen.add(id(inner))
            yield name, inner


def set_progress(scorers: Iterable[Any], step: int, max_steps: int) -> None:
    """Tell the scorers that ask for it how far the training is."""
    for _, scorer in inner_scorers(scorers):
        if isinstance(scorer, ReadsProgress):
            scorer.set_progress(step, max_steps)


def scorer_metrics(scorers: Iterable[Any]) -> dict[str, float]:
    """What the scorers logged in their last call, by `scorer/NAME/METRIC`."""
    return {
        f"scorer/{name.rpartition('.')[2]}/{_UNSAFE_CHARACTERS.sub('_', metric)}": float(value)
        for name, scorer in inner_scorers(scorers)
        if name and isinstance(scorer, FallibleScorer)
        for metric, value in scorer.metrics.items()
    }


_UNSAFE_CHARACTERS = re.compile(r"[^\w.-]")
"""Not in the keys of metrics."""
