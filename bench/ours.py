"""Our side of an alignment step: GRPO."""

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from bench.wire import BenchChannel, Numbers
from bench.workloads import Workload, letters, model_folder, prompts_of
from paretune.algorithms import grpo
from paretune.core.batch import Batch
from paretune.data.records import Prompt, Sample
from paretune.experiment.settings import resolve_max_tokens_per_pass
from paretune.models.load import ModelSpec, PolicyModel, load_policy
from paretune.models.model_passes import Models
from paretune.rl.algorithm_spec import AlgorithmSpec
from paretune.rl.context import TrainingContext
from paretune.rl.loop import init_train_state, train_step
from paretune.rl.state import GradientLearner, TrainState
from paretune.rollout.sampler import LocalSampler, OnPolicy, Sampler
from paretune.run.folder import Run
from paretune.training.optimizer import OptimizerConfig

LEARNING_RATE = 1e-6
BETA = 0.04
EPSILON = 0.2
MAX_TOKENS = resolve_max_tokens_per_pass(None, "cpu")
"""Tokens per forward pass: the default of recipes."""
STEPS = 1000
"""Length of the learning rate schedule; more steps than are ever run."""


@dataclass(frozen=True)
class Letters:
    """The reward, repeated for each objective."""

    names: tuple[str, ...]

    def __call__(self, samples: Sequence[Sample]) -> Float[Tensor, "B k"]:
        """The same score in every column."""
        return torch.tensor([[letters(sample.response)] * len(self.names) for sample in samples])


@dataclass
class TimedSampler:
    """A sampler that measures its time and tokens."""

    inner: Sampler
    seconds: float = 0.0
    num_tokens: list[int] = field(default_factory=list)
    """Prompt tokens and response tokens of the last call."""

    def __call__(
        self,
        prompts: Sequence[Prompt],
        rollout: OnPolicy,
        *,
        seed: int,
        step: int,
        prompt_index: Sequence[int] | None = None,
    ) -> tuple[Batch, tuple[Sample, ...]]:
        """See `Sampler`."""
        start = time.perf_counter()
        batch, samples = self.inner(prompts, rollout, seed=seed, step=step, prompt_index=prompt_index)
        self.seconds = time.perf_counter() - start
        response_tokens = int(batch.response_mask.sum())
        self.num_tokens = [int(batch.attention_mask.sum()) - response_tokens, response_tokens]
        return batch, samples


def grpo_setup(
    workload: Workload, dtype: Any, **overrides: Any
) -> tuple[AlgorithmSpec, TrainingContext, TimedSampler]:
    """GRPO as the package runs it; `overrides` replace fields of the training context."""
    policy, frozen = policies(model_folder(workload.model, False), dtype)
    if workload.full_length:
        # No stop token at all, not even the chat template's. The peers' folder has an EOS token without
        # embedding for this, which `load_policy` refuses.
        policy = replace(policy, eos_ids=(len(policy.tokenizer),))
    names = tuple(f"letters{i}" for i in range(workload.objectives))
    inner = LocalSampler(
        policy=policy, objectives=names, max_rows=workload.prompts * workload.num_generations
    )
    sampler = TimedSampler(inner)
    weights = dict.fromkeys(names, 1.0)
    spec = grpo(
        weights,
        num_generations=workload.num_generations,
        max_new_tokens=workload.max_new_tokens,
        clip_range=EPSILON,
        kl_coef=BETA,
    )
    steps = prompts_of(workload, 16, policy.tokenizer)
    context = TrainingContext(
        models=Models(policy=policy.model, frozen=frozen),
        sampler=sampler,
        scorers=(Letters(names),),
        objectives=names,
        prompts_for_step=lambda step: steps[step % len(steps)],
        optim_config=OptimizerConfig(learning_rate=LEARNING_RATE, warmup_ratio=0.0),
        **({"max_tokens_per_pass": MAX_TOKENS} | overrides),
    )
    return spec, context, sampler


def policies(folder: Path, dtype: Any) -> tuple[PolicyModel, dict[str, torch.nn.Module]]:
    """The policy, and a frozen copy as the reference policy."""
    spec = ModelSpec(path=str(folder), dtype=dtype)
    return load_policy(spec), {"reference": load_policy(spec).model.requires_grad_(False)}


def initial_state(spec: AlgorithmSpec, context: TrainingContext) -> TrainState[GradientLearner]:
    """The state before the first step, with a run in a temporary folder."""
    run = Run(Path(mkdtemp(prefix="bench-")))
    return init_train_state(spec, context, run, run.path / "checkpoints", {})


def main(job: dict[str, Any]) -> None:
    """Serve steps of one workload."""
    channel = BenchChannel()
    overrides = job.get("context", {})
    spec, context, sampler = grpo_setup(Workload(**job["workload"]), job["dtype"], **overrides)
    state = initial_state(spec, context)

    def step() -> Numbers:
        train_step(spec, context, state, STEPS, 0)
        prompt_tokens, response_tokens = sampler.num_tokens
        return {
            "generate": sampler.seconds,
            "prompt_tokens": prompt_tokens,
            "response_tokens": response_tokens,
        }

    channel.send({})
    channel.serve(step)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
