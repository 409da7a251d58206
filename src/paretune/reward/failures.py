"""Responses that a scorer could not score: NaN with a reason, counted."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable


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
