"""The actor pool against the same refinements without Ray: Ray's time per image, and how long a worker waits.

ribray bench pool
"""

import itertools
import os
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from harness import figure, ratios
from refinements import Processes, Record, Workload, prepare, seconds_per_image, waiting_share

from ribray.cluster.pool import Pool, PoolPlan
from ribray.cluster.session import connect
from ribray.config import ClusterConfig
from ribray.methods.worker import RefineWorker
from ribray.stages.refine import CHUNK, NAME

POOL, ALONE = "in the pool", "in a process"

PATIENCE = 300.0
"""Seconds that a worker waits for the others of its pool."""


class Silent:
    """A progress bar that shows nothing."""

    def advance(self, done: int, failed: int) -> None:
        """Take note of nothing."""


def run(
    *, images: int = 7, rounds: int = 5, item: Sequence[str] | None = None, size: tuple[int, int] | None = None
) -> dict[str, Any]:
    """Return the figures.

    Args:
        images: of a round; each way's first one warms up.
        rounds: in which either way refines them.
        item: settings of a refinement; default: see `refinements.prepare`.
        size: (height, width) of drawn pictures; default: photographs where there are any.
    """
    with tempfile.TemporaryDirectory() as folder, connect(ClusterConfig(workers=1)):
        workload = prepare(Path(folder), item, size)
        known = workload.ids()
        ids = [known[place % len(known)] for place in range(images)]
        found: dict[str, list[list[Record]]] = {ALONE: [], POOL: []}
        with Processes(workload, 1) as alone:
            for _ in range(rounds):
                found[ALONE].append(alone.refine(ids))
                found[POOL].append(in_pool(workload, ids, 1))
    seconds = {
        name: [statistics.median(seconds_per_image(records)) for records in rounds] for name, rounds in found.items()
    }
    overhead = [1000 * (pool - plain) for pool, plain in zip(seconds[POOL], seconds[ALONE], strict=True)]
    gaps = [1000 * gap for records in found[POOL] for gap in gaps_between(records)]
    waits = [waiting_share(records) for records in found[POOL]]
    return {
        "settings": {"images": images, "of": workload.images, "precision": workload.precision, **described(workload)},
        "figures": {
            **{f"an image {name}": figure(values, "s") for name, values in seconds.items()},
            "pool over process": figure(ratios(seconds[POOL], seconds[ALONE]), ""),
            "an image more in the pool": figure(overhead, "ms"),
            "from one image to the next in the pool": figure(gaps, "ms"),
            "a pool worker waits for work or data": figure(waits, "%", at_most=3),
        },
        "notes": [
            "Baseline: the same RefineWorker in a process without Ray, at the priority of Ray's workers; it loads the "
            f"next image meanwhile, as in the pool. {describe(workload)}. A round takes either way once; its value is "
            "the median over its images, and the first of each way warms up. Waiting is what the worker's own time "
            "stamps say: between two images, and within one for pixels that are still being loaded."
        ],
    }


def in_pool(workload: Workload, ids: Sequence[str], workers: int) -> list[Record]:
    """Refine images in a pool and return the records.

    Raises:
        RuntimeError: an image failed.
    """
    records: list[Record] = []
    errors: list[str] = []
    config = ClusterConfig(workers=workers)

    def joined(meeting: Path, **arguments: Any) -> RefineWorker:
        """Return a worker that has warmed up, once all of its pool have: their processes start seconds apart."""
        worker = RefineWorker(**arguments)
        worker.process(ids[0])
        (meeting / str(os.getpid())).touch()
        deadline = time.monotonic() + PATIENCE
        while len(list(meeting.iterdir())) < workers:
            if time.monotonic() > deadline:
                raise TimeoutError(f"Fewer than {workers} workers were there after {PATIENCE:.0f} s.")
            time.sleep(0.01)
        return worker

    with connect(config) as session, tempfile.TemporaryDirectory() as meeting:
        if session.gpus:
            config = config.model_copy(update={"gpus_per_worker": session.gpus / workers})
        arguments = {"meeting": Path(meeting), **workload.arguments()}
        pool = Pool(PoolPlan.of(NAME, config, session, CHUNK), joined, arguments)

        def failed(id: str, error: str, tries: int, traceback: str | None) -> None:
            errors.append(error)

        pool.run(ids, lambda id, record: records.append(record), failed, Silent())
    if errors:
        raise RuntimeError(f"A refinement failed: {errors[0]}")
    return records


def gaps_between(records: Sequence[Record]) -> list[float]:
    """Return the seconds from the end of each image to the beginning of the next, of one worker."""
    own = sorted(records, key=lambda record: record["began"])
    return [record["began"] - before["ended"] for before, record in itertools.pairwise(own)]


def described(workload: Workload) -> dict[str, Any]:
    """Return the settings that make a refinement as long as it is."""
    experiment = workload.experiment
    keys = ("iterations", "batch_size", "crop_size", "scales")
    return {"backbone": experiment.classifier.backbone} | {key: getattr(experiment.refine, key) for key in keys}


def describe(workload: Workload) -> str:
    """Return the same in words."""
    values = described(workload)
    return (
        f"An image is a refinement of one of the {workload.images} with {values['backbone']}, "
        f"K = {values['iterations']}, B = {values['batch_size']}, crops of {values['crop_size']} pixels, "
        f"scales {', '.join(map(str, values['scales']))}, {workload.precision}"
    )
