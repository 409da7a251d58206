"""What is asked beside a prompt, and what is shown of a response."""

import pytest

from paretune.core.errors import DataError
from paretune.data.chat import (
    BASE_MODEL_INSTRUCTIONS,
    CHAT_MODEL_INSTRUCTIONS,
    add_format_instruction,
    format_instructions_for,
    parse_thinking,
    visible_text,
)
from paretune.data.records import Message, Prompt, Sample
from paretune.worlds.helpdesk.model import HELPDESK_INSTRUCTIONS, helpdesk_tokenizer
from support.tiny_models import tiny_tokenizer
from support.toy import toy_tokenizer

PROMPT = Prompt(messages=(Message("system", "s"), Message("user", "why ?")), id="p", category="k")


@pytest.mark.parametrize(
    ("response", "parts"),
    [
        ("<think>a</think>\n\nB", ("a", "B")),
        (" \n<think> a\nb </think>B c", ("a\nb", "B c")),
        ("<think></think>B", ("", "B")),
        ("B", None),
        ("<think>a", None),
        ("a</think>B", None),
        ("before <think>a</think>B", None),
        ("<think>a</think>", None),
        ("<think>a</think> \n", None),
        ("<think>x</think>C</think>D", None),
        ("<think>the tag <think> is</think>B", None),
        ("<think>a</think>B<think>c</think>D", None),
        ("</think>a<think>B", None),
        ("<THINK>a</THINK>B", None),
    ],
)
def test_thoughts_are_read_strictly(response, parts):
    assert parse_thinking(response) == parts
    found = visible_text(Sample(prompt=PROMPT, response=response), "after_thinking")
    assert (found is None) == (parts is None)
    if found is not None:
        assert (found.response, found.full_response) == (parts[1], response)


def test_a_view_leaves_the_text_as_written_beside():
    sample = Sample(prompt=PROMPT, response="B. Confidence: 8")
    assert visible_text(sample, "whole") is sample
    assert sample.full_response == sample.response
    seen = visible_text(sample, "without_confidence")
    assert (seen.response, seen.full_response) == ("B.", "B. Confidence: 8")


@pytest.mark.parametrize("wording", [CHAT_MODEL_INSTRUCTIONS, BASE_MODEL_INSTRUCTIONS, HELPDESK_INSTRUCTIONS])
def test_a_frame_asks_at_the_end_of_the_last_turn(wording):
    assert add_format_instruction(PROMPT, "", wording) is PROMPT
    for frame in ("think", "confidence"):
        asked = add_format_instruction(PROMPT, frame, wording)
        assert asked.messages[-1].content == f"why ?\n\n{wording[frame]}"
        assert asked.messages[:-1] == PROMPT.messages[:-1]
        assert (asked.id, asked.category) == ("p", "k")


def test_a_prompt_that_does_not_end_with_the_user_cannot_ask():
    with pytest.raises(DataError, match="its last turn is not the user's"):
        add_format_instruction(
            Prompt(messages=(Message("assistant", "a"),), id="p"), "think", CHAT_MODEL_INSTRUCTIONS
        )


def test_models_are_asked_in_words_they_have():
    assert format_instructions_for(tiny_tokenizer()) is (
        BASE_MODEL_INSTRUCTIONS if tiny_tokenizer().chat_template is None else CHAT_MODEL_INSTRUCTIONS
    )
    assert format_instructions_for(toy_tokenizer()) is BASE_MODEL_INSTRUCTIONS
    assert format_instructions_for(helpdesk_tokenizer("think")) is HELPDESK_INSTRUCTIONS
