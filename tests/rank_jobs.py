"""Trains the toy task with several algorithms and saves what came of it; started alone or by torchrun.

python rank_jobs.py FOLDER JOBS        JOBS: a JSON list of objects with the fields of `Job`
"""

import json
import sys
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

import battery
from battery import recipe_of, world_of
from paretune.core import ranks
from paretune.models.load import PolicyModel
from paretune.models.lora import AdapterDisabledModel, LoraSpec, add_lora
from paretune.models.sharding import ShardingMode, full_tensors, shard_model
from paretune.rl.context import TrainingContext
from paretune.rl.loop import train
from paretune.rl.state import trainable_parameters
from paretune.run.folder import Run
from support.tiny_models import tiny_model
from support.toy import PAD, STOP, VOCAB, toy_prompts, toy_tokenizer
from toy import Cut

LANGUAGE = battery.language


@dataclass(frozen=True)
class Job:
    """One training."""

    algorithm: str
    steps: int = 3
    dtype: str = "float64"
    sharding: ShardingMode = "no_shard"
    prompts: int = 6
    """Prompts of a step; with one of them, a rank has no rows."""
    lora: bool = False
    cut_after: int = 0
    """Steps after which the training is interrupted, with a checkpoint of each step; 0: it is not."""
    name: str = ""

    @property
    def folder(self) -> str:
        parts = [self.algorithm, self.dtype, self.sharding, f"{self.prompts}-prompts"]
        return self.name or "-".join(parts) + "-lora" * self.lora + "-cut" * bool(self.cut_after)


@dataclass(frozen=True)
class RoundedSampler:
    """A sampler whose log-probabilities are rounded to 1e-5.

    Samplers give them in float32, whose last bit depends on the rows beside; a comparison in float64 to 1e-10
    needs inputs that are equal.
    """

    sampler: Any

    def __call__(self, prompts, rollout, **more):
        batch, samples = self.sampler(prompts, rollout, **more)
        rounded = (batch.rollout_logprobs.double() * 1e5).round() / 1e5
        return batch.replace(rollout_logprobs=rounded), samples


def gpt2_language(seed: int = 0) -> PolicyModel:
    """A policy without float32 inside: Llama's RMSNorm rounds to float32 whatever the weights are."""
    model = tiny_model("gpt2", VOCAB, seed=seed, width=16, layers=1, heads=2, context=32, stop=STOP, pad=PAD)
    return PolicyModel(model=model, tokenizer=toy_tokenizer(), eos_ids=(STOP,), pad_id=PAD)


def with_adapter(context: TrainingContext) -> TrainingContext:
    """The context with an adapter in training, whose reference is the model without it."""
    adapted = add_lora(context.models.policy, LoraSpec(r=4), 0, "CAUSAL_LM")
    models = replace(context.models, policy=adapted, frozen={"reference": AdapterDisabledModel(adapted)})
    policy = replace(context.sampler.policy, model=adapted)
    return replace(context, models=models, sampler=replace(context.sampler, policy=policy))


def run_job(job: Job, folder: Path) -> None:
    """Write metrics.jsonl, the batches of all steps and the weights below the folder."""
    dtype = getattr(torch, job.dtype)
    torch.set_default_dtype(dtype)
    battery.language = gpt2_language if dtype == torch.float64 else LANGUAGE
    recipe = recipe_of(job.algorithm)
    context = world_of(recipe, folder / "phases", lr=1e-3, micro_tokens=60)
    if job.lora:
        context = with_adapter(context)
    for model in (context.models.policy, context.models.critic, *context.models.frozen.values()):
        if model is not None:
            model.to(dtype)
            shard_model(model, job.sharding)
    context = replace(context, prompts_for_step=lambda step: toy_prompts(step, job.prompts))
    if dtype == torch.float64:
        context = replace(context, sampler=RoundedSampler(context.sampler))
    batches: dict[str, torch.Tensor] = {}

    def on_step(step, metrics, batch, samples):
        if step + 1 == job.cut_after:
            raise Cut
        for field in ("input_ids", "response_mask", "scores", "rewards", "advantages"):
            if (value := getattr(batch, field)) is not None:
                batches[f"{field}/{step}"] = value.clone()

    save_steps = 1 if job.cut_after else 100
    with suppress(Cut):
        train(
            recipe,
            context,
            max_steps=job.steps,
            seed=3,
            run=Run(folder),
            save_steps=save_steps,
            on_step=on_step,
        )
    weights = full_tensors({k: v.detach() for k, v in trainable_parameters(context.models).items()})
    if ranks.is_first():
        save_file(batches, folder / "batches.safetensors")
        save_file({name: value.clone() for name, value in weights.items()}, folder / "weights.safetensors")


def main() -> None:
    torch.set_num_threads(1)
    folder, jobs = Path(sys.argv[1]), [Job(**values) for values in json.loads(sys.argv[2])]
    with ranks.joined():
        for job in jobs:
            run_job(job, folder / job.folder)


if __name__ == "__main__":
    main()
