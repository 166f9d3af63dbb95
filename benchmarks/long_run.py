"""Thousands of refinements in one worker: whether its memory grows, and whether it keeps files open.

ribray bench long-run
"""

import itertools
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
from harness import figure, in_processes, serve
from memory import begin_anew, highest_resident
from refinements import prepare

from ribray.methods.worker import RefineWorker

SIZE = (48, 64)
"""Height and width of the drawn pictures, in pixels."""
ITEM = [
    "classifier.backbone=small",
    "classifier.output_stride=8",
    "refine.iterations=3",
    "refine.batch_size=4",
    "refine.crop_size=48",
    "refine.resize_long=[40,60]",
]
QUARTERS = ("first quarter", "second quarter", "third quarter", "last quarter")


def run(*, images: int = 2000) -> dict[str, Any]:
    """Return the figures of so many refinements, in a process of their own.

    Args:
        images: to refine; a multiple of four.
    """
    (seen,) = in_processes(refine_many, images=images)
    peaks = dict(zip(QUARTERS, seen["peak_bytes"], strict=True))
    seconds = dict(zip(QUARTERS, seen["seconds"], strict=True))
    return {
        "settings": {"images": images, "pixels": list(SIZE), "refinement": ITEM},
        "figures": {
            **{f"highest memory, {name}": figure(peak / 1e6, "MB") for name, peak in peaks.items()},
            "last quarter over second": figure(peaks["last quarter"] / peaks["second quarter"], "", at_most=1.03),
            "file handles more than at the start": figure(seen["files"][1] - seen["files"][0], "", at_most=0),
            "threads more than at the start": figure(seen["threads"][1] - seen["threads"][0], "", at_most=0),
            **{f"images/s, {name}": figure(images / 4 / each, "images/s") for name, each in seconds.items()},
        },
        "notes": [
            f"Baseline: the same worker in its second quarter. {images} refinements of drawn pictures of "
            f"{SIZE[0]}×{SIZE[1]} in one RefineWorker on one thread, in a process of its own. Memory is the highest "
            "resident memory of the process in each quarter. The start is after the first image."
        ],
    }


def refine_many(images: int) -> dict[str, Any]:
    """Refine so many images in one worker, and return by quarter its highest memory and the seconds it took.

    Beside them stand, at the start (after the first image) and at the end, the open files and the threads of this
    process.
    """
    process = psutil.Process()
    with tempfile.TemporaryDirectory() as folder:
        workload = prepare(Path(folder), ITEM, SIZE)
        worker = RefineWorker(**workload.arguments())
        upcoming = itertools.pairwise(itertools.cycle(workload.ids()))

        def refine(count: int) -> None:
            for id, following in itertools.islice(upcoming, count):
                worker.prefetch(id)
                worker.prefetch(following)
                worker.process(id)

        refine(1)
        files, threads = [process.num_fds()], [process.num_threads()]
        peaks, seconds = [], []
        for _ in QUARTERS:
            begin_anew()
            began = time.perf_counter()
            refine(images // len(QUARTERS))
            seconds.append(time.perf_counter() - began)
            peaks.append(highest_resident())
        files.append(process.num_fds())
        threads.append(process.num_threads())
    return {"peak_bytes": peaks, "seconds": seconds, "files": files, "threads": threads}


if __name__ == "__main__":
    serve(globals())
