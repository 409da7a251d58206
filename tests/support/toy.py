"""A two-objective task that a tiny model learns in seconds: write numbers that are even, and high.

The vocabulary is the numbers 2 to 15. A prompt is three numbers and does not matter; the true score of a
response is the share of its numbers that are even, and the share that are 9 or more.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from paretune.core.rng import numpy_generator
from paretune.data.records import Message, Prompt, Sample

OBJECTIVES = ("even", "high")
PAD, STOP, FIRST, VOCAB = 0, 1, 2, 16


def toy_tokenizer() -> PreTrainedTokenizerFast:
    """A word a number, its id the number itself; `<end>` ends a response."""
    words = {"<pad>": PAD, "<end>": STOP} | {str(i): i for i in range(FIRST, VOCAB)}
    inner = Tokenizer(WordLevel(words, unk_token="<pad>"))
    inner.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>", eos_token="<end>")


def toy_prompts(step: int, num: int = 8) -> list[Prompt]:
    """Prompts of one to three numbers, the same for every run."""
    rng = numpy_generator(0, step, "toy prompts")
    prompts = []
    for i in range(num):
        numbers = rng.integers(FIRST, VOCAB, size=1 + i % 3)
        prompts.append(Prompt(messages=(Message("user", " ".join(map(str, numbers))),), id=f"toy-{step}-{i}"))
    return prompts


class ToyScorer:
    """The true scores: shares of even and of high numbers; 0 for a response without any."""

    names = OBJECTIVES

    def __call__(self, samples: Sequence[Sample]) -> Float[Tensor, "B k"]:
        """One row a sample, one column an objective."""
        rows = []
        for sample in samples:
            numbers = [int(word) for word in sample.response.split() if word.isdecimal()]
            length = max(len(numbers), 1)
            rows.append([sum(n % 2 == 0 for n in numbers) / length, sum(n >= 9 for n in numbers) / length])
        return torch.tensor(rows)
