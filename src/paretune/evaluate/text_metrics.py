"""Text metrics: diversity of responses (distinct n-grams, duplicates), METEOR similarity, rates per prompt.

A collapsed policy gives the same response to every prompt; distinct n-grams fall and similarity rises.
"""

import re
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paretune.core.errors import WiringError
from paretune.data.records import Sample

# Scripts without spaces (kana, Han, hangul) count one word per character.
_WORD = re.compile(r"[぀-ヿ㐀-鿿가-힯]|[^\W぀-ヿ㐀-鿿가-힯]+|[^\w\s]")


def split_words(text: str) -> list[str]:
    """Words and punctuation marks, in lower case."""
    return _WORD.findall(text.lower())


def distinct_n(responses: Sequence[str], n: int, max_words: int | None = None) -> float:
    """Fraction of distinct n-grams among all n-grams of the responses; NaN without any.

    The fraction falls with the amount of text, whatever its diversity: compare two sets over the same number
    of words only.

    Args:
        responses: The texts; no n-gram spans two of them.
        n: Words per n-gram.
        max_words: Number of words to read, from the first response on; default: all.
    """
    remaining = max_words if max_words is not None else num_words(responses)
    distinct: set[tuple[str, ...]] = set()
    total = 0
    for response in responses:
        words = split_words(response)[:remaining]
        remaining -= len(words)
        ngrams = [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
        distinct.update(ngrams)
        total += len(ngrams)
    return len(distinct) / total if total else float("nan")


def num_words(responses: Sequence[str]) -> int:
    """Total number of words of the responses."""
    return sum(len(split_words(response)) for response in responses)


def unique_fraction(responses: Sequence[str]) -> float:
    """Fraction of distinct responses, ignoring case and spacing; NaN without responses."""
    texts = [" ".join(split_words(response)) for response in responses]
    return len(set(texts)) / len(texts) if texts else float("nan")


def rate_per_prompt(
    samples: Sequence[Sample], num_generations: int, is_case: Callable[[Sample], bool]
) -> NDArray[np.float64]:
    """[P] fraction of each prompt's consecutive samples for which `is_case` holds."""
    return np.array([float(is_case(sample)) for sample in samples]).reshape(-1, num_generations).mean(1)


class _NoSynonyms:
    """Stands in for nltk's WordNet reader, whose data would have to be downloaded."""

    def synsets(self, word: str) -> tuple[()]:
        """No synonyms."""
        return ()


class _CachedStemmer:
    """nltk's Porter stemmer; the responses of a policy repeat their words, and stemming dominates METEOR."""

    def __init__(self) -> None:
        from nltk.stem.porter import PorterStemmer

        self.stem = lru_cache(maxsize=100_000)(PorterStemmer().stem)


@lru_cache(maxsize=1)
def _stemmer() -> Any:
    return _CachedStemmer()


def meteor(reference: str, hypothesis: str) -> float:
    """METEOR of two texts by words that are equal or share a stem, ignoring case; in [0, 1), not symmetric.

        F = P R / (0.9 P + 0.1 R),  score = F (1 - 0.5 (chunks / matches)^3)

    P and R are the fractions of the hypothesis' and of the reference's words that are matched, each at most
    once; a chunk is a run of matches that is contiguous in both. Words are separated by spaces.

    Source: Banerjee and Lavie 2005, by nltk with its Porter stemmer. Differs: no matching of synonyms, which
    needs a download of WordNet.
    """
    # nltk takes two seconds to import.
    from nltk.translate.meteor_score import single_meteor_score

    return float(
        single_meteor_score(reference.split(), hypothesis.split(), stemmer=_stemmer(), wordnet=_NoSynonyms())
    )


def mean_pairwise_meteor(
    responses: Sequence[str], max_pairs: int | None = None, rng: np.random.Generator | None = None
) -> float:
    """Mean METEOR over ordered pairs of responses to different prompts; NaN for fewer than two responses.

    Unrelated responses of public data sets have 0.06 to 0.09; one text for every prompt reaches 0.6, and the
    reward may rise with it.

    Args:
        responses: One response per prompt.
        max_pairs: Number of pairs to draw with replacement if there are more; default: all pairs.
        rng: Draws the pairs.

    Raises:
        WiringError: Pairs have to be drawn and there is no rng.

    Source: Mukobi et al. 2023, SuperHF (arXiv:2310.16763), the METEOR similarity. Differs: no synonyms.
    """
    n = len(responses)
    if n < 2:
        return float("nan")
    if max_pairs is None or n * (n - 1) <= max_pairs:
        pairs = [(i, j) for i in range(n) for j in range(n) if i != j]
    else:
        if rng is None:
            raise WiringError(
                f"mean_pairwise_meteor: {max_pairs} of {n * (n - 1)} pairs are to be drawn without an rng; "
                "fix: pass rng="
            )
        # A step of 1 to n - 1 never pairs a response with itself.
        first, step = rng.integers(n, size=max_pairs), rng.integers(1, n, size=max_pairs)
        pairs = list(zip(first.tolist(), ((first + step) % n).tolist(), strict=True))
    return float(np.mean([meteor(responses[i], responses[j]) for i, j in pairs]))
