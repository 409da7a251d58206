"""Memory of this process, and the checks of `paretune doctor`; loads neither torch nor transformers."""

import platform
import re
import shutil
import sys
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

import psutil

GIGABYTE = 1e9
LOW_DISK_BYTES = 2e9
"""Below this, checkpoints of even a small model may not fit."""


def peak_rss_bytes() -> int:
    """Peak resident set size of this process so far, in bytes; 0 where the system does not report it.

    psutil reports the peak on Windows only. On Linux this is VmHWM: `getrusage` would also count the parent
    process's memory at the time of the fork, so it is the fallback for other systems.
    """
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return 1024 * int(line.split()[1])
    peak_wset = getattr(psutil.Process().memory_info(), "peak_wset", None)
    return _rusage_peak_rss_bytes() if peak_wset is None else int(peak_wset)


def _rusage_peak_rss_bytes() -> int:
    try:
        import resource
    except ImportError:  # Windows
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak  # macOS counts bytes, others kilobytes


def check_environment() -> tuple[list[str], bool]:
    """Lines about versions, cores, memory, GPU and disk, and True if every requirement is installed."""
    outdated, missing = sys.version_info < (3, 11), _missing_requirements()
    versions = " · ".join(f"{name} {_installed_version(name)}" for name in ("torch", "transformers", "peft"))
    lines = [
        f"python {platform.python_version()} {'too old: 3.11 or newer is needed' if outdated else 'ok'}",
        versions,
        f"{_num_cores()} cores, {_available_memory()} · {_gpu_driver()}",
        _free_disk(Path.cwd()),
        "network: not needed, unless a recipe names a model or a data set on the hub",
    ]
    lines += [f"missing: {name}; fix: pip install {name}" for name in missing]
    healthy = not (outdated or missing)
    return [*lines, "→ next: paretune demo" if healthy else "→ fix the problems above first"], healthy


def torch_environment() -> str:
    """The report of torch.utils.collect_env, which torch asks for in bug reports; loads torch."""
    from torch.utils import collect_env

    return str(collect_env.get_pretty_env_info())


def _missing_requirements() -> list[str]:
    """Requirements of this package that are not installed."""
    try:
        requirements = requires("paretune") or []
    except PackageNotFoundError:
        return []
    names = [re.split(r"[^A-Za-z0-9._-]", line)[0] for line in requirements if "extra ==" not in line]
    return [name for name in names if _installed_version(name) == "missing"]


def _installed_version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "missing"


def _num_cores() -> int:
    """Cores that this process may use; containers and `taskset` can allow fewer than the host has."""
    process = psutil.Process()
    if hasattr(process, "cpu_affinity"):  # not on macOS
        return len(process.cpu_affinity() or ())
    return psutil.cpu_count() or 1


def _available_memory() -> str:
    return f"{psutil.virtual_memory().available / GIGABYTE:.1f} GB of memory free"


def _gpu_driver() -> str:
    # The driver, not torch.cuda: importing torch takes seconds.
    if Path("/proc/driver/nvidia/version").exists() or shutil.which("nvidia-smi"):
        return "NVIDIA driver found"
    return "no GPU: the demo and small models only"


def _free_disk(folder: Path) -> str:
    free = psutil.disk_usage(str(folder)).free
    note = "" if free > LOW_DISK_BYTES else ": low; a run writes checkpoints of its model"
    return f"disk {free / GIGABYTE:.0f} GB free{note}"
