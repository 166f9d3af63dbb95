"""The sparse random walk against the dense matrix that published code squares: time, difference, memory.

    ribray bench random-walk [--full]

As a script it walks once and prints the memory that this took:

    python benchmarks/random_walk.py 94 125 3
"""

import contextlib
import ctypes
import gc
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psutil
from oracles import dense_random_walk, example
from torch import Tensor

from ribray.bench import figure
from ribray.errors import UsageError
from ribray.irn.random_walk import random_walk

Size = tuple[int, int]

ORACLE_SIZES: tuple[Size, ...] = ((24, 32), (34, 45), (47, 62))
DENSE_MATRICES = 3.5
"""Matrices of cells by cells that the oracle holds at its peak, and some room."""


def run(
    full: bool = False,
    *,
    size: Size = (94, 125),
    classes: int = 3,
    oracle_sizes: Sequence[Size] = ORACLE_SIZES,
    repeats: int = 5,
) -> dict[str, Any]:
    """Return the figures.

    Args:
        full: run the oracle at `size` too, once.
        size: cells of the map, (height, width); 94×125 is a photograph of 375×500 at stride 4.
        classes: present classes.
        oracle_sizes: where the oracle is run.
        repeats: runs of the oracle; the walk, which is short, runs five times as often.

    Raises:
        UsageError: the memory does not suffice for `full`.
    """
    if full:
        _require_memory(_cells(size))
    name = _name(size)
    maps, boundary = example(classes, *size)
    walk, walked = _time(lambda: random_walk([maps], [boundary])[0], 5 * repeats)
    figures = {f"sparse walk {name}": figure(walk, "s")}

    oracle_seconds, differences = {}, {}
    for smaller in oracle_sizes:
        inputs = example(classes, *smaller)
        oracle_seconds[smaller], expected = _time(lambda inputs=inputs: dense_random_walk(*inputs), repeats)
        differences[smaller] = _difference(random_walk([inputs[0]], [inputs[1]])[0], expected)
        figures[f"dense oracle {_name(smaller)}"] = figure(oracle_seconds[smaller], "s")
    largest = max(oracle_sizes, key=_cells)
    factor = (_cells(size) / _cells(largest)) ** 3
    dense = [seconds * factor for seconds in oracle_seconds[largest]]
    figures[f"dense oracle {name}, scaled up"] = figure(dense, "s")
    if full:
        dense, expected = _time(lambda: dense_random_walk(maps, boundary), 1, warm_up=0)
        differences[size] = _difference(walked, expected)
        figures[f"dense oracle {name}, run"] = figure(dense, "s")
    against = "run" if full else "scaled up"
    figures[f"times faster, oracle {against}"] = figure(
        statistics.median(dense) / statistics.median(walk), "", at_least=500
    )
    figures["largest difference"] = figure(max(differences.values()), "", at_most=1e-4)
    figures["extra memory of the walk"] = figure(_extra_megabytes_elsewhere(size, classes), "MB", at_most=64)
    notes = [
        f"At {name} the oracle was {'run once' if full else 'not run'}. Its time scaled up is that at "
        f"{_name(largest)} times {factor:.1f}, the cube of {_cells(size)} over {_cells(largest)} cells.",
        f"The difference is the largest of all values (between 0 and 1) at {', '.join(map(_name, differences))}.",
        "Memory is that of one walk, the first in a fresh process, with what torch loads for it: the highest "
        "resident memory during it less that just before it.",
    ]
    settings = {"cells": list(size), "classes": classes, "full": full, "oracle_cells": [list(s) for s in oracle_sizes]}
    return {"settings": settings, "figures": figures, "notes": notes}


def extra_megabytes(size: Size, classes: int) -> float:
    """Return by how many MB (10⁶ bytes) a walk raises this process's resident memory at its highest point.

    Memory that lies free in the process would be used first and not be seen, so it is given back before. The
    record of the highest point begins anew where the system can do that (Linux); elsewhere it also holds what was
    before, and the figure may be too large, never too small.
    """
    maps, boundary = example(classes, *size)
    gc.collect()
    with contextlib.suppress(AttributeError, OSError):  # glibc only
        ctypes.CDLL(None).malloc_trim(0)
    with contextlib.suppress(OSError):  # Linux only
        Path("/proc/self/clear_refs").write_text("5")
    before = psutil.Process().memory_info().rss
    random_walk([maps], [boundary])
    return (_highest_resident() - before) / 1e6


def _extra_megabytes_elsewhere(size: Size, classes: int) -> float:
    command = [sys.executable, __file__, *map(str, (*size, classes))]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    return float(subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout)


def _highest_resident() -> int:
    """Return the highest resident memory of this process in bytes."""
    status = Path("/proc/self/status")
    if status.exists():
        (line,) = (line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    highest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return highest if sys.platform == "darwin" else highest * 1024


def _require_memory(cells: int) -> None:
    needed, available = DENSE_MATRICES * 4 * cells**2, psutil.virtual_memory().available
    if needed > available:
        raise UsageError(
            f"The dense oracle of {cells} cells needs {needed / 1e9:.1f} GB and {available / 1e9:.1f} GB are free; "
            "leave --full out to have its time scaled up from smaller ones."
        )


def _difference(one: Tensor, other: Tensor) -> float:
    return float((one - other).abs().max())


def _time(work: Callable[[], Tensor], repeats: int, warm_up: int = 1) -> tuple[list[float], Tensor]:
    """Return the seconds of each of `repeats` calls, after `warm_up` that do not count, and what the last returned."""
    seconds = []
    for _ in range(warm_up + repeats):
        start = time.perf_counter()
        result = work()
        seconds.append(time.perf_counter() - start)
    return seconds[warm_up:], result


def _name(size: Size) -> str:
    return f"{size[0]}×{size[1]}"


def _cells(size: Size) -> int:
    return size[0] * size[1]


if __name__ == "__main__":
    print(extra_megabytes((int(sys.argv[1]), int(sys.argv[2])), int(sys.argv[3])))
