"""Files of a model folder, read without loading weights: pointer files, and shapes in safetensors headers."""

import json
import struct
from collections.abc import Mapping
from pathlib import Path

from paretune.core.errors import DataError
from paretune.run.io import LFS_FIX, is_lfs_pointer

MODEL_FILE_SUFFIXES = (".safetensors", ".json", ".model", ".txt", ".jinja", ".tiktoken")
MAX_HEADER_BYTES = 100_000_000
"""Upper limit of a safetensors header in the format itself; a longer one is a damaged file."""


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


def stored_shapes(path: str) -> Mapping[str, tuple[int, ...]]:
    """Name -> shape of every tensor in a folder's safetensors files, from their headers alone.

    Returns:
        Empty for a hub name, whose files are not here yet.

    Raises:
        DataError: A header cannot be read.
    """
    folder = Path(path)
    shapes: dict[str, tuple[int, ...]] = {}
    for file in sorted(folder.glob("*.safetensors")) if folder.is_dir() else ():
        try:
            shapes |= _header_shapes(file)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, struct.error) as error:
            problem = f"{file.name} is damaged: it has no safetensors header"
            raise DataError(f"{path}: {problem}; fix: copy or download the file again") from error
    return shapes


def _header_shapes(file: Path) -> dict[str, tuple[int, ...]]:
    with file.open("rb") as stream:
        (size,) = struct.unpack("<Q", stream.read(8))
        if size > MAX_HEADER_BYTES:
            raise ValueError(size)
        header = json.loads(stream.read(size))
    return {name: tuple(entry["shape"]) for name, entry in header.items() if name != "__metadata__"}
