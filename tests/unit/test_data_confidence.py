"""Confidence in words: asked for, stated, read and removed."""

import math

import pytest
import torch

from paretune.core.errors import DataError
from paretune.data.chat import (
    CONFIDENCE_INSTRUCTION,
    add_confidence_instruction,
    append_confidence,
    parse_confidence,
    strip_confidence,
)
from paretune.data.records import Message, Prompt, Sample
from paretune.reward.scorers import ConfidenceBlindScorer, Scorer, StatedConfidenceScorer


@pytest.mark.parametrize(
    ("response", "share"),
    [
        ("Four. Confidence: 8", 0.8),
        ("Four.\nconfidence:\n8.", 0.8),
        ("**Confidence:** 8/10", 0.8),
        ("Confidence: 80%", 0.8),
        ("Confidence: 80/100!", 0.8),
        ("Confidence: 7.5", 0.75),
        ("Confidence: 2. No, wait. Confidence: 9", 0.9),
        ("Confidence: 10", 1.0),
        ("CONFIDENCE:0", 0.0),
        ("Confidence: 3\n\n* a list", 0.3),
    ],
)
def test_what_is_read(response, share):
    assert parse_confidence(response) == pytest.approx(share)
    assert "onfidence" not in strip_confidence(response).lower()


@pytest.mark.parametrize(
    "response",
    [
        "",
        "Four.",
        "Confidence: high",
        "Confidence: -3",
        "confidence 8",
        "Overconfidence: 8",
        "Confidence: 12abc",
        "Confidence: 1.2.3",
        "Confidence: 8,5",
    ],
)
def test_what_says_nothing_stays_as_it_is(response):
    assert math.isnan(parse_confidence(response))
    assert strip_confidence(response) == response


@pytest.mark.parametrize(
    "response", ["Confidence: 85", "Confidence: 120%", "Confidence: 8/0", "Confidence: 9/5"]
)
def test_a_number_off_its_scale_says_nothing_and_is_hidden_all_the_same(response):
    assert math.isnan(parse_confidence(response))
    assert strip_confidence(f"Four. {response}") == "Four."


def test_a_late_statement_off_its_scale_is_not_replaced_by_an_earlier_one():
    assert math.isnan(parse_confidence("Confidence: 3. Confidence: 99"))


def test_all_statements_are_removed_and_the_rest_stays():
    text = "Confidence: 10. It is four.\n**Confidence: 2**\nOr five."
    assert strip_confidence(text) == "It is four.\nOr five."


@pytest.mark.parametrize("level", [0, 3, 10])
def test_stated_and_read_and_removed(level):
    said = append_confidence("It is four.\n", level)
    assert said.splitlines()[-1] == f"Confidence: {level}."
    assert parse_confidence(said) == level / 10
    assert strip_confidence(said) == "It is four."
    with pytest.raises(DataError, match="expected 0 to 10"):
        append_confidence("It is four.", 11)


def test_a_prompt_asks_at_its_end_and_gives_no_number_to_repeat():
    prompt = Prompt(messages=(Message("system", "s"), Message("user", "2 + 2?")), id="p", category="k")
    asked = add_confidence_instruction(prompt)
    assert asked.messages[0] == prompt.messages[0]
    assert asked.messages[1].content == f"2 + 2?\n\n{CONFIDENCE_INSTRUCTION}"
    assert (asked.id, asked.category) == ("p", "k")
    assert math.isnan(parse_confidence(CONFIDENCE_INSTRUCTION))
    for turns in ((), (Message("user", "a"), Message("assistant", "b"))):
        with pytest.raises(DataError, match='prompt "p": cannot ask for confidence'):
            add_confidence_instruction(Prompt(messages=turns, id="p"))


def samples(*responses):
    return [Sample(prompt=Prompt(messages=()), response=response) for response in responses]


class Length:
    names = ("length",)

    def __call__(self, samples):
        return torch.tensor([[float(len(sample.response))] for sample in samples])


def test_scorers():
    told = StatedConfidenceScorer()(samples("a. Confidence: 7", "b"))
    assert told[0].tolist() == pytest.approx([0.7])
    assert told[1].isnan().all()
    assert StatedConfidenceScorer()([]).shape == (0, 1)
    blind = ConfidenceBlindScorer(Length())
    assert blind.names == ("length",)
    assert blind(samples("ab Confidence: 7", "ab")).tolist() == [[2.0], [2.0]]
    assert isinstance(blind, Scorer)
    assert isinstance(StatedConfidenceScorer(), Scorer)
