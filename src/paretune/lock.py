"""One process at a time in a run folder."""

import fcntl
import json
import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from paretune.errors import ConfigError


class Lock:
    """The file LOCK of a folder, held from construction to `release`.

    The kernel's lock on the file decides, so a killed process never blocks the next one and two processes
    never both win; the text inside says who holds it, and guards where the kernel's lock does not reach
    other machines.

    Raises:
        ConfigError: Another process holds it.
    """

    def __init__(self, folder: Path, config_hash: str) -> None:
        self.path = folder / "LOCK"
        self.handle: int | None = None
        while True:
            handle = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
            holder = self._try(handle)
            # Whoever held it may have removed the file between our open and our lock: then ours is no
            # longer the file of that name, and we start over.
            if _same_file(handle, self.path):
                break
            os.close(handle)
        mine = {"pid": os.getpid(), "host": platform.node(), "boot": boot_id(), "config_hash": config_hash}
        os.ftruncate(handle, 0)
        os.pwrite(handle, json.dumps(mine).encode(), 0)
        self.handle = handle
        self.previous = f"process {holder.get('pid')}" if holder else ""
        """Who held it and never gave it back, or ""."""

    def _try(self, handle: int) -> dict[str, Any]:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            holder = _holder(handle)
            if holder and holder.get("host") != platform.node():
                raise BlockingIOError
        except BlockingIOError:
            who = _holder(handle)
            os.close(handle)
            raise ConfigError(_in_use(self.path, who)) from None
        return holder

    def release(self) -> None:
        """Give it back; harmless when done twice."""
        if self.handle is not None:
            self.path.unlink(missing_ok=True)
            os.close(self.handle)
            self.handle = None


def holder(folder: Path) -> str:
    """Who is at work in a folder on this machine, or ""; to be asked, not to be relied on."""
    try:
        handle = os.open(folder / "LOCK", os.O_RDWR)
    except OSError:
        return ""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return f"process {_holder(handle).get('pid', 'unknown')}"
    finally:
        os.close(handle)
    return ""


def boot_id() -> str:
    """Differs after every start of the machine; "" where the system does not tell."""
    path = Path("/proc/sys/kernel/random/boot_id")
    return path.read_text().strip() if path.exists() else ""


def _holder(handle: int) -> dict[str, Any]:
    try:
        found = json.loads(os.pread(handle, 4096, 0))
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _in_use(path: Path, who: Mapping[str, Any]) -> str:
    place = f"process {who['pid']} on {who['host']}" if "pid" in who and "host" in who else "another process"
    return (
        f"{path}: run.folder: {place} is at work in this folder; "
        "fix: wait for it, or choose another run.folder (if that machine is gone, remove LOCK)"
    )


def _same_file(handle: int, path: Path) -> bool:
    try:
        return os.fstat(handle).st_ino == path.stat().st_ino
    except FileNotFoundError:
        return False
