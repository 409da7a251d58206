"""After a tuning trial: what the training reward says of answers to prompts of the training."""

from dataclasses import replace

import torch

from paretune.chance import seed_of
from paretune.config.algorithm import recipe_of
from paretune.data.frame import shown
from paretune.files import to_json, write_atomic
from paretune.models.load import load_policy
from paretune.objectives.score import through
from paretune.stages.judge import model_judges, written_by
from paretune.stages.material import stream_of
from paretune.stages.work import Work

PROMPTS = 240
"""Of the training, in the shares of the training; enough that a trial's mean is known to a few hundredths."""
FOUND = ("eval", "trial", "trial.json")
"""Where the means lie."""


def trial(work: Work) -> str:
    """Let the trained policy answer, and write the mean score of each objective; no judge is asked.

    Unlike the scores of the training steps, these are of the policy that came out, whoever wrote the
    responses it learnt from: so methods that sample and methods that do not are chosen for alike. A response
    that cannot be scored counts as much as the worst of the others; its share is written down.
    """
    e, folder = work.experiment, work.folder(*FOUND[:-1])
    if not (folder / FOUND[-1]).exists():
        recipe = recipe_of(e)
        prompts = replace(stream_of(e, work.material.pools), size=PROMPTS)(0)
        language = load_policy(work.trained, seed=e.run.seed)
        seed = seed_of(e.run.seed, 0, "trial")
        answers = written_by(work, language, prompts, n=1, frame=recipe.frame, seed=seed)
        seen = [shown(sample, recipe.view) for sample in answers.samples]
        means, unscored = {}, {}
        for judge in model_judges(work, "reward", "the training reward"):
            for name, column in zip(judge.scorer.names, through(judge.scorer, seen).T, strict=True):
                missing = column.isnan()
                worst = column[~missing].min() if not missing.all() else torch.nan
                means[name] = float(column.where(~missing, worst).mean())
                unscored[name] = float(missing.float().mean())
        folder.mkdir(parents=True, exist_ok=True)
        found = {"schema": "paretune/trial/1", "prompts": len(prompts), "mean": means, "unscored": unscored}
        write_atomic(folder / FOUND[-1], to_json(found))
    return f"training reward of {PROMPTS} answers"
