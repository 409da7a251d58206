"""The confidence that a response states of itself as an objective, and scorers that do not see it."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from paretune.data.confidence import parse_confidence, strip_confidence
from paretune.data.records import Sample
from paretune.objectives.score import Scorer


@dataclass(frozen=True)
class StatedConfidenceScorer:
    """The stated confidence in [0, 1]; NaN where a response states none.

    A column to be read by `CalibrateByConfidence` and reported; more of it is not better, so it gets no
    weight. It reads the response as it was written, whatever the view shows of it.
    """

    names: tuple[str, ...] = ("confidence",)

    def __call__(self, samples: Sequence[Sample]) -> Float[Tensor, "B k"]:
        """One column."""
        return torch.tensor([[parse_confidence(sample.full_response)] for sample in samples]).reshape(-1, 1)


@dataclass(frozen=True)
class ConfidenceBlindScorer:
    """A scorer that is shown every response without its statement of confidence."""

    scorer: Scorer

    @property
    def names(self) -> tuple[str, ...]:
        """Those of the scorer."""
        return self.scorer.names

    def __call__(self, samples: Sequence[Sample]) -> Float[Tensor, "B k"]:
        """The scorer's columns."""
        return self.scorer([replace(s, response=strip_confidence(s.response)) for s in samples])
