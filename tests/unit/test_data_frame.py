"""What is asked beside a prompt, and what is shown of a response."""

import pytest

from paretune.data.frame import BARE, CHAT, framed, shown, thought
from paretune.data.records import Message, Prompt, Sample
from paretune.data.template import wording_for
from paretune.data.toy import toy_tokenizer
from paretune.data.world_model import WORDING, tokenizer
from paretune.errors import DataError
from paretune.models.tiny import tiny_tokenizer

PROMPT = Prompt(messages=(Message("system", "s"), Message("user", "why ?")), id="p", kind="k")


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
    assert thought(response) == parts
    found = shown(Sample(prompt=PROMPT, response=response), "after_thinking")
    assert (found is None) == (parts is None)
    if found is not None:
        assert (found.response, found.whole) == (parts[1], response)


def test_a_view_leaves_the_text_as_written_beside():
    sample = Sample(prompt=PROMPT, response="B. Confidence: 8")
    assert shown(sample, "whole") is sample
    assert sample.whole == sample.response
    seen = shown(sample, "without_confidence")
    assert (seen.response, seen.whole) == ("B.", "B. Confidence: 8")


@pytest.mark.parametrize("wording", [CHAT, BARE, WORDING])
def test_a_frame_asks_at_the_end_of_the_last_turn(wording):
    assert framed(PROMPT, "", wording) is PROMPT
    for frame in ("think", "confidence"):
        asked = framed(PROMPT, frame, wording)
        assert asked.messages[-1].content == f"why ?\n\n{wording[frame]}"
        assert asked.messages[:-1] == PROMPT.messages[:-1]
        assert (asked.id, asked.kind) == ("p", "k")


def test_a_prompt_that_does_not_end_with_the_user_cannot_ask():
    with pytest.raises(DataError, match="its last turn is not the user's"):
        framed(Prompt(messages=(Message("assistant", "a"),), id="p"), "think", CHAT)


def test_models_are_asked_in_words_they_have():
    assert wording_for(tiny_tokenizer()) is (BARE if tiny_tokenizer().chat_template is None else CHAT)
    assert wording_for(toy_tokenizer()) is BARE
    assert wording_for(tokenizer("think")) is WORDING
