"""Scorers of answers and of thinking read one of the two only."""

import pytest
import torch

from paretune.data.loader import collate
from paretune.data.records import Prompt, Sample
from paretune.reward.scorers import (
    Scorer,
    StatedConfidenceScorer,
    ThinkingScorer,
    score_batch,
    thinking_metrics,
    with_thinking_scorer,
)


class Words:
    """Number of words and of vowels of the visible text."""

    names = ("words", "vowels")

    def __call__(self, samples):
        rows = [[len(s.response.split()), sum(c in "aeiou" for c in s.response)] for s in samples]
        return torch.tensor(rows, dtype=torch.float32).reshape(len(rows), 2)


def scored(texts, names, scorers, view):
    batch = collate([[1]] * len(texts), [[2]] * len(texts), [0] * len(texts), [False] * len(texts), names, 0)
    return score_batch(
        batch, [Sample(prompt=Prompt(messages=()), response=text) for text in texts], scorers, view
    )


def test_answer_and_thinking_are_scored_separately():
    scores_from = {"thoughts": "words"}
    texts = ["<think>a b c</think> d e", "<think>quite different</think> d e", "d e", "<think></think> d e"]
    result = scored(
        texts, ("words", "thoughts"), with_thinking_scorer(scores_from, Words()), "after_thinking"
    )
    assert result.format_valid.tolist() == [True, True, False, True]
    assert result.scores[:, 0].nan_to_num(-1).tolist() == [2, 2, -1, 2]
    assert result.scores[:, 1].nan_to_num(-1).tolist() == [3, 2, -1, -1]


def test_full_view_scores_the_full_response():
    result = scored(["<think>a</think> b", "c d"], ("words",), [Words()], "full")
    assert result.scores[:, 0].tolist() == [2, 2]
    assert result.format_valid.all()


def test_stated_confidence_is_read_from_the_full_response():
    scorers = [Words(), StatedConfidenceScorer()]
    result = scored(["a b. Confidence: 8", "c"], ("words", "confidence"), scorers, "without_confidence")
    assert result.scores[:, 0].tolist() == [2, 1]
    assert result.scores[0, 1].item() == pytest.approx(0.8)
    assert result.scores[1, 1].isnan()


def test_invalid_formats_are_unscored():
    result = scored(["a", "b"], ("words",), [Words()], "after_thinking")
    assert result.scores.isnan().all()
    assert not result.format_valid.any()


def test_scorer_without_the_objective_gets_no_thinking_scorer():
    scorer = Words()
    assert with_thinking_scorer({"t": "safety"}, scorer) == (scorer,)
    assert with_thinking_scorer({}, scorer) == (scorer,)
    assert isinstance(ThinkingScorer(scorer, {"t": "words"}), Scorer)


def test_answer_and_thinking_lengths_are_separate():
    samples = [
        Sample(prompt=Prompt(messages=()), response=text)
        for text in ("<think>a b c</think> d", "<think>a</think> b c d", "nothing")
    ]
    result = thinking_metrics(samples)
    assert result["responses/answer_length"] == 2
    assert result["responses/thinking_length"] == 2
    assert result["responses/format_invalid"] == pytest.approx(1 / 3)
