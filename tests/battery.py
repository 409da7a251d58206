"""Every algorithm on the toy task: its recipe at a small size, and a world that has all it needs."""

import copy

import torch

from paretune.algorithms import ALGORITHMS
from paretune.core.rng import numpy_generator
from paretune.data.loader import ResponseGroupStream
from paretune.data.records import ResponseGroup, Sample
from paretune.models.critic import critic_from_policy
from paretune.models.load import PolicyModel
from paretune.models.merge import merge_models
from paretune.models.model_passes import Models
from paretune.rl.algorithm_spec import AlgorithmSpec, PretrainPhase
from paretune.rl.loop import TrainingContext, train
from paretune.rl.validate import check_spec
from paretune.rollout.sampler import LocalSampler
from paretune.rollout.stored import StoredResponseReader
from paretune.run.folder import Run
from paretune.training.optimizer import OptimizerConfig
from support.tiny_models import tiny_model
from support.toy import FIRST, OBJECTIVES, PAD, STOP, VOCAB, ToyScorer, toy_prompts, toy_tokenizer
from toy import algorithm

SIZES = {"n": 8, "max_new": 6}
MORE = {
    "ppo": {"n": 4, "epochs": 2},
    "ppo_max": {"n": 4, "critic_alone": 2},
    "salsa": {"n": 4, "epochs": 2},
    "safe_rlhf": {"n": 4, "epochs": 2},
    "rto": {"n": 4, "epochs": 2, "dpo_steps": 4, "dpo_n": 4},
    "superhf": {"n": 8, "kl": 0.05},
    "dpo": {"responses": "online"},
    "tdpo": {"responses": "online"},
    "modpo": {"responses": "online", "beta": 1.0},
    "pro": {"responses": "online", "n": 4},
    "sft": {"responses": "online"},
}
"""Arguments at which a tiny model shows what an algorithm does, within seconds."""
GRADIENT = sorted(name for name in ALGORITHMS if name != "essa")
"""Those that `descend` runs."""


def recipe_of(name: str, **more: object) -> AlgorithmSpec:
    return algorithm(name, **(SIZES | MORE.get(name, {}) | more))


def language(seed: int = 0) -> PolicyModel:
    model = tiny_model("llama", VOCAB, seed=seed, width=16, layers=1, heads=2, context=32, stop=STOP, pad=PAD)
    return PolicyModel(model=model, tokenizer=toy_tokenizer(), eos_ids=(STOP,), pad_id=PAD)


def world_of(
    recipe: AlgorithmSpec, folder, seed: int = 0, *, lr: float = 1e-2, micro_tokens: int = 8192
) -> TrainingContext:
    """A tiny policy and everything that the recipe asks for beside it; phases are run."""
    policy, start = language(seed), language(seed)
    start.model.requires_grad_(False)
    heads = check_spec(recipe, OBJECTIVES).num_critic_heads
    frozen = {"reference": start.model}
    for made in recipe.phases:
        frozen[made.role] = _made(made, folder / made.role, seed, start, lr)
    return TrainingContext(
        models=Models(
            policy=policy.model,
            critic=critic_from_policy(language(seed).model, heads) if heads else None,
            frozen=frozen,
        ),
        sampler=LocalSampler(policy, OBJECTIVES),
        scorers=(ToyScorer(),),
        objectives=OBJECTIVES,
        prompts_for_step=lambda step: toy_prompts(step, 6),
        optim_config=OptimizerConfig(learning_rate=lr),
        max_tokens_per_pass=micro_tokens,
        frozen_policy_sampler=LocalSampler(start, OBJECTIVES),
        stored_rollouts=StoredResponseReader(policy, OBJECTIVES, ResponseGroupStream(stored(seed), 6, seed)),
    )


def _made(made, folder, seed, start, lr):
    if isinstance(made, PretrainPhase):
        world = world_of(made.spec, folder, seed, lr=lr)
        train(
            made.spec, world, max_steps=made.max_steps, seed=seed, run=Run(folder), save_steps=made.max_steps
        )
        return world.models.policy.requires_grad_(False)
    second = language(seed + 100).model if made.other == "" else copy.deepcopy(start.model)
    return merge_models((start.model, second), (1 - made.share, made.share)).requires_grad_(False)


def stored(seed: int, num: int = 24) -> tuple[ResponseGroup, ...]:
    """Random answers to toy prompts with their true scores; a label is missing here and there."""
    rng, found = numpy_generator(seed, 0, "toy stored"), []
    for prompt in toy_prompts(1000 + seed, num):
        texts = [" ".join(map(str, rng.integers(FIRST, VOCAB, size=4))) for _ in range(3)]
        scores = ToyScorer()([Sample(prompt=prompt, response=text) for text in texts])
        labels = tuple(dict(zip(OBJECTIVES, row, strict=True)) for row in scores.tolist())
        found.append(ResponseGroup(prompt=prompt, responses=tuple(texts), labels=labels))
    return tuple(found)


def weights_of(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}
