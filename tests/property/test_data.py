"""Readers return what was written, and batches contain the rows they were made of."""

import csv
import json
import math
import tempfile
from pathlib import Path

import pyarrow
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from paretune.core.errors import DataError
from paretune.data.loader import collate
from paretune.data.readers import read_preference_pairs, read_ratings
from paretune.data.records import Message

texts = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1).filter(str.strip)
numbers = st.floats(-1e6, 1e6) | st.none()
rows = st.fixed_dictionaries({"prompt": texts, "response": texts, "score": numbers})


@settings(max_examples=15, deadline=None)
@given(
    st.lists(rows, min_size=1, max_size=4).filter(lambda table: any(r["score"] is not None for r in table))
)
def test_all_formats_preserve_any_text(table):
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "f.jsonl").write_text("".join(json.dumps(row) + "\n" for row in table))
        with (Path(folder) / "f.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, table[0])
            writer.writeheader()
            writer.writerows(table)
        parquet.write_table(pyarrow.Table.from_pylist(table), Path(folder) / "f.parquet")
        scored = [row for row in table if row["score"] is not None]
        for name in ("f.jsonl", "f.csv", "f.parquet"):
            records = read_ratings(name, root=folder, labels={"x": "score"})
            assert [r.prompt.messages for r in records] == [(Message("user", r["prompt"]),) for r in scored]
            assert [(r.response, r.labels["x"]) for r in records] == [
                (r["response"], r["score"]) for r in scored
            ]


json_values = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["role", "content"]), inner),
    max_leaves=6,
)


@settings(max_examples=60, deadline=None)
@given(
    st.dictionaries(
        st.sampled_from(["prompt", "chosen", "rejected", "scores", "response", "id"]), json_values
    )
)
def test_any_row_is_a_record_or_an_error(row):
    """The error has one line for the row, or one per label."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "f.jsonl"
        path.write_text(json.dumps(row) + "\n")
        for read in (lambda: read_ratings(path), lambda: read_preference_pairs(path, objective="o")):
            lines: list[str] = []
            labels: dict[str, float] = {}
            try:
                labels = getattr(read()[0], "labels", {})
            except DataError as error:
                lines = str(error).split("\n")
            scores = row.get("scores")
            assert len(lines) <= max(1, len(scores) if isinstance(scores, dict) else 0)
            assert all(line.startswith(f"{path}:") for line in lines)
            assert all(map(math.isfinite, labels.values()))


ids = st.lists(st.integers(0, 3), max_size=5)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(ids, ids), max_size=5), st.integers(0, 3))
def test_collate_preserves_rows(pairs, pad_id):
    prompts, responses = [p for p, _ in pairs], [r for _, r in pairs]
    batch = collate(prompts, responses, list(range(len(pairs))), [False] * len(pairs), ("a",), pad_id)
    for b, (prompt, response) in enumerate(pairs):
        assert batch.input_ids[b][batch.attention_mask[b]].tolist() == prompt + response
        assert batch.input_ids[b][batch.response_mask[b]].tolist() == response
        assert (batch.input_ids[b][~batch.attention_mask[b]] == pad_id).all()
