"""Cells and rows that can be read in two ways are read as what they are, or refused with their line."""

import csv
import io
import json

import pytest

from paretune.core.errors import DataError
from paretune.data.columns import ColumnNames, LabelMapping
from paretune.data.raters import ReadSummary
from paretune.data.readers import read_preference_pairs, read_prompts, read_ratings

HEADER = "prompt,response,safe\n"
PROMPT = [{"role": "system", "content": "s"}, {"role": "user", "content": "a"}]
ANSWER = [{"role": "assistant", "content": "b"}]


def table(*rows):
    file = io.StringIO()
    csv.writer(file).writerows(rows)
    return file.getvalue()


def lines(*rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


@pytest.fixture
def read(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def _read(content, name="r.csv", reader=read_ratings, **options):
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
        if reader is read_ratings:
            options.setdefault("labels", {"safe": "safe"})
        return reader(name, **options)

    return _read


@pytest.mark.parametrize(
    ("cell", "votes"),
    [
        ("[5 nan 3]", (5, 3)),
        ("[4. 2.]", (4, 2)),
        ('"[5, None, 3]"', (5, 3)),
        ("\"['5', '3']\"", (5, 3)),
        ('"array([1, 2])"', (1, 2)),
        ('"array([1., 3.], dtype=float32)"', (1, 3)),
    ],
)
def test_lists_as_python_and_numpy_write_them_are_votes(read, cell, votes):
    (rating,) = read(f"{HEADER}a,b,{cell}\n")
    assert rating.votes["safe"] == votes


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        (["1_000", "3"], 'r.csv:2: safe: "1_000" is not a number'),
        (["80%", "4/5"], 'r.csv:2: safe: "80%" is a percentage; fix: write all labels of the column'),
        (["3.5 / 5"], '"3.5 / 5" is a fraction; fix: write all labels of the column as numbers'),
        (["TRUE", "3"], "r.csv:2: safe: 1 value is true or false, and others are numbers, such as 3"),
        (["[redacted]"], 'r.csv:2: safe: "[redacted]" is not a number'),
        (["", "NA"], 'labels.safe: every cell of safe is empty, or "not rated" (1 of them)'),
    ],
)
def test_labels_that_are_no_numbers_of_one_scale(read, cells, message):
    with pytest.raises(DataError) as caught:
        read(HEADER + "".join(f"p,r,{cell}\n" for cell in cells))
    assert message in str(caught.value)
    assert "map:" not in str(caught.value) or "%" not in message


@pytest.mark.parametrize(
    ("content", "name", "message"),
    [
        (
            '{"prompt": "a", "response": "b", "safe": 1, "safe": 5}',
            "r.jsonl",
            "r.jsonl:1: safe: stands twice",
        ),
        (
            '[{"prompt": "a", "response": "b", "safe": 1},\n{"prompt": "a", "m": {"k": 1, "k": 2}}]',
            "r.json",
            "r.json:2: k: stands twice",
        ),
        (
            lines({"prompt": "a", "response": "b", "safe": [True, False, 5]}),
            "r.jsonl",
            "r.jsonl:1: safe: 2 values are true or false",
        ),
        (
            lines({"messages": [{"role": "user", "content": []}, *ANSWER], "safe": 1}),
            "r.jsonl",
            "r.jsonl:1: messages[0].content: an empty list",
        ),
        (
            lines({"prompt": "zz", "messages": PROMPT + ANSWER, "response": "b", "safe": 1}),
            "r.jsonl",
            "r.jsonl:1: prompt: this row has another prompt in messages; fix: choose one, columns: {prompt: ",
        ),
        (table(("prompt", "response", "safe"), (repr(PROMPT), "b", 3)), "r.csv", "that is not JSON"),
        (
            table(("prompt", "response", "safe"), ("hi", "b", 3), (json.dumps(PROMPT), "b", 3)),
            "r.csv",
            "r.csv:3: prompt: a list of messages, and earlier cells are plain text",
        ),
    ],
)
def test_ambiguous_rows_are_refused(read, content, name, message):
    with pytest.raises(DataError) as caught:
        read(content, name)
    assert message in str(caught.value)
    assert "no row has a label" not in str(caught.value)


def test_messages_as_text_are_messages(read):
    (rating,) = read(table(("prompt", "response", "safe"), (json.dumps(PROMPT), json.dumps(ANSWER), 3)))
    assert ([m.role for m in rating.prompt.messages], rating.response) == (["system", "user"], "b")
    (prompt,) = read(table(("prompt",), (json.dumps(PROMPT),)), reader=read_prompts)
    assert [m.content for m in prompt.messages] == ["s", "a"]
    (rating,) = read(lines({"prompt": "a", "messages": PROMPT + ANSWER, "safe": 1}), "r.jsonl")
    assert len(rating.prompt.messages) == 2  # the prompt is a part of the conversation


@pytest.mark.parametrize("empty", ["NaN", "null", '"nan"'])
def test_a_rater_without_a_name_is_an_error(read, empty):
    row = f'{{"prompt": "a", "response": "b", "safe": 1, "who": {empty}}}\n'
    with pytest.raises(DataError, match=r"r.jsonl:1: who: empty \(and 1 more row, to line 2\)"):
        read(row + row + row.replace(empty, '"u"'), "r.jsonl", columns=ColumnNames(rater="who"))
    with pytest.raises(DataError, match="who: empty"):
        read(row + row.replace(empty, "1"), "r.jsonl", group_by=("who",))


def test_a_column_named_twice_is_an_error(read):
    row = lines({"prompt": "a", "response": "b", "s1": 1, "s2": 5})
    with pytest.raises(DataError, match=r"labels.safe.from: names s1 2 times"):
        read(row, "r.jsonl", labels={"safe": LabelMapping(column=("s1", "s1", "s2"))})


@pytest.mark.parametrize(
    "content",
    [
        "prompt|response|safe\na|b|3\n",
        "prompt,response,safe\ra,b,3\r",
        "prompt,response,safe\ra,b,3".encode("utf-16"),
        "prompt,response,safe,,\na,b,3,,\n",
        ",prompt,response,safe\n0,a,b,3\n",
    ],
)
def test_tables_of_other_programs_are_read(read, content):
    (rating,) = read(content)
    assert (rating.prompt.messages[0].content, rating.response, rating.labels) == ("a", "b", {"safe": 3.0})


def test_empty_responses_of_an_export_are_left_out_with_a_count(read):
    row = {"instruction": "a", "completions": [{"response": text, "safe": 1} for text in ("x", "", None)]}
    row["completions"][0] |= {"overall_score": 5}
    summary = ReadSummary()
    labels = {"safe": "overall_score"}
    assert len(read(lines(row), "r.jsonl", labels=labels, format="ultrafeedback", summary=summary)) == 1
    assert summary.warnings == ["r.jsonl: 2 of the responses left out, because a response is empty"]
    answers = [{"answer": text, "rank": i} for i, text in enumerate(("x", " ", "z"))]
    nectar = {"prompt": "\n\nHuman: a\n\nAssistant: ", "answers": answers}
    pairs = read(lines(nectar), "r.jsonl", read_preference_pairs, objective="o", format="nectar")
    assert [(pair.chosen, pair.rejected) for pair in pairs] == [("x", "z")]
