"""Every algorithm on the toy task: its recipe at a small size, and a world that has all it needs."""

import copy

import torch

from paretune.algorithms import ALGORITHMS
from paretune.chance import numpy_generator
from paretune.data.records import Candidates, Sample
from paretune.data.stored import CandidateStream
from paretune.data.toy import FIRST, OBJECTIVES, PAD, STOP, VOCAB, ToyScorer, toy_prompts, toy_tokenizer
from paretune.learn.check import check
from paretune.learn.descend import World, descend
from paretune.learn.optim import AdamW
from paretune.learn.recipe import Phase, Recipe
from paretune.models.critic import new_critic
from paretune.models.load import Language
from paretune.models.measure import Models
from paretune.models.soup import soup
from paretune.models.tiny import tiny_model
from paretune.rollout.sample import LocalSampler
from paretune.rollout.stored import StoredResponses
from paretune.rundir import Run
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


def recipe_of(name: str, **more: object) -> Recipe:
    return algorithm(name, **(SIZES | MORE.get(name, {}) | more))


def language(seed: int = 0) -> Language:
    model = tiny_model("llama", VOCAB, seed=seed, width=16, layers=1, heads=2, context=32, stop=STOP, pad=PAD)
    return Language(model=model, tokenizer=toy_tokenizer(), stops=(STOP,), pad=PAD)


def world_of(recipe: Recipe, folder, seed: int = 0, *, lr: float = 1e-2, micro_tokens: int = 8192) -> World:
    """A tiny policy and everything that the recipe asks for beside it; phases are run."""
    policy, start = language(seed), language(seed)
    start.model.requires_grad_(False)
    heads = check(recipe, OBJECTIVES).critic_heads
    frozen = {"reference": start.model}
    for made in recipe.before:
        frozen[made.role] = _made(made, folder / made.role, seed, start, lr)
    return World(
        models=Models(
            policy=policy.model,
            critic=new_critic(language(seed).model, heads) if heads else None,
            frozen=frozen,
        ),
        sampler=LocalSampler(policy, OBJECTIVES),
        scorers=(ToyScorer(),),
        objectives=OBJECTIVES,
        prompts=lambda step: toy_prompts(step, 6),
        optim=AdamW(lr=lr),
        micro_tokens=micro_tokens,
        start=LocalSampler(start, OBJECTIVES),
        stored=StoredResponses(policy, OBJECTIVES, CandidateStream(stored(seed), 6, seed)),
    )


def _made(made, folder, seed, start, lr):
    if isinstance(made, Phase):
        world = world_of(made.recipe, folder, seed, lr=lr)
        descend(made.recipe, world, steps=made.steps, seed=seed, run=Run(folder), checkpoint_every=made.steps)
        return world.models.policy.requires_grad_(False)
    second = language(seed + 100).model if made.other == "" else copy.deepcopy(start.model)
    return soup((start.model, second), (1 - made.share, made.share)).requires_grad_(False)


def stored(seed: int, num: int = 24) -> tuple[Candidates, ...]:
    """Random answers to toy prompts with their true scores; a label is missing here and there."""
    rng, found = numpy_generator(seed, 0, "toy stored"), []
    for prompt in toy_prompts(1000 + seed, num):
        texts = [" ".join(map(str, rng.integers(FIRST, VOCAB, size=4))) for _ in range(3)]
        scores = ToyScorer()([Sample(prompt=prompt, response=text) for text in texts])
        labels = tuple(dict(zip(OBJECTIVES, row, strict=True)) for row in scores.tolist())
        found.append(Candidates(prompt=prompt, responses=tuple(texts), labels=labels))
    return tuple(found)


def weights_of(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}
