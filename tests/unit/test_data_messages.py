"""Messages of a row: roles, parts of a content, further keys, and answers with reasoning."""

import json

import pytest

from paretune.data.columns import FieldError, parse_messages, response_text
from paretune.data.readers import read_prompts, read_ratings
from paretune.data.records import Message

CALLS = [{"type": "function", "function": {"name": "clock", "arguments": {"zone": "UTC"}}}]


def test_further_keys_are_kept_and_a_message_stays_hashable():
    rows = [
        {"role": "user", "content": "When?", "name": None, "weight": []},
        {"role": "assistant", "content": None, "tool_calls": CALLS},
        {"role": "tool", "content": "9:00", "tool_call_id": "a1"},
        {"role": "developer", "content": "Be kind."},
    ]
    messages = parse_messages(rows, "messages")
    assert messages[0] == Message("user", "When?")
    assert messages[1] == Message("assistant", "", (("tool_calls", json.dumps(CALLS)),))
    assert messages[2].extra == (("tool_call_id", '"a1"'),)
    assert len({*messages, *parse_messages(rows, "messages")}) == 4


def test_a_content_may_be_a_list_of_text_parts():
    parts = [{"type": "text", "text": "When do "}, {"text": "you open?"}]
    assert parse_messages([{"role": "user", "content": parts}], "p") == (
        Message("user", "When do you open?"),
    )
    for part, kind in (
        ({"type": "image", "image": "a.png"}, "image"),
        ({"type": "image_url", "image_url": {"url": "http://a/b.png"}}, "image_url"),
        ("text", "text"),
    ):
        with pytest.raises(FieldError) as caught:
            parse_messages([{"role": "user", "content": [*parts, part]}], "p")
        assert caught.value.key == "p[0].content[2]"
        assert kind in caught.value.problem


def test_reasoning_of_an_answer_becomes_thinking_and_other_keys_are_refused():
    (message,) = parse_messages(
        [{"role": "assistant", "content": "At nine.", "reasoning_content": "It is a shop."}], "r"
    )
    assert response_text(message, "r") == "<think>\nIt is a shop.\n</think>\n\nAt nine."
    (message,) = parse_messages([{"role": "assistant", "tool_calls": CALLS}], "r")
    with pytest.raises(FieldError) as caught:
        response_text(message, "r")
    assert caught.value.key == "r.tool_calls"


def test_tool_turns_of_a_file_reach_the_prompt(tmp_path):
    turns = [
        {"role": "user", "content": "When?"},
        {"role": "assistant", "content": None, "tool_calls": CALLS},
        {"role": "tool", "content": "9:00"},
    ]
    (tmp_path / "p.jsonl").write_text(json.dumps({"prompt": turns}) + "\n")
    (prompt,) = read_prompts("p.jsonl", root=tmp_path)
    assert [m.role for m in prompt.messages] == ["user", "assistant", "tool"]
    answer = {"role": "assistant", "content": "At nine.", "reasoning_content": "9:00 is nine."}
    row = {"messages": [*turns, answer], "scores": {"a": 1}}
    (tmp_path / "r.jsonl").write_text(json.dumps(row) + "\n")
    (rating,) = read_ratings("r.jsonl", root=tmp_path)
    assert rating.response.startswith("<think>\n9:00 is nine.")
    assert len(rating.prompt.messages) == 3
