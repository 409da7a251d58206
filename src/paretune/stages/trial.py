"""After a tuning trial: what the reward, or the judge too, says of answers to prompts of the training."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from paretune.chance import seed_of
from paretune.config.algorithm import recipe_of
from paretune.data.frame import shown
from paretune.data.records import Sample
from paretune.errors import DataError
from paretune.evaluate.judge import Judge
from paretune.files import read_json, to_json, write_atomic
from paretune.models.load import load_policy
from paretune.objectives.score import through
from paretune.stages.judge import judges_of, model_judges, written_by
from paretune.stages.material import stream_of
from paretune.stages.work import Work

PROMPTS = 240
"""Of the training, in the shares of the training; enough that a trial's mean is known to a few hundredths."""
FOUND = ("eval", "trial", "trial.json")
"""Where the means lie."""
JUDGED = "judged-trial"
"""What `--until` says of a trial whose answers the judge scores besides."""


def trial(work: Work, *, judged: bool = False) -> str:
    """Let the trained policy answer, and write the mean score of each objective.

    Unlike the scores of the training steps, these are of the policy that came out, whoever wrote the
    responses it learnt from: so methods that sample and methods that do not are chosen for alike. A response
    that cannot be scored counts as much as the worst of the others; its share is written down.

    Args:
        work: Whose run it is.
        judged: The judge of the run scores the same answers; else no judge is asked. A trial that was made
            without it is made again.

    Raises:
        DataError: The judge does not score an objective that has a weight.
    """
    path = work.folder(*FOUND)
    before = read_json(path)
    if before is None or (judged and "judge" not in before):
        seen = _answers(work)
        rewards = model_judges(work, "reward", "the training reward")
        found = {"schema": "paretune/trial/1", "prompts": len(seen), **_scored(rewards, seen)}
        if judged:
            judges = judges_of(work, rewards)
            _refuse_unknown(work.experiment.weights, judges)
            found["judge"] = {"name": judges[0].name, **_scored(judges, seen)}
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, to_json(found))
    return f"training reward{' and judge' if judged else ''} of {PROMPTS} answers"


def _answers(work: Work) -> list[Sample | None]:
    """What the trained policy answers to prompts of its training, as scorers see it."""
    e = work.experiment
    recipe = recipe_of(e)
    prompts = replace(stream_of(e, work.material.pools), size=PROMPTS)(0)
    language = load_policy(work.trained, seed=e.run.seed)
    seed = seed_of(e.run.seed, 0, "trial")
    answers = written_by(work, language, prompts, n=1, frame=recipe.frame, seed=seed)
    return [shown(sample, recipe.view) for sample in answers.samples]


def _scored(judges: Sequence[Judge], seen: Sequence[Sample | None]) -> dict[str, Any]:
    """Mean and share of unscored answers, of every objective."""
    means, unscored = {}, {}
    for judge in judges:
        for name, column in zip(judge.scorer.names, through(judge.scorer, seen).T, strict=True):
            missing = column.isnan()
            worst = column[~missing].min() if not missing.all() else torch.nan
            means[name] = float(column.where(~missing, worst).mean())
            unscored[name] = float(missing.float().mean())
    return {"mean": means, "unscored": unscored}


def _refuse_unknown(weights: Mapping[str, float], judges: Sequence[Judge]) -> None:
    known = [name for judge in judges for name in judge.scorer.names]
    lacking = [name for name, weight in weights.items() if weight and name not in known]
    if lacking:
        raise DataError(
            f"judge: does not score {', '.join(lacking)}, which the trials are chosen by "
            f"(it scores {', '.join(known)}); fix: take another judge, or write tuning.by: reward"
        )
