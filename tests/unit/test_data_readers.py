"""Readers: all forms say the same, labels keep their units, and the shared files read in full."""

import json
import re
from dataclasses import replace

import pytest
from jaxtyping import config

from paretune.core.errors import DataError
from paretune.data.columns import ColumnNames, FieldError, LabelMapping
from paretune.data.readers import read_demonstrations, read_preference_pairs, read_prompts, read_ratings
from paretune.data.records import Message
from shared import shared

SYSTEM, QUESTION = {"role": "system", "content": "s"}, {"role": "user", "content": "q"}
SAID, AGAIN = {"role": "assistant", "content": "a"}, {"role": "user", "content": "r"}
GOOD, BAD = {"role": "assistant", "content": "good"}, {"role": "assistant", "content": "bad"}
Q = (Message("user", "q"),)


@pytest.fixture
def file(tmp_path):
    def write(*rows, name="f.jsonl"):
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return path

    return write


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "q", "response": "good"},
        {"prompt": "q", "completion": "good"},
        {"prompt": [QUESTION], "completion": [GOOD]},
        {"prompt": [QUESTION], "response": "good"},
        {"messages": [QUESTION, GOOD]},
        {"prompt": "q", "response": None, "completion": "good"},
    ],
)
def test_forms_of_a_demonstration(file, row):
    (record,) = read_demonstrations(file(row))
    assert (record.prompt.messages, record.response) == (Q, "good")


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "q", "chosen": "good", "rejected": "bad"},
        {"prompt": [QUESTION], "chosen": [GOOD], "rejected": [BAD]},
        {"prompt": [QUESTION], "chosen": "good", "rejected": "bad"},
        {"chosen": [QUESTION, GOOD], "rejected": [QUESTION, BAD]},
        {"prompt": "q", "chosen": [QUESTION, GOOD], "rejected": [QUESTION, BAD]},
        {"prompt": [QUESTION], "chosen": [QUESTION, GOOD], "rejected": [QUESTION, BAD]},
        {"chosen": "\n\nHuman: q\n\nAssistant: good", "rejected": "\n\nHuman: q\n\nAssistant: bad"},
    ],
)
def test_forms_of_a_pair(file, row):
    (record,) = read_preference_pairs(file(row), objective="helpful")
    assert (record.prompt.messages, record.chosen, record.rejected) == (Q, "good", "bad")
    assert record.objective == "helpful"


def test_what_two_sides_share_is_the_prompt(file):
    rows = [
        {"chosen": [SYSTEM, QUESTION, SAID, AGAIN, GOOD], "rejected": [SYSTEM, QUESTION, SAID, AGAIN, BAD]},
        {"chosen": "The sky is blue.", "rejected": "The sky is bleak."},
        {"chosen": "yes", "rejected": "no"},
        {"chosen": [GOOD], "rejected": [BAD]},
        {"prompt": [], "chosen": "yes", "rejected": "no"},
        {"prompt": [SYSTEM], "chosen": [QUESTION, GOOD], "rejected": [QUESTION, BAD]},
    ]
    records = read_preference_pairs(file(*rows), objective="x")
    assert [[m.content for m in record.prompt.messages] for record in records] == [
        ["s", "q", "a", "r"],
        ["The sky is"],
        [],
        [],
        [],
        ["s", "q"],
    ]
    assert (records[1].chosen, records[1].rejected) == (" blue.", " bleak.")


def test_prompts_of_text_turns_and_conversations(file):
    path = file(
        {"prompt": "q"}, {"prompt": [QUESTION]}, {"messages": [QUESTION, GOOD]}, {"messages": [QUESTION]}
    )
    assert [prompt.messages for prompt in read_prompts(path)] == [Q, Q, Q, Q]


def test_what_a_prompt_asks_for(file):
    path = file(
        {"prompt": "q", "wish": {"polite": 1, "safe": 0.5}}, {"prompt": "r", "wish": None}, {"prompt": "s"}
    )
    found = read_prompts(path, columns=ColumnNames(preference_weights="wish"))
    assert [prompt.preference_weights for prompt in found] == [(("polite", 1.0), ("safe", 0.5)), (), ()]
    assert [prompt.preference_weights for prompt in read_prompts(path)] == [(), (), ()]
    with pytest.raises(
        DataError, match=r"f.jsonl:1: wish: text, not an object.*\n.*:2: wish: asks for nothing"
    ):
        read_prompts(
            file({"prompt": "q", "wish": "safe"}, {"prompt": "r", "wish": {"safe": 0}}),
            columns=ColumnNames(preference_weights="wish"),
        )


