"""How much memory this process has held."""

import contextlib
import ctypes
import gc
import resource
import sys
from pathlib import Path

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_HIGHEST_RESIDENT = "5"
"""What the kernel is to clear: its record of the highest resident memory."""


def begin_anew() -> None:
    """Begin the record of the highest resident memory anew, where the system can do that (Linux)."""
    with contextlib.suppress(OSError):
        _CLEAR.write_text(_HIGHEST_RESIDENT)


def give_back() -> None:
    """Give memory that lies free in this process back to the system, where the C library can do that (glibc)."""
    gc.collect()
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)


def highest_resident() -> int:
    """Return the highest resident memory of this process in bytes, since the record began."""
    if _STATUS.exists():
        (line,) = (line for line in _STATUS.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    highest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return highest if sys.platform == "darwin" else highest * 1024
