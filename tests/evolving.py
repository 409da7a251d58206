"""A toy policy with a LoRA adapter, and evolution of its singular values; worker processes import it."""

import torch

from paretune.algorithms.evolution import essa
from paretune.models.load import PolicyModel
from paretune.models.lora import AdapterDisabledModel, LoraSpec, add_lora
from paretune.models.model_passes import Models
from paretune.rl.context import TrainingContext
from paretune.rl.evolution.loop import train_by_evolution
from paretune.rl.evolution.workers import CandidateEvaluator
from paretune.rl.loop import train
from paretune.rollout.sampler import LocalSampler
from paretune.run.folder import Run
from paretune.training.optimizer import OptimizerConfig
from support.tiny_models import tiny_model
from support.toy import OBJECTIVES, PAD, STOP, VOCAB, ToyScorer, toy_prompts, toy_tokenizer

WEIGHTS = {"even": 0.5, "high": 0.5}
SIZES = {"max_new_tokens": 6, "population_size": 8, "sft_steps": 8, "sft_num_generations": 4}


def method(**more):
    return essa(WEIGHTS, **(SIZES | more))


def world_of(model, prompts=16, lr=1e-2):
    """The toy task for this policy."""
    language = PolicyModel(model=model, tokenizer=toy_tokenizer(), eos_ids=(STOP,), pad_id=PAD)
    initial = AdapterDisabledModel(model)
    initial_policy = PolicyModel(model=initial, tokenizer=toy_tokenizer(), eos_ids=(STOP,), pad_id=PAD)
    return TrainingContext(
        models=Models(policy=model, frozen={"reference": initial}),
        sampler=LocalSampler(language, OBJECTIVES),
        scorers=(ToyScorer(),),
        objectives=OBJECTIVES,
        prompts_for_step=lambda step: toy_prompts(step, prompts),
        optim_config=OptimizerConfig(learning_rate=lr),
        frozen_policy_sampler=LocalSampler(initial_policy, OBJECTIVES),
    )


def policy(seed=0, r=4):
    """A tiny random policy with a fresh adapter on its attention."""
    model = tiny_model(
        "llama", VOCAB, seed=seed, width=16, layers=1, heads=2, context=32, stop=STOP, pad=PAD, initial=0.3
    )
    return add_lora(
        model, LoraSpec(r=r, alpha=2 * r, target_modules=("q_proj", "k_proj", "v_proj", "o_proj")), seed
    )


def fitted(folder, evolution=None, seed=0, **more):
    """The same context after the phase that trains the adapter."""
    evolution, world = evolution or method(), world_of(policy(seed), **more)
    phase = evolution.adapter_phase
    train(
        phase.spec, world, max_steps=phase.max_steps, seed=seed, run=Run(folder), save_steps=phase.max_steps
    )
    return world


def touched(seed=0):
    """A context whose adapter has random non-zero weights, as after training, without the time that takes."""
    model = policy(seed)
    rng = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.copy_(0.3 * torch.randn(weight.shape, generator=rng))
    return world_of(model)


def hire(lora_svd):
    """The worker factory: makes the evaluator of another process."""
    return CandidateEvaluator(method(), touched(), lora_svd, 0)


def searched(folder, evolution=None, world=None, *, steps=4, seed=0, every=2, **more):
    """Train by evolution: the final state, and the bytes of metrics.jsonl."""
    evolution, world = evolution or method(), world or touched(seed)
    state = train_by_evolution(
        evolution, world, max_steps=steps, seed=seed, run=Run(folder), save_steps=every, **more
    )
    return state, (folder / "metrics.jsonl").read_bytes()
