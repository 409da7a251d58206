"""What can be counted in the text alone."""

import re
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from paretune.data.records import Sample

# A character of the scripts that write no spaces is a word of its own.
_WORD = re.compile(r"[぀-ヿ㐀-鿿가-힯]|[^\W぀-ヿ㐀-鿿가-힯]+|[^\w\s]")


def split_words(text: str) -> list[str]:
    """Words and punctuation marks, in lower case."""
    return _WORD.findall(text.lower())


def distinct_n(responses: Sequence[str], n: int, max_words: int | None = None) -> float:
    """Share of different n-grams among all n-grams of the responses; NaN where there is none.

    The share falls with the amount of text, whatever its variety, so two sets are only comparable over the
    same number of words.

    Args:
        responses: The texts; no n-gram spans two of them.
        n: Words in a gram.
        max_words: Read no more than so many words, from the first response on.
    """
    left = max_words if max_words is not None else sum(len(split_words(response)) for response in responses)
    seen: set[tuple[str, ...]] = set()
    total = 0
    for response in responses:
        read = split_words(response)[:left]
        left -= len(read)
        grams = [tuple(read[i : i + n]) for i in range(len(read) - n + 1)]
        seen.update(grams)
        total += len(grams)
    return len(seen) / total if total else float("nan")


def num_words(responses: Sequence[str]) -> int:
    """Words of all the responses together."""
    return sum(len(split_words(response)) for response in responses)


def unique_fraction(responses: Sequence[str]) -> float:
    """Share of the responses that no earlier one equals, case and spacing aside; NaN where there is none."""
    texts = [" ".join(split_words(response)) for response in responses]
    return len(set(texts)) / len(texts) if texts else float("nan")


def rate_per_prompt(
    samples: Sequence[Sample], num_generations: int, is_case: Callable[[Sample], bool]
) -> NDArray[np.float64]:
    """Per prompt, the share of its `num_generations` samples that are cases; samples of a prompt stand together."""
    return np.array([float(is_case(sample)) for sample in samples]).reshape(-1, num_generations).mean(1)
