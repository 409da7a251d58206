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
ANSWER, FOLLOW_UP = {"role": "assistant", "content": "a"}, {"role": "user", "content": "r"}
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
def test_demonstration_formats_are_equivalent(file, row):
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
def test_preference_pair_formats_are_equivalent(file, row):
    (record,) = read_preference_pairs(file(row), objective="helpful")
    assert (record.prompt.messages, record.chosen, record.rejected) == (Q, "good", "bad")
    assert record.objective == "helpful"


def test_common_start_of_a_pair_is_its_prompt(file):
    rows = [
        {
            "chosen": [SYSTEM, QUESTION, ANSWER, FOLLOW_UP, GOOD],
            "rejected": [SYSTEM, QUESTION, ANSWER, FOLLOW_UP, BAD],
        },
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


def test_prompt_formats_are_equivalent(file):
    path = file(
        {"prompt": "q"}, {"prompt": [QUESTION]}, {"messages": [QUESTION, GOOD]}, {"messages": [QUESTION]}
    )
    assert [prompt.messages for prompt in read_prompts(path)] == [Q, Q, Q, Q]


def test_preference_weights_of_a_prompt(file):
    path = file(
        {"prompt": "q", "wish": {"polite": 1, "safe": 0.5}}, {"prompt": "r", "wish": None}, {"prompt": "s"}
    )
    prompts = read_prompts(path, columns=ColumnNames(preference_weights="wish"))
    assert [prompt.preference_weights for prompt in prompts] == [(("polite", 1.0), ("safe", 0.5)), (), ()]
    assert [prompt.preference_weights for prompt in read_prompts(path)] == [(), (), ()]
    with pytest.raises(
        DataError, match=r"f.jsonl:1: wish: text, not an object.*\n.*:2: wish: no weight is a number"
    ):
        read_prompts(
            file({"prompt": "q", "wish": "safe"}, {"prompt": "r", "wish": {"safe": 0}}),
            columns=ColumnNames(preference_weights="wish"),
        )
    with pytest.raises(DataError, match=r"wish.toxic: a weight below 0; fix: .*objectives.toxic.goal: lower"):
        read_prompts(
            file({"prompt": "q", "wish": {"safe": 1, "toxic": -1}}),
            columns=ColumnNames(preference_weights="wish"),
        )


def test_ids_and_categories(file):
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


def test_column_without_a_name_is_ignored(tmp_path):
    path = tmp_path / "pandas.csv"
    path.write_text(",prompt,chosen,rejected\n0,q,good,bad\n")
    (record,) = read_preference_pairs(path, objective="helpful")
    assert (record.prompt.id, record.prompt.category) == ("pandas.csv:2", "")
    with pytest.raises(DataError, match="objective: no such column"):
        read_preference_pairs(path)


def test_labels_keep_units_and_missing_values(file):
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


def test_responses_without_prompts(tmp_path):
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
def test_where_filters_json_and_csv_alike(file, tmp_path, where, numbers):
    rows = [{"prompt": str(n), "n": n, "even": n % 2 == 0} for n in range(4)]
    (tmp_path / "f.csv").write_text("prompt,n,even\n" + "".join(f"{n},{n},{n % 2 == 0}\n" for n in range(4)))
    for path in (file(*rows), tmp_path / "f.csv"):
        assert [int(prompt.messages[0].content) for prompt in read_prompts(path, where=where)] == numbers


def test_filtered_rows_are_not_validated(file):
    path = file({"prompt": "q", "level": "turn"}, {"prompt": 3, "level": "dialogue"})
    assert len(read_prompts(path, where={"level": "turn"})) == 1


def test_max_rows_samples_by_seed_in_order_and_nested(file):
    path = file(*({"prompt": str(i)} for i in range(100)))

    def draw(**options):
        return [int(prompt.messages[0].content) for prompt in read_prompts(path, **options)]

    ten, twenty = draw(max_rows=10, seed=1), draw(max_rows=20, seed=1)
    assert ten == sorted(ten) == draw(max_rows=10, seed=1) != draw(max_rows=10, seed=2)
    assert set(ten) < set(twenty)
    assert len(twenty) == 20
    assert draw(max_rows=1000) == list(range(100))
    assert draw(max_rows=5, transform=lambda p: p if len(p.messages[0].content) == 1 else None)[-1] < 10


def test_transform_is_called_in_sampling_order_until_max_rows(file):
    path = file(*({"prompt": str(i)} for i in range(100)))
    calls = []

    def even(prompt):
        number = int(prompt.messages[0].content)
        calls.append(number)
        return prompt if number % 2 == 0 else None

    kept = read_prompts(path, max_rows=10, transform=even)
    assert len(calls) < 50
    assert [int(p.messages[0].content) for p in kept] == sorted(n for n in calls if n % 2 == 0)
    sample = read_prompts(path, max_rows=len(calls))
    assert sorted(calls) == [int(p.messages[0].content) for p in sample]


def test_transform_can_change_records(file):
    path = file({"prompt": "abc"}, {"prompt": "d"})
    prompts = read_prompts(
        path, transform=lambda prompt: replace(prompt, category=prompt.messages[0].content)
    )
    assert [prompt.category for prompt in prompts] == ["abc", "d"]


def test_issues_are_in_row_order_whoever_raises_them(file):
    def reject(prompt):
        raise FieldError("prompt", f"too long: {prompt.messages[0].content}")

    rows = [{"prompt": "a"}, {"prompt": 3}, {"prompt": "b"}, {"prompt": "c"}, {"prompt": ""}]
    for options in ({}, {"max_rows": 2}):
        with pytest.raises(DataError) as caught:
            read_prompts(file(*rows), transform=reject, **options)
        lines = [line.partition(": ")[0].rpartition(":")[2] for line in str(caught.value).split("\n")]
        assert lines == ["1", "2", "3", "4", "5"]


def test_transform_can_raise_field_errors(file):
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
    """Disable the shape checks, which make a hundred thousand rows slow."""
    config.update("jaxtyping_disable", True)
    yield
    config.update("jaxtyping_disable", False)


@pytest.mark.parametrize("folder", READERS)
def test_shared_files_have_the_row_counts_of_their_readme(folder, unchecked):
    data = shared("data")
    sections = re.split(r"^## ", (data / "README.md").read_text(), flags=re.MULTILINE)
    (section,) = [text for text in sections if f"`{folder}/`" in text.splitlines()[0]]
    counts = re.findall(r"^\| `(\w+)` \| ([\d,]+) / ([\d,]+) \|", section, flags=re.MULTILINE)
    assert counts
    for name, *numbers in counts:
        for split, number in zip(("train", "test"), numbers, strict=True):
            records = READERS[folder](f"{folder}/{name}.{split}.jsonl.gz", root=data)
            assert len(records) == int(number.replace(",", "")), name


def test_label_mapping_rescales_a_shared_file():
    path = shared("data", "ratings", "finegrained_qa.test.jsonl.gz")
    raw = read_ratings(path, labels={"errors": "irrelevant_errors"})
    rescaled = read_ratings(
        path, labels={"relevance": LabelMapping(column="irrelevant_errors", scale=-0.5, offset=1.0)}
    )
    assert [r.labels["relevance"] for r in rescaled] == [1 - 0.5 * r.labels["errors"] for r in raw]
    turns = read_ratings(shared("data", "ratings", "fed.test.jsonl.gz"), labels={"depth": "depth"})
    assert 0 < len(turns) < 96
