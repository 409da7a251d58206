"""Several raters of one response, values that mean "not rated", and files as tools write them."""

import math

import pytest

from paretune.core.errors import DataError
from paretune.data.columns import ColumnNames, LabelMapping
from paretune.data.raters import ReadSummary, krippendorff_alpha, separate_votes
from paretune.data.readers import read_prompts, read_ratings

VOTES = "q,answer,who,safety\na,x,u1,5\na,x,u2,3\nb,y,u1,2\na,x,u3,5\nb,y,u2,\n"
COLUMNS = ColumnNames(prompt="q", response="answer", rater="who")
LIKERT = "prompt,response,safety\n" + "".join(f"p{i},r{i},{i % 5 + 1}\n" for i in range(17))


@pytest.fixture
def read(tmp_path):
    """Writes a file, and returns its ratings and the summary."""

    def _read(content, name="r.csv", labels=None, **options):
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
        summary = ReadSummary()
        labels = labels or {"safety": "safety"}
        return read_ratings(name, root=tmp_path, labels=labels, summary=summary, **options), summary

    return _read


def labels_of(ratings):
    return [rating.labels["safety"] for rating in ratings]


def issue_of(read, *args, **options):
    with pytest.raises(DataError) as caught:
        read(*args, **options)
    return str(caught.value).replace(str(caught.value).partition("r.csv")[0], "")


def test_interval_alpha_is_that_of_krippendorffs_example():
    """Krippendorff 2011, section C: 12 units, 4 observers, missing values; interval alpha 0.849."""
    nan = math.nan
    observers = [
        [1, 2, 3, 3, 2, 1, 4, 1, 2, nan, nan, nan],
        [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, nan, 3],
        [nan, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, nan],
        [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, nan],
    ]
    units = [[vote for vote in unit if not math.isnan(vote)] for unit in zip(*observers, strict=True)]
    assert krippendorff_alpha(units) == pytest.approx(0.849, abs=5e-4)
    shifted = [[1e6 + vote for vote in unit] for unit in units]
    assert krippendorff_alpha(shifted) == pytest.approx(krippendorff_alpha(units), abs=1e-9)
    assert math.isnan(krippendorff_alpha([[1.0], [2.0]]))
    assert math.isnan(krippendorff_alpha([[1.0, 1.0]]))


@pytest.mark.parametrize(
    ("rule", "expected"), [(None, [13 / 3, 2.0]), ("median", [5.0, 2.0]), ("separate", [13 / 3, 2.0])]
)
def test_rows_of_several_raters_are_one_response(read, rule, expected):
    ratings, summary = read(VOTES, columns=COLUMNS, raters=rule)
    assert labels_of(ratings) == pytest.approx(expected)
    safety = summary.labels["safety"]
    assert (safety.num_responses, safety.num_votes, safety.num_raters) == (2, 4, 3)


def test_limits_count_responses_and_not_votes(read):
    ratings, _ = read(VOTES, columns=COLUMNS, max_rows=2)
    assert [rating.response for rating in ratings] == ["x", "y"]


def test_separate_votes_weigh_as_much_as_their_response(read):
    rows = list(separate_votes(read(VOTES, columns=COLUMNS, raters="separate")[0]))
    assert labels_of(rows) == [5.0, 3.0, 5.0, 2.0]
    weights = [rating.label_weights.get("safety", 1.0) for rating in rows]
    assert weights == pytest.approx([1 / 3, 1 / 3, 1 / 3, 1.0])


def test_groups_by_an_id_column_must_agree_on_the_response(read):
    table = "task,prompt,response,safety\n1,a,x,4\n1,a,x,2\n2,a,x,1\n"
    assert labels_of(read(table, group_by=("task",))[0]) == [3.0, 1.0]
    assert "r.csv:3: group_by: same task as line 2, but another response" in issue_of(
        read, table.replace("1,a,x,2", "1,a,y,2"), group_by=("task",)
    )
    assert "tsk: no row has this column" in issue_of(read, table, group_by=("tsk",))


