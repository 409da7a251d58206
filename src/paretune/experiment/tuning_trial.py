"""Tuning trial stage: scores of the trained policy on training prompts, by the reward and by the judge."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from paretune.core.errors import DataError
from paretune.core.goals import HIGHER, Goal
from paretune.core.rng import derive_seed
from paretune.data.prompt_formats import visible_text
from paretune.data.records import Sample
from paretune.evaluate.judging import Judge
from paretune.experiment.context import RunContext
from paretune.experiment.dataset import prompt_stream
from paretune.experiment.evaluate import generate_with, run_judges, training_reward_judges
from paretune.models.load import load_policy
from paretune.reward.scorers import score_visible
from paretune.run.io import read_json, to_json, write_atomic

NUM_PROMPTS = 240
"""Training prompts, mixed as in training: enough for a standard error of a few hundredths."""
RESULTS_PATH = ("eval", "tuning_trial", "scores.json")
"""Path of the scores below the run folder."""
TRIAL = "tuning-trial"
"""Stage name and value of `--until`: the reward scores the responses."""
JUDGED_TRIAL = "judged-tuning-trial"
"""Value of `--until`: the judge scores them too."""


def evaluate_trial(ctx: RunContext, *, with_judge: bool = False) -> str:
    """Sample responses of the trained policy, and write the mean score of each objective.

    Unlike the scores of the training steps, these are always of the trained policy, whatever responses it was
    trained on. Methods that sample and methods that do not are therefore selected alike. A response that
    cannot be scored counts as the worst of the others; the fraction of such responses is written too.

    Args:
        ctx: The run.
        with_judge: Let the judge of the run score the responses too. A trial without the judge's scores is
            evaluated again.

    Raises:
        DataError: The judge does not score an objective that has a weight.
    """
    path = ctx.path(*RESULTS_PATH)
    previous = read_json(path)
    if previous is None or (with_judge and "judge" not in previous):
        samples = _generate_samples(ctx)
        reward_judges = training_reward_judges(ctx)
        results = {
            "schema": "paretune/tuning-trial/1",
            "num_prompts": len(samples),
            **_mean_scores(reward_judges, samples, ctx.config.goals),
        }
        if with_judge:
            judges = run_judges(ctx, reward_judges)
            _require_judged_objectives(ctx.config.weights, judges)
            results["judge"] = {"name": judges[0].name, **_mean_scores(judges, samples, ctx.config.goals)}
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, to_json(results))
    return f"training reward{' and judge' if with_judge else ''} of {NUM_PROMPTS} responses"


def _generate_samples(ctx: RunContext) -> list[Sample | None]:
    """Responses of the trained policy to training prompts, as scorers see them."""
    config, spec = ctx.config, ctx.resolved.algorithm
    stream = replace(prompt_stream(config, ctx.dataset.train_prompts), prompts_per_step=NUM_PROMPTS)
    policy = load_policy(ctx.trained_policy, seed=config.run.seed)
    generations = generate_with(
        ctx,
        policy,
        stream(0),
        num_generations=1,
        prompt_format=spec.prompt_format,
        seed=derive_seed(config.run.seed, 0, "trial"),
    )
    return [visible_text(sample, spec.scorer_view) for sample in generations.samples]


def _mean_scores(
    judges: Sequence[Judge], samples: Sequence[Sample | None], goals: Mapping[str, Goal]
) -> dict[str, Any]:
    """Mean oriented score (higher is better) and fraction of unscored responses, by objective."""
    means, unscored = {}, {}
    for judge in judges:
        for name, column in zip(judge.scorer.names, score_visible(judge.scorer, samples).T, strict=True):
            scores = goals.get(name, HIGHER).orient(column)
            is_missing = scores.isnan()
            worst = scores[~is_missing].min() if not is_missing.all() else torch.nan
            means[name] = float(scores.where(~is_missing, worst).mean())
            unscored[name] = float(is_missing.float().mean())
    return {"mean": means, "unscored_fraction": unscored}


def _require_judged_objectives(weights: Mapping[str, float], judges: Sequence[Judge]) -> None:
    judged = [name for judge in judges for name in judge.scorer.names]
    missing = [name for name, weight in weights.items() if weight and name not in judged]
    if missing:
        raise DataError(
            f"judge: does not score {', '.join(missing)}, by which the trials are selected "
            f"(it scores {', '.join(judged)}); fix: use another judge, or write tuning.select_by: reward"
        )
