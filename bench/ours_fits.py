"""Our side of reward model training on pairs and ratings, of DPO, and of scoring."""

import json
import sys
from typing import Any

from bench.ours import LEARNING_RATE, MAX_TOKENS, STEPS, initial_state, policies
from bench.wire import BenchChannel, Numbers
from bench.workloads import (
    MAX_ROW_TOKENS,
    NUM_PAIRS,
    NUM_RATINGS,
    NUM_SCORED,
    model_folder,
    pairs_up_to,
    reward_model_folder,
    short_ratings,
)
from paretune.algorithms import dpo
from paretune.data.loader import group_responses
from paretune.data.records import Sample
from paretune.models.load import load_tokenizer
from paretune.models.model_passes import Models
from paretune.reward.checkpoint import RewardModelSpec, load_reward_model, new_reward_model
from paretune.reward.model import RewardModelScorer
from paretune.reward.training import RewardTask
from paretune.rl.context import TrainingContext
from paretune.rl.loop import train_step
from paretune.rollout.sampler import LocalSampler
from paretune.rollout.stored import StoredResponseReader
from paretune.training.optimizer import OptimizerConfig
from paretune.training.supervised import SupervisedConfig, fit

BATCH = 32
"""Examples per optimizer step."""
BETA = 0.1  # of DPO


def serve_reward_training(channel: BenchChannel, kind: str, dtype: Any) -> None:
    """Train a reward model for one epoch per request; tokenization is not measured."""
    folder = str(model_folder("dialogue", False))
    tokenizer = load_tokenizer(folder)
    records = (
        pairs_up_to(MAX_ROW_TOKENS, tokenizer)[:NUM_PAIRS]
        if kind == "reward"
        else short_ratings(NUM_RATINGS, tokenizer)
    )
    name = "better" if kind == "reward" else "score"
    model = new_reward_model(RewardModelSpec(path=folder, objectives=(name,), dtype=dtype), (1.0,), (0.0,))
    task = RewardTask(model, records)
    config = SupervisedConfig(
        num_train_epochs=1,
        batch_size=BATCH,
        max_tokens_per_pass=MAX_TOKENS,
        optim_config=OptimizerConfig(learning_rate=LEARNING_RATE, warmup_ratio=0.0),
    )
    tokens = float(sum(sum(rows) for rows in task.lengths))

    def step() -> Numbers:
        fit(task, config, seed=0)
        return {"tokens": tokens}

    channel.send({})
    channel.serve(step)


def serve_dpo(channel: BenchChannel, dtype: Any) -> None:
    """DPO, one epoch over the pairs per request."""
    policy, frozen = policies(model_folder("dialogue", False), dtype)
    groups = group_responses(pairs_up_to(MAX_ROW_TOKENS, policy.tokenizer)[:NUM_PAIRS])
    steps_per_epoch = NUM_PAIRS // BATCH
    stored = StoredResponseReader(
        policy,
        ("better",),
        lambda step: groups[step % steps_per_epoch * BATCH : (step % steps_per_epoch + 1) * BATCH],
    )
    spec = dpo({"better": 1.0}, response_source="stored", beta=BETA)
    context = TrainingContext(
        models=Models(policy=policy.model, frozen=frozen),
        sampler=LocalSampler(policy=policy, objectives=("better",)),
        scorers=(),
        objectives=("better",),
        prompts_for_step=lambda step: (),
        optim_config=OptimizerConfig(learning_rate=LEARNING_RATE, warmup_ratio=0.0),
        stored_rollouts=stored,
        max_tokens_per_pass=MAX_TOKENS,
    )
    state = initial_state(spec, context)

    def step() -> Numbers:
        for _ in range(steps_per_epoch):
            train_step(spec, context, state, STEPS, 0)
        return {}

    channel.send({})
    channel.serve(step)


def serve_scoring(channel: BenchChannel, dtype: Any) -> None:
    """Score all responses from their text per request."""
    folder = str(reward_model_folder())
    ratings = short_ratings(NUM_SCORED, load_tokenizer(folder))
    samples = [Sample(prompt=rating.prompt, response=rating.response) for rating in ratings]
    scorer = RewardModelScorer(load_reward_model(folder, dtype=dtype))

    def step() -> Numbers:
        return {"score": float(scorer(samples).abs().mean())}

    channel.send({})
    channel.serve(step)


def main(job: dict[str, Any]) -> None:
    """Serve reward model training, DPO or scoring."""
    channel = BenchChannel()
    if job["kind"] == "scoring":
        serve_scoring(channel, job["dtype"])
    elif job["kind"] == "dpo":
        serve_dpo(channel, job["dtype"])
    else:
        serve_reward_training(channel, job["kind"], job["dtype"])


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
