"""Scores of answers by the reward, the scorers and the judges of a run, as far as they can score them."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from paretune.api.loading import LoadingContext
from paretune.api.recipe_parts import recipe_judges, reward_scorers
from paretune.chat.streaming import Answer, ChatSide
from paretune.config import Config
from paretune.config.data_schema import RewardSection
from paretune.config.scorer_schema import LlmJudgeScorerSection
from paretune.config.scorers import JUDGE, REWARD, scorer_sections
from paretune.core.errors import ScoringError
from paretune.data.prompt_formats import visible_text
from paretune.data.records import Message, Prompt, Sample
from paretune.experiment.scorers import scorer_problems
from paretune.reward.scorers import Scorer, score_visible

ANY_PROMPT = Prompt(messages=(Message("user", "Hello"),))
"""What scorers are checked with: a prompt that a person writes has no further columns."""


@dataclass(frozen=True)
class ChatScorer:
    """Scores answers under a short name."""

    name: str
    scorer: Scorer


def score_answers(
    scorers: Sequence[ChatScorer],
    sides: Sequence[ChatSide],
    prompts: Sequence[Prompt],
    answers: Sequence[Answer],
) -> list[dict[str, dict[str, float | None]]]:
    """Scorer -> objective -> score of each answer; None: not scored."""
    visible = [
        visible_text(Sample(prompt=prompt, response=each.text, truncated=each.truncated), side.scorer_view)
        for side, prompt, each in zip(sides, prompts, answers, strict=True)
    ]
    results: list[dict[str, dict[str, float | None]]] = [{} for _ in answers]
    for each in scorers:
        rows = _rows(each.scorer, visible)
        for result, row in zip(results, rows, strict=True):
            result.setdefault(each.name, {}).update(zip(each.scorer.names, row, strict=True))
    return results


def _rows(scorer: Scorer, visible: Sequence[Sample | None]) -> list[list[float | None]]:
    try:
        rows = score_visible(scorer, visible).tolist()
    except ScoringError:  # all of two answers is a share above every limit, and no reason to end a chat
        return [[None] * len(scorer.names) for _ in visible]
    return [[value if math.isfinite(value) else None for value in row] for row in rows]


def chat_scorers(
    config: Config, run_dir: Path, context: LoadingContext, *, llm_judges: bool
) -> tuple[tuple[ChatScorer, ...], tuple[str, ...]]:
    """The scorers and judges of a run that can score what a person writes, and a note on each of the others.

    Args:
        config: The recipe of the run.
        run_dir: Its folder.
        context: What they are loaded for.
        llm_judges: Ask LLM judges too; each answer is a request.

    Raises:
        ParetuneError: One of them cannot be loaded.
    """
    left_out = dict(_left_out(config, run_dir, llm_judges=llm_judges))
    usable = config.model_copy(
        update={
            "judge": None if "judge" in left_out else config.judge,
            **{
                group: {n: s for n, s in getattr(config, group).items() if f"{group}.{n}" not in left_out}
                for group in ("scorers", "judges")
            },
        }
    )
    scorers: list[ChatScorer] = []
    if usable.judge is not None or usable.judges:
        judges, rewards = recipe_judges(usable, str(run_dir), run_dir, context)
        scorers += [ChatScorer(REWARD, judge.scorer) for judge in rewards]
        scorers += [ChatScorer(judge.key or JUDGE, judge.scorer) for judge in judges]
    else:
        scorers += [ChatScorer(REWARD, each) for each in reward_scorers(usable, run_dir, context)]
    return tuple(scorers), tuple(f"{name} does not score here: {why}" for name, why in left_out.items())


def _left_out(config: Config, run_dir: Path, *, llm_judges: bool) -> Iterator[tuple[str, str]]:
    """Key of a scorer or judge that cannot score here, and why."""
    if isinstance(config.judge, RewardSection) and config.judge.path is None:
        folder = run_dir / JUDGE / "model"
        if not folder.exists():
            yield "judge", f"{folder} is not there"
    for path, name, section in scorer_sections(config):
        key = ".".join(map(str, path))
        if path[0] == "evaluate":  # it compares pairs, and scores no response
            continue
        if isinstance(section, LlmJudgeScorerSection) and not llm_judges:
            yield key, f"it asks {section.model} at {section.base_url}; add --llm-judges to use it"
            continue
        problem = next(scorer_problems(path, name, section, (ANY_PROMPT,)), None)
        if problem is not None:
            yield key, problem.problem


def objectives_of(scores: Mapping[str, Mapping[str, float | None]]) -> dict[str, None]:
    """The objectives of all scorers, in their order."""
    return dict.fromkeys(name for own in scores.values() for name in own)
