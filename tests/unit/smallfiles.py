"""Small files in the current folder: a model without weights, and records."""

import csv
import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import AutoConfig

from paretune.models.lora import TaskType, meta_model
from support.tiny_models import tiny_config, tiny_tokenizer


def describe_model(name: str = "model") -> None:
    """A folder with a model's configuration and tokenizer, and zeros as weights."""
    tokenizer = tiny_tokenizer()
    tokenizer.save_pretrained(name)
    tiny_config("llama", len(tokenizer), context=96).save_pretrained(name)
    write_zeros(name)


def write_zeros(name: str, task: TaskType = "CAUSAL_LM") -> None:
    """Zeros as the weights of the model that the folder's configuration describes."""
    network = meta_model(AutoConfig.from_pretrained(name), task)
    # `named_parameters` has tied weights once, as a stored model does.
    zeros = {key: torch.zeros(p.shape) for key, p in network.named_parameters()}
    save_file(zeros, Path(name, "model.safetensors"), metadata={"format": "pt"})


def write(name: str, rows: list[dict[str, object]]) -> None:
    Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows))


def rate(name: str, rows: list[tuple[object, ...]]) -> None:
    with Path(name).open("w", newline="") as file:
        csv.writer(file).writerows([("prompt", "response", "safe"), *rows])
