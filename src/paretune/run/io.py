"""Crash-safe files: atomic replacement, one write per appended line, and JSON without NaN.

Of several ranks, which all have the same content, the first alone writes.
"""

import errno
import hashlib
import json
import math
import os
import shutil
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from paretune.core.errors import DataError, ResourceError
from paretune.core.launch import is_first

LFS_PREFIX = b"version https://git-lfs"
"""First bytes of the text file that Git checks out instead of a large file while Git LFS is not set up."""
LFS_FIX = "run `git lfs install` and `git lfs pull` in that folder, or download the file itself"


def is_lfs_pointer(path: Path) -> bool:
    """True if a file is a pointer of Git LFS, and not the file that it stands for."""
    with path.open("rb") as file:
        return file.read(len(LFS_PREFIX)) == LFS_PREFIX


def write_atomic(path: Path, content: str | bytes) -> None:
    """Replace a file atomically: after a kill or a power cut it holds the old or the new content.

    Raises:
        ResourceError: The disk is full or the file cannot be written.
    """
    if not is_first():
        return
    temporary = path.with_name(path.name + ".tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content.encode("utf-8", "backslashreplace") if isinstance(content, str) else content)
            file.flush()
            # Before the rename: otherwise a power cut can leave the new name with no content.
            os.fsync(file.fileno())
        temporary.replace(path)
        fsync_dir(path.parent)
    except OSError as error:
        raise write_error(path, error) from error


def remove_folder(folder: Path) -> None:
    """Delete a folder and what is in it, if it is there."""
    if is_first():
        shutil.rmtree(folder, ignore_errors=True)


def apply_umask(folder: Path) -> None:
    """Give every file below a folder the default mode of new files: safetensors writes with mode 0600."""
    probe = folder / ".mode.tmp"
    probe.touch()
    mode = stat.S_IMODE(probe.stat().st_mode)
    probe.unlink()
    for path in folder.rglob("*"):
        if path.is_file():
            path.chmod(mode)


def hash_file(path: Path) -> str:
    """SHA-256 of a file, which is never in memory as a whole.

    Raises:
        OSError: It cannot be read.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fsync_dir(folder: Path) -> None:
    """Flush a folder's entries to disk, so that new names in it survive a power cut."""
    if os.name == "nt":  # Windows cannot open a folder
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def fsync_tree(folder: Path) -> None:
    """Flush every file and folder below a folder to disk, files first."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
    for inner in [path for path in folder.rglob("*") if path.is_dir()]:
        fsync_dir(inner)
    fsync_dir(folder)


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSONL file written by this package; an incomplete last line is ignored.

    Returns:
        One object per line; an empty list if there is no file.

    Raises:
        DataError: A line other than the last is not JSON.
    """
    if not path.exists():
        return []
    lines = path.read_bytes().split(b"\n")[:-1]  # text after the last newline was cut off by a kill
    records = []
    for number, line in enumerate(lines, 1):
        try:
            records.append(json.loads(line))
        except ValueError as error:
            raise DataError(f"{path}:{number}: not JSON: {error}; fix: remove the line") from error
    return records


def read_json(path: Path) -> dict[str, Any] | None:
    """The object in a JSON file written by this package, or None if there is no file.

    Raises:
        DataError: The file is not a JSON object.
    """
    if not path.exists():
        return None
    try:
        value = json.loads(path.read_bytes())
    except ValueError as error:
        raise DataError(f"{path}: not JSON: {error}; fix: remove the file and run again") from error
    if not isinstance(value, dict):
        raise DataError(f"{path}: expected an object, got {type(value).__name__}; fix: remove the file")
    return value


def to_json(value: Any) -> str:
    """Indented JSON with null for NaN and infinities, which JSON does not have."""
    return json.dumps(_nonfinite_to_null(value), indent=2, ensure_ascii=True, allow_nan=False) + "\n"


def append_jsonl(path: Path, record: Mapping[str, Any]) -> None:
    """Append an object to a JSONL file in one write, so that a kill damages at most the last line.

    Raises:
        ResourceError: The disk is full or the file cannot be written.
    """
    if not is_first():
        return
    data = (json.dumps(_nonfinite_to_null(record), ensure_ascii=True, allow_nan=False) + "\n").encode()
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            if os.write(handle, data) != len(data):
                # A short write sets no error; in practice the disk is full.
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        finally:
            os.close(handle)
    except OSError as error:
        raise write_error(path, error) from error


def write_error(path: Path, error: OSError) -> ResourceError:
    """ResourceError for a file or folder that cannot be written."""
    why = error.strerror or str(error)
    return ResourceError(f"{path}: cannot be written: {why}; fix: free disk space or choose another folder")


def _nonfinite_to_null(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _nonfinite_to_null(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_nonfinite_to_null(entry) for entry in value]
    if isinstance(value, str | int | bool) or value is None:
        return value
    number = float(value)
    return number if math.isfinite(number) else None
