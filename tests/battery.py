"""Every algorithm on the toy task: its spec at a small size, and a training context that meets it."""

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
from paretune.rl.context import TrainingContext
from paretune.rl.loop import train
from paretune.rl.validate import check_spec
from paretune.rollout.sampler import LocalSampler
from paretune.rollout.stored import StoredResponseReader
from paretune.run.folder import Run
from paretune.training.optimizer import OptimizerConfig
from support.tiny_models import tiny_model
from support.toy import FIRST, OBJECTIVES, PAD, STOP, VOCAB, ToyScorer, toy_prompts, toy_tokenizer
from toy import algorithm

SIZES = {"num_generations": 8, "max_new_tokens": 6}
MORE = {
    "ppo": {"num_generations": 4, "num_iterations": 2},
    "ppo_max": {"num_generations": 4, "critic_warmup_steps": 2},
    "salsa": {"num_generations": 4, "num_iterations": 2},
    "safe_rlhf": {"num_generations": 4, "num_iterations": 2},
    "rto": {"num_generations": 4, "num_iterations": 2, "dpo_steps": 4, "dpo_num_generations": 4},
    "superhf": {"num_generations": 8, "kl_coef": 0.05},
    "dpo": {"response_source": "on_policy"},
    "tdpo": {"response_source": "on_policy"},
    "modpo": {"response_source": "on_policy", "beta": 1.0},
    "pro": {"response_source": "on_policy", "num_generations": 4},
    "sft": {"response_source": "on_policy"},
    "custom": {
        "model_passes": [{"type": "OldLogprobs", "source": "policy"}, {"type": "PolicyEntropy"}],
        "credit": [
            {"type": "GroupNormalize"},
            {"type": "BroadcastToTokens"},
            {"type": "TruncatedImportanceSampling"},
            {"type": "TopEntropyTokens", "top_entropy_quantile": 0.8},
        ],
        "losses": [
            {"type": "OffPolicyMask", "loss": {"type": "GammaWeight"}},
            {"type": "EntropyBonus", "coefficient": 0.01},
        ],
    },
}
"""Arguments at which a tiny model shows the effect of an algorithm within seconds."""
GRADIENT = sorted(name for name in ALGORITHMS if name != "essa")
"""The algorithms that `train` runs."""


def recipe_of(name: str, **more: object) -> AlgorithmSpec:
    return algorithm(name, **(SIZES | MORE.get(name, {}) | more))


def language(seed: int = 0) -> PolicyModel:
    model = tiny_model("llama", VOCAB, seed=seed, width=16, layers=1, heads=2, context=32, stop=STOP, pad=PAD)
    return PolicyModel(model=model, tokenizer=toy_tokenizer(), eos_ids=(STOP,), pad_id=PAD)


def world_of(
    recipe: AlgorithmSpec, folder, seed: int = 0, *, lr: float = 1e-2, micro_tokens: int = 8192
) -> TrainingContext:
    """A tiny policy and everything else that the spec requires; its phases are run."""
    policy, start = language(seed), language(seed)
    start.model.requires_grad_(False)
    heads = check_spec(recipe, OBJECTIVES).num_critic_heads
    frozen = {"reference": start.model}
    for phase in recipe.phases:
        frozen[phase.role] = _frozen_model(phase, folder / phase.role, seed, start, lr)
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


def _frozen_model(phase, folder, seed, start, lr):
    if isinstance(phase, PretrainPhase):
        context, steps = world_of(phase.spec, folder, seed, lr=lr), phase.max_steps
        train(phase.spec, context, max_steps=steps, seed=seed, run=Run(folder), save_steps=steps)
        return context.models.policy.requires_grad_(False)
    second = language(seed + 100).model if phase.other_path == "" else copy.deepcopy(start.model)
    return merge_models((start.model, second), (1 - phase.fraction, phase.fraction)).requires_grad_(False)


def stored(seed: int, num: int = 24) -> tuple[ResponseGroup, ...]:
    """Random responses to toy prompts with their true scores as labels."""
    rng, groups = numpy_generator(seed, 0, "toy stored"), []
    for prompt in toy_prompts(1000 + seed, num):
        texts = [" ".join(map(str, rng.integers(FIRST, VOCAB, size=4))) for _ in range(3)]
        scores = ToyScorer()([Sample(prompt=prompt, response=text) for text in texts])
        labels = tuple(dict(zip(OBJECTIVES, row, strict=True)) for row in scores.tolist())
        groups.append(ResponseGroup(prompt=prompt, responses=tuple(texts), labels=labels))
    return tuple(groups)


def weights_of(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}
