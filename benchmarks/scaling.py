"""Pools of one and two workers of one thread each, against as many Ray-free processes.

ribray bench scaling
"""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from harness import figure, ratios
from pool import describe, described, in_pool
from refinements import Processes, Record, images_per_second, prepare, waiting_share

from ribray.cluster.session import connect
from ribray.config import ClusterConfig

POOL_OF_TWO, PROCESSES, POOL_OF_ONE = "two pool workers", "two Ray-free processes", "one pool worker"


def run(
    *, images: int = 5, rounds: int = 5, item: Sequence[str] | None = None, size: tuple[int, int] | None = None
) -> dict[str, Any]:
    """Return the figures.

    Args:
        images: that each worker refines in a round; its first one warms up.
        rounds: in which every way has its turn.
        item: settings of a refinement; default: see `refinements.prepare`.
        size: (height, width) of drawn pictures; default: photographs where there are any.
    """
    with tempfile.TemporaryDirectory() as folder:
        workload = prepare(Path(folder), item, size)
        known = workload.ids()
        ids = [known[place % len(known)] for place in range(2 * images)]
        with Processes(workload, 2) as processes:
            found: dict[str, list[list[Record]]] = {PROCESSES: [], POOL_OF_TWO: [], POOL_OF_ONE: []}
            for _ in range(rounds):
                found[PROCESSES].append(processes.refine(ids))
                with connect(ClusterConfig(workers=2)):
                    found[POOL_OF_TWO].append(in_pool(workload, ids, 2))
                    found[POOL_OF_ONE].append(in_pool(workload, ids[:images], 1))
    speed = {name: [images_per_second(records) for records in rounds] for name, rounds in found.items()}
    waits = [waiting_share(records) for records in found[POOL_OF_TWO]]
    share = [100 * ratio for ratio in ratios(speed[POOL_OF_TWO], speed[PROCESSES])]
    return {
        "settings": {
            "images per worker": images,
            "of": workload.images,
            "precision": workload.precision,
            **described(workload),
        },
        "figures": {
            **{name: figure(values, "images/s") for name, values in speed.items()},
            "two pool workers, share of two processes": figure(share, "%", at_least=97),
            "two pool workers over one": figure(ratios(speed[POOL_OF_TWO], speed[POOL_OF_ONE]), ""),
            "two pool workers wait for work or data": figure(waits, "%", at_most=3),
        },
        "notes": [
            "Baseline: two processes without Ray, each with the same worker class on half of the images, at the "
            "priority of Ray's workers and while no Ray cluster runs on the machine. Every worker computes on one "
            f"thread. {describe(workload)}. The images per second are those of the time in which all workers were at "
            "work, after the first image of each."
        ],
    }
