"""Words, diversity, rates per prompt, and METEOR by hand."""

import math

import numpy as np
import pytest

from paretune.core.errors import WiringError
from paretune.data.records import Prompt, Sample
from paretune.evaluate.text_metrics import (
    distinct_n,
    mean_pairwise_meteor,
    meteor,
    num_words,
    rate_per_prompt,
    split_words,
    unique_fraction,
)


def test_words_are_split_at_punctuation_and_per_character_in_scripts_without_spaces():
    assert split_words("Don't go, now!") == ["don", "'", "t", "go", ",", "now", "!"]
    assert split_words("你好 world") == ["你", "好", "world"]


def test_distinct_n():
    assert distinct_n(["a b a b"], 1) == 0.5
    assert distinct_n(["a b a b"], 2) == pytest.approx(2 / 3)
    assert distinct_n(["a b", "b a"], 2) == 1.0
    assert math.isnan(distinct_n(["a"], 2))


def test_distinct_n_over_equally_many_words_does_not_depend_on_length():
    short, long = ["a b c d"], ["a b c d a b c d"]
    assert distinct_n(long, 1) < distinct_n(short, 1)
    assert distinct_n(long, 1, num_words(short)) == distinct_n(short, 1)


def test_unique_fraction_ignores_case_and_spacing():
    assert unique_fraction(["a b", "A  b", "c"]) == pytest.approx(2 / 3)
    assert math.isnan(unique_fraction([]))


def test_rate_per_prompt_averages_consecutive_samples():
    samples = [Sample(prompt=Prompt(messages=()), response=r) for r in ("x", "", "", "")]
    assert rate_per_prompt(samples, 2, lambda sample: sample.response == "").tolist() == [0.5, 1.0]


def test_meteor_by_hand():
    assert meteor("a b c", "a b c") == pytest.approx(0.9814815)
    assert meteor("a b c", "d e f") == 0
    assert meteor("a b c", "x a b c y") == pytest.approx(0.9201389)
    assert meteor("x a b c y", "a b c") == pytest.approx(0.6134259)
    assert meteor("", "a") == meteor("a", "") == 0
    assert meteor("Cats running", "cat runs") == pytest.approx(meteor("a b", "a b")), "equal stems match"
    assert meteor("a car", "one automobile") == 0, "synonyms do not"


def test_mean_pairwise_meteor_is_over_ordered_pairs():
    texts = ["a b c", "x a b c y", "d"]
    assert mean_pairwise_meteor(texts) == pytest.approx((0.9201389 + 0.6134259) / 6)
    assert math.isnan(mean_pairwise_meteor(["a"]))
    assert mean_pairwise_meteor(["yes"] * 5) == 0.5


def test_pairs_are_drawn_by_the_rng_without_self_pairs():
    texts = [f"{i}" for i in range(30)]
    draw = lambda seed: mean_pairwise_meteor([*texts, "0"], max_pairs=40, rng=np.random.default_rng(seed))
    assert draw(1) == draw(1)
    assert len({draw(seed) for seed in range(40)}) > 1
    assert mean_pairwise_meteor(texts, max_pairs=100, rng=np.random.default_rng(0)) == 0
    same = ["a b"] * 20
    assert mean_pairwise_meteor(same, max_pairs=7, rng=np.random.default_rng(0)) == pytest.approx(
        mean_pairwise_meteor(same)
    )
    with pytest.raises(WiringError, match="rng"):
        mean_pairwise_meteor(texts, max_pairs=10)
