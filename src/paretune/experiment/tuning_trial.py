"""After a tuning trial: what the reward, or the judge too, says of answers to prompts of the training."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from paretune.config.build import build_spec
from paretune.core.errors import DataError
from paretune.core.rng import derive_seed
from paretune.data.chat import visible_text
from paretune.data.records import Sample
from paretune.evaluate.evaluate import Judge
from paretune.experiment.context import RunContext
from paretune.experiment.dataset import prompt_stream
from paretune.experiment.evaluate import generate_with, reward_model_judges, run_judges
from paretune.models.load import load_policy
from paretune.reward.scorers import score_visible
from paretune.run.io import read_json, to_json, write_atomic

NUM_PROMPTS = 240
"""Of the training, in the shares of the training; enough that a trial's mean is known to a few hundredths."""
RESULTS_PATH = ("eval", "trial", "trial.json")
"""Where the means lie."""
JUDGED_TRIAL = "judged-trial"
"""What `--until` says of a trial whose answers the judge scores besides."""


def evaluate_trial(ctx: RunContext, *, with_judge: bool = False) -> str:
    """Let the trained policy answer, and write the mean score of each objective.

    Unlike the scores of the training steps, these are of the policy that came out, whoever wrote the
    responses it learnt from: so methods that sample and methods that do not are chosen for alike. A response
    that cannot be scored counts as much as the worst of the others; its share is written down.

    Args:
        ctx: Whose run it is.
        with_judge: The judge of the run scores the same answers; else no judge is asked. A trial that was made
            without it is made again.

    Raises:
        DataError: The judge does not score an objective that has a weight.
    """
    path = ctx.path(*RESULTS_PATH)
    before = read_json(path)
    if before is None or (with_judge and "judge" not in before):
        seen = _generate_samples(ctx)
        rewards = reward_model_judges(ctx, "reward", "the training reward")
        found = {"schema": "paretune/trial/1", "prompts": len(seen), **_mean_scores(rewards, seen)}
        if with_judge:
            judges = run_judges(ctx, rewards)
            _require_judged_objectives(ctx.config.weights, judges)
            found["judge"] = {"name": judges[0].name, **_mean_scores(judges, seen)}
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, to_json(found))
    return f"training reward{' and judge' if with_judge else ''} of {NUM_PROMPTS} answers"


def _generate_samples(ctx: RunContext) -> list[Sample | None]:
    """What the trained policy answers to prompts of its training, as scorers see it."""
    e = ctx.config
    recipe = build_spec(e)
    prompts = replace(prompt_stream(e, ctx.dataset.train_prompts), prompts_per_step=NUM_PROMPTS)(0)
    language = load_policy(ctx.trained_policy, seed=e.run.seed)
    seed = derive_seed(e.run.seed, 0, "trial")
    answers = generate_with(
        ctx, language, prompts, num_generations=1, prompt_format=recipe.prompt_format, seed=seed
    )
    return [visible_text(sample, recipe.scorer_view) for sample in answers.samples]


def _mean_scores(judges: Sequence[Judge], samples: Sequence[Sample | None]) -> dict[str, Any]:
    """Mean and share of unscored answers, of every objective."""
    means, unscored = {}, {}
    for judge in judges:
        for name, column in zip(judge.scorer.names, score_visible(judge.scorer, samples).T, strict=True):
            missing = column.isnan()
            worst = column[~missing].min() if not missing.all() else torch.nan
            means[name] = float(column.where(~missing, worst).mean())
            unscored[name] = float(missing.float().mean())
    return {"mean": means, "unscored": unscored}


def _require_judged_objectives(weights: Mapping[str, float], judges: Sequence[Judge]) -> None:
    known = [name for judge in judges for name in judge.scorer.names]
    lacking = [name for name, weight in weights.items() if weight and name not in known]
    if lacking:
        raise DataError(
            f"judge: does not score {', '.join(lacking)}, which the trials are chosen by "
            f"(it scores {', '.join(known)}); fix: take another judge, or write tuning.by: reward"
        )
