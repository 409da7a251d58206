"""Bad rows: what a user reads of them, word for word, and always all of it."""

import pytest

from paretune.core.errors import DataError
from paretune.data.columns import REFUSAL_CATEGORIES, ColumnNames, LabelMapping, misspelled_category
from paretune.data.readers import read_demonstrations, read_preference_pairs, read_prompts, read_ratings
from paretune.evaluate.warnings import CATEGORY_LABELS

TURNS = 'write "text" or [{"role": "user", "content": "text"}]'
TURN = 'write {"role": "user", "content": "..."}'
polite = {"labels": {"politeness": "polite"}}
helpful = {"objective": "helpful"}

CASES = [
    (
        "every fault of a prompts file in one error",
        read_prompts,
        "a.jsonl",
        '{"prompt": "fine"}\n{"prompt": \n[1]\n\n{"promt": "x"}\n{"prompt": 3}\n{"prompt": ""}\n'
        '{"prompt": [{"role": "human", "content": "x"}]}\n{"prompt": [{"from": "human", "value": "x"}]}\n'
        '{"prompt": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}\n'
        '{"prompt": "\\ud800"}\n{"prompt": ["x"]}\n{"prompt": null}\n'
        '{"prompt": [{"role": "user", "content": 7}]}\n',
        {},
        [
            "a.jsonl:2:12: broken JSON: Expecting value; fix: one JSON object a line",
            'a.jsonl:3:1: a list, not an object; fix: write {"prompt": ..., ...} on every line',
            'a.jsonl:5: prompt: no such column; this row has promt; did you mean "promt"?; '
            'fix: name it under columns: {prompt: ...}, or "-" where there is none',
            f"a.jsonl:6: prompt: a number, neither text nor a list of turns; fix: {TURNS}",
            "a.jsonl:7: prompt: empty; fix: write what is to be answered, or delete the row",
            'a.jsonl:8: prompt[0].role: unknown role "human"; did you mean "user"?; '
            "fix: use system, user, assistant",
            f"a.jsonl:9: prompt[0]: an object with from, value, not a turn; fix: {TURN}",
            "a.jsonl:10: prompt: the prompt ends with an assistant turn; fix: end it with a user turn",
            "a.jsonl:11: prompt: holds half of a surrogate pair; fix: write the whole character",
            f"a.jsonl:12: prompt[0]: text, not a turn; fix: {TURN}",
            'a.jsonl:13: prompt: null; fix: name it under columns: {prompt: ...}, or "-" where there is none',
            'a.jsonl:14: prompt[0].content: a number, not text; fix: write it as "text"',
        ],
    ),
    (
        "labels that are no numbers, and responses that are none",
        read_ratings,
        "r.jsonl",
        '{"prompt":"a","response":"b","scores":{"x":"high"}}\n'
        '{"prompt":"a","response":"b","scores":{"x":1e999}}\n'
        '{"prompt":"a","response":"b","scores":[1]}\n{"prompt":"a","response":"b","scores":{"x":[1]}}\n'
        '{"prompt":"a","response":" ","scores":{"x":1}}\n{"prompt":"a","answer":"b","scores":{"x":1}}\n'
        '{"prompt":"a","completion":[{"role":"user","content":"b"}],"scores":{"x":1}}\n'
        '{"prompt":"a","response":"b","scores":{"x":"3,5"}}\n',
        {},
        [
            'r.jsonl:1: scores.x: "high" is not a number; fix: write a number, or nothing for not asked',
            "r.jsonl:2: scores.x: infinite, or too large for a number; fix: write a finite number",
            'r.jsonl:3: scores: a list, not an object; fix: write {"politeness": 0.7}',
            "r.jsonl:4: scores.x: a list, not a number; fix: write a number, or null for not asked",
            "r.jsonl:5: response: an empty response; fix: write a response, or delete the row",
            "r.jsonl:6: response: no such column; this row has prompt, answer, scores; "
            "fix: name it under columns: {response: ...}",
            "r.jsonl:7: completion: one assistant turn expected, but got user; "
            "fix: move the others into the prompt",
            'r.jsonl:8: scores.x: "3,5" is not a number; fix: write a number, or nothing for not asked',
        ],
    ),
    (
        "CSV by line number, also behind a cell of two lines",
        read_ratings,
        "r.csv",
        'prompt,response,polite\na,b,3\na,"b\nc",x\na,,3\na,b\n"a",b,inf\n"a",b,\n',
        polite,
        [
            'r.csv:3: polite: "x" is not a number; fix: write a number, or nothing for not asked',
            "r.csv:5: response: an empty response; fix: write a response, or delete the row",
            "r.csv:6: 2 cells, but the header has 3; "
            'fix: put cells that hold commas or line breaks in "quotes"',
            "r.csv:7: polite: infinite, or too large for a number; fix: write a finite number",
        ],
    ),
    (
        "all bad labels of a row, and what float32 cannot hold",
        read_ratings,
        "r.csv",
        "prompt,response,polite,kind,brief\na,b,x,1e39,3\na,b,-1e39,4,y\na,b,3.4e38,1,2\n",
        {"labels": {"politeness": "polite", "kindness": "kind", "brevity": "brief"}},
        [
            'r.csv:2: polite: "x" is not a number; fix: write a number, or nothing for not asked',
            "r.csv:2: kind: 1e+39 is more than float32 holds (3.4e+38); "
            "fix: write a smaller number, or nothing for not asked",
            "r.csv:3: polite: -1e+39 is more than float32 holds (3.4e+38); "
            "fix: write a smaller number, or nothing for not asked",
            'r.csv:3: brief: "y" is not a number; fix: write a number, or nothing for not asked',
        ],
    ),
    (
        "a label that no row has stands first",
        read_ratings,
        "r.csv",
        "prompt,response,polite\na,,3\na,b,4\n",
        {"labels": {"politeness": "polit"}},
        [
            'r.csv: labels.politeness: no row has a label "polit"; there are prompt, response, polite; '
            'did you mean "polite"?; fix: name an aspect of `scores`, or a column',
            "r.csv:2: response: an empty response; fix: write a response, or delete the row",
        ],
    ),
    (
        "a label column that is empty in every row",
        read_ratings,
        "r.csv",
        "prompt,response,polite,kind\na,b,3,\n",
        {"labels": {"politeness": "polite", "kindness": "kind"}},
        [
            'r.csv: labels.kindness: no row has a label "kind"; there are prompt, response, polite, kind; '
            "fix: name an aspect of `scores`, or a column"
        ],
    ),
    (
        "a CSV without labels named",
        read_ratings,
        "r.csv",
        "prompt,response,polite\na,b,3\n",
        {},
        [
            "r.csv:2: scores: no such column; this row has prompt, response, polite; "
            "fix: say which columns hold labels: {politeness: COLUMN}"
        ],
    ),
    (
        "two columns of one name",
        read_ratings,
        "r.csv",
        "prompt,prompt,polite\na,b,3\n",
        polite,
        ["r.csv:1: prompt: two columns of this name; fix: rename one"],
    ),
    (
        "an open quote",
        read_ratings,
        "r.csv",
        'prompt,response,polite\na,"b,3\na,b,1\n',
        polite,
        [
            "r.csv:3: broken CSV: unexpected end of data; "
            'fix: close every "quote", and double those inside a cell'
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
        helpful,
        [
            "p.jsonl:1: chosen: the same as rejected; fix: delete the row: nobody preferred anything",
            "p.jsonl:2: rejected: no such column; this row has prompt, chosen; "
            "fix: name it under columns: {rejected: ...}",
            "p.jsonl:3: rejected: an empty response; fix: write a response, or delete the row",
            f"p.jsonl:4: rejected: a number, neither text nor a list of turns; fix: {TURNS}",
            "p.jsonl:5: chosen: one assistant turn expected, but got user, assistant; "
            "fix: move the others into the prompt",
            "p.jsonl:6: chosen: the same as rejected; fix: delete the row: nobody preferred anything",
        ],
    ),
    (
        "pairs of no objective",
        read_preference_pairs,
        "p.jsonl",
        '{"prompt":"a","chosen":"b","rejected":"c"}\n',
        {},
        [
            "p.jsonl:1: objective: no such column; this row has prompt, chosen, rejected; "
            "fix: say objective: NAME, or name it under columns: {objective: ...}"
        ],
    ),
    (
        "a demonstration without an answer",
        read_demonstrations,
        "d.jsonl",
        '{"messages": [{"role": "user", "content": "a"}]}\n{"messages": []}\n',
        {},
        [
            "d.jsonl:1: messages: one assistant turn expected, but got user; "
            "fix: move the others into the prompt",
            "d.jsonl:2: messages: one assistant turn expected, but got no turn; "
            "fix: move the others into the prompt",
        ],
    ),
    (
        "filters that nothing passes",
        read_prompts,
        "w.jsonl",
        '{"prompt":"a","harmful":true,"kind":"bad"}\n{"prompt":"b","harmful":false,"kind":"good"}\n',
        {"where": {"harmfull": True, "kind": ["goood"]}},
        [
            "w.jsonl: where.harmfull: no such column; there are prompt, harmful, kind; "
            'did you mean "harmful"?; fix: name a column of the file',
            'w.jsonl: where.kind: no row has goood; there are bad, good; did you mean "good"?; '
            "fix: name a value of the column",
        ],
    ),
    (
        "filters that nothing passes together",
        read_prompts,
        "w.jsonl",
        '{"prompt":"a","harmful":true,"kind":"bad"}\n{"prompt":"b","harmful":false,"kind":"good"}\n',
        {"where": {"harmful": True, "kind": "good"}},
        ["w.jsonl: none of its 2 rows is left; fix: loosen the filters"],
    ),
]

KEYS = ("read", "name", "content", "options", "expected")


def complaints(read, path, **options):
    with pytest.raises(DataError) as caught:
        read(path, **options)
    return str(caught.value).split("\n")


@pytest.mark.parametrize(KEYS, [c[1:] for c in CASES], ids=[c[0] for c in CASES])
def test_bad_rows_are_told_in_full(tmp_path, monkeypatch, read, name, content, options, expected):
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    assert complaints(read, name, **options) == expected


def test_twenty_bad_rows_are_shown_and_the_rest_counted(tmp_path):
    path = tmp_path / "many.jsonl"
    path.write_text("".join(f'{{"prompt": {i}}}\n' for i in range(50)))
    lines = complaints(read_prompts, path)
    assert len(lines) == 21
    assert lines[0].startswith(f"{path}:1: ")
    assert lines[-1] == "... and 30 more"


def test_a_column_that_no_row_has_is_told_once(tmp_path):
    path = tmp_path / "many.jsonl"
    rows = "".join(f'{{"promt": "{i}", "answer": "b"}}\n' for i in range(3000))
    path.write_text(rows)
    fix = 'name it under columns: {prompt: ...}, or "-" where there is none'
    wrong = "no row has such a column; there are promt, answer"
    whole = f'{path}: prompt: {wrong}; did you mean "promt"?; fix: {fix}'
    assert complaints(read_prompts, path) == [whole]
    path.write_text(rows + "{\n")
    assert complaints(read_prompts, path)[:1] == [whole], "what cannot be read at all is no row"
    assert len(complaints(read_prompts, path)) == 2
    path.write_text(rows + '{"prompt": "a"}\n')
    assert len(complaints(read_prompts, path)) == 21, "one row has it"


def test_a_label_is_judged_in_the_units_asked_for(tmp_path):
    path = tmp_path / "r.jsonl"
    path.write_text('{"prompt": "a", "response": "b", "x": 1e39}\n')
    (small,) = read_ratings(path, labels={"x": LabelMapping(column="x", scale=1e-39)})
    assert small.labels["x"] == pytest.approx(1.0)
    assert (
        "1e+41 is more"
        in complaints(read_ratings, path, labels={"x": LabelMapping(column="x", scale=100.0)})[0]
    )


@pytest.mark.parametrize(
    ("word", "meant"),
    [
        ("harmful", ""),
        ("lookalike", ""),
        ("", ""),
        ("harmfull", "harmful"),
        ("Harmful", "harmful"),
        ("harmul", "harmful"),
        ("look-alike", "lookalike"),
        ("lookalikes", "lookalike"),
        ("harmless", ""),
        ("unharmful", ""),
        ("benign", ""),
    ],
)
def test_a_kind_that_is_all_but_one_that_is_counted(word, meant):
    assert set(REFUSAL_CATEGORIES) == set(CATEGORY_LABELS), "those that the evaluation counts"
    assert misspelled_category(word) == meant


def test_kinds_of_rows_are_looked_at(tmp_path):
    path = tmp_path / "k.jsonl"
    path.write_text('{"prompt": "a", "of": "harmful"}\n{"prompt": "b", "of": "harmfull"}\n')
    assert complaints(read_prompts, path, columns=ColumnNames(category="of")) == [
        f'{path}:2: of: "harmfull" is not a kind whose refusals are counted apart; did you mean "harmful"?; '
        "fix: write harmful, or a word less like it"
    ]
    assert read_prompts(path, columns=ColumnNames(category="of"), category="all")[1].category == "all"


def test_names_from_a_file_cannot_break_the_line(tmp_path):
    path = tmp_path / "evil.jsonl"
    path.write_text('{"pro\\u001b[2Jmpt\\n": "x"}\n{"prompt": [{"role": "us\\ner", "content": "x"}]}\n')
    first, second = complaints(read_prompts, path)
    assert "pro\\u001b[2Jmpt\\u000a" in first
    assert 'unknown role "us\\u000aer"' in second


def test_a_mistyped_option_is_refused(tmp_path):
    with pytest.raises(TypeError, match="readers take no colums"):
        read_prompts(tmp_path / "x.jsonl", colums=None)
