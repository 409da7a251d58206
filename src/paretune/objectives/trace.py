"""Thoughts as objectives of their own: what is hidden from the other scorers is still watched."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from paretune.data.frame import thought
from paretune.data.records import Sample
from paretune.objectives.score import Scorer, through


def spoken(samples: Sequence[Sample]) -> dict[str, float]:
    """Mean words of answers and of thoughts where a response has both, and the share of the others."""
    parts = [thought(sample.whole) for sample in samples]
    found = [part for part in parts if part is not None]
    trace, answer = (sum(len(part[i].split()) for part in found) for i in (0, 1))
    count = len(found) or float("nan")
    unread = 1 - len(found) / len(parts) if parts else float("nan")
    return {"length/answer": answer / count, "length/trace": trace / count, "view/unread": unread}


@dataclass(frozen=True)
class OfTrace:
    """Scores of the thoughts, as they were written, by objectives of another scorer.

    NaN where a response has no thoughts that could be read.
    """

    scorer: Scorer
    of: Mapping[str, str]
    """Objective -> the scorer's objective that is asked of the thoughts."""

    @property
    def names(self) -> tuple[str, ...]:
        """The objectives."""
        return tuple(self.of)

    def __call__(self, samples: Sequence[Sample]) -> Float[Tensor, "B k"]:
        """One column an objective."""
        parts = [thought(sample.whole) for sample in samples]
        traces = [
            None if part is None or not part[0] else replace(sample, response=part[0])
            for sample, part in zip(samples, parts, strict=True)
        ]
        given = through(self.scorer, traces)
        return torch.stack([given[:, self.scorer.names.index(name)] for name in self.of.values()], -1)


def with_traces(of: Mapping[str, str], scorer: Scorer) -> tuple[Scorer, ...]:
    """The scorer, and beside it the one of the thoughts where any of its objectives are asked of them."""
    known = {name: head for name, head in of.items() if head in scorer.names}
    return (scorer, OfTrace(scorer, known)) if known else (scorer,)
