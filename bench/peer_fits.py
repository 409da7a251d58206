"""The peers' side of fitting to pairs and to ratings, and of scoring."""

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

from bench.ours import LR
from bench.ours_fits import BATCH, BETA
from bench.peer import PLAIN, policy_of, turns_of
from bench.wire import Clock, Numbers, Stage
from bench.workloads import (
    LONGEST,
    PAIRS,
    RATED,
    SCORES,
    model_folder,
    pairs_up_to,
    rated,
    row_lengths,
    scorer_folder,
    text_of,
)
from paretune.data.records import Message


class Loop(TrainerCallback):
    """Keeps the time of a trainer's loop, without what it does before the first step."""

    def __init__(self) -> None:
        """Nothing was done yet."""
        self.clock = Clock()
        self.took: Numbers = {}

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        """The loop begins."""
        self.clock = Clock()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """As far as it has come."""
        self.took = self.clock.read()


def how(config: Any, micro: int, **more: Any) -> Any:
    """A fit of one epoch, `micro` judgements of an optimiser step at a time."""
    return config(
        output_dir=mkdtemp(prefix="bench-"),
        learning_rate=LR,
        per_device_train_batch_size=micro,
        per_device_eval_batch_size=micro,
        gradient_accumulation_steps=BATCH // micro,
        num_train_epochs=1,
        **(PLAIN | more),
    )


def comparing(kind: str, dtype: str, micro: int, more: dict[str, Any], loop: Loop) -> Trainer:
    """TRL's trainer of a reward model, or of a policy by DPO, on the pairs."""
    folder = model_folder("dialogue", False)
    words = AutoTokenizer.from_pretrained(folder)
    data = [
        {
            "prompt": turns_of(pair.prompt.messages),
            "chosen": turns_of((Message("assistant", pair.chosen),)),
            "rejected": turns_of((Message("assistant", pair.rejected),)),
            "length": sum(row_lengths(pair, words)),
        }
        for pair in pairs_up_to(LONGEST, words)[:PAIRS]
    ]
    given = {"train_dataset": Dataset.from_list(data), "processing_class": words, "callbacks": [loop]}
    if kind == "reward":
        args = how(RewardConfig, micro, max_length=1024, **more)
        return RewardTrainer(model=classifier(folder, dtype), args=args, **given)
    args = how(DPOConfig, micro, max_length=1024, beta=BETA, **more)
    return DPOTrainer(model=policy_of(folder, dtype), args=args, **given)


def regressing(dtype: str, micro: int, more: dict[str, Any], loop: Loop) -> Trainer:
    """A classifier of one number under the plain trainer, whose loss is then the squared error."""
    folder = model_folder("dialogue", False)
    words = AutoTokenizer.from_pretrained(folder)
    data = [
        {**words(text_of(each, words), add_special_tokens=False), "labels": each.labels["score"]}
        for each in rated(RATED, words)
    ]
    model = classifier(folder, dtype)
    model.config.problem_type = "regression"
    return Trainer(
        model=model,
        args=how(TrainingArguments, micro, **more),
        train_dataset=Dataset.from_list(data),
        data_collator=DataCollatorWithPadding(words),
        processing_class=words,
        callbacks=[loop],
    )


def fitting(stage: Stage, trainer: Trainer, loop: Loop) -> None:
    """A fit of one epoch each time."""
    stage.tell({})
    while True:
        stage.wait()
        trainer.train()
        stage.tell(loop.took)


def scoring(stage: Stage, dtype: str, by: str, micro: int) -> None:
    """All responses scored from their text each time."""
    folder = scorer_folder()
    words = AutoTokenizer.from_pretrained(folder)
    texts = [text_of(each, words) for each in rated(SCORES, words)]
    model = classifier(folder, dtype).eval()
    ask = piped(model, words, micro) if by == "pipeline" else predicted(model, words, micro)

    def step() -> Numbers:
        found = torch.tensor(ask(texts))
        return {"score": float(found.abs().mean())}

    stage.tell({})
    stage.serve(step)


def piped(model: Any, words: Any, micro: int) -> Any:
    """The pipeline of text classification."""
    pipe = pipeline("text-classification", model=model, tokenizer=words, device="cpu")

    def ask(texts: Sequence[str]) -> list[float]:
        options = {"batch_size": micro, "function_to_apply": "none", "add_special_tokens": False}
        return [each["score"] for each in pipe(list(texts), **options)]

    return ask


def predicted(model: Any, words: Any, micro: int) -> Any:
    """The trainer's prediction."""
    trainer = Trainer(
        model=model, args=how(TrainingArguments, micro), data_collator=DataCollatorWithPadding(words)
    )

    def ask(texts: Sequence[str]) -> Any:
        data = [words(text, add_special_tokens=False) for text in texts]
        return trainer.predict(data).predictions[:, 0]

    return ask


def classifier(folder: Any, dtype: str) -> Any:
    """A sequence classifier with one output."""
    return AutoModelForSequenceClassification.from_pretrained(
        folder, num_labels=1, dtype=getattr(torch, dtype), local_files_only=True
    )


def main(job: dict[str, Any]) -> None:
    """Serve fits, or passes of scoring."""
    stage, dtype, more, loop = Stage(), job["dtype"], job.get("more", {}), Loop()
    if job["kind"] == "scoring":
        scoring(stage, dtype, job["by"], job.get("micro", 8))
    elif job["kind"] == "regression":
        fitting(stage, regressing(dtype, job.get("micro", 8), more, loop), loop)
    else:
        fitting(stage, comparing(job["kind"], dtype, job.get("micro", 8), more, loop), loop)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