@pytest.mark.parametrize(
    ("content", "name", "labels"),
    [
        ('[{"prompt": "a", "response": "x", "safety": [4, null, 2]}]', "v.json", "safety"),
        ('prompt,response,safety\na,x,"[4, 2]"\n', "v.csv", "safety"),
        ("prompt,response,s1,s2,s3\na,x,4,,2\n", "w.csv", ("s1", "s2", "s3")),
        (
            '{"prompt": "a", "response": "x", "m": {"s": [{"value": 4}, {"value": 2}]}}',
            "d.jsonl",
            "m.s.value",
        ),
        ('{"prompt": "a", "response": "x", "m": {"s": [{"v": 4}, {"v": 2}]}}', "d.jsonl", "m.s.*.v"),
        (
            '{"prompt": "a", "response": "x", "m": [{"value": 4, "user_id": "u"}, {"value": 2}, '
            '{"value": 1, "status": "draft"}]}',
            "d.jsonl",
            "m",
        ),
    ],
)
def test_votes_in_lists_and_columns(read, content, name, labels):
    ratings, summary = read(content, name, {"safety": LabelMapping(column=labels)})
    assert labels_of(ratings) == [3.0]
    assert summary.labels["safety"].num_votes == 2


def test_index_in_a_dotted_path(read):
    row = '{"q": {"text": "a"}, "response": "x", "scores": [{"value": 4}, {"value": 2}]}'
    columns = ColumnNames(prompt="q.text")
    ratings, _ = read(row, "d.jsonl", {"safety": "scores.1.value"}, columns=columns)
    assert labels_of(ratings) == [2.0]
    assert ratings[0].prompt.messages[0].content == "a"


def test_repeated_rows_without_a_rater_key_are_told(read):
    columns = ColumnNames(prompt="q", response="answer")
    (warning,) = read(VOTES.replace("who", "Worker ID"), columns=columns)[1].warnings
    assert "4 rows rate 2 responses" in warning
    assert "columns: {rater: Worker ID}" in warning
    (warning,) = read(VOTES.replace("who", "colour"), columns=columns)[1].warnings
    assert "group_by: [prompt, response]" in warning


def test_raters_without_votes_have_no_effect(read):
    assert "raters: has no effect" in issue_of(read, LIKERT, raters="median")


def test_usual_spellings_of_missing_are_told_once(read):
    ratings, summary = read(LIKERT + "p,r,N/A\np,r,n/a\np,r,N/A\np,r,-\n")
    assert len(ratings) == 17
    assert [note.partition("r.csv")[2] for note in summary.notes] == [
        ':19: safety: 2 cells are "N/A", read as not rated; the first is in this line',
        ':20: safety: 1 cell is "n/a", read as not rated; the first is in this line',
        ':22: safety: 1 cell is "-", read as not rated; the first is in this line',
    ]
    assert summary.labels["safety"].num_missing == 4


def test_missing_and_map(read):
    table = "prompt,response,safety\na,x,4 - good\nb,y,skip\nc,z,1 - bad\n"
    mapping = LabelMapping(column="safety", missing=("skip",), value_map={"4 - good": 4, "1 - bad": 1})
    assert labels_of(read(table, labels={"safety": mapping})[0]) == [4.0, 1.0]
    assert issue_of(read, table.replace("skip", "2 - meh")) == (
        'r.csv:2: safety: "4 - good" is not a number (and 2 more rows, such as 2 - meh, 1 - bad, to line 4); '
        'fix: map: {"1 - bad": 1, "2 - meh": 2, "4 - good": 4}'
    )
    unused = LabelMapping(column="safety", missing=(-9,))
    assert "labels.safety.missing: no cell has the value -9" in issue_of(
        read, LIKERT, labels={"safety": unused}
    )


