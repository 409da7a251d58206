"""The peers' side of reward model training on pairs and ratings, of DPO, and of scoring."""

import json
import sys
from collections.abc import Sequence
from tempfile import mkdtemp
from typing import Any

import torch
from datasets import Dataset
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    pipeline,
)
from trl import DPOConfig, DPOTrainer, RewardConfig, RewardTrainer

from bench.ours import LEARNING_RATE
from bench.ours_fits import BATCH, BETA
from bench.peer import TRAINER_OPTIONS, messages_as_dicts, policy_of
from bench.wire import BenchChannel, Numbers, Timer
from bench.workloads import (
    MAX_ROW_TOKENS,
    NUM_PAIRS,
    NUM_RATINGS,
    NUM_SCORED,
    model_folder,
    pairs_up_to,
    reward_model_folder,
    row_lengths,
    short_ratings,
    text_of,
)
from paretune.data.records import Message


class LoopTimer(TrainerCallback):
    """Measures a trainer's loop, without its setup before the first step."""

    def __init__(self) -> None:
        """Start with empty figures."""
        self.timer = Timer()
        self.figures: Numbers = {}

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        """Start the timer."""
        self.timer = Timer()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """Read the timer."""
        self.figures = self.timer.read()


def training_args(config_class: Any, micro_batch_size: int, **options: Any) -> Any:
    """One epoch with `micro_batch_size` examples per pass."""
    return config_class(
        output_dir=mkdtemp(prefix="bench-"),
        learning_rate=LEARNING_RATE,
        per_device_train_batch_size=micro_batch_size,
        per_device_eval_batch_size=micro_batch_size,
        gradient_accumulation_steps=BATCH // micro_batch_size,
        num_train_epochs=1,
        **(TRAINER_OPTIONS | options),
    )


def pair_trainer(
    kind: str, dtype: str, micro_batch_size: int, options: dict[str, Any], loop_timer: LoopTimer
) -> Trainer:
    """TRL's trainer of a reward model, or of a policy with DPO, on preference pairs."""
    folder = model_folder("dialogue", False)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    data = [
        {
            "prompt": messages_as_dicts(pair.prompt.messages),
            "chosen": messages_as_dicts((Message("assistant", pair.chosen),)),
            "rejected": messages_as_dicts((Message("assistant", pair.rejected),)),
            "length": sum(row_lengths(pair, tokenizer)),
        }
        for pair in pairs_up_to(MAX_ROW_TOKENS, tokenizer)[:NUM_PAIRS]
    ]
    common = {
        "train_dataset": Dataset.from_list(data),
        "processing_class": tokenizer,
        "callbacks": [loop_timer],
    }
    if kind == "reward":
        args = training_args(RewardConfig, micro_batch_size, max_length=1024, **options)
        return RewardTrainer(model=classifier(folder, dtype), args=args, **common)
    args = training_args(DPOConfig, micro_batch_size, max_length=1024, beta=BETA, **options)
    return DPOTrainer(model=policy_of(folder, dtype), args=args, **common)


def regression_trainer(
    dtype: str, micro_batch_size: int, options: dict[str, Any], loop_timer: LoopTimer
) -> Trainer:
    """Transformers' Trainer on a classifier with one label, whose loss is then the squared error."""
    folder = model_folder("dialogue", False)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    data = [
        {**tokenizer(text_of(rating, tokenizer), add_special_tokens=False), "labels": rating.labels["score"]}
        for rating in short_ratings(NUM_RATINGS, tokenizer)
    ]
    model = classifier(folder, dtype)
    model.config.problem_type = "regression"
    return Trainer(
        model=model,
        args=training_args(TrainingArguments, micro_batch_size, **options),
        train_dataset=Dataset.from_list(data),
        data_collator=DataCollatorWithPadding(tokenizer),
        processing_class=tokenizer,
        callbacks=[loop_timer],
    )


def serve_training(channel: BenchChannel, trainer: Trainer, loop_timer: LoopTimer) -> None:
    """Train for one epoch per request."""
    channel.send({})
    while True:
        channel.wait_for_request()
        trainer.train()
        channel.send(loop_timer.figures)


def serve_scoring(channel: BenchChannel, dtype: str, method: str, micro_batch_size: int) -> None:
    """Score all responses from their text per request."""
    folder = reward_model_folder()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    texts = [text_of(rating, tokenizer) for rating in short_ratings(NUM_SCORED, tokenizer)]
    model = classifier(folder, dtype).eval()
    make_scorer = pipeline_scorer if method == "pipeline" else trainer_scorer
    score = make_scorer(model, tokenizer, micro_batch_size)

    def step() -> Numbers:
        return {"score": float(torch.tensor(score(texts)).abs().mean())}

    channel.send({})
    channel.serve(step)


def pipeline_scorer(model: Any, tokenizer: Any, micro_batch_size: int) -> Any:
    """Scores with transformers' text classification pipeline."""
    pipe = pipeline("text-classification", model=model, tokenizer=tokenizer, device="cpu")

    def score(texts: Sequence[str]) -> list[float]:
        options = {"batch_size": micro_batch_size, "function_to_apply": "none", "add_special_tokens": False}
        return [result["score"] for result in pipe(list(texts), **options)]

    return score


def trainer_scorer(model: Any, tokenizer: Any, micro_batch_size: int) -> Any:
    """Scores with `Trainer.predict`."""
    trainer = Trainer(
        model=model,
        args=training_args(TrainingArguments, micro_batch_size),
        data_collator=DataCollatorWithPadding(tokenizer),
    )

    def score(texts: Sequence[str]) -> Any:
        data = [tokenizer(text, add_special_tokens=False) for text in texts]
        return trainer.predict(data).predictions[:, 0]

    return score


def classifier(folder: Any, dtype: str) -> Any:
    """A sequence classifier with one label."""
    return AutoModelForSequenceClassification.from_pretrained(
        folder, num_labels=1, dtype=getattr(torch, dtype), local_files_only=True
    )


def main(job: dict[str, Any]) -> None:
    """Serve training or scoring."""
    channel, dtype, loop_timer = BenchChannel(), job["dtype"], LoopTimer()
    options, micro_batch_size = job.get("trainer_options", {}), job.get("micro_batch_size", 8)
    if job["kind"] == "scoring":
        serve_scoring(channel, dtype, job["method"], micro_batch_size)
    elif job["kind"] == "regression":
        trainer = regression_trainer(dtype, micro_batch_size, options, loop_timer)
        serve_training(channel, trainer, loop_timer)
    else:
        trainer = pair_trainer(job["kind"], dtype, micro_batch_size, options, loop_timer)
        serve_training(channel, trainer, loop_timer)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
