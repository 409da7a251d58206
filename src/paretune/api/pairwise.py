"""Judges that compare the responses of two policies pair by pair."""

from collections.abc import Callable, Mapping
from typing import Any

from paretune.api.loading import LoadingContext, load_judges
from paretune.api.scorers import ScorerSetup
from paretune.core.errors import WiringError
from paretune.evaluate.judging import Judge
from paretune.reward.failures import GuardedScorer
from paretune.reward.llm_judge import LlmJudgeScorer
from paretune.reward.pairwise_functions import FunctionComparison

PairwiseLike = ScorerSetup | Callable[[str, str, str], Any]
"""`paretune.scorers.llm_judge(...)`, or a function of a prompt, a first and a second response."""


def load_pairwise_judges(judges: Mapping[str, PairwiseLike], context: LoadingContext) -> tuple[Judge, ...]:
    """The judges, by name.

    Raises:
        WiringError: One is neither an LLM judge nor a function.
        ConfigError: A setting of one is wrong.
    """
    return tuple(_load(name, judge, context) for name, judge in judges.items())


def _load(name: str, judge: PairwiseLike, context: LoadingContext) -> Judge:
    if isinstance(judge, ScorerSetup):
        (loaded,) = load_judges({name: judge}, context, parameter="pairwise")
        if isinstance(loaded.scorer, GuardedScorer) and isinstance(loaded.scorer.scorer, LlmJudgeScorer):
            return loaded
    elif callable(judge):
        scorer = FunctionComparison(function=judge)
        own_name = getattr(judge, "__name__", type(judge).__name__)
        return Judge(
            name=f"{name}: the function {own_name}",
            scorer=GuardedScorer(name, scorer),
            weights_hash=scorer.identity,
            key=name,
        )
    fix = "pass paretune.scorers.llm_judge(...), or a function (prompt, first, second)"
    raise WiringError(f"paretune.evaluate: pairwise: {name} compares no pairs; fix: {fix}")
