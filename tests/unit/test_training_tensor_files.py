"""Tensors that are divided over ranks: written by some number of them, read by another."""

from contextlib import contextmanager

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import HuggingFaceStorageReader
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor
from torch.testing._internal.distributed.fake_pg import FakeStore

from paretune.core import ranks
from paretune.core.errors import WiringError
from paretune.models.sharding import copy_full
from paretune.training.checkpoint import load_latest_checkpoint, save_checkpoint
from paretune.training.tensor_files import StoredTensors, write_tensors

WHOLE = {
    "matrix": torch.arange(35.0, dtype=torch.float64).reshape(7, 5),
    "vector": torch.arange(3.0),  # some ranks of four have nothing of it
    "half": torch.arange(8.0, dtype=torch.bfloat16).reshape(4, 2, 1),
    "one_row": torch.ones(1, 6),
    "step": torch.tensor(4.0),
    "empty": torch.zeros(0, 2),
}
DIVIDED = ("matrix", "vector", "half", "one_row")


@contextmanager
def rank_of(rank, world_size, monkeypatch):
    """A group of processes of which there is only this one; nothing is sent."""
    dist.init_process_group("fake", rank=rank, world_size=world_size, store=FakeStore())
    monkeypatch.setattr(ranks, "rank", lambda: rank)
    monkeypatch.setattr(ranks, "world_size", lambda: world_size)
    monkeypatch.setattr(ranks, "is_first", lambda: rank == 0)
    try:
        yield init_device_mesh("cpu", (world_size,))
    finally:
        dist.destroy_process_group()
        monkeypatch.undo()


def divided(mesh):
    parts = {key: distribute_tensor(WHOLE[key], mesh, [Shard(0)], src_data_rank=None) for key in DIVIDED}
    return WHOLE | parts


def write(folder, world_size, monkeypatch):
    sums = {}
    for rank in range(world_size):
        with rank_of(rank, world_size, monkeypatch) as mesh:
            sums |= write_tensors(folder, "w", divided(mesh))
    return sums


@pytest.mark.parametrize("writers", [1, 2, 3, 4])
def test_parts_make_the_whole(tmp_path, writers, monkeypatch):
    sums = write(tmp_path, writers, monkeypatch)
    names = [f"w-{rank:05d}-of-{writers:05d}.safetensors" for rank in range(1, writers + 1)]
    assert sorted(sums) == sorted(path.name for path in tmp_path.iterdir()) == names
    stored = StoredTensors([tmp_path / name for name in names])
    assert stored.keys() == WHOLE.keys()
    for key, value in WHOLE.items():
        assert stored[key].dtype == value.dtype
        assert torch.equal(stored[key], value), key


@pytest.mark.parametrize(("writers", "readers"), [(2, 1), (2, 2), (2, 3), (2, 4), (3, 2), (4, 3)])
def test_each_rank_reads_its_own_part(tmp_path, writers, readers, monkeypatch):
    write(tmp_path, writers, monkeypatch)
    stored = StoredTensors(sorted(tmp_path.iterdir()))
    for rank in range(readers):
        with rank_of(rank, readers, monkeypatch) as mesh:
            for key, expected in divided(mesh).items():
                if key in DIVIDED:
                    read = stored.read_like(key, expected)
                    assert read.shape == expected.shape
                    assert torch.equal(read.to_local(), expected.to_local()), key
                    parameter = torch.zeros_like(expected)
                    copy_full({key: read}, {key: parameter})
                    assert torch.equal(parameter.to_local(), expected.to_local())


def test_whole_tensors_are_divided_on_reading(tmp_path, monkeypatch):
    assert list(write_tensors(tmp_path, "w", WHOLE)) == ["w.safetensors"]
    stored = StoredTensors([tmp_path / "w.safetensors"])
    with rank_of(1, 2, monkeypatch) as mesh:
        like = divided(mesh)["matrix"]
        assert torch.equal(stored.read_like("matrix", like).to_local(), WHOLE["matrix"][4:])
        # Of another shape, which the caller refuses: whole.
        assert torch.equal(stored.read_like("one_row", like), WHOLE["one_row"])


def test_what_is_read_does_not_depend_on_the_file(tmp_path):
    write_tensors(tmp_path, "w", WHOLE)
    path = tmp_path / "w.safetensors"
    read = StoredTensors([path])["matrix"]
    path.write_bytes(bytes(path.stat().st_size))
    assert torch.equal(read, WHOLE["matrix"])


def test_missing_part_is_an_error(tmp_path, monkeypatch):
    write(tmp_path, 2, monkeypatch)
    stored = StoredTensors([tmp_path / "w-00002-of-00002.safetensors"])
    with pytest.raises(WiringError, match="no file with 20 of its numbers"):
        stored["matrix"]


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_pytorch_reads_the_parts(tmp_path, monkeypatch):
    write(tmp_path, 2, monkeypatch)
    found = {key: torch.zeros_like(WHOLE[key]) for key in (*DIVIDED, "step")}
    dcp.load(found, storage_reader=HuggingFaceStorageReader(str(tmp_path)), no_dist=True)
    for key, value in found.items():
        assert torch.equal(value, WHOLE[key]), key


@pytest.mark.parametrize("harm", ["flip", "cut", "gone", "none"])
def test_damaged_part_is_detected(tmp_path, harm, monkeypatch):
    with rank_of(0, 1, monkeypatch) as mesh:
        for step in (1, 2):
            save_checkpoint(tmp_path, step, {"w": divided(mesh)})
        path = tmp_path / "step-000002" / "w-00001-of-00001.safetensors"
        data = bytearray(path.read_bytes())
        if harm == "gone":
            path.unlink()
        elif harm != "none":
            data[-10] ^= 8
            path.write_bytes(data if harm == "flip" else data[:-10])
        events = []
        found = load_latest_checkpoint(tmp_path, lambda *event: events.append(event))
        assert (found.step, len(events)) == ((2, 0) if harm == "none" else (1, 1))
        tree = found.load_tree("w", divided(mesh))
        assert torch.equal(tree["matrix"].to_local(), WHOLE["matrix"])
        assert torch.equal(found.load_tree("w")["matrix"], WHOLE["matrix"])
