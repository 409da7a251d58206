"""Numbers and missing values that spreadsheets and data frames write as other texts."""

import json
import os

import pytest

from paretune.core.errors import DataError
from paretune.data.columns import ColumnNames, LabelMapping
from paretune.data.raters import ReadSummary
from paretune.data.readers import read_demonstrations, read_preference_pairs, read_prompts, read_ratings


@pytest.fixture
def read(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def _read(content, name="r.csv", reader=read_ratings, **options):
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
        if reader is read_ratings:
            options.setdefault("labels", {"safe": "safe"})
        return reader(name, **options)

    return _read


def labelled(cells, delimiter=";", other="1"):
    rows = (f"p{delimiter}r{i}{delimiter}{cell}{delimiter}{other}\n" for i, cell in enumerate(cells))
    return delimiter.join(["prompt", "response", "safe", "price\n"]) + "".join(rows)


def labels(ratings):
    return [rating.labels["safe"] for rating in ratings]


@pytest.mark.parametrize(
    ("cells", "other", "numbers"),
    [
        (["1.250", "300,5"], "1", [1250, 300.5]),
        (["300,5", "-1.250", "900"], "1", [300.5, -1250, 900]),
        (["1.250,75", "2.500"], "1", [1250.75, 2500]),
        (["1.250.000", "2.500"], "1", [1250000, 2500]),
        (["1,250", "0,5"], "1", [1.25, 0.5]),
        (["0.125", "3,5"], "1", [0.125, 3.5]),  # no thousands begin with 0
        (["1.250", "2.125"], "1", [1.25, 2.125]),  # no commas anywhere
        (["1.250", "2.5"], "3,5", [1.25, 2.5]),
        (["1,250", "2"], "3,5", [1.25, 2]),
    ],
)
@pytest.mark.parametrize("delimiter", [";", "\t"])
def test_separators_of_thousands_are_told_by_the_other_numbers_of_the_file(
    read, cells, other, numbers, delimiter
):
    assert labels(read(labelled(cells, delimiter, other))) == numbers


@pytest.mark.parametrize(
    ("cells", "other", "readings"),
    [
        (["3", "1.250", "2.5", "3,5"], "1", '"1.250" may be 1250 or 1.25'),
        (["3", "1.125", "900"], "3,5", '"1.125" may be 1125 or 1.1250'),
        (["3", "5,000"], "1", '"5,000" may be 5000 or 5:'),
        (["3", "1,250", "2.5"], "3,5", '"1,250" may be 1250 or 1.25'),
    ],
)
def test_separators_that_cannot_be_told_are_refused_with_both_readings(read, cells, other, readings):
    with pytest.raises(DataError) as caught:
        read(labelled(cells, other=other))
    assert str(caught.value).startswith(f"r.csv:3: safe: {readings}")


def test_numbers_with_dots_between_thousands_are_noted_and_a_map_decides_the_others(read):
    summary = ReadSummary()
    read(labelled(["1.250", "300,5"]), summary=summary)
    assert 'r.csv:2: safe: 1 number has dots between thousands: "1.250" is read as 1250' in summary.notes
    mapping = LabelMapping(column="safe", value_map={"5,000": 5})
    assert labels(read(labelled(["3", "5,000"]), labels={"safe": mapping})) == [3, 5]


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        (
            "3;2;1",
            '"3;2;1" is several numbers in one cell; fix: write votes as a list, "[3, 2, 1]", or',
        ),
        ("5|1|4.5", '"5|1|4.5" is several numbers'),
        ("5 4", '"5 4" is several numbers'),
        ("5,1,1", '"5,1,1" is several numbers'),
        ("5,000", '"5,000" may be 5000 or 5'),
        ("1,234,567", '"1,234,567" has separators between thousands; fix: write 1234567'),
        ("1,234.5", "fix: write 1234.5"),
        ("1.234,5", "fix: write 1234.5"),
        ("1'250", "fix: write 1250"),
        ("05/05/2024", '"05/05/2024" is a date'),
        ("2024-05-05 00:00:00", "is a date"),
        ("5-May", '"5-May" is a date'),
        ("May 5", "is a date"),
        ("04. Mai", "is a date"),
        ("80 %", '"80 %" is a percentage'),
        ("80 percent", "is a percentage"),
        ("4/5", "is a fraction"),
        ("4-5", '"4-5" is not a number; fix: missing: ["4-5"] if not rated, or map: {"4-5": NUMBER}'),
        ("5 out of 10", 'map: {"5 out of 10": NUMBER}'),
    ],
)
def test_no_map_is_proposed_from_the_first_digits_of_a_text_with_more(read, cell, message):
    with pytest.raises(DataError) as caught:
        read(labelled(["3", f'"{cell}"', f'"{cell}"'], ","))
    assert str(caught.value).startswith(f'r.csv:3: safe: "{cell}"')
    assert message in str(caught.value).replace(" (and 1 more row, to line 4)", "")
    assert "NUMBER" in str(caught.value) or "map:" not in str(caught.value)


