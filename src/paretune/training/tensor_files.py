"""The tensors of a checkpoint in safetensors files: one file, or one of each rank where weights are divided.

A rank's file holds its parts of the tensors, and says in its header at which offsets they begin, in the way
of PyTorch's `HuggingFaceStorageWriter`, whose reader reads it. That writer is not used: its ranks exchange
pickled objects, and it makes a copy of everything that it writes.
"""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.tensor import DTensor

from paretune.core import ranks
from paretune.core.errors import WiringError
from paretune.run.io import hash_file

SHARDING_KEY = "DCP_SHARDING_INFO"
"""Key of a file's header, as PyTorch writes it: {tensor: {"saved_offsets": [...]}} as JSON."""
Bounds = tuple[tuple[int, int], ...]
"""First and last index plus one of each dimension."""


def write_tensors(folder: Path, name: str, tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Write this rank's part of some tensors, synced to disk.

    The first rank writes `name.safetensors`, unless a tensor is divided: then each rank writes its parts to
    `name-00001-of-00002.safetensors`, and the first one whole tensors too.

    Args:
        folder: Where to.
        name: Beginning of the file names.
        tensors: The same on all ranks.

    Returns:
        The SHA-256 of the file that this rank wrote, by its name; nothing if it has no part.

    Raises:
        OSError: The disk is full, or the folder not writable.
    """
    if any(isinstance(tensor, DTensor) for tensor in tensors.values()):
        file_name = f"{name}-{ranks.rank() + 1:05d}-of-{ranks.world_size():05d}.safetensors"
        local, offsets = _local_parts(tensors)
        info = {key: {"saved_offsets": first} for key, first in offsets.items()}
        header = {SHARDING_KEY: json.dumps(info), "DCP_VERSION": "1.0", "format": "pt"}
    else:
        if not ranks.is_first():
            return {}
        file_name, local, header = f"{name}.safetensors", dict(tensors), None
    path = folder / file_name
    try:
        save_file(_separate(local), path, header)
    except SafetensorError as error:
        raise OSError(str(error).rpartition("I/O error: ")[2]) from error
    with path.open("rb") as file:
        os.fsync(file.fileno())
    return {file_name: hash_file(path)}


def _local_parts(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, list[int]]]:
    """This rank's parts, and where they begin in the whole tensors; whole tensors are the first rank's."""
    local: dict[str, Tensor] = {}
    offsets: dict[str, list[int]] = {}
    for key, tensor in tensors.items():
        if isinstance(tensor, DTensor):
            bounds = _local_bounds(tensor)
            if all(first < end for first, end in bounds):  # some ranks have no rows of a small tensor
                local[key], offsets[key] = tensor.to_local().detach(), [first for first, _ in bounds]
        elif ranks.is_first():
            local[key], offsets[key] = tensor, [0] * tensor.ndim
    return local, offsets


def _local_bounds(tensor: DTensor) -> Bounds:
    """The part of a divided tensor that this rank holds; empty if it holds none."""
    chunks = tensor.__create_chunk_list__()
    if not chunks:
        return ((0, 0),) * tensor.ndim
    (chunk,) = chunks
    return tuple((first, first + size) for first, size in zip(chunk.offsets, chunk.sizes, strict=True))


def _separate(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous CPU tensors, none of which share memory, as tied weights do: safetensors refuses those."""
    separate: dict[str, Tensor] = {}
    seen: set[int] = set()
    for key, tensor in tensors.items():
        value = tensor.detach().to("cpu").contiguous()
        address = value.untyped_storage().data_ptr()
        separate[key] = value.clone() if address in seen else value
        seen.add(address)
    return separate


class _Part(NamedTuple):
    file: Any
    bounds: Bounds


class StoredTensors(Mapping[str, Tensor]):
    """The tensors of some files of `write_tensors`, read from the disk when they are asked for."""

    def __init__(self, paths: Sequence[Path]) -> None:
        """Open the files.

        Raises:
            OSError: One cannot be read.
        """
        self._parts: dict[str, list[_Part]] = {}
        for path in paths:
            try:
                file = safe_open(path, framework="pt")
            except SafetensorError as error:
                raise OSError(f"{path.name}: {error}") from error
            sharding = json.loads((file.metadata() or {}).get(SHARDING_KEY, "{}"))
            for key in file.keys():  # noqa: SIM118 - not a dict
                shape = file.get_slice(key).get_shape()
                offsets = sharding[key]["saved_offsets"] if sharding else [0] * len(shape)
                bounds = tuple((first, first + size) for first, size in zip(offsets, shape, strict=True))
                self._parts.setdefault(key, []).append(_Part(file, bounds))

    def __iter__(self) -> Iterator[str]:
        return iter(self._parts)

    def __len__(self) -> int:
        return len(self._parts)

    def __getitem__(self, key: str) -> Tensor:
        """A whole tensor, on the CPU."""
        return self._read(key, tuple((0, size) for size in self._shape(key)))

    def read_like(self, key: str, like: DTensor) -> Tensor:
        """A tensor divided over the ranks as `like` is; a rank reads its own part alone.

        A tensor of another shape is returned whole.
        """
        if self._shape(key) != like.shape:
            return self[key]
        local = self._read(key, _local_bounds(like)).to(like.device)
        return DTensor.from_local(
            local, like.device_mesh, like.placements, run_check=False, shape=like.shape, stride=like.stride()
        )

    def _shape(self, key: str) -> torch.Size:
        ends = [[end for _, end in part.bounds] for part in self._parts[key]]
        return torch.Size(max(sizes) for sizes in zip(*ends, strict=True))

    def _read(self, key: str, bounds: Bounds) -> Tensor:
        """The part of a tensor within the bounds, in memory of its own."""
        parts = self._parts[key]
        if len(parts) == 1 and parts[0].bounds == bounds:
            stored: Tensor = parts[0].file.get_tensor(key)
            return stored.clone()  # it is a view of the file
        nothing: Tensor = parts[0].file.get_slice(key)[tuple(slice(0, 0) for _ in bounds)]
        result = torch.empty([end - first for first, end in bounds], dtype=nothing.dtype)
        missing = result.numel()
        for part in parts:
            common = tuple((max(a, c), min(b, d)) for (a, b), (c, d) in zip(bounds, part.bounds, strict=True))
            if all(first < end for first, end in common):
                values: Tensor = part.file.get_slice(key)[_within(common, part.bounds)]
                result[_within(common, bounds)] = values
                missing -= values.numel()
        if missing:
            raise WiringError(f"tensor {key}: the checkpoint has no file with {missing} of its numbers")
        return result


def _within(bounds: Bounds, outer: Bounds) -> tuple[slice, ...]:
    """Where bounds lie within other ones."""
    return tuple(slice(a - start, b - start) for (a, b), (start, _) in zip(bounds, outer, strict=True))
