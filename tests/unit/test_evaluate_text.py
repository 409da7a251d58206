import math

import pytest

from paretune.data.records import Prompt, Sample
from paretune.evaluate.text_metrics import (
    distinct_n,
    num_words,
    rate_per_prompt,
    split_words,
    unique_fraction,
)


def test_words_are_words_marks_and_characters_of_scripts_without_spaces():
    assert split_words("Don't go, now!") == ["don", "'", "t", "go", ",", "now", "!"]
    assert split_words("你好 world") == ["你", "好", "world"]


def test_distinct_n():
    assert distinct_n(["a b a b"], 1) == 0.5
    assert distinct_n(["a b a b"], 2) == pytest.approx(2 / 3)
    assert distinct_n(["a b", "b a"], 2) == 1.0
    assert math.isnan(distinct_n(["a"], 2))


def test_distinct_n_over_equal_amounts_does_not_punish_length():
    short, long = ["a b c d"], ["a b c d a b c d"]
    assert distinct_n(long, 1) < distinct_n(short, 1)
    assert distinct_n(long, 1, num_words(short)) == distinct_n(short, 1)


def test_unique_ignores_case_and_spacing():
    assert unique_fraction(["a b", "A  b", "c"]) == pytest.approx(2 / 3)
    assert math.isnan(unique_fraction([]))


def test_per_prompt():
    samples = [Sample(prompt=Prompt(messages=()), response=r) for r in ("x", "", "", "")]
    assert rate_per_prompt(samples, 2, lambda sample: sample.response == "").tolist() == [0.5, 1.0]
