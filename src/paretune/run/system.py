"""How much memory this process has held at most.

What the machine has: versions, cores, memory, accelerator, disk. Loads nothing heavy.
"""

import os
import platform
import re
import shutil
import sys
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path


def peak_rss_bytes() -> int:
    """Bytes of main memory that this program held at most, so far; 0 where the system does not tell.

    On Linux this is the high-water mark of the program itself. `getrusage` would also count what the program
    that started it held at that moment, so it is asked only elsewhere.
    """
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return 1024 * int(line.split()[1])
    return _rusage_peak_rss_bytes()


def _rusage_peak_rss_bytes() -> int:
    try:
        import resource
    except ImportError:  # not on Windows
        return 0
    found = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return found if sys.platform == "darwin" else 1024 * found


GIGABYTE = 1e9
LOW_DISK_BYTES = 2e9


def check_environment() -> tuple[list[str], bool]:
    """Lines for a person, and whether everything that is needed is there."""
    old, missing = sys.version_info < (3, 11), _missing_requirements()
    lines = [
        f"python {platform.python_version()} {'too old: 3.11 or newer is needed' if old else 'ok'}",
        f"torch {_installed_version('torch')} · transformers {_installed_version('transformers')} · peft {_installed_version('peft')}",
        f"{_num_cores()} cores, {_free_memory()} · {_gpu_driver()}",
        _free_disk(Path.cwd()),
        "network: not needed, unless a recipe names a model or a data set of the hub",
    ]
    lines += [f"missing: {name}; fix: pip install {name}" for name in missing]
    healthy = not (old or missing)
    return [*lines, "→ next: paretune demo" if healthy else "→ mend the above first"], healthy


def _missing_requirements() -> list[str]:
    """Requirements of this package that are not installed."""
    try:
        wanted = requires("paretune") or []
    except PackageNotFoundError:
        return []
    names = [re.split(r"[^A-Za-z0-9._-]", line)[0] for line in wanted if "extra ==" not in line]
    return [name for name in names if _installed_version(name) == "missing"]


def _installed_version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "missing"


def _num_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _free_memory() -> str:
    info = Path("/proc/meminfo")
    found = re.search(r"MemAvailable:\s+(\d+) kB", info.read_text()) if info.exists() else None
    return f"{int(found[1]) * 1024 / GIGABYTE:.1f} GB of memory free" if found else "memory unknown"


def _gpu_driver() -> str:
    if Path("/proc/driver/nvidia/version").exists() or shutil.which("nvidia-smi"):
        return "an NVIDIA driver is here"
    return "no GPU: the demo and small models only"


def _free_disk(folder: Path) -> str:
    free = shutil.disk_usage(folder).free
    note = "" if free > LOW_DISK_BYTES else ": little; a run keeps checkpoints of its model"
    return f"disk {free / GIGABYTE:.0f} GB free{note}"
