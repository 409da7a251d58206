"""Error messages for bad files; equivalence of the file formats."""

import gzip
import sys
from types import SimpleNamespace

import pyarrow
import pytest
from pyarrow import parquet

from paretune.core.errors import DataError, MissingDependencyError
from paretune.data.readers import read_prompts, read_ratings

MESSAGES = 'write "text" or [{"role": "user", "content": "text"}]'
GZIP = "copy the file again, or decompress it and drop .gz from its name"
COMPRESSED = gzip.compress(b"".join(b'{"prompt": "%d"}\n' % i for i in range(5000)))

CASES = [
    ("an empty file", read_prompts, "e.jsonl", "", {}, ["e.jsonl: has no rows; fix: add rows"]),
    ("an empty list", read_prompts, "e.json", "[]", {}, ["e.json: has no rows; fix: add rows"]),
    ("an empty CSV", read_prompts, "e.csv", "prompt\n", {}, ["e.csv: has no rows; fix: add rows"]),
    (
        "bad UTF-8",
        read_prompts,
        "u.jsonl",
        '{"prompt": "gut"}\n{"prompt": "schön"}\n'.encode("latin-1"),
        {},
        ["u.jsonl:2:16: not UTF-8 (byte 0xf6); fix: save the file as UTF-8"],
    ),
    (
        "a CSV column with a semicolon in its name",
        read_prompts,
        "s.csv",
        '"prompt; text"\na\n',
        {},
        [
            "s.csv:2: prompt: no such column; this row has prompt; text; "
            'did you mean "prompt; text"?; fix: name it under columns: {prompt: ...}, '
            'or "-" if there is none'
        ],
    ),
    (
        "bad UTF-8 in CSV",
        read_prompts,
        "u.csv",
        "prompt\ngut\nschön\n".encode("latin-1"),
        {},
        ["u.csv:3:4: not UTF-8 (byte 0xf6); fix: save the file as UTF-8"],
    ),
    (
        "not gzip at all",
        read_prompts,
        "g.jsonl.gz",
        b"hello",
        {},
        [f"g.jsonl.gz:1: invalid gzip: Not a gzipped file (b'he'); fix: {GZIP}"],
    ),
    (
        "JSON that is one object",
        read_prompts,
        "j.json",
        '{"prompt": "a"}',
        {},
        [
            "j.json:1:1: an object, not a list of objects; "
            "fix: write [{...}, {...}], or name the file .jsonl if it has one object per line"
        ],
    ),
    (
        "invalid JSON",
        read_prompts,
        "j.json",
        '[{"prompt": "a"},\n {"prompt": }]',
        {},
        ["j.json:2:13: invalid JSON: Expecting value; fix: write one list of objects"],
    ),
    (
        "a bad row of JSON",
        read_prompts,
        "j.json",
        '[{"prompt": "a"}, 3, {"prompt": 4}]',
        {},
        [
            "j.json:row 2: a number, not an object; fix: fix the row",
            f"j.json:row 3: prompt: a number, not text or a list of messages; fix: {MESSAGES}",
        ],
    ),
    (
        "JSON that overflows the parser",
        read_prompts,
        "j.jsonl",
        "[" * 100_000 + '\n{"prompt": ' + "1" * 5000 + "}\n",
        {},
        [
            "j.jsonl:1: invalid JSON: a number is too long or lists are nested too deeply "
            "(and 1 more row, to line 2); fix: fix the row"
        ],
    ),
    (
        "not Parquet",
        read_prompts,
        "x.parquet",
        b"PAR1 nonsense",
        {},
        [
            "x.parquet: invalid Parquet: Parquet magic bytes not found in footer. "
            "Either the file is corrupted "
            "or this is not a parquet file.; fix: write the file again"
        ],
    ),
    (
        "an unknown format",
        read_prompts,
        "b.xlsx",
        "x",
        {},
        ["b.xlsx: unknown file format; fix: use one of .jsonl, .json, .csv, .tsv, .txt, .parquet (or .gz)"],
    ),
]

KEYS = ("read", "name", "content", "options", "expected")


def issues_of(read, path, **options):
    with pytest.raises(DataError) as caught:
        read(path, **options)
    return str(caught.value).split("\n")


@pytest.mark.parametrize(KEYS, [c[1:] for c in CASES], ids=[c[0] for c in CASES])
def test_bad_files_give_their_messages(tmp_path, monkeypatch, read, name, content, options, expected):
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    assert issues_of(read, name, **options) == expected