def scored(**row):
    return json.dumps({"prompt": "p", "response": "r", **row}) + "\n"


def test_a_column_and_a_key_of_scores_that_differ_are_refused_until_one_is_named(read):
    rows = scored(safe=5, scores={"safe": 1}) + scored(safe=3, scores={"safe": "3.0"}) + scored(safe=2)
    with pytest.raises(
        DataError, match=r'r.jsonl:1: safe: "5" here, and "1" in scores.safe; fix: write from:'
    ):
        read(rows, "r.jsonl")
    assert labels(read(rows, "r.jsonl", labels={"safe": "scores.safe"})) == [1, 3]
    assert labels(read(rows, "r.jsonl", columns=ColumnNames(scores="-"))) == [5, 3, 2]
    assert labels(read(scored(safe=[1, 2], scores={"safe": [1, 2]}), "r.jsonl")) == [1.5]


@pytest.mark.parametrize("word", ["nan", "None", "NaN", "null", "<NA>"])
def test_prompts_that_are_missing_values_as_text_are_refused_with_a_count(read, word):
    with pytest.raises(DataError) as caught:
        read(f"prompt\nhi\n{word}\n{word}\n", reader=read_prompts)
    assert str(caught.value) == (
        f'r.csv:3: prompt: 2 prompts are "{word}", a missing value written as text; the first is in this '
        "line; fix: delete these rows, in pandas with dropna() before astype(str)"
    )


def test_several_responses_that_are_missing_values_are_refused_and_a_single_one_is_warned_of(read):
    table = "prompt,response,safe\n"
    with pytest.raises(DataError, match=r'r.csv:2: response: 2 responses are "nan" or "None"'):
        read(f"{table}a,nan,3\nb,None,2\n")
    summary = ReadSummary()
    assert len(read(f"{table}a,None,3\na,None,2\nb,none of them,1\n", summary=summary)) == 3
    assert any('r.csv:2: response: the response is "None"' in line for line in summary.warnings)
    with pytest.raises(DataError, match="rejected: 2 responses are"):
        read("prompt,chosen,rejected\na,x,nan\nb,y,nan\n", reader=read_preference_pairs, objective="safe")
    with pytest.raises(DataError, match="prompt: 1 prompt is"):
        read("prompt,response\nnan,x\n", reader=read_demonstrations)


@pytest.mark.parametrize(
    ("content", "name", "message"),
    [
        (b"\xef\xbb\xbf\n<!DOCTYPE html><html>Sign in", "r.csv", "r.csv: an HTML page, not a data file"),
        (b"<HTML>", "r.jsonl", "an HTML page"),
        (b"<!doctype html>", "r.parquet", "an HTML page"),
        (b"PK\x03\x04\x14\x00", "r.csv", "a zip archive, as Excel workbooks are"),
        (b"PK\x03\x04\x14\x00", "r.xlsx", "fix: save the sheet as CSV UTF-8"),
        (b"\x1f\x8b\x08\x00", "r.csv", "compressed with gzip; fix: end its name with .gz"),
        (b"PAR1\x15\x04", "r.jsonl", "a Parquet file; fix: end its name with .parquet"),
    ],
)
def test_files_of_another_kind_are_told_by_their_first_bytes(read, content, name, message):
    with pytest.raises(DataError) as caught:
        read(content, name)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_devices_and_folders_are_no_files(tmp_path):
    with pytest.raises(DataError, match="zero: is a device or a pipe, not a file"):
        read_prompts("/dev/zero")
    os.mkfifo(tmp_path / "p.csv")
    with pytest.raises(DataError, match="is a device or a pipe"):
        read_prompts(tmp_path / "p.csv")
    with pytest.raises(DataError, match="is a folder"):
        read_prompts(tmp_path)
