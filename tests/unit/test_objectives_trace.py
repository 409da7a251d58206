"""Scorers of answers and of thoughts see one of the two, whatever stands in the other."""

import pytest
import torch

from paretune.data.loader import collate
from paretune.data.records import Prompt, Sample
from paretune.reward.scorers import (
    Scorer,
    StatedConfidenceScorer,
    ThinkingScorer,
    score_batch,
    thinking_length,
    with_thinking_scorer,
)


class Words:
    """Words, and vowels, of what it is shown."""

    names = ("words", "vowels")

    def __call__(self, samples):
        rows = [[len(s.response.split()), sum(c in "aeiou" for c in s.response)] for s in samples]
        return torch.tensor(rows, dtype=torch.float32).reshape(len(rows), 2)


def scored(texts, names, scorers, view):
    batch = collate([[1]] * len(texts), [[2]] * len(texts), [0] * len(texts), [False] * len(texts), names, 0)
    return score_batch(
        batch, [Sample(prompt=Prompt(messages=()), response=text) for text in texts], scorers, view
    )


def test_the_answer_is_scored_without_its_thoughts_and_the_thoughts_without_the_answer():
    of = {"thoughts": "words"}
    texts = ["<think>a b c</think> d e", "<think>quite different</think> d e", "d e", "<think></think> d e"]
    found = scored(texts, ("words", "thoughts"), with_thinking_scorer(of, Words()), "after_thinking")
    assert found.format_valid.tolist() == [True, True, False, True]
    assert found.scores[:, 0].nan_to_num(-1).tolist() == [2, 2, -1, 2]
    assert found.scores[:, 1].nan_to_num(-1).tolist() == [3, 2, -1, -1]


def test_the_whole_view_scores_everything_as_it_is():
    found = scored(["<think>a</think> b", "c d"], ("words",), [Words()], "whole")
    assert found.scores[:, 0].tolist() == [2, 2]
    assert found.format_valid.all()


def test_confidence_is_read_of_the_response_as_written():
    scorers = [Words(), StatedConfidenceScorer()]
    found = scored(["a b. Confidence: 8", "c"], ("words", "confidence"), scorers, "without_confidence")
    assert found.scores[:, 0].tolist() == [2, 1]
    assert found.scores[0, 1].item() == pytest.approx(0.8)
    assert found.scores[1, 1].isnan()


def test_nothing_readable_is_nothing_scored():
    found = scored(["a", "b"], ("words",), [Words()], "after_thinking")
    assert found.scores.isnan().all()
    assert not found.format_valid.any()


def test_a_model_without_the_head_is_not_asked_of_thoughts():
    one = Words()
    assert with_thinking_scorer({"t": "safety"}, one) == (one,)
    assert with_thinking_scorer({}, one) == (one,)
    assert isinstance(ThinkingScorer(one, {"t": "words"}), Scorer)


def test_answers_and_thoughts_are_counted_apart():
    samples = [
        Sample(prompt=Prompt(messages=()), response=text)
        for text in ("<think>a b c</think> d", "<think>a</think> b c d", "nothing")
    ]
    found = thinking_length(samples)
    assert found["responses/answer_length"] == 2
    assert found["responses/thinking_length"] == 2
    assert found["responses/format_invalid"] == pytest.approx(1 / 3)
