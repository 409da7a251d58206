"""Thoughts as objectives of their own: what is hidden from the other scorers is still watched."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from paretune.data.frame import parse_thinking
from paretune.data.records import Sample
from paretune.objectives.score import Scorer, score_visible


def thinking_length(samples: Sequence[Sample]) -> dict[str, float]:
    """Mean words of answers and of thoughts where a response has both, and the share of the others."""
    parts = [parse_thinking(sample.full_response) for sample in samples]
    found = [part for part in parts if part is not None]
    trace, answer = (sum(len(part[i].split()) for part in found) for i in (0, 1))
    count = len(found) or float("nan")
    unread = 1 - len(found) / len(parts) if parts else float("nan")
    return {
        "responses/answer_length": answer / count,
        "responses/thinking_length": trace / count,
        "responses/format_invalid": unread,
    }


@dataclass(frozen=True)
class ThinkingScorer:
    """Scores of the thoughts, as they were written, by objectives of another scorer.

    NaN where a response has no thoughts that could be read.
    """

    scorer: Scorer
    scores_from: Mapping[str, str]
    """Objective -> the scorer's objective that is asked of the thoughts."""

    @property
    def names(self) -> tuple[str, ...]:
        """The objectives."""
        return tuple(self.scores_from)

    def __call__(self, samples: Sequence[Sample]) -> Float[Tensor, "B k"]:
        """One column an objective."""
        parts = [parse_thinking(sample.full_response) for sample in samples]
        traces = [
            None if part is None or not part[0] else replace(sample, response=part[0])
            for sample, part in zip(samples, parts, strict=True)
        ]
        given = score_visible(self.scorer, traces)
        return torch.stack(
            [given[:, self.scorer.names.index(name)] for name in self.scores_from.values()], -1
        )


def with_thinking_scorer(scores_from: Mapping[str, str], scorer: Scorer) -> tuple[Scorer, ...]:
    """The scorer, and beside it the one of the thoughts where any of its objectives are asked of them."""
    known = {name: head for name, head in scores_from.items() if head in scorer.names}
    return (scorer, ThinkingScorer(scorer, known)) if known else (scorer,)