def test_names_and_kinds(file):
    path = file({"id": "x1", "prompt": "q", "group": "g"}, {"id": 7, "text": "q"}, {"text": "q"})
    columns = ColumnNames(prompt="text", category="group")
    with pytest.raises(DataError, match=r"f\.jsonl:1: text: no such column"):
        read_prompts(path, columns=columns)
    path = file({"id": "x1", "text": "q", "group": "g"}, {"id": 7, "text": "q"}, {"text": "q"})
    prompts = read_prompts(path, columns=columns)
    assert [(prompt.id, prompt.category) for prompt in prompts] == [("x1", "g"), ("7", ""), ("f.jsonl:3", "")]
    assert {prompt.category for prompt in read_prompts(path, columns=columns, category="harmful")} == {
        "harmful"
    }


def test_an_unnamed_column_names_nothing(tmp_path):
    path = tmp_path / "pandas.csv"
    path.write_text(",prompt,chosen,rejected\n0,q,good,bad\n")
    (record,) = read_preference_pairs(path, objective="helpful")
    assert (record.prompt.id, record.prompt.category) == ("pandas.csv:2", "")
    with pytest.raises(DataError, match="objective: no such column"):
        read_preference_pairs(path)


def test_labels_keep_their_units_and_their_gaps(file):
    path = file(
        {"prompt": [], "response": "a", "scores": {"errors": 2, "ease": 0.5}, "stars": 4, "safe": True},
        {"prompt": "", "response": "b", "scores": {"errors": None, "ease": float("nan")}, "stars": 1},
        {"prompt": "q", "response": "c", "scores": {"errors": 0}, "judge": "human"},
        {"prompt": "q", "response": "d", "scores": {}},
    )
    every = read_ratings(path)
    assert [dict(record.labels) for record in every] == [{"errors": 2.0, "ease": 0.5}, {"errors": 0.0}]
    labels = {
        "quality": LabelMapping(column="errors", scale=-1.0, offset=3.0),
        "liking": "stars",
        "safety": "safe",
    }
    chosen = read_ratings(path, labels=labels)
    assert [dict(record.labels) for record in chosen] == [
        {"quality": 1.0, "liking": 4.0, "safety": 1.0},
        {"liking": 1.0},
        {"quality": 3.0},
    ]
    assert [record.prompt.messages for record in chosen] == [(), (), Q]


def test_responses_that_stand_alone(tmp_path):
    path = tmp_path / "texts.csv"
    path.write_text("text,polite\nplease,1\n")
    (record,) = read_ratings(
        path, labels={"politeness": "polite"}, columns=ColumnNames(prompt="-", response="text")
    )
    assert (record.prompt.messages, record.response) == ((), "please")


@pytest.mark.parametrize(
    ("where", "numbers"),
    [
        ({}, [0, 1, 2, 3]),
        ({"n": 1}, [1]),
        ({"n": [3, 1]}, [1, 3]),
        ({"even": True}, [0, 2]),
        ({"even": False, "n": [1, 2]}, [1]),
    ],
)
def test_where_on_json_and_csv(file, tmp_path, where, numbers):
    rows = [{"prompt": str(n), "n": n, "even": n % 2 == 0} for n in range(4)]
    (tmp_path / "f.csv").write_text("prompt,n,even\n" + "".join(f"{n},{n},{n % 2 == 0}\n" for n in range(4)))
    for path in (file(*rows), tmp_path / "f.csv"):
        assert [int(prompt.messages[0].content) for prompt in read_prompts(path, where=where)] == numbers


def test_rows_filtered_out_are_not_complained_of(file):
    path = file({"prompt": "q", "level": "turn"}, {"prompt": 3, "level": "dialogue"})
    assert len(read_prompts(path, where={"level": "turn"})) == 1


