"""What the machine has: versions, cores, memory, accelerator, disk. Loads nothing heavy."""

import os
import platform
import re
import shutil
import sys
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

GIGABYTE = 1e9
LITTLE_DISK = 2e9


def examine() -> tuple[list[str], bool]:
    """Lines for a person, and whether everything that is needed is there."""
    old, missing = sys.version_info < (3, 11), _missing()
    lines = [
        f"python {platform.python_version()} {'too old: 3.11 or newer is needed' if old else 'ok'}",
        f"torch {_version('torch')} · transformers {_version('transformers')} · peft {_version('peft')}",
        f"{_cores()} cores, {_memory()} · {_accelerator()}",
        _disk(Path.cwd()),
        "network: not needed, unless a recipe names a model or a data set of the hub",
    ]
    lines += [f"missing: {name}; fix: pip install {name}" for name in missing]
    healthy = not (old or missing)
    return [*lines, "→ next: paretune demo" if healthy else "→ mend the above first"], healthy


def _missing() -> list[str]:
    """Requirements of this package that are not installed."""
    try:
        wanted = requires("paretune") or []
    except PackageNotFoundError:
        return []
    names = [re.split(r"[^A-Za-z0-9._-]", line)[0] for line in wanted if "extra ==" not in line]
    return [name for name in names if _version(name) == "missing"]


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "missing"


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _memory() -> str:
    info = Path("/proc/meminfo")
    found = re.search(r"MemAvailable:\s+(\d+) kB", info.read_text()) if info.exists() else None
    return f"{int(found[1]) * 1024 / GIGABYTE:.1f} GB of memory free" if found else "memory unknown"


def _accelerator() -> str:
    if Path("/proc/driver/nvidia/version").exists() or shutil.which("nvidia-smi"):
        return "an NVIDIA driver is here"
    return "no GPU: the demo and small models only"


def _disk(folder: Path) -> str:
    free = shutil.disk_usage(folder).free
    note = "" if free > LITTLE_DISK else ": little; a run keeps checkpoints of its model"
    return f"disk {free / GIGABYTE:.0f} GB free{note}"
