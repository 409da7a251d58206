"""What can be counted in the text alone.

How alike responses to different prompts are: a policy that has collapsed says the same to everybody.
"""

import re
from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from paretune.core.errors import WiringError
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


def meteor(reference: str, hypothesis: str) -> float:
    """METEOR of two texts by words that are the same, case aside; in [0, 1), and not symmetric.

        F = P R / (0.9 P + 0.1 R),  score = F (1 - 0.5 (chunks / matches)^3)

    P and R are the shares of the hypothesis' and of the reference's words that are matched, each at most
    once; a chunk is a run of matches that is one in both. Words are what stands between spaces.

    Source: Banerjee and Lavie 2005; parameters and the order of matching, from the end, as in NLTK. Differs:
    no match by stem or synonym, which finds more.
    """
    left: dict[str, list[int]] = {}
    expected, said = reference.lower().split(), hypothesis.lower().split()
    for place, word in enumerate(expected):
        left.setdefault(word, []).append(place)
    pairs = [(i, left[said[i]].pop()) for i in reversed(range(len(said))) if left.get(said[i])][::-1]
    if not pairs:
        return 0.0
    together = sum((i + 1, j + 1) == after for (i, j), after in pairwise(pairs))
    matches, chunks = len(pairs), len(pairs) - together
    precision, recall = matches / len(said), matches / len(expected)
    mean = precision * recall / (0.9 * precision + 0.1 * recall)
    return mean * (1 - 0.5 * (chunks / matches) ** 3)


def mean_pairwise_meteor(
    responses: Sequence[str], max_pairs: int | None = None, rng: np.random.Generator | None = None
) -> float:
    """Mean METEOR over ordered pairs of responses, each to a prompt of its own; NaN for fewer than two.

    About 0.1 for varied text; it rises to 0.6 when one text fits every prompt, and the reward may rise with
    it.

    Args:
        responses: One response a prompt.
        max_pairs: Take no more than so many pairs, drawn with replacement by `rng`; all of them when not given.
        rng: Draws the pairs.

    Raises:
        WiringError: Pairs are to be drawn and there is no rng.

    Source: Mukobi et al. 2023, SuperHF (arXiv:2310.16763), the METEOR similarity. Differs: exact matches.
    """
    n = len(responses)
    if n < 2:
        return float("nan")
    if max_pairs is None or n * (n - 1) <= max_pairs:
        pairs = [(i, j) for i in range(n) for j in range(n) if i != j]
    else:
        if rng is None:
            raise WiringError(
                f"similarity: {max_pairs} of {n * (n - 1)} pairs are to be drawn; fix: give an rng"
            )
        first, step = rng.integers(n, size=max_pairs), rng.integers(1, n, size=max_pairs)
        pairs = list(zip(first.tolist(), ((first + step) % n).tolist(), strict=True))
    return float(np.mean([meteor(responses[i], responses[j]) for i, j in pairs]))
