"""Error messages for bad rows."""

import json

import pytest

from paretune.core.errors import DataError
from paretune.data.columns import ColumnNames, LabelMapping
from paretune.data.readers import read_demonstrations, read_preference_pairs, read_prompts, read_ratings

MESSAGES = 'write "text" or [{"role": "user", "content": "text"}]'
NOT_RATED = '"{0}" is not a number; fix: missing: ["{0}"] if not rated, or map: {{"{0}": NUMBER}}'
MESSAGE = 'write {"role": "user", "content": "..."}'
POLITE = {"labels": {"politeness": "polite"}}
HELPFUL = {"objective": "helpful"}

CASES = [
    (
        "all bad rows of a prompts file",
        read_prompts,
        "a.jsonl",
        '{"prompt": "fine"}\n{"prompt": \n[1]\n\n{"promt": "x"}\n{"prompt": 3}\n{"prompt": ""}\n'
        '{"prompt": [{"role": "human", "content": "x"}]}\n{"prompt": [{"from": "human", "value": "x"}]}\n'
        '{"prompt": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}\n'
        '{"prompt": "\\ud800"}\n{"prompt": ["x"]}\n{"prompt": null}\n'
        '{"prompt": [{"role": "user", "content": 7}]}\n',
        {},
        [
            "a.jsonl:2:12: invalid JSON: Expecting value; fix: write one JSON object per line",
            'a.jsonl:3:1: a list, not an object; fix: write one {"prompt": ..., ...} per line',
            'a.jsonl:5: prompt: no such column; this row has promt; did you mean "promt"?; '
            'fix: name it under columns: {prompt: ...}, or "-" if there is none',
            f"a.jsonl:6: prompt: a number, not text or a list of messages; fix: {MESSAGES}",
            "a.jsonl:7: prompt: empty; fix: write a prompt, or delete the row",
            'a.jsonl:8: prompt[0].role: unknown role "human"; did you mean "user"?; '
            "fix: use system, user, assistant, tool, developer",
            "a.jsonl:10: prompt: the prompt ends with an assistant message; fix: end it with a user message",
            "a.jsonl:11: prompt: contains an unpaired surrogate; fix: write the whole character",
            f"a.jsonl:12: prompt[0]: text, not a message; fix: {MESSAGE}",
            'a.jsonl:13: prompt: null; fix: name it under columns: {prompt: ...}, or "-" if there is none',
            'a.jsonl:14: prompt[0].content: a number, not text; fix: write it as "text"',
        ],
    ),
    (
        "bad labels and bad responses",
        read_ratings,
        "r.jsonl",
        '{"prompt":"a","response":"b","scores":{"x":"high"}}\n'
        '{"prompt":"a","response":"b","scores":{"x":1e999}}\n'
        '{"prompt":"a","response":"b","scores":[1]}\n{"prompt":"a","response":"b","scores":{"x":[[1]]}}\n'
        '{"prompt":"a","response":" ","scores":{"x":1}}\n{"prompt":"a","answer":"b","scores":{"x":1}}\n'
        '{"prompt":"a","completion":[{"role":"user","content":"b"}],"scores":{"x":1}}\n'
        '{"prompt":"a","response":"b","scores":{"x":"3,5"}}\n',
        {},
        [
            f"r.jsonl:1: scores.x: {NOT_RATED.format('high')}",
            "r.jsonl:2: scores.x: infinite, or too large for a number; fix: write a finite number",
            'r.jsonl:3: scores: a list, not an object; fix: write {"politeness": 0.7}',
            "r.jsonl:4: scores.x: a list, not a number; fix: write a number, or null if not labelled",
            "r.jsonl:5: response: empty response; fix: write a response, or delete the row",
            "r.jsonl:6: response: no such column; this row has prompt, answer, scores; "
            "fix: name it under columns: {response: answer}",
            "r.jsonl:7: completion: expected one assistant message, got user; "
            "fix: move the others into the prompt",
            'r.jsonl:8: scores.x: "3,5" has a decimal comma; '
            "fix: write 3.5; only a file with semicolons may have such numbers",
        ],
    ),
    (
        "CSV line numbers after a cell with a line break",
        read_ratings,
        "r.csv",
        'prompt,response,polite\na,b,3\na,"b\nc",x\na,,3\na,b\n"a",b,inf\n"a",b,\n',
        POLITE,
        [
            f"r.csv:3: polite: {NOT_RATED.format('x')}",
            "r.csv:5: response: empty response; fix: write a response, or delete the row",
            'r.csv:6: 2 cells, but the header has 3; fix: put cells with commas or line breaks in "quotes"',
            "r.csv:7: polite: infinite, or too large for a number; fix: write a finite number",
        ],
    ),
    (
        "several bad labels in a row, and labels outside float32",
        read_ratings,
        "r.csv",
        "prompt,response,polite,kind,brief\na,b,x,1e39,3\na,b,-1e39,4,y\na,b,9e17,1,2\n",
        {"labels": {"politeness": "polite", "kindness": "kind", "brevity": "brief"}},
        [
            f"r.csv:2: polite: {NOT_RATED.format('x')}",
            "r.csv:2: kind: 1e+39 is too large for training in float32 (up to 1e+18); "
            "fix: write a smaller number, or leave it empty if not labelled",
            "r.csv:3: polite: -1e+39 is too large for training in float32 (up to 1e+18); "
            "fix: write a smaller number, or leave it empty if not labelled",
            f"r.csv:3: brief: {NOT_RATED.format('y')}",
        ],
    ),
    (
        "an unknown label comes first",
        read_ratings,
        "r.csv",
        "prompt,response,polite\na,,3\na,b,4\n",
        {"labels": {"politeness": "polit"}},
        [
            'r.csv: labels.politeness: no row has a label "polit"; found prompt, response, polite; '
            'did you mean "polite"?; fix: name a key of `scores`, or a column',
            "r.csv:2: response: empty response; fix: write a response, or delete the row",
        ],
    ),
    (
        "a label column that is empty in every row",
        read_ratings,
        "r.csv",
        "prompt,response,polite,kind\na,b,3,\n",
        {"labels": {"politeness": "polite", "kindness": "kind"}},
        [
            "r.csv: labels.kindness: every cell of kind is empty; "
            "fix: name another column, or remove the label"
        ],
    ),
    (
        "a CSV without configured labels",
        read_ratings,
        "r.csv",
        "prompt,response,polite\na,b,3\n",
        {},
        [
            "r.csv:2: scores: no such column; this row has prompt, response, polite; "
            "fix: name the label columns under labels: {politeness: COLUMN}"
        ],
    ),
    (
        "a duplicate column",
        read_ratings,
        "r.csv",
        "prompt,prompt,polite\na,b,3\n",
        POLITE,
        ["r.csv:1: prompt: duplicate column; fix: rename one"],
    ),
    (
        "an open quote",
        read_ratings,
        "r.csv",
        'prompt,response,polite\na,"b,3\na,b,1\n',
        POLITE,
        [
            "r.csv:3: invalid CSV: unexpected end of data; "
            'fix: close every "quote", and double quotes inside a cell'
        ],
    ),
    (
        "pairs",
        read_preference_pairs,
        "p.jsonl",
        '{"prompt":"a","chosen":"b","rejected":"b"}\n{"prompt":"a","chosen":"b"}\n'
        '{"prompt":"a","chosen":"b","rejected":""}\n{"prompt":"a","chosen":"b","rejected":2}\n'
        '{"chosen":[{"role":"user","content":"q"},{"role":"assistant","content":"b"}],'
        '"rejected":[{"role":"user","content":"q"}]}\n'
        '{"chosen":"the same","rejected":"the same"}\n',
        HELPFUL,
        [
            "p.jsonl:1: chosen: equal to rejected (and 1 more row, to line 6); fix: delete the row",
            "p.jsonl:2: rejected: no such column; this row has prompt, chosen; "
            "fix: name it under columns: {rejected: ...}",
            "p.jsonl:3: rejected: empty response; fix: write a response, or delete the row",
            f"p.jsonl:4: rejected: a number, not text or a list of messages; fix: {MESSAGES}",
            "p.jsonl:5: chosen: expected one assistant message, got user, assistant; "
            "fix: move the others into the prompt",
        ],
    ),
    (
        "pairs without an objective",
        read_preference_pairs,
        "p.jsonl",
        '{"prompt":"a","chosen":"b","rejected":"c"}\n',
        {},
        [
            "p.jsonl:1: objective: no such column; this row has prompt, chosen, rejected; "
            "fix: set objective: NAME, or name it under columns: {objective: ...}"
        ],
    ),
    (
        "a demonstration without a response",
        read_demonstrations,
        "d.jsonl",
        '{"messages": [{"role": "user", "content": "a"}]}\n{"messages": []}\n',
        {},
        [
            "d.jsonl:1: messages: expected one assistant message, got user; "
            "fix: move the others into the prompt",
            "d.jsonl:2: messages: expected one assistant message, got no message; "
            "fix: move the others into the prompt",
        ],
    ),
    (
        "filters that no row passes",
        read_prompts,
        "w.jsonl",
        '{"prompt":"a","harmful":true,"kind":"bad"}\n{"prompt":"b","harmful":false,"kind":"good"}\n',
        {"where": {"harmfull": True, "kind": ["goood"]}},
        [
            "w.jsonl: where.harmfull: no such column; the columns are prompt, harmful, kind; "
            'did you mean "harmful"?; fix: name a column of the file',
            'w.jsonl: where.kind: no row has goood; the values are bad, good; did you mean "good"?; '
            "fix: name a value of the column",
        ],
    ),
    (
        "filters that no row passes together",
        read_prompts,
        "w.jsonl",
        '{"prompt":"a","harmful":true,"kind":"bad"}\n{"prompt":"b","harmful":false,"kind":"good"}\n',
        {"where": {"harmful": True, "kind": "good"}},
        ["w.jsonl: the filters exclude all 2 rows; fix: loosen them"],
    ),
]

