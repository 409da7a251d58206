import math

import pytest

from paretune.core.errors import DataError
from paretune.data.prompt_formats import (
    CHAT_MODEL_INSTRUCTIONS,
    CONFIDENCE_INSTRUCTION,
    add_format_instruction,
    append_confidence,
    parse_confidence,
    strip_confidence,
)
from paretune.data.records import Message, Prompt, Sample
from paretune.reward.scorers import Scorer, StatedConfidenceScorer


@pytest.mark.parametrize(
    ("response", "confidence"),
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
def test_parse_confidence(response, confidence):
    assert parse_confidence(response) == pytest.approx(confidence)
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
def test_text_without_stated_confidence_is_unchanged(response):
    assert math.isnan(parse_confidence(response))
    assert strip_confidence(response) == response


@pytest.mark.parametrize(
    "response", ["Confidence: 85", "Confidence: 120%", "Confidence: 8/0", "Confidence: 9/5"]
)
def test_number_outside_its_scale_is_nan_but_stripped(response):
    assert math.isnan(parse_confidence(response))
    assert strip_confidence(f"Four. {response}") == "Four."


def test_invalid_last_statement_is_not_replaced_by_an_earlier_one():
    assert math.isnan(parse_confidence("Confidence: 3. Confidence: 99"))


def test_strip_confidence_removes_all_statements():
    text = "Confidence: 10. It is four.\n**Confidence: 2**\nOr five."
    assert strip_confidence(text) == "It is four.\nOr five."


@pytest.mark.parametrize("level", [0, 3, 10])
def test_append_parse_and_strip_are_consistent(level):
    text = append_confidence("It is four.\n", level)
    assert text.splitlines()[-1] == f"Confidence: {level}."
    assert parse_confidence(text) == level / 10
    assert strip_confidence(text) == "It is four."
    with pytest.raises(DataError, match="confidence level 11 is out of range; fix: use 0 to 10"):
        append_confidence("It is four.", 11)


def test_confidence_instruction_is_appended_to_the_last_message():
    prompt = Prompt(messages=(Message("system", "s"), Message("user", "2 + 2?")), id="p", category="k")
    extended = add_format_instruction(prompt, "confidence", CHAT_MODEL_INSTRUCTIONS)
    assert extended.messages[0] == prompt.messages[0]
    assert extended.messages[1].content == f"2 + 2?\n\n{CONFIDENCE_INSTRUCTION}"
    assert (extended.id, extended.category) == ("p", "k")
    assert math.isnan(parse_confidence(CONFIDENCE_INSTRUCTION))
    for messages in ((), (Message("user", "a"), Message("assistant", "b"))):
        with pytest.raises(
            DataError, match='prompt "p": cannot add the instruction for the prompt format "confidence"'
        ):
            add_format_instruction(Prompt(messages=messages, id="p"), "confidence", CHAT_MODEL_INSTRUCTIONS)


def samples(*responses):
    return [Sample(prompt=Prompt(messages=()), response=response) for response in responses]


def test_stated_confidence_scorer():
    scores = StatedConfidenceScorer()(samples("a. Confidence: 7", "b"))
    assert scores[0].tolist() == pytest.approx([0.7])
    assert scores[1].isnan().all()
    assert StatedConfidenceScorer()([]).shape == (0, 1)
    assert isinstance(StatedConfidenceScorer(), Scorer)