def test_most_draws_by_seed_in_order_and_nested(file):
    path = file(*({"prompt": str(i)} for i in range(100)))

    def draw(**how):
        return [int(prompt.messages[0].content) for prompt in read_prompts(path, **how)]

    ten, twenty = draw(most=10, seed=1), draw(most=20, seed=1)
    assert ten == sorted(ten) == draw(most=10, seed=1) != draw(most=10, seed=2)
    assert set(ten) < set(twenty)
    assert len(twenty) == 20
    assert draw(most=1000) == list(range(100))
    assert draw(most=5, admit=lambda p: p if len(p.messages[0].content) == 1 else None)[-1] < 10


def test_most_asks_of_records_in_the_order_they_are_drawn_until_there_are_enough(file):
    path = file(*({"prompt": str(i)} for i in range(100)))
    asked = []

    def even(prompt):
        number = int(prompt.messages[0].content)
        asked.append(number)
        return prompt if number % 2 == 0 else None

    kept = read_prompts(path, max_rows=10, transform=even)
    assert len(asked) < 50
    assert [int(p.messages[0].content) for p in kept] == sorted(n for n in asked if n % 2 == 0)
    whole = read_prompts(path, max_rows=len(asked))
    assert sorted(asked) == [int(p.messages[0].content) for p in whole]


def test_what_is_admitted_is_taken_as_it_was_given_back(file):
    path = file({"prompt": "abc"}, {"prompt": "d"})
    found = read_prompts(path, transform=lambda prompt: replace(prompt, kind=prompt.messages[0].content))
    assert [prompt.category for prompt in found] == ["abc", "d"]


def test_complaints_stand_in_the_order_of_the_rows_whoever_complains(file):
    def refuse(prompt):
        raise FieldError("prompt", "too long")

    rows = [{"prompt": "a"}, {"prompt": 3}, {"prompt": "b"}, {"prompt": "c"}, {"prompt": 4}]
    for how in ({}, {"most": 2}):
        with pytest.raises(DataError) as caught:
            read_prompts(file(*rows), transform=refuse, **how)
        places = [line.partition(": ")[0].rpartition(":")[2] for line in str(caught.value).split("\n")]
        assert places == ["1", "2", "3", "4", "5"]


def test_a_caller_may_complain_of_a_row(file):
    def short(prompt):
        if len(prompt.messages[0].content) > 3:
            raise FieldError("prompt", "5 tokens, but the context holds 3", fix="shorten it")
        return prompt

    with pytest.raises(DataError) as caught:
        read_prompts(file({"prompt": "abc"}, {"prompt": "abcde"}), transform=short)
    assert str(caught.value).endswith("f.jsonl:2: prompt: 5 tokens, but the context holds 3; fix: shorten it")


READERS = {
    "preferences": read_preference_pairs,
    "ratings": read_ratings,
    "prompts": read_prompts,
    "sft": read_demonstrations,
}


@pytest.fixture
def unchecked():
    """Without the checks of every call, which make a hundred thousand rows slow."""
    config.update("jaxtyping_disable", True)
    yield
    config.update("jaxtyping_disable", False)


@pytest.mark.parametrize("folder", READERS)
def test_every_shared_file_reads_in_full(folder, unchecked):
    """The row counts are those of the data's own README."""
    data = shared("data")
    sections = re.split(r"^## ", (data / "README.md").read_text(), flags=re.MULTILINE)
    (section,) = [text for text in sections if f"`{folder}/`" in text.splitlines()[0]]
    counts = re.findall(r"^\| `(\w+)` \| ([\d,]+) / ([\d,]+) \|", section, flags=re.MULTILINE)
    assert counts
    for name, *numbers in counts:
        for split, number in zip(("train", "test"), numbers, strict=True):
            records = READERS[folder](f"{folder}/{name}.{split}.jsonl.gz", root=data)
            assert len(records) == int(number.replace(",", "")), name


def test_aspects_of_a_shared_file_come_in_the_units_asked_for():
    path = shared("data", "ratings", "finegrained_qa.test.jsonl.gz")
    raw = read_ratings(path, labels={"errors": "irrelevant_errors"})
    turned = read_ratings(
        path, labels={"relevance": LabelMapping(column="irrelevant_errors", scale=-0.5, offset=1.0)}
    )
    assert [r.labels["relevance"] for r in turned] == [1 - 0.5 * r.labels["errors"] for r in raw]
    turns = read_ratings(shared("data", "ratings", "fed.test.jsonl.gz"), labels={"depth": "depth"})
    assert 0 < len(turns) < 96