KEYS = ("read", "name", "content", "options", "expected")


def issues_of(read, path, **options):
    with pytest.raises(DataError) as caught:
        read(path, **options)
    return str(caught.value).split("\n")


@pytest.mark.parametrize(KEYS, [c[1:] for c in CASES], ids=[c[0] for c in CASES])
def test_bad_rows_give_one_message_each(tmp_path, monkeypatch, read, name, content, options, expected):
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    assert issues_of(read, name, **options) == expected


def test_first_twenty_issues_are_listed_and_the_rest_counted(tmp_path):
    path = tmp_path / "many.jsonl"
    labels = {f"x{i}": f"x{i}" for i in range(50)}
    path.write_text(json.dumps({"prompt": "a", "response": "b"} | {f"x{i}": "high" for i in range(50)}))
    lines = issues_of(read_ratings, path, labels=labels)
    assert len(lines) == 21
    assert lines[0].startswith(f"{path}:1: x0: ")
    assert lines[-1] == "... and 30 more"


def test_issues_of_one_kind_are_one_line_with_a_count(tmp_path):
    path = tmp_path / "many.jsonl"
    path.write_text("".join(f'{{"prompt": {i}}}\n' for i in range(50)) + '{"prompt": ""}\n' * 2)
    assert issues_of(read_prompts, path) == [
        f"{path}:1: prompt: a number, not text or a list of messages (and 49 more rows, to line 50); "
        f"fix: {MESSAGES}",
        f"{path}:51: prompt: empty (and 1 more row, to line 52); fix: write a prompt, or delete the row",
    ]


