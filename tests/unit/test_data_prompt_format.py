import pytest
from transformers import AutoTokenizer

from paretune.core.errors import DataError
from paretune.data.prompt_formats import (
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
def test_parse_thinking_accepts_only_well_formed_responses(response, parts):
    assert parse_thinking(response) == parts
    visible = visible_text(Sample(prompt=PROMPT, response=response), "after_thinking")
    assert (visible is None) == (parts is None)
    if visible is not None:
        assert (visible.response, visible.full_response) == (parts[1], response)


def test_scorer_view_keeps_the_full_response():
    sample = Sample(prompt=PROMPT, response="B. Confidence: 8")
    assert visible_text(sample, "full") is sample
    assert sample.full_response == sample.response
    visible = visible_text(sample, "without_confidence")
    assert (visible.response, visible.full_response) == ("B.", "B. Confidence: 8")


@pytest.mark.parametrize(
    "instructions", [CHAT_MODEL_INSTRUCTIONS, BASE_MODEL_INSTRUCTIONS, HELPDESK_INSTRUCTIONS]
)
def test_format_instruction_is_appended_to_the_last_message(instructions):
    assert add_format_instruction(PROMPT, "", instructions) is PROMPT
    for prompt_format in ("think", "confidence"):
        extended = add_format_instruction(PROMPT, prompt_format, instructions)
        assert extended.messages[-1].content == f"why ?\n\n{instructions[prompt_format]}"
        assert extended.messages[:-1] == PROMPT.messages[:-1]
        assert (extended.id, extended.category) == ("p", "k")


def test_prompt_must_end_with_a_user_message():
    with pytest.raises(DataError, match="the last message is not a user message"):
        add_format_instruction(
            Prompt(messages=(Message("assistant", "a"),), id="p"), "think", CHAT_MODEL_INSTRUCTIONS
        )


def test_format_instructions_depend_on_the_tokenizer(tmp_path):
    assert format_instructions_for(tiny_tokenizer()) is (
        BASE_MODEL_INSTRUCTIONS if tiny_tokenizer().chat_template is None else CHAT_MODEL_INSTRUCTIONS
    )
    assert format_instructions_for(toy_tokenizer()) is BASE_MODEL_INSTRUCTIONS
    helpdesk = helpdesk_tokenizer("think")
    assert format_instructions_for(helpdesk) == HELPDESK_INSTRUCTIONS
    helpdesk.save_pretrained(tmp_path)
    assert format_instructions_for(AutoTokenizer.from_pretrained(tmp_path)) == HELPDESK_INSTRUCTIONS
