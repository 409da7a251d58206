"""A two-objective task that a tiny model learns in seconds: generate numbers that are even, and high.

The vocabulary is the numbers 2 to 15. Prompts are one to three numbers and irrelevant; the true scores of a
response are the fraction of its numbers that are even, and the fraction that are at least 9.
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
    """One word per number, with the number as its id; `<end>` is the EOS token."""
    words = {"<pad>": PAD, "<end>": STOP} | {str(i): i for i in range(FIRST, VOCAB)}
    inner = Tokenizer(WordLevel(words, unk_token="<pad>"))
    inner.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>", eos_token="<end>")


def toy_prompts(step: int, num: int = 8) -> list[Prompt]:
    """Prompts of one to three numbers, a function of the step alone."""
    rng = numpy_generator(0, step, "toy prompts")
    prompts = []
    for i in range(num):
        numbers = rng.integers(FIRST, VOCAB, size=1 + i % 3)
        prompts.append(Prompt(messages=(Message("user", " ".join(map(str, numbers))),), id=f"toy-{step}-{i}"))
    return prompts


class ToyScorer:
    """The true scores: fractions of even and of high numbers; 0 for a response without numbers."""

    names = OBJECTIVES

    def __call__(self, samples: Sequence[Sample]) -> Float[Tensor, "B k"]:
        """One row per sample, one column per objective."""
        rows = []
        for sample in samples:
            numbers = [int(word) for word in sample.response.split() if word.isdecimal()]
            length = max(len(numbers), 1)
            rows.append([sum(n % 2 == 0 for n in numbers) / length, sum(n >= 9 for n in numbers) / length])
        return torch.tensor(rows)
