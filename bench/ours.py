"""Our side of a step of alignment: GRPO."""

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from bench.wire import Numbers, Stage
from bench.workloads import Workload, letters, model_folder, prompts_of
from paretune.algorithms import grpo
from paretune.core.batch import Batch
from paretune.data.records import Prompt, Sample
from paretune.experiment.context import resolve_max_tokens_per_pass
from paretune.models.load import ModelSpec, PolicyModel, load_policy
from paretune.models.model_passes import Models
from paretune.rl.algorithm_spec import AlgorithmSpec
from paretune.rl.loop import TrainingContext, train_step
from paretune.rl.state import TrainState, start_or_resume
from paretune.rollout.sampler import LocalSampler, OnPolicy, Sampler
from paretune.run.folder import Run
from paretune.training.optimizer import OptimizerConfig

LR = 1e-6
BETA = 0.04
EPSILON = 0.2
PASS = resolve_max_tokens_per_pass(None, "cpu")
"""Tokens of a forward pass: what a recipe gets that does not say."""
STEPS = 1000
"""More than are ever asked for."""


@dataclass(frozen=True)
class Letters:
    """The reward, once for each objective."""

    names: tuple[str, ...]

    def __call__(self, samples: Sequence[Sample]) -> Float[Tensor, "B k"]:
        """The same number in every column."""
        return torch.tensor([[letters(sample.response)] * len(self.names) for sample in samples])


@dataclass
class Timed:
    """A sampler that keeps the time."""

    inner: Sampler
    seconds: float = 0.0
    seen: list[int] = field(default_factory=list)
    """Of the last call: tokens of its prompts, and of its responses."""

    def __call__(
        self,
        prompts: Sequence[Prompt],
        how: OnPolicy,
        *,
        seed: int,
        step: int,
        prompt_index: Sequence[int] | None = None,
    ) -> tuple[Batch, tuple[Sample, ...]]:
        """See `Sampler`."""
        start = time.perf_counter()
        batch, samples = self.inner(prompts, how, seed=seed, step=step, prompt_index=prompt_index)
        self.seconds = time.perf_counter() - start
        responses = int(batch.response_mask.sum())
        self.seen = [int(batch.attention_mask.sum()) - responses, responses]
        return batch, samples


def alignment(workload: Workload, dtype: Any, **more: Any) -> tuple[AlgorithmSpec, TrainingContext, Timed]:
    """GRPO as the package runs it; `more` changes fields of the world."""
    language, frozen = policies(model_folder(workload.model, workload.full), dtype)
    names = tuple(f"letters{i}" for i in range(workload.objectives))
    inner = LocalSampler(policy=language, objectives=names, max_rows=workload.prompts * workload.n)
    sampler = Timed(inner)
    weights = dict.fromkeys(names, 1.0)
    recipe = grpo(
        weights, num_generations=workload.n, max_new_tokens=workload.max_new, clip_range=EPSILON, kl_coef=BETA
    )
    steps = prompts_of(workload, 16, language.tokenizer)
    world = TrainingContext(
        models=Models(policy=language.model, frozen=frozen),
        sampler=sampler,
        scorers=(Letters(names),),
        objectives=names,
        prompts_for_step=lambda step: steps[step % len(steps)],
        optim_config=OptimizerConfig(learning_rate=LR, warmup_ratio=0.0),
        **({"micro_tokens": PASS} | more),
    )
    return recipe, world, sampler


def policies(folder: Path, dtype: Any) -> tuple[PolicyModel, dict[str, torch.nn.Module]]:
    """The policy, and a frozen copy of it as the reference."""
    spec = ModelSpec(path=str(folder), dtype=dtype)
    return load_policy(spec), {"reference": load_policy(spec).model.requires_grad_(False)}


def begun(recipe: AlgorithmSpec, world: TrainingContext) -> TrainState:
    """The state before the first step, its run in a folder that nobody reads."""
    run = Run(Path(mkdtemp(prefix="bench-")))
    return start_or_resume(recipe, world.models, world.optim_config, run, {}, run.path / "checkpoints")


def main(job: dict[str, Any]) -> None:
    """Serve steps of one workload."""
    stage = Stage()
    recipe, world, sampler = alignment(Workload(**job["workload"]), job["dtype"], **job.get("world", {}))
    now = begun(recipe, world)

    def step() -> Numbers:
        train_step(recipe, world, now, STEPS, 0)
        asked, answered = sampler.seen
        return {"generate": sampler.seconds, "prompt_tokens": asked, "response_tokens": answered}

    stage.tell({})
    stage.serve(step)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