@pytest.mark.parametrize(
    ("codes", "problem"),
    [
        (["-1"] * 7, "17 of 24 values are 1 to 5, 7 are -1"),
        (["99"], "17 of 18 values are 1 to 5, 1 is 99"),
        (["9", "9"], "17 of 19 values are 1 to 5, 2 are 9"),
        (["-8", "-9"], "17 of 19 values are 1 to 5, 2 are -9, -8"),
        (["55"], "17 of 18 values are 1 to 5, 1 is 55"),
        (["-40"], "17 of 18 values are 1 to 5, 1 is -40"),
    ],
)
def test_codes_among_ratings_are_asked_about(read, codes, problem):
    table = LIKERT + "".join(f"p,r,{code}\n" for code in codes)
    values = tuple(map(int, dict.fromkeys(codes)))
    listed = ", ".join(map(str, sorted(values)))
    assert issue_of(read, table) == (
        f"r.csv:19: safety: {problem}; the first is in this line; fix: under labels, write safety: "
        f"{{missing: [{listed}]}} if not rated, or safety: {{keep: [{listed}]}} if real; "
        "else correct the file"
    )
    rated = LabelMapping(column="safety", missing=values)
    assert len(read(table, labels={"safety": rated})[0]) == 17
    kept = LabelMapping(column="safety", keep=values)
    assert len(read(table, labels={"safety": kept})[0]) == 17 + len(codes)


@pytest.mark.parametrize("scale", [[-2, -1, 0, 1, 2], [-1, 0, 1], [-3, -2, -1, 1, 2, 3], [0, 1, 2, 3, 9.5]])
def test_scales_of_their_own_are_not_asked_about(read, scale):
    table = "prompt,response,safety\n" + "".join(f"p{i},r{i},{scale[i % len(scale)]}\n" for i in range(40))
    assert len(read(table)[0]) == 40


@pytest.mark.parametrize(
    "table",
    [
        "prompt;response;safety\na, or b;x;3,5\n",
        "prompt\tresponse\tsafety\na, or b\tx\t3.5\n",
        "sep=;\r\nprompt;response;safety\r\na, or b;x;3,5\r\n",
        '"sep=,"\nprompt,response,safety\n"a, or b",x,3.5\n',
        "\ufeffprompt;response;safety\na, or b;x;3.5\n",
        'prompt;response;"safety, in points"\na, or b;x;3,5\n',
    ],
)
def test_csv_with_other_delimiters_is_read(read, table):
    (rating,), summary = read(
        table, labels={"safety": "safety, in points" if "points" in table else "safety"}
    )
    assert rating.prompt.messages[0].content == "a, or b"
    assert rating.labels == {"safety": 3.5}
    assert any("decimal comma" in note for note in summary.notes) == ("3,5" in table)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        (
            "l.json",
            '{"prompt": "a", "response": "x", "safety": 1}\n{"prompt": "b", "response": "y", "safety": 2}\n',
        ),
        (
            "p.json",
            '{"prompt": {"0": "a", "1": "b"}, "response": {"0": "x", "1": "y"}, "safety": {"0": 1, "1": 2}}',
        ),
        ("d.json", '{"prompt": ["a", "b"], "response": ["x", "y"], "safety": [1, 2]}'),
        (
            "w.json",
            '{"version": 1, "data": [{"prompt": "a", "response": "x", "safety": 1}, '
            '{"prompt": "b", "response": "y", "safety": 2}]}',
        ),
        (
            "j.jsonl",
            '[\n{"prompt": "a", "response": "x", "safety": 1},\n'
            '{"prompt": "b", "response": "y", "safety": 2}\n]',
        ),
    ],
)
def test_json_is_read_as_what_it_is(read, name, content):
    assert labels_of(read(content, name)[0]) == [1.0, 2.0]


def test_text_file_has_one_prompt_per_line(tmp_path):
    (tmp_path / "p.txt").write_text("How?\n\n  Why, then?\n", encoding="utf-8-sig")
    prompts = read_prompts(tmp_path / "p.txt")
    assert [(p.messages[0].content, p.id) for p in prompts] == [
        ("How?", "p.txt:1"),
        ("  Why, then?", "p.txt:3"),
    ]


def test_a_column_of_votes_that_no_row_has_is_a_mistake(tmp_path):
    (tmp_path / "w.csv").write_text("prompt,response,s1,s2,s3\na,x,1,2,3\nb,y,2,3,4\n")
    labels = {"safety": LabelMapping(column=("s1", "s2", "saftey3"))}
    with pytest.raises(DataError, match='no row has a label "saftey3"'):
        read_ratings(tmp_path / "w.csv", labels=labels)
