"""Exports of annotation tools and published data sets, read by the name of their format."""

import json

import pytest

from paretune.core.errors import DataError
from paretune.data.columns import ColumnNames
from paretune.data.raters import ReadSummary
from paretune.data.readers import read_demonstrations, read_preference_pairs, read_prompts, read_ratings

ULTRAFEEDBACK = {
    "instruction": "How?",
    "completions": [
        {"model": "m", "response": "So.", "overall_score": 7.5, "annotations": {"honesty": {"Rating": "4"}}},
        {"model": "n", "response": "No.", "overall_score": 2, "annotations": {"honesty": {"Rating": "N/A"}}},
    ],
}
PKU = {
    "prompt": "How?",
    "response_0": "So.",
    "response_1": "No.",
    "is_response_0_safe": False,
    "is_response_1_safe": True,
    "better_response_id": 0,
    "safer_response_id": 1,
}
NECTAR = {
    "prompt": "\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: How?\n\nAssistant: ",
    "answers": [
        {"answer": "So.", "rank": 1.0},
        {"answer": "No.", "rank": 3.0},
        {"answer": "Eh.", "rank": 3.0},
    ],
}
HELPSTEER2 = {
    "prompt": "Hi\n<extra_id_1>Assistant\nHello\n<extra_id_1>User\nHow?",
    "response": "So.",
    "helpfulness": 3,
    "response_1": "So.",
    "response_2": "No.",
    "preference_strength": -2,
}
HELPSTEER3 = {
    "context": [{"role": "user", "content": "How?"}],
    "response1": "No.",
    "response2": "So.",
    "overall_preference": 3,
}
ARGILLA = {
    "fields": {"prompt": "How?", "response": "So."},
    "responses": {
        "helpful": [
            {"value": 5, "user_id": "u", "status": "submitted"},
            {"value": 2, "user_id": "v", "status": "submitted"},
            {"value": 1, "user_id": "w", "status": "draft"},
        ]
    },
}
ARGILLA_1 = {
    "fields": {"prompt": "How?", "response": "So."},
    "responses": [
        {"user_id": "u", "status": "submitted", "values": {"helpful": {"value": 5}}},
        {"user_id": "v", "status": "submitted", "values": {"helpful": {"value": 2}}},
        {"user_id": "w", "status": "discarded", "values": {"helpful": {"value": 1}}},
    ],
}
ARGILLA_FLAT = {
    "prompt": "How?",
    "response": "So.",
    "helpful.responses": [5, 2, 1],
    "helpful.responses.users": ["u", "v", "w"],
    "helpful.responses.status": ["submitted", "submitted", "draft"],
}
LABEL_STUDIO = {
    "data": {"prompt": "How?", "response": "So."},
    "annotations": [
        {"completed_by": 1, "result": [{"from_name": "helpful", "value": {"rating": 5}}]},
        {"completed_by": {"id": 2}, "result": [{"from_name": "helpful", "value": {"choices": ["2"]}}]},
        {"completed_by": 3, "was_cancelled": True, "result": []},
    ],
}
DISTILABEL = {"instruction": "How?", "generations": ["So.", None, "No."], "ratings": [5, None, 2]}
SHAREGPT = {
    "system": "Be brief.",
    "conversations": [{"from": "human", "value": "How?"}, {"from": "gpt", "value": "So."}],
    "helpful": 5,
}


@pytest.fixture
def file(tmp_path):
    """Writes rows as JSON lines, and returns the path."""

    def write(*rows):
        path = tmp_path / "r.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return path

    return write


@pytest.mark.parametrize(
    ("export", "row", "label", "expected"),
    [
        ("ultrafeedback", ULTRAFEEDBACK, "overall_score", [("So.", 7.5), ("No.", 2.0)]),
        ("ultrafeedback", ULTRAFEEDBACK, "honesty", [("So.", 4.0)]),
        ("pku_saferlhf", PKU, "safe", [("So.", 0.0), ("No.", 1.0)]),
        ("nectar", NECTAR, "rank", [("So.", 1.0), ("No.", 3.0), ("Eh.", 3.0)]),
        ("helpsteer2", HELPSTEER2, "helpfulness", [("So.", 3.0)]),
        ("argilla", ARGILLA, "helpful", [("So.", 3.5)]),
        ("argilla", ARGILLA_1, "helpful", [("So.", 3.5)]),
        ("argilla", ARGILLA_FLAT, "helpful", [("So.", 3.5)]),
        ("label_studio", LABEL_STUDIO, "helpful", [("So.", 3.5)]),
        ("distilabel", DISTILABEL, "ratings", [("So.", 5.0), ("No.", 2.0)]),
        ("sharegpt", SHAREGPT, "helpful", [("So.", 5.0)]),
    ],
)
def test_ratings_of_named_exports(file, export, row, label, expected):
    summary = ReadSummary()
    ratings = read_ratings(file(row), labels={"x": label}, format=export, summary=summary)
    assert [(rating.response, rating.labels["x"]) for rating in ratings] == expected
    assert {rating.prompt.messages[-1].content for rating in ratings} == {"How?"}
    if expected == [("So.", 3.5)]:
        assert (summary.labels["x"].num_votes, summary.labels["x"].num_raters) == (2, 2)


