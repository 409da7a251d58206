"""One process at a time in a run folder."""

import fcntl
import json
import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from paretune.core.errors import ConfigError


class RunLock:
    """The file LOCK of a folder, held from construction to `release`.

    The kernel's lock on the file decides, so a killed process never blocks the next one and two processes
    never both win; the text inside says who holds it, and guards where the kernel's lock does not reach
    other machines.

    Raises:
        ConfigError: Another process holds it.
    """

    def __init__(self, folder: Path, config_hash: str) -> None:
        self.path = folder / "LOCK"
        self.fd: int | None = None
        while True:
            handle = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
            holder = self._acquire(handle)
            # Whoever held it may have removed the file between our open and our lock: then ours is no
            # longer the file of that name, and we start over.
            if _same_file(handle, self.path):
                break
            os.close(handle)
        mine = {"pid": os.getpid(), "host": platform.node(), "boot": boot_id(), "config_hash": config_hash}
        os.ftruncate(handle, 0)
        os.pwrite(handle, json.dumps(mine).encode(), 0)
        self.fd = handle
        self.previous_holder = f"process {holder.get('pid')}" if holder else ""
        """Who held it and never gave it back, or ""."""

    def _acquire(self, fd: int) -> dict[str, Any]:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            holder = _read_holder(fd)
            if holder and holder.get("host") != platform.node():
                raise BlockingIOError
        except BlockingIOError:
            who = _read_holder(fd)
            os.close(fd)
            raise ConfigError(_in_use_message(self.path, who)) from None
        return holder

    def release(self) -> None:
        """Give it back; harmless when done twice."""
        if self.fd is not None:
            self.path.unlink(missing_ok=True)
            os.close(self.fd)
            self.fd = None


def lock_holder(folder: Path) -> str:
    """Who is at work in a folder on this machine, or ""; to be asked, not to be relied on."""
    try:
        handle = os.open(folder / "LOCK", os.O_RDWR)
    except OSError:
        return ""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return f"process {_read_holder(handle).get('pid', 'unknown')}"
    finally:
        os.close(handle)
    return ""


def boot_id() -> str:
    """Differs after every start of the machine; "" where the system does not tell."""
    path = Path("/proc/sys/kernel/random/boot_id")
    return path.read_text().strip() if path.exists() else ""


def _read_holder(fd: int) -> dict[str, Any]:
    try:
        found = json.loads(os.pread(fd, 4096, 0))
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _in_use_message(path: Path, holder_info: Mapping[str, Any]) -> str:
    place = (
        f"process {holder_info['pid']} on {holder_info['host']}"
        if "pid" in holder_info and "host" in holder_info
        else "another process"
    )
    return (
        f"{path}: run.output_dir: {place} is at work in this folder; "
        "fix: wait for it, or choose another run.output_dir (if that machine is gone, remove LOCK)"
    )


def _same_file(fd: int, path: Path) -> bool:
    try:
        return os.fstat(fd).st_ino == path.stat().st_ino
    except FileNotFoundError:
        return False
