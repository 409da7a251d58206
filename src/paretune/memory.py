"""How much memory this process has held at most."""

import sys
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