@pytest.mark.parametrize(
    ("export", "row", "expected"),
    [
        ("helpsteer2", HELPSTEER2, [("So.", "No.")]),
        ("helpsteer3", HELPSTEER3, [("So.", "No.")]),
        ("nectar", NECTAR, [("So.", "No."), ("So.", "Eh.")]),
        ("distilabel", DISTILABEL, [("So.", "No.")]),
    ],
)
def test_pairs_of_named_exports(file, export, row, expected):
    pairs = read_preference_pairs(file(row), objective="x", format=export)
    assert [(pair.chosen, pair.rejected) for pair in pairs] == expected


def test_two_comparisons_of_a_row_are_told_apart(file):
    path = file(PKU)
    pairs = read_preference_pairs(path, format="pku_saferlhf")
    assert [(pair.objective, pair.chosen) for pair in pairs] == [("better", "So."), ("safer", "No.")]
    (pair,) = read_preference_pairs(
        path, format="pku_saferlhf", objective="safety", where={"comparison": "safer"}
    )
    assert (pair.objective, pair.chosen) == ("safety", "No.")
    with pytest.raises(DataError, match=r"compares by two criteria.*where: \{comparison: safer\}"):
        read_preference_pairs(path, format="pku_saferlhf", objective="safety")


def test_turns_of_a_prompt_are_told_apart(file):
    for export, row in (("helpsteer2", HELPSTEER2), ("nectar", NECTAR)):
        (prompt,) = read_prompts(file(row), format=export)
        assert [(m.role, m.content) for m in prompt.messages] == [
            ("user", "Hi"),
            ("assistant", "Hello"),
            ("user", "How?"),
        ]


def test_sharegpt_turns_are_read_without_a_format(file):
    row = {key: SHAREGPT[key] for key in ("conversations", "helpful")}
    (demonstration,) = read_demonstrations(file(row))
    assert (demonstration.prompt.messages[0].content, demonstration.response) == ("How?", "So.")
    pair = {"conversations": [{"from": "human", "value": "How?"}]}
    pair |= {"chosen": {"from": "gpt", "value": "So."}, "rejected": {"from": "gpt", "value": "No."}}
    (read,) = read_preference_pairs(file(pair), objective="x", format="sharegpt")
    assert (read.chosen, read.rejected) == ("So.", "No.")


@pytest.mark.parametrize(
    ("export", "row"),
    [("ultrafeedback", ULTRAFEEDBACK), ("argilla", ARGILLA), ("label_studio", LABEL_STUDIO)],
)
def test_export_without_its_format_is_recognized(file, export, row):
    with pytest.raises(DataError, match=f"fix: write format: {export}"):
        read_demonstrations(file(row, row))


@pytest.mark.parametrize(
    "row", [{"a": 1}, {**ULTRAFEEDBACK, "completions": [3]}, {**ARGILLA, "responses": {"q": [1]}}]
)
def test_rows_of_another_form_are_one_line(file, row):
    for export in ("ultrafeedback", "argilla", "label_studio", "distilabel", "nectar", "pku_saferlhf"):
        with pytest.raises(DataError) as caught:
            read_ratings(file(row), labels={"x": "x"}, format=export, columns=ColumnNames(prompt="prompt"))
        assert str(caught.value).count("r.jsonl") <= 2


def test_export_without_this_kind_of_record_is_refused(file):
    with pytest.raises(DataError, match=r"format: ultrafeedback holds no pairs; fix: "):
        read_preference_pairs(file(ULTRAFEEDBACK), objective="x", format="ultrafeedback")


@pytest.mark.parametrize(
    ("export", "row", "num_pairs"),
    [
        ("distilabel", {"instruction": "a", "generations": ["x", "y"], "ratings": [float("nan"), 3]}, 0),
        ("distilabel", {"instruction": "a", "generations": ["x", "y", "z"], "ratings": [None, 3, 2]}, 1),
        ("helpsteer2", HELPSTEER2 | {"preference_strength": float("nan")}, 0),
    ],
)
def test_a_missing_rating_makes_no_pair(tmp_path, export, row, num_pairs):
    rated = {"instruction": "b", "generations": ["x", "y"], "ratings": [1, 2]}
    other = HELPSTEER2 if export == "helpsteer2" else rated
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(r) + "\n" for r in (row, other)))
    pairs = read_preference_pairs(tmp_path / "p.jsonl", objective="quality", format=export)
    assert len(pairs) == num_pairs + 1
