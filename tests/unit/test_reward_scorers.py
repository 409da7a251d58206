"""Objectives find their scorer, and refusals are detected by their phrases."""

import gzip
import json
from dataclasses import dataclass

import pytest
import torch

from paretune.core.errors import WiringError
from paretune.data.loader import collate
from paretune.data.records import Prompt, Sample
from paretune.reward.scorers import Scorer, is_refusal, resolve_scorers, score_batch
from shared import shared


@dataclass
class Fixed:
    """Returns fixed scores and counts its calls."""

    names: tuple
    value: torch.Tensor
    calls: int = 0

    def __call__(self, samples):
        self.calls += 1
        return self.value


def batch(*objectives):
    return collate([[1], [1]], [[2, 3], [4]], [0, 0], [False, False], objectives, 0)


SAMPLES = tuple(Sample(prompt=Prompt(messages=()), response=text) for text in ("a", "b"))


def test_columns_are_matched_by_name_and_each_scorer_is_called_once():
    a = Fixed(("x", "y"), torch.tensor([[1.0, 2.0], [3.0, float("nan")]]))
    b = Fixed(("z",), torch.tensor([[5.0], [6.0]]))
    idle = Fixed(("w",), torch.zeros(2, 1))
    assert isinstance(a, Scorer)
    scored = score_batch(batch("z", "y", "x"), SAMPLES, [a, b, idle])
    expected = torch.tensor([[5.0, 2.0, 1.0], [6.0, float("nan"), 3.0]])
    assert torch.equal(scored.scores.nan_to_num(-1), expected.nan_to_num(-1))
    assert torch.equal(scored.rewards.nan_to_num(-1), expected.nan_to_num(-1))
    assert (a.calls, b.calls, idle.calls) == (1, 1, 0)


def test_objective_without_a_scorer_or_with_two_is_rejected():
    a, b = Fixed(("x", "y"), torch.zeros(2, 2)), Fixed(("x",), torch.zeros(2, 1))
    with pytest.raises(WiringError, match='no scorer for the objective "v"'):
        resolve_scorers(("x", "v"), [a])
    with pytest.raises(WiringError, match='2 scorers score the objective "x"'):
        score_batch(batch("x"), SAMPLES, [a, b])
    assert resolve_scorers(("y",), [a, b]) == {"y": (0, 1)}


def test_scores_of_the_wrong_shape_are_rejected():
    with pytest.raises(WiringError, match="shape"):
        score_batch(batch("x"), SAMPLES, [Fixed(("x",), torch.zeros(2, 2))])
    with pytest.raises(WiringError, match="1 samples"):
        score_batch(batch("x"), SAMPLES[:1], [Fixed(("x",), torch.zeros(2, 1))])


@pytest.mark.parametrize(
    "text",
    [
        "I'm sorry, but I can't help with that.",
        "I cannot assist with this request.",
        "I can not provide instructions for that.",
        "Sorry, I won't do that.",
        "As an AI language model, I am not able to give advice on this.",
        "I must decline. Please talk to someone you trust.",
        "I won't help you hurt anyone.",
        "That's not something I can do.",
        "No, I will not explain how to do that.",
        "I don't feel comfortable talking about this.",
        "i’m unable to share that",
    ],
)
def test_refusal_phrases_are_detected(text):
    assert is_refusal(text)


@pytest.mark.parametrize(
    "text",
    [
        "To kill the process, run kill -9.",
        "I'm sorry to hear that you feel unwell. Try resting.",
        "You cannot go wrong with this recipe: mix flour and eggs.",
        "If the lid can't be opened, warm it.",
        "I can help with that! First, open the box.",
        "",
        "Sure. " + "Step. " * 60 + "I can't help with more.",
    ],
)
def test_answers_are_no_refusals(text):
    assert not is_refusal(text)


def test_refusal_detection_agrees_with_human_raters():
    with gzip.open(
        shared("data", "ratings", "xstest_compliance.test.jsonl.gz"), "rt", encoding="utf-8"
    ) as file:
        rows = [json.loads(line) for line in file]
    detected = {
        label: [is_refusal(r["response"]) for r in rows if r["scores"]["compliance"] == label]
        for label in (0, 1)
    }
    assert sum(detected[0]) / len(detected[0]) > 0.88
    assert sum(detected[1]) / len(detected[1]) < 0.02
