"""The sparse random walk against the dense matrix that published code squares: time, difference, memory.

ribray bench random-walk [--full]
"""

import functools
import statistics
from collections.abc import Sequence
from typing import Any

import psutil
from harness import figure, in_processes, interleave, ratios, serve
from memory import begin_anew, give_back, highest_resident
from oracles import dense_random_walk, example
from torch import Tensor

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
        repeats: rounds, after one that does not count: each takes the walk and, at every size, the oracle.

    Raises:
        UsageError: the memory does not suffice for `full`.
    """
    if full:
        _require_memory(_cells(size))
    name = _name(size)
    inputs = {each: example(classes, *each) for each in (size, *oracle_sizes)}
    walked: dict[Size, Tensor] = {}
    squared: dict[Size, Tensor] = {}

    def walk() -> None:
        walked[size] = random_walk([inputs[size][0]], [inputs[size][1]])[0]

    def square(each: Size) -> None:
        squared[each] = dense_random_walk(*inputs[each])

    oracles = {f"dense oracle {_name(each)}": functools.partial(square, each) for each in oracle_sizes}
    seconds = interleave({f"sparse walk {name}": walk, **oracles}, repeats)
    figures = {name: figure(found, "s") for name, found in seconds.items()}

    largest = max(oracle_sizes, key=_cells)
    factor = (_cells(size) / _cells(largest)) ** 3
    sparse, dense = (seconds[key] for key in (f"sparse walk {name}", f"dense oracle {_name(largest)}"))
    dense = [found * factor for found in dense]
    figures[f"dense oracle {name}, scaled up"] = figure(dense, "s")
    faster = ratios(dense, sparse)
    if full:
        dense = interleave({"run": functools.partial(square, size)}, 1, warm_up=0)["run"]
        figures[f"dense oracle {name}, run"] = figure(dense, "s")
        faster = [dense[0] / statistics.median(sparse)]
    figures[f"times faster, oracle {'run' if full else 'scaled up'}"] = figure(faster, "", at_least=500)
    for each in oracle_sizes:
        walked[each] = random_walk([inputs[each][0]], [inputs[each][1]])[0]
    differences = {each: _difference(walked[each], found) for each, found in squared.items()}
    figures["largest difference"] = figure(max(differences.values()), "", at_most=1e-4)
    (extra,) = in_processes(extra_megabytes, size=size, classes=classes)
    figures["extra memory of the walk"] = figure(extra, "MB", at_most=64)
    notes = [
        f"At {name} the oracle was {'run once' if full else 'not run'}. Its time scaled up is that at "
        f"{_name(largest)} times {factor:.1f}, the cube of {_cells(size)} over {_cells(largest)} cells. Baseline: "
        "the dense matrix of all cells with all cells, squared as in published code; a round takes the walk and then "
        "every oracle.",
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
    give_back()
    begin_anew()
    before = psutil.Process().memory_info().rss
    random_walk([maps], [boundary])
    return (highest_resident() - before) / 1e6


def _require_memory(cells: int) -> None:
    needed, available = DENSE_MATRICES * 4 * cells**2, psutil.virtual_memory().available
    if needed > available:
        raise UsageError(
            f"The dense oracle of {cells} cells needs {needed / 1e9:.1f} GB and {available / 1e9:.1f} GB are free; "
            "leave --full out to have its time scaled up from smaller ones."
        )


def _difference(one: Tensor, other: Tensor) -> float:
    return float((one - other).abs().max())


def _name(size: Size) -> str:
    return f"{size[0]}×{size[1]}"


def _cells(size: Size) -> int:
    return size[0] * size[1]


if __name__ == "__main__":
    serve(globals())
