"""What is read from a model folder is read once per process, as long as its files stay as they are.

Configurations are handed out as copies. Tokenizers and networks without weights are shared: who wants to
change one makes a copy.
"""

from collections.abc import Callable, Hashable
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")

MAX_ENTRIES = 64
"""The oldest entry is forgotten beyond this number; a recipe names a handful of models."""
_entries: dict[Hashable, Any] = {}


def read_once(key: Hashable, read: Callable[[], T]) -> T:
    """The value that `read` returned for this key before, or returns now; errors are not remembered."""
    if key not in _entries:
        value = read()
        if len(_entries) >= MAX_ENTRIES:
            del _entries[next(iter(_entries))]
        _entries[key] = value
    stored: T = _entries[key]
    return stored


def model_key(path: str, revision: str | None) -> Hashable:
    """What a folder or hub name stands for: of a folder, also the sizes and times of its files.

    A hub name is looked up once per process, so that a branch that moves cannot mix two versions in a run.
    """
    folder = Path(path)
    if not folder.is_dir():
        return path, revision
    files = []
    for file in sorted(folder.iterdir()):
        status = file.stat()
        files.append((file.name, status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino))
    return folder.absolute(), path, tuple(files)


def config_key(config: Any) -> Hashable:
    """What the network of a configuration depends on."""
    return type(config), config.to_json_string(use_diff=False)
