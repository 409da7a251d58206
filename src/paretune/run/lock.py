"""Lock of a run folder: one process at a time."""

import json
import os
import platform
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from paretune.core.errors import ConfigError

LOCK_FILES = ("LOCK", ".lock")
"""Holder information (JSON) and the file that the operating system locks."""


class RunLock:
    """Exclusive lock of a folder, held from construction to `release`.

    The operating system's lock on `.lock` decides: a killed process never blocks the next one, and two
    processes never both win. `LOCK` names the holder in JSON, and protects the folder from other hosts, which
    the operating system's lock does not reach.

    Raises:
        ConfigError: Another process holds the lock.
    """

    def __init__(self, folder: Path, config_hash: str) -> None:
        self.path = folder / "LOCK"
        # Not in LOCK itself: Windows lets no other process read the bytes that it has locked.
        # thread_local=False: a run may be released by another thread than the one that claimed it.
        self._lock = FileLock(folder / ".lock", timeout=0, thread_local=False)
        try:
            self._lock.acquire()
        except Timeout:
            raise ConfigError(_in_use_message(self.path, _read_holder(self.path))) from None
        previous = _read_holder(self.path)
        if previous and previous.get("host") != platform.node():
            self._lock.release()
            raise ConfigError(_in_use_message(self.path, previous))
        holder = {
            "pid": os.getpid(),
            "host": platform.node(),
            "boot_id": boot_id(),
            "config_hash": config_hash,
        }
        self.path.write_text(json.dumps(holder), encoding="utf-8")
        self.previous_holder = f"process {previous.get('pid')}" if previous else ""
        """The process that held the lock and ended without releasing it, or ""."""

    def release(self) -> None:
        """Release the lock; may be called twice."""
        if self._lock.is_locked:
            self.path.unlink(missing_ok=True)
            # While the lock is held, so that a process which has the file open sees that it was removed and
            # opens the new one. Windows removes it only after the release.
            with suppress(PermissionError):
                Path(self._lock.lock_file).unlink(missing_ok=True)
            self._lock.release()


def lock_holder(folder: Path) -> str:
    """The process of this host that holds the lock of a folder, or ""; advisory, it may change at once."""
    if not (folder / "LOCK").exists():
        return ""
    try:
        with FileLock(folder / ".lock", timeout=0):
            return ""
    except Timeout:
        return f"process {_read_holder(folder / 'LOCK').get('pid', 'unknown')}"


def boot_id() -> str:
    """Identifier that changes with every boot of the host; "" where the system has none."""
    path = Path("/proc/sys/kernel/random/boot_id")
    return path.read_text().strip() if path.exists() else ""


def _read_holder(path: Path) -> dict[str, Any]:
    try:
        holder = json.loads(path.read_bytes())
    except (OSError, ValueError):  # absent, or just being written
        return {}
    return holder if isinstance(holder, dict) else {}


def _in_use_message(path: Path, holder: Mapping[str, Any]) -> str:
    process = (
        f"process {holder['pid']} on {holder['host']}"
        if "pid" in holder and "host" in holder
        else "another process"
    )
    return (
        f"{path}: run.output_dir: {process} is using this folder; "
        "fix: wait for it, or choose another run.output_dir (if that host is gone, remove LOCK)"
    )
