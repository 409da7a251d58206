"""Small files in the current folder: a model without weights, and records."""

import csv
import json
from pathlib import Path

from support.tiny_models import tiny_config, tiny_tokenizer

EMPTY_SAFETENSORS = b"\x02" + 7 * b"\x00" + b"{}"
"""A safetensors file without tensors: the length of its header, and the header."""


def describe_model(name: str = "model") -> None:
    """A folder with a model's configuration and tokenizer; its weights are there and empty."""
    tokenizer = tiny_tokenizer()
    tokenizer.save_pretrained(name)
    tiny_config("llama", len(tokenizer), context=96).save_pretrained(name)
    Path(name, "model.safetensors").write_bytes(EMPTY_SAFETENSORS)


def write(name: str, rows: list[dict[str, object]]) -> None:
    Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows))


def rate(name: str, rows: list[tuple[object, ...]]) -> None:
    with Path(name).open("w", newline="") as file:
        csv.writer(file).writerows([("prompt", "response", "safe"), *rows])
