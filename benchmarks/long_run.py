"""Thousands of refinements in one worker: whether its memory grows, and whether it keeps files open.

ribray bench long-run

As a script it refines so many images in its own process and prints what it saw:

    python benchmarks/long_run.py 2000
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import torch
from harness import figure
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
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, __file__, str(images)]
    seen = json.loads(subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout)
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


def refine_many(images: int, folder: Path) -> dict[str, Any]:
    """Refine so many images in one worker, and return by quarter its highest memory and the seconds it took.

    Beside them stand, at the start (after the first image) and at the end, the open files and the threads of this
    process.
    """
    workload = prepare(folder, ITEM, SIZE)
    worker = RefineWorker(**workload.arguments())
    work = _endless(worker, workload.ids())
    next(work)
    process = psutil.Process()
    files, threads = [process.num_fds()], [process.num_threads()]
    peaks, seconds = [], []
    for _ in QUARTERS:
        begin_anew()
        began = time.perf_counter()
        for _ in range(images // len(QUARTERS)):
            next(work)
        seconds.append(time.perf_counter() - began)
        peaks.append(highest_resident())
    work.close()
    files.append(process.num_fds())
    threads.append(process.num_threads())
    return {"peak_bytes": peaks, "seconds": seconds, "files": files, "threads": threads}


def _endless(worker: RefineWorker, ids: list[str]) -> Iterator[None]:
    """Refine images one after the other, again and again, the next one being loaded meanwhile."""
    place = 0
    while True:
        worker.prefetch(ids[place % len(ids)])
        worker.prefetch(ids[(place + 1) % len(ids)])
        worker.process(ids[place % len(ids)])
        place += 1
        yield


if __name__ == "__main__":
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        print(json.dumps(refine_many(int(sys.argv[1]), Path(name))))
