"""TRL's side of a step of alignment: `GRPOTrainer`.

The settings are those in which TRL was fastest here, of the ones it documents: docs/design/performance.md.
"""

import json
import sys
import time
from dataclasses import asdict
from tempfile import mkdtemp
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from bench.ours import BETA, EPSILON, LR, STEPS
from bench.wire import Clock, Stage
from bench.workloads import Workload, letters, model_folder, prompts_of

PLAIN: dict[str, Any] = {
    "use_cpu": True,
    "bf16": False,  # the weights themselves are in the precision of the bench: faster than autocast
    "report_to": "none",
    "save_strategy": "no",
    "logging_strategy": "no",
    "disable_tqdm": True,
    "gradient_checkpointing": False,
    "dataloader_num_workers": 0,
    "dataloader_pin_memory": False,
    "lr_scheduler_type": "constant",
    "weight_decay": 0.0,
    "max_grad_norm": 1.0,
}
"""What all of the trainers are given."""


class Turns(TrainerCallback):
    """Lets a trainer do one optimiser step each time the bench asks."""

    def __init__(self, stage: Stage) -> None:
        """Nothing is asked yet."""
        self.stage, self.clock = stage, Clock()
        self.more: dict[str, float] = {}

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        """Say that all is loaded."""
        self.stage.tell({})

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        """Wait to be asked."""
        self.stage.wait()
        self.clock = Clock()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """Say what it took."""
        self.stage.tell(self.clock.read() | self.more)


class Clocked(GRPOTrainer):
    """TRL's trainer, its generation timed as a whole."""

    turns: Turns

    def _generate(self, prompts: list[Any]) -> Any:
        start = time.perf_counter()
        found = super()._generate(prompts)
        more = self.turns.more
        more["generate"] = time.perf_counter() - start
        more["prompt_tokens"] = sum(len(ids) for ids in found[0])
        more["response_tokens"] = sum(len(ids) for ids in found[1])
        return found


def reward(completions: list[Any], **_: Any) -> list[float]:
    """The reward of both sides."""
    return [letters(turns[0]["content"]) for turns in completions]


def settings(workload: Workload, micro: int, more: dict[str, Any]) -> GRPOConfig:
    """One optimiser step on all responses of a generation, `micro` of them at a time."""
    rows = workload.prompts * workload.n
    return GRPOConfig(
        output_dir=mkdtemp(prefix="bench-"),
        learning_rate=LR,
        per_device_train_batch_size=min(micro, rows),
        gradient_accumulation_steps=rows // min(micro, rows),
        steps_per_generation=rows // min(micro, rows),
        num_generations=workload.n,
        max_completion_length=workload.max_new,
        num_iterations=1,
        beta=BETA,
        epsilon=EPSILON,
        loss_type="grpo",
        max_steps=STEPS,
        shuffle_dataset=False,
        **(PLAIN | more),
    )


def alignment(workload: Workload, dtype: str, micro: int, more: dict[str, Any], stage: Stage) -> Clocked:
    """GRPO with the same prompts in the same order."""
    folder = model_folder(workload.model, workload.full)
    words = AutoTokenizer.from_pretrained(folder)
    steps = prompts_of(workload, 16, words)
    rows = [{"prompt": turns_of(prompt.messages)} for prompts in steps for prompt in prompts]
    functions = [_named(f"letters{i}") for i in range(workload.objectives)]
    trainer = Clocked(
        model=policy_of(folder, dtype),
        reward_funcs=functions,
        args=settings(workload, micro, more),
        train_dataset=Dataset.from_list(rows),
        processing_class=words,
        callbacks=[turns := Turns(stage)],
    )
    trainer.turns = turns
    return trainer


def turns_of(messages: Any) -> list[dict[str, str]]:
    """Messages as TRL's data sets have them."""
    return [asdict(message) for message in messages]


def policy_of(folder: Any, dtype: str) -> Any:
    """A causal model in this precision."""
    return AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype), local_files_only=True)


def _named(name: str) -> Any:
    def again(completions: list[Any], **_: Any) -> list[float]:
        return reward(completions)

    again.__name__ = name
    return again


def main(job: dict[str, Any]) -> None:
    """Serve steps of one workload."""
    workload, more = Workload(**job["workload"]), job.get("more", {})
    alignment(workload, job["dtype"], job.get("micro") or workload.micro(), more, Stage()).train()


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