def test_column_missing_in_every_row_is_reported_once(tmp_path):
    path = tmp_path / "many.jsonl"
    rows = "".join(f'{{"promt": "{i}", "answer": "b"}}\n' for i in range(3000))
    path.write_text(rows)
    fix = 'name it under columns: {prompt: ...}, or "-" if there is none'
    problem = "no row has this column; the columns are promt, answer"
    issue = f'{path}: prompt: {problem}; did you mean "promt"?; fix: {fix}'
    assert issues_of(read_prompts, path) == [issue]
    path.write_text(rows + "{\n")
    assert issues_of(read_prompts, path)[:1] == [issue], "a line that is no JSON is no row"
    assert len(issues_of(read_prompts, path)) == 2
    path.write_text(rows + '{"prompt": "a"}\n')
    (line,) = issues_of(read_prompts, path)
    assert "(and 2999 more rows, to line 3000)" in line, "one row has it"


def test_label_range_is_checked_after_scaling(tmp_path):
    path = tmp_path / "r.jsonl"
    path.write_text('{"prompt": "a", "response": "b", "x": 1e39}\n')
    (small,) = read_ratings(path, labels={"x": LabelMapping(column="x", scale=1e-39)})
    assert small.labels["x"] == pytest.approx(1.0)
    assert (
        "1e+41 is too large for training in float32"
        in issues_of(read_ratings, path, labels={"x": LabelMapping(column="x", scale=100.0)})[0]
    )


def test_categories_are_free_text(tmp_path):
    path = tmp_path / "k.jsonl"
    path.write_text('{"prompt": "a", "of": "harmful"}\n{"prompt": "b", "of": "harmfull"}\n')
    columns = ColumnNames(category="of")
    assert [prompt.category for prompt in read_prompts(path, columns=columns)] == ["harmful", "harmfull"]
    assert read_prompts(path, columns=columns, category="all")[1].category == "all"


def test_control_characters_are_escaped_in_messages(tmp_path):
    path = tmp_path / "evil.jsonl"
    path.write_text('{"pro\\u001b[2Jmpt\\n": "x"}\n{"prompt": [{"role": "us\\ner", "content": "x"}]}\n')
    first, second = issues_of(read_prompts, path)
    assert "pro\\u001b[2Jmpt\\u000a" in first
    assert 'unknown role "us\\u000aer"' in second


def test_unknown_reader_option_is_an_error(tmp_path):
    with pytest.raises(TypeError, match="unknown reader option: colums"):
        read_prompts(tmp_path / "x.jsonl", colums=None)
