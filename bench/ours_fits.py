"""Our side of fitting to pairs and to ratings, and of scoring."""

import json
import sys
from typing import Any

from bench.ours import LR, PASS, STEPS, begun, policies
from bench.wire import Numbers, Stage
from bench.workloads import (
    LONGEST,
    PAIRS,
    RATED,
    SCORES,
    model_folder,
    pairs_up_to,
    rated,
    scorer_folder,
)
from paretune.algorithms import dpo
from paretune.data.loader import group_responses
from paretune.data.records import Sample
from paretune.models.load import load_tokenizer
from paretune.models.model_passes import Models
from paretune.reward.checkpoint import RewardModelSpec, load_reward_model, new_reward_model
from paretune.reward.model import RewardModelScorer
from paretune.reward.training import RewardTask
from paretune.rl.loop import TrainingContext, train_step
from paretune.rollout.sampler import LocalSampler
from paretune.rollout.stored import StoredResponseReader
from paretune.training.optimizer import OptimizerConfig
from paretune.training.supervised import SupervisedConfig, fit

BATCH = 32
"""Judgements of an optimiser step."""
BETA = 0.1
"""Of DPO."""


def fitting(stage: Stage, kind: str, dtype: Any) -> None:
    """A fit of one epoch each time; reading the text beforehand does not count."""
    folder = str(model_folder("dialogue", False))
    words = load_tokenizer(folder)
    records = pairs_up_to(LONGEST, words)[:PAIRS] if kind == "reward" else rated(RATED, words)
    name = "better" if kind == "reward" else "score"
    model = new_reward_model(RewardModelSpec(path=folder, objectives=(name,), dtype=dtype), (1.0,), (0.0,))
    task = RewardTask(model, records, {})
    how = SupervisedConfig(
        num_train_epochs=1,
        batch_size=BATCH,
        max_tokens_per_pass=PASS,
        optim_config=OptimizerConfig(learning_rate=LR, warmup_ratio=0.0),
    )
    tokens = float(sum(sum(rows) for rows in task.lengths))

    def step() -> Numbers:
        fit(task, how, seed=0)
        return {"tokens": tokens}

    stage.tell({})
    stage.serve(step)


def aligning(stage: Stage, dtype: Any) -> None:
    """DPO, once over the pairs each time."""
    language, frozen = policies(model_folder("dialogue", False), dtype)
    lists = group_responses(pairs_up_to(LONGEST, language.tokenizer)[:PAIRS])
    every = PAIRS // BATCH
    stored = StoredResponseReader(
        language, ("better",), lambda step: lists[step % every * BATCH : (step % every + 1) * BATCH]
    )
    recipe = dpo({"better": 1.0}, response_source="stored", beta=BETA)
    world = TrainingContext(
        models=Models(policy=language.model, frozen=frozen),
        sampler=LocalSampler(policy=language, objectives=("better",)),
        scorers=(),
        objectives=("better",),
        prompts_for_step=lambda step: (),
        optim_config=OptimizerConfig(learning_rate=LR, warmup_ratio=0.0),
        stored_rollouts=stored,
        max_tokens_per_pass=PASS,
    )
    now = begun(recipe, world)

    def step() -> Numbers:
        for _ in range(every):
            train_step(recipe, world, now, STEPS, 0)
        return {}

    stage.tell({})
    stage.serve(step)


def scoring(stage: Stage, dtype: Any) -> None:
    """All responses scored from their text each time."""
    folder = str(scorer_folder())
    found = rated(SCORES, load_tokenizer(folder))
    samples = [Sample(prompt=each.prompt, response=each.response) for each in found]
    scorer = RewardModelScorer(load_reward_model(folder, dtype=dtype))

    def step() -> Numbers:
        return {"score": float(scorer(samples).abs().mean())}

    stage.tell({})
    stage.serve(step)


def main(job: dict[str, Any]) -> None:
    """Serve fits, or passes of scoring."""
    stage = Stage()
    if job["kind"] == "scoring":
        scoring(stage, job["dtype"])
    elif job["kind"] == "dpo":
        aligning(stage, job["dtype"])
    else:
        fitting(stage, job["kind"], job["dtype"])


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
