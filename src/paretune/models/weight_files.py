"""Files of a model folder, read without loading weights: pointer files, shards, safetensors headers."""

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from paretune.core.errors import DataError
from paretune.run.io import LFS_FIX, is_lfs_pointer

MODEL_FILE_SUFFIXES = (".safetensors", ".json", ".model", ".txt", ".jinja", ".tiktoken")
MAX_HEADER_BYTES = 100_000_000
"""Upper limit of a safetensors header in the format itself; a longer one is a damaged file."""
WEIGHTS_NAME, INDEX_NAME = "model.safetensors", "model.safetensors.index.json"
"""The files that transformers looks for, in this order; others, such as a vendor's own, it does not read."""
FULL_PRECISION_TYPES = frozenset({"F64", "F32", "F16", "BF16"})
"""Types of weights that are read as they are, as a safetensors header names them."""
COPY_FIX = "copy or download the file again"
CONVERT_FIX = "convert the model: load it with transformers, and write it with save_pretrained"


def require_no_lfs_pointers(path: str) -> None:
    """Check that no file of a model folder is a pointer of Git LFS; hub names are not checked.

    Raises:
        DataError: One is.
    """
    folder = Path(path)
    if not folder.is_dir():
        return
    names = [
        file.name
        for file in sorted(folder.iterdir())
        if file.suffix in MODEL_FILE_SUFFIXES and file.is_file() and is_lfs_pointer(file)
    ]
    if names:
        others = f" and {len(names) - 1} more" if len(names) > 1 else ""
        problem = f"{names[0]}{others}: a pointer file of Git LFS, not the file itself"
        raise DataError(f"{path}: {problem}; fix: {LFS_FIX}")


def require_safetensors(path: str) -> None:
    """Check that a folder has all of its safetensors files; hub names are not checked.

    Raises:
        DataError: There are no weights, only pickle files, a shard is missing, the index of the shards cannot
            be read, or there are pointer files of Git LFS.
    """
    require_no_lfs_pointers(path)
    if Path(path).is_dir():
        weight_files(path)


def weight_files(path: str) -> list[Path]:
    """The safetensors files that transformers loads from a folder: one file, or the shards of an index.

    Raises:
        DataError: There are none, or not all that the index names.
    """
    folder = Path(path)
    if (folder / WEIGHTS_NAME).is_file():
        return [folder / WEIGHTS_NAME]
    if (folder / INDEX_NAME).is_file():
        return _shards(path, folder / INDEX_NAME)
    others = sorted(file.name for file in folder.glob("*.safetensors"))
    if others and (folder / "adapter_config.json").is_file():
        return []  # transformers looks for the base model, and adds the adapter to it
    if others:
        raise DataError(
            f"{path}: neither {WEIGHTS_NAME} nor {INDEX_NAME}, only {others[0]}; fix: {CONVERT_FIX}"
        )
    pickles = [*folder.glob("*.bin"), *folder.glob("*.pt"), *folder.glob("*.pth")]
    problem = f"only {pickles[0].name}, a pickle that could run code" if pickles else "no weights"
    raise DataError(f"{path}: weights must be safetensors; found {problem}; fix: convert the model")


def _shards(path: str, index: Path) -> list[Path]:
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        shards = [index.parent / name for name in names]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        problem = f"{index.name} is damaged: it does not map weights to files"
        raise DataError(f"{path}: {problem}; fix: {COPY_FIX}") from error
    missing = [shard.name for shard in shards if not shard.is_file()]
    if missing:
        problem = f"{len(missing)} of {len(shards)} files of weights are missing: {_some(missing)}"
        raise DataError(f"{path}: {problem}; fix: copy or download them too")
    return shards


def stored_shapes(path: str) -> Mapping[str, tuple[int, ...]]:
    """Name -> shape of every tensor that transformers loads from a folder, from headers alone.

    Returns:
        Empty for a hub name, whose files are not here yet, and for the folder of an adapter.

    Raises:
        DataError: A file is missing, damaged, or shorter than its header says.
    """
    return {name: tuple(entry["shape"]) for name, entry in _stored_entries(path).items()}


def require_full_precision(path: str) -> None:
    """Check that the stored weights are floats of 16 bits or more; hub names are not checked.

    Buffers, such as the masks of attention that older versions of transformers saved, may be integers.

    Raises:
        DataError: Some weights are not, or a file is missing or damaged.
    """
    packed = {
        name: entry["dtype"]
        for name, entry in _stored_entries(path).items()
        if name.endswith("weight") and entry["dtype"] not in FULL_PRECISION_TYPES
    }
    if packed:
        first, count = min(packed), len(packed)
        others = f" and {count - 1:,} more" if count > 1 else ""
        problem = f"{first} is stored as {packed[first]}{others}, and config.json has no quantization_config"
        fix = "take the config.json of the quantized model, or name a checkpoint in full precision"
        raise DataError(f"{path}: {problem}; fix: {fix}")


def _stored_entries(path: str) -> Mapping[str, Any]:
    """Header entries (shape, dtype) by tensor; see `stored_shapes`."""
    entries: dict[str, Any] = {}
    files = weight_files(path) if Path(path).is_dir() else []
    for file in files:
        try:
            header, num_bytes = _read_header(file)
            entries |= {name: _header_entry(entry) for name, entry in header.items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError, struct.error) as error:
            problem = f"{file.name} is damaged: it has no safetensors header"
            raise DataError(f"{path}: {problem}; fix: {COPY_FIX}") from error
        size = file.stat().st_size
        if size != num_bytes:
            problem = f"{file.name} is damaged: it has {size:,} bytes, and its header says {num_bytes:,}"
            raise DataError(f"{path}: {problem}; fix: {COPY_FIX}")
    if files and files[0].name != WEIGHTS_NAME:
        index = json.loads((Path(path) / INDEX_NAME).read_text(encoding="utf-8"))["weight_map"]
        if absent := sorted(set(index) - set(entries)):
            problem = f"{INDEX_NAME} names weights that no file has: {_some(absent)}"
            raise DataError(f"{path}: {problem}; fix: take index and weights from the same checkpoint")
    return entries


def _header_entry(entry: Mapping[str, Any]) -> dict[str, Any]:
    return {"shape": tuple(entry["shape"]), "dtype": str(entry["dtype"])}


def _read_header(file: Path) -> tuple[dict[str, Any], int]:
    """The entries of the header by tensor, and the bytes of the whole file according to it."""
    with file.open("rb") as stream:
        (size,) = struct.unpack("<Q", stream.read(8))
        if size > MAX_HEADER_BYTES:
            raise ValueError(size)
        header = json.loads(stream.read(size))
    header.pop("__metadata__", None)
    ends = [int(entry["data_offsets"][1]) for entry in header.values()]
    return header, 8 + size + max(ends, default=0)


def _some(names: list[str]) -> str:
    """The first of the names, and how many others there are."""
    return names[0] + (f" and {len(names) - 1} more" if len(names) > 1 else "")
