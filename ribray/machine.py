"""What this machine and checkout are, to stand beside times that were measured on them; devices and memory."""

import contextlib
import ctypes
import os
import platform
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from ribray.errors import UsageError

if TYPE_CHECKING:
    import torch

CPU_FILE = Path("/proc/cpuinfo")
LOADERS = 2  # threads or processes that decode images for one worker, where nothing else is known


def processor() -> str:
    """Return the CPU's model, as far as the system tells it."""
    lines = CPU_FILE.read_text(encoding="utf-8").splitlines() if CPU_FILE.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()


def usable_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def describe_machine() -> str:
    """Return CPU, cores and GPUs: ``AMD EPYC, 16 cores, 2 × NVIDIA A100``."""
    import torch

    cores = os.cpu_count() or 1
    gpus = Counter(torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count()))
    parts = [processor(), f"{cores} core{'s' if cores > 1 else ''}"]
    return ", ".join([*parts, *(f"{count} × {name}" if count > 1 else name for name, count in gpus.items())])


def git_commit(folder: Path) -> str | None:
    """Return a checkout's commit, marked "-dirty" where its files differ from it; None without git."""
    if not (folder / ".git").exists():
        return None
    try:
        command = ["git", "-C", str(folder), "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty"]
        answer = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:
        return None
    return answer.stdout.strip() or None


_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4  # glibc's malloc.h
_USUAL_BLOCKS, _USUAL_SIZE = 65_536, 2**25
"""How many blocks glibc takes from the system one by one, and from which bytes on, at the most that it comes to itself;
twice as many free bytes it keeps at the heap's end."""


@contextlib.contextmanager
def keeping_memory() -> Iterator[None]:
    """Let this process use large blocks of memory again that it has freed, and give them back at the end.

    Otherwise glibc gives each of them back at once, and the system clears every page of the next one.
    """
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    if libc is None or not hasattr(libc, "malloc_trim"):  # another C library
        yield
        return
    libc.mallopt(_MMAP_MAX, 0)
    libc.mallopt(_TRIM_THRESHOLD, 2**31 - 1)
    try:
        yield
    finally:
        libc.mallopt(_MMAP_MAX, _USUAL_BLOCKS)
        libc.mallopt(_MMAP_THRESHOLD, _USUAL_SIZE)  # once one of these is set, glibc does not move it any more
        libc.mallopt(_TRIM_THRESHOLD, 2 * _USUAL_SIZE)
        libc.malloc_trim(0)


def usable_device(device: "str | torch.device") -> "torch.device":
    """Return a device by its name; "auto" is a GPU where there is one."""
    import torch

    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        return torch.empty(0, device=device).device
    except Exception as error:  # noqa: BLE001 - each kind of device has errors of its own
        reason = (str(error) or type(error).__name__).partition("\n")[0].rstrip(".")
        raise UsageError(f"The device {device} cannot be used: {reason}.") from None


def best_precision(on_gpu: bool) -> str:
    """Return "bfloat16" where this process's GPU, or CPU, multiplies it faster than "float32".

    CPUs: those with ``amx_bf16``, and AMD's with ``avx512_bf16``; on Intel's the latter alone gains nothing.
    """
    import torch

    if on_gpu:
        fast = torch.cuda.get_device_capability() >= (8, 0)
    else:
        fast = torch.cpu._is_amx_tile_supported()
        fast = fast or (torch.cpu._is_avx512_bf16_supported() and processor().startswith("AMD"))
    return "bfloat16" if fast else "float32"
