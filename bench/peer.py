"""TRL's side of an alignment step: `GRPOTrainer`.

The settings are the fastest on the test machine of those that TRL documents: docs/design/performance.md.
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

from bench.ours import BETA, EPSILON, LEARNING_RATE, STEPS
from bench.wire import BenchChannel, Timer
from bench.workloads import Workload, letters, model_folder, prompts_of

TRAINER_OPTIONS: dict[str, Any] = {
    "use_cpu": True,
    "bf16": False,  # the weights themselves have the benchmark's dtype, which is faster than autocast
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
"""Options of all trainers."""


class StepOnRequest(TrainerCallback):
    """Makes a trainer do one optimizer step per request of the benchmark."""

    def __init__(self, channel: BenchChannel) -> None:
        """Start with an idle channel."""
        self.channel, self.timer = channel, Timer()
        self.figures: dict[str, float] = {}

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        """Report that everything is loaded."""
        self.channel.send({})

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        """Wait for the next request."""
        self.channel.wait_for_request()
        self.timer = Timer()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """Send the figures of the step."""
        self.channel.send(self.timer.read() | self.figures)


class TimedGRPOTrainer(GRPOTrainer):
    """TRL's trainer with its generation timed."""

    step_callback: StepOnRequest

    def _generate(self, prompts: list[Any]) -> Any:
        start = time.perf_counter()
        generated = super()._generate(prompts)
        figures = self.step_callback.figures
        figures["generate"] = time.perf_counter() - start
        figures["prompt_tokens"] = sum(len(ids) for ids in generated[0])
        figures["response_tokens"] = sum(len(ids) for ids in generated[1])
        return generated


def reward(completions: list[Any], **_: Any) -> list[float]:
    """The reward of both sides."""
    return [letters(messages[0]["content"]) for messages in completions]


def grpo_config(workload: Workload, micro_batch_size: int, options: dict[str, Any]) -> GRPOConfig:
    """One optimizer step on all responses of a generation, `micro_batch_size` of them per pass."""
    rows = workload.prompts * workload.num_generations
    return GRPOConfig(
        output_dir=mkdtemp(prefix="bench-"),
        learning_rate=LEARNING_RATE,
        per_device_train_batch_size=min(micro_batch_size, rows),
        gradient_accumulation_steps=rows // min(micro_batch_size, rows),
        steps_per_generation=rows // min(micro_batch_size, rows),
        num_generations=workload.num_generations,
        max_completion_length=workload.max_new_tokens,
        num_iterations=1,
        beta=BETA,
        epsilon=EPSILON,
        loss_type="grpo",
        max_steps=STEPS,
        shuffle_dataset=False,
        **(TRAINER_OPTIONS | options),
    )


def grpo_trainer(
    workload: Workload, dtype: str, micro_batch_size: int, options: dict[str, Any], channel: BenchChannel
) -> TimedGRPOTrainer:
    """GRPO on the same prompts in the same order."""
    folder = model_folder(workload.model, workload.full_length)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    steps = prompts_of(workload, 16, tokenizer)
    rows = [{"prompt": messages_as_dicts(prompt.messages)} for prompts in steps for prompt in prompts]
    functions = [_named(f"letters{i}") for i in range(workload.objectives)]
    trainer = TimedGRPOTrainer(
        model=policy_of(folder, dtype),
        reward_funcs=functions,
        args=grpo_config(workload, micro_batch_size, options),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        callbacks=[step_callback := StepOnRequest(channel)],
    )
    trainer.step_callback = step_callback
    return trainer


def messages_as_dicts(messages: Any) -> list[dict[str, str]]:
    """Messages in the format of TRL's data sets."""
    return [asdict(message) for message in messages]


def policy_of(folder: Any, dtype: str) -> Any:
    """A causal model of this dtype."""
    return AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype), local_files_only=True)


def _named(name: str) -> Any:
    def named_reward(completions: list[Any], **_: Any) -> list[float]:
        return reward(completions)

    named_reward.__name__ = name
    return named_reward


def main(job: dict[str, Any]) -> None:
    """Serve steps of one workload."""
    workload, options = Workload(**job["workload"]), job.get("trainer_options", {})
    micro_batch_size = job.get("micro_batch_size") or workload.micro_batch_size()
    grpo_trainer(workload, job["dtype"], micro_batch_size, options, BenchChannel()).train()


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
