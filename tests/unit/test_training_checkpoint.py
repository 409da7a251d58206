import json
import math
import os
from dataclasses import dataclass
from typing import NamedTuple

import pytest
import torch

from paretune.core.errors import ResourceError, WiringError
from paretune.training import checkpoint
from paretune.training.checkpoint import (
    deserialize_tree,
    list_checkpoints,
    load_latest_checkpoint,
    save_checkpoint,
    serialize_tree,
)


class Moments(NamedTuple):
    seen: float
    mean: torch.Tensor


@dataclass(frozen=True)
class Dual:
    lam: torch.Tensor
    name: str


STATE = {
    "a": (Moments(math.inf, torch.arange(3.0)), None, [1, 2.5, True, "x"]),
    "b": Dual(torch.zeros(()), "safety"),
    3: {"empty": {}, "bf16": torch.ones(2, dtype=torch.bfloat16), "none": torch.zeros(0)},
}


def same(a, b):
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, Dual):
        return isinstance(b, Dual) and same(a.lam, b.lam) and a.name == b.name
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return type(a) is type(b) and len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return a == b


def quiet(kind, text):
    raise AssertionError(f"unexpected event {kind}: {text}")


def test_tree_round_trip():
    packed, tensors = serialize_tree(STATE)
    assert same(STATE, deserialize_tree(json.loads(json.dumps(packed)), tensors, STATE))


def test_tied_tensors_and_views_are_saved_separately(tmp_path):
    x = torch.arange(6.0)
    save_checkpoint(tmp_path, 1, {"w": {"x": x, "tied": x, "view": x[::2], "part": x[2:4]}})
    found = load_latest_checkpoint(tmp_path, quiet).load_tree("w")
    assert found["view"].tolist() == [0, 2, 4]
    assert found["part"].tolist() == [2, 3]


def test_checkpoint_round_trip_with_metadata_and_log_offsets(tmp_path):
    save_checkpoint(tmp_path, 12, {"s": STATE}, {"seed": 3}, log_offsets={"metrics.jsonl": 99})
    found = load_latest_checkpoint(tmp_path, quiet)
    assert (found.step, found.metadata, found.log_offsets) == (12, {"seed": 3}, {"metrics.jsonl": 99})
    assert same(STATE, found.load_tree("s", STATE))
    assert (tmp_path / "LATEST").read_text() == "step-000012\n"
    assert sorted(p.name for p in (tmp_path / "step-000012").iterdir()) == [
        "MANIFEST.json",
        "s.safetensors",
        "state.json",
    ]
    with pytest.raises(WiringError, match='has no tree "weights"'):
        found.load_tree("weights")
    with pytest.raises(WiringError, match="no counterpart"):
        found.load_tree("s")


def test_other_types_are_refused():
    with pytest.raises(WiringError, match="cannot save a set"):
        serialize_tree({"a": {1, 2}})


def test_last_checkpoints_are_kept_and_temporary_files_removed(tmp_path):
    (tmp_path / "step-000002.tmp").mkdir(parents=True)
    (tmp_path / "LATEST.tmp").write_text("step-0000")
    for step in (1, 2, 3):
        save_checkpoint(tmp_path, step, {"w": {"x": torch.ones(1)}}, save_total_limit=2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["LATEST", "step-000002", "step-000003"]
    save_checkpoint(tmp_path, 3, {"w": {"x": torch.zeros(1)}}, save_total_limit=2)
    assert load_latest_checkpoint(tmp_path, quiet).load_tree("w")["x"] == 0


@pytest.mark.parametrize("limit", [1, 2])
def test_a_corrupt_checkpoint_of_a_later_step_takes_no_place_of_a_whole_one(tmp_path, limit):
    for step in (1, 5):
        save_checkpoint(tmp_path, step, {"w": {"x": torch.ones(1)}}, save_total_limit=2)
    (tmp_path / "step-000005" / "state.json").unlink()
    for step in (2, 3):
        save_checkpoint(tmp_path, step, {"w": {"x": torch.ones(1)}}, save_total_limit=limit)
        assert load_latest_checkpoint(tmp_path, quiet).step == step
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step-000002", "step-000003"][-limit:]


def test_temporary_folder_is_no_checkpoint(tmp_path):
    save_checkpoint(tmp_path, 1, {"w": {"x": torch.ones(1)}})
    (tmp_path / "step-000001").rename(tmp_path / "step-000002.tmp")
    assert load_latest_checkpoint(tmp_path, quiet) is None
    assert load_latest_checkpoint(tmp_path / "nowhere", quiet) is None


@pytest.mark.parametrize("name", ["w.safetensors", "state.json", "MANIFEST.json"])
@pytest.mark.parametrize("harm", ["flip", "cut", "gone"])
def test_corrupt_checkpoint_is_skipped_with_one_event(tmp_path, name, harm):
    for step in (1, 2):
        save_checkpoint(tmp_path, step, {"w": {"x": torch.full((50,), float(step))}})
    path = tmp_path / "step-000002" / name
    data = bytearray(path.read_bytes())
    if harm == "gone":
        path.unlink()
    else:
        data[len(data) // 2] ^= 8
        path.write_bytes(data if harm == "flip" else data[: len(data) // 2])
    events = []
    found = load_latest_checkpoint(tmp_path, lambda *event: events.append(event))
    assert found.step == 1
    ((event_type, text),) = events
    assert event_type == "checkpoint_corrupt"
    assert "step-000002" in text


@pytest.mark.parametrize("share", [i / 40 for i in range(40)])
def test_every_flipped_bit_is_detected(tmp_path, share):
    save_checkpoint(
        tmp_path, 1, {"w": {"x": torch.arange(20.0)}}, {"seed": 1}, log_offsets={"metrics.jsonl": 5}
    )
    files = sorted((tmp_path / "step-000001").iterdir())
    sizes = [f.stat().st_size for f in files]
    at = int(share * sum(sizes))
    for file, size in zip(files, sizes, strict=True):
        if at < size:
            data = bytearray(file.read_bytes())
            data[at] ^= 1 << (at % 8)
            file.write_bytes(data)
            break
        at -= size
    assert load_latest_checkpoint(tmp_path, lambda *event: None) is None


def test_full_disk_leaves_the_earlier_checkpoint(tmp_path, monkeypatch):
    save_checkpoint(tmp_path, 1, {"w": {"x": torch.ones(3)}})
    real, left = os.fsync, iter(range(1000))
    for fail_at in range(4):
        left = iter(range(1000))

        def fsync(number, left=left, fail_at=fail_at):
            if next(left) == fail_at:
                raise OSError(28, "No space left on device")
            real(number)

        monkeypatch.setattr(os, "fsync", fsync)
        with pytest.raises(ResourceError, match=r"No space left.*fix: free disk space"):
            save_checkpoint(tmp_path, 2, {"w": {"x": torch.zeros(3)}})
        monkeypatch.setattr(os, "fsync", real)
        assert load_latest_checkpoint(tmp_path, quiet).step == 1


def test_nothing_is_pickled(tmp_path):
    save_checkpoint(tmp_path, 1, {"s": STATE})
    for path in list_checkpoints(tmp_path)[0].iterdir():
        assert path.suffix in {".safetensors", ".json"}
    assert "pickle" not in checkpoint.__dict__
