"""Scoring with several ranks: models score a part of the responses each, everything else runs once."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from jaxtyping import Float
from torch import Tensor

from paretune.core import ranks
from paretune.core.launch import is_distributed
from paretune.data.records import Sample
from paretune.reward.classifier import ClassifierScorer
from paretune.reward.failures import ScorerWrapper, unwrapped
from paretune.reward.model import RewardModelScorer
from paretune.reward.pretrained import PretrainedRewardScorer
from paretune.reward.scorers import Scorer, validated_scores

MODEL_SCORERS = (RewardModelScorer, PretrainedRewardScorer, ClassifierScorer)
"""Scorers whose score of a response is a pass of a model that depends on this response alone."""


def distributed_scorer(scorer: Scorer) -> Scorer:
    """The scorer, divided over the ranks if there are several and it is not yet."""
    inner: Any = scorer
    while isinstance(inner, ScorerWrapper) and not isinstance(inner, DistributedScorer):
        inner = inner.scorer  # type: ignore[attr-defined]
    if isinstance(inner, DistributedScorer) or not is_distributed():
        return scorer
    return DistributedScorer(scorer)


@dataclass
class DistributedScorer(ScorerWrapper):
    """A scorer on several ranks; the scores are those of one process.

    Functions, rules and LLM judges run on the first rank: they may read all responses at once, and a judge
    must not be paid once per rank. Without further ranks the scorer is called as it is.
    """

    scorer: Scorer
    total_flops: float = field(default=0.0, init=False)
    """Floating-point operations of all calls so far, on all ranks, as far as they are counted."""

    @property
    def names(self) -> tuple[str, ...]:
        """The objectives of its columns."""
        return self.scorer.names

    def __call__(self, samples: Sequence[Sample]) -> Float[Tensor, "B k"]:
        """Scores of the scorer.

        Raises:
            RankError: The scorer of another rank failed.
        """
        flops_before = self._own_flops()
        parts = self._divide(samples)
        own = ranks.local_part(parts)
        scores = None
        # A judge or a function may take far longer than any step before, and the others wait for it.
        with ranks.timeout(), ranks.fail_together("scoring"):
            if own or not ranks.is_distributed():
                scores = validated_scores(self.scorer, [samples[i] for i in own])
        scores = ranks.gather_rows(parts, scores)
        self.total_flops += sum(ranks.gather_json(self._own_flops() - flops_before))
        return scores

    def _divide(self, samples: Sequence[Sample]) -> list[list[int]]:
        if isinstance(unwrapped(self.scorer), MODEL_SCORERS):
            return ranks.partition([1 + len(sample.response) for sample in samples])
        return [list(range(len(samples))), *[[] for _ in range(ranks.world_size() - 1)]]

    def _own_flops(self) -> float:
        return float(getattr(self.scorer, "total_flops", 0.0))