@pytest.mark.parametrize(
    ("codec", "encoding"),
    [
        ("utf-16", "UTF-16"),
        ("utf-16-le", "UTF-16LE"),
        ("utf-16-be", "UTF-16BE"),
        ("utf-32", "UTF-32"),
    ],
)
@pytest.mark.parametrize(
    ("name", "content"),
    [("r.csv", "prompt\nhello\n"), ("r.jsonl", '{"prompt": "hello"}\n'), ("r.json", '[{"prompt": "a"}]')],
)
def test_utf16_and_utf32_are_read_unless_damaged(tmp_path, codec, encoding, name, content):
    (tmp_path / name).write_bytes(content.encode(codec))
    (prompt,) = read_prompts(tmp_path / name)
    assert prompt.messages[0].content in ("hello", "a")
    (tmp_path / name).write_bytes(content.encode(codec)[:-1])
    assert issues_of(read_prompts, tmp_path / name) == [
        f'{tmp_path / name}:1:1: damaged {encoding}; fix: save the file as UTF-8 (Excel: "CSV UTF-8")'
    ]


def test_missing_file_suggests_a_similar_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "prompts.jsonl").touch()
    fix = "fix: check data.root and the name"
    assert issues_of(read_prompts, "promts.jsonl") == [
        f'promts.jsonl: no such file; did you mean "prompts.jsonl"?; {fix}'
    ]
    assert issues_of(read_prompts, "x.jsonl", root="no") == [
        f"no/x.jsonl: no such file (folder no is empty or missing); {fix}"
    ]
    assert issues_of(read_prompts, ".") == [".: is a folder; fix: name a file in it"]


def test_truncated_gzip_is_an_error(tmp_path):
    path = tmp_path / "g.jsonl.gz"
    path.write_bytes(COMPRESSED[: len(COMPRESSED) // 2])
    (line,) = issues_of(read_prompts, path)
    assert line.endswith(f": the gzip stream is truncated; fix: {GZIP}")
    assert int(line.removeprefix(f"{path}:").partition(":")[0]) > 100
    path.write_bytes(COMPRESSED[:500] + b"xxxxx" + COMPRESSED[505:])
    assert "invalid gzip" in issues_of(read_prompts, path)[-1]


def test_hub_name_without_datasets_is_an_error(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingDependencyError) as caught:
        read_prompts("hf:owner/name:train")
    assert (
        str(caught.value)
        == "hf:owner/name:train: needs the package `datasets`; fix: pip install 'paretune[hub]'"
    )


ROWS = [
    {"id": 1, "prompt": "a", "response": "b, c\nd", "polite": 3, "kind": 0.5},
    {"id": 2, "prompt": 'q "ü"', "response": "\u2028b", "polite": None, "kind": 1},
    {"id": 3, "prompt": "", "response": " b", "polite": -2.5, "kind": None},
]


def test_all_formats_give_the_same_records(tmp_path, monkeypatch):
    import csv
    import json

    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)
    (tmp_path / "r.jsonl").write_text(lines, encoding="utf-8-sig")
    (tmp_path / "r.jsonl.gz").write_bytes(gzip.compress(lines.replace("\n{", "\r\n\r\n{").encode()))
    (tmp_path / "r.json").write_text(json.dumps(ROWS, indent=1))
    with (tmp_path / "r.csv").open("w", newline="", encoding="utf-8-sig") as file:
        writer = csv.DictWriter(file, ROWS[0])
        writer.writeheader()
        writer.writerows(ROWS)
    parquet.write_table(pyarrow.Table.from_pylist(ROWS), tmp_path / "r.parquet")
    calls = []
    monkeypatch.setitem(
        sys.modules,
        "datasets",
        SimpleNamespace(load_dataset=lambda *name, split: calls.append((*name, split)) or ROWS),
    )
    labels = {"politeness": "polite", "kindness": "kind"}
    expected = read_ratings("r.jsonl", root=tmp_path, labels=labels)
    assert [dict(record.labels) for record in expected] == [
        {"politeness": 3.0, "kindness": 0.5},
        {"kindness": 1.0},
        {"politeness": -2.5},
    ]
    assert [record.response for record in expected] == ["b, c\nd", "\u2028b", " b"]
    assert [record.prompt.id for record in expected] == ["1", "2", "3"]
    for source in ("r.jsonl.gz", "r.json", "r.csv", "r.parquet", "hf:owner/name", "hf:owner/name/main:test"):
        assert read_ratings(source, root=tmp_path, labels=labels) == expected, source
    assert calls == [("owner/name", None, "train"), ("owner/name", "main", "test")]


def test_rows_of_fifty_megabytes_can_be_read(tmp_path):
    text = "word " * 10_000_000
    (tmp_path / "long.jsonl").write_text(f'{{"prompt": "{text}"}}\n')
    (tmp_path / "long.csv").write_text(f"prompt\n{text}\n")
    for name in ("long.jsonl", "long.csv"):
        assert read_prompts(tmp_path / name)[0].messages[0].content == text


def test_unknown_hub_name_is_an_error(monkeypatch):
    def load(*name, split):
        raise FileNotFoundError("Dataset 'owner/nme' doesn't exist on the Hub\nor cannot be accessed.")

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load))
    assert issues_of(read_prompts, "hf:owner/nme") == [
        "hf:owner/nme: cannot be loaded: Dataset 'owner/nme' doesn't exist on the Hub; "
        "fix: write hf:owner/name, hf:owner/name:split or hf:owner/name/config:split"
    ]
