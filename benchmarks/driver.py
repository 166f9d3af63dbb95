"""The driver at a million images: its memory, its speed, and how soon it goes on after a restart.

ribray bench driver [--full]

Stage ``refine`` runs as it is, from the listing of what is done to its metrics, each time in a process and on a Ray
cluster of its own. Only the worker is another one: it refines nothing and writes a few bytes in place of a map.
"""

import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import psutil
from harness import figure, in_processes, serve
from memory import begin_anew, highest_resident
from rich.console import Console

from ribray import storage
from ribray.config import load_experiment
from ribray.data.dataset import Dataset
from ribray.pipeline.maps import map_path
from ribray.pipeline.stage import Context
from ribray.runs.run import Run
from ribray.stages import STAGES, classifier, refine
from ribray.tracking import Tracker

FEW = 10_000
SOME, MILLION = 50_000, 1_000_000
MORE = 1_000
"""Images that are still to be done when the driver starts again."""
CHUNK = 50
"""Images of one call."""
CLASSES, WORKERS = 20, 2
MB = 2**20


def run(*, images: int | None = None, few: int = FEW, full: bool = False) -> dict[str, Any]:
    """Return the figures.

    Args:
        images: how many; default: 50,000.
        few: images of the run that its memory is compared with.
        full: a million images.
    """
    count = images or (MILLION if full else SOME)
    with tempfile.TemporaryDirectory(prefix="ribray-driver-") as folder:
        small, large = f"{folder}/small", f"{folder}/large"
        (first,) = in_processes(refine_simulated, directory=small, images=few, limit=few)
        (found,) = in_processes(refine_simulated, directory=large, images=count + MORE, limit=count)
        (again,) = in_processes(refine_simulated, directory=large, images=count + MORE, limit=count + MORE)
        shutil.rmtree(folder, ignore_errors=True)  # here, where it is not taken for a stuck benchmark
        Path(folder).mkdir()
    growth = {name: (one["peak"] - first["peak"]) / MB for name, one in (("run", found), ("restart", again))}
    required = 200 if count >= MILLION else None
    return {
        "settings": {"images": count, "chunk": CHUNK, "workers": WORKERS, "classes": CLASSES},
        "figures": {
            f"driver's peak memory, {few:,} images": figure(first["peak"] / MB, "MB"),
            f"driver's peak memory, {count:,} images": figure(found["peak"] / MB, "MB"),
            "growth": figure(growth["run"], "MB", at_most=required),
            "growth where they are done already": figure(growth["restart"], "MB", at_most=required),
            "of it the list of images and their labels": figure((found["data"] - first["data"]) / MB, "MB"),
            "images a second": figure(found["images_per_second"], "1/s", at_least=2000),
            "from a driver's start to its first image, none done": figure(found["start"], "s"),
            f"the same, {count:,} done": figure(again["start"], "s", at_most=60),
            "of it one listing of what is done": figure(again["listings"], "s"),
        },
        "notes": [
            "Memory: the highest resident set of the driver's process, shared memory of Ray's object store included. "
            f"Baseline of its growth: the run with {few:,} images.",
            f"A worker writes 2 bytes in place of a map, without waiting for the disk; {CHUNK} images are one call.",
            "The start is counted from the beginning of the process, its imports and Ray's included. What is done is "
            "looked for three times: when settings are checked, when the stage is begun, and when it goes on.",
        ],
    }


# --- in a driver -------------------------------------------------------------------------------------------------


class Simulated(Dataset):
    """Images that are not there, each with one to three classes."""

    has_masks = False

    def __init__(self, images: int):
        ids = [f"image_{number:09d}" for number in range(images)]
        labels = np.zeros((images, CLASSES), dtype=bool)
        rng = np.random.default_rng(0)
        for _ in range(3):
            labels[np.arange(images), rng.integers(0, CLASSES, images)] = True
        super().__init__("simulated", [f"class {number}" for number in range(CLASSES)], ids, labels)

    def image_path(self, id: str) -> Path:
        """Return a path where nothing is."""
        return Path(f"{id}.jpg")

    def _read_mask(self, id: str) -> None:
        return None


class SimulatedContext(Context):
    """What the stage works with, on images that are not there."""

    def dataset(self, split: str, labelled: bool = True) -> Dataset:
        return self.simulated

    @cached_property
    def simulated(self) -> Simulated:
        return Simulated(self.images)

    images = 0


class Recorder:
    """Writes a few bytes in place of a map."""

    def __init__(self, folder: Path, **_: Any):
        self._folder = folder

    def process(self, item: str) -> Mapping[str, Any]:
        """Return a record such as a refinement's."""
        began = time.monotonic()
        location = map_path(self._folder, item)
        location.parent.mkdir(parents=True, exist_ok=True)
        location.write_bytes(b"{}")
        record = {"steps": 10, "stop_reason": "finished", "extras": 19, "unreadable": [], "waited": 0.0}
        return record | {"process": os.getpid(), "began": began, "ended": time.monotonic()}


@contextmanager
def simulated(directory: Path, images: int, settings: Sequence[str]) -> Iterator[SimulatedContext]:
    """Yield a context of so many images, of which none is there, in a run directory."""
    experiment = load_experiment("quickstart", [*settings, "tracking.wandb=disabled"])
    with Run.open(directory) as run, open(os.devnull, "w") as nowhere:
        context = SimulatedContext(experiment, run, STAGES, Console(file=nowhere), Tracker(experiment, run))
        context.images = images
        with context.resources:
            run.write_experiment(experiment, "quickstart")
            yield context


def refine_simulated(directory: str, images: int, limit: int) -> dict[str, Any]:
    """Run the stage up to ``limit`` of so many images; return what was seen of this process."""
    settings = [f"refine.limit={limit}", f"cluster.workers={WORKERS}"]
    process = psutil.Process()
    begin_anew()
    with (
        simulated(storage.path(directory), images, settings) as context,
        mock.patch.multiple(refine, RefineWorker=Recorder, CHUNK=CHUNK),
    ):
        before = process.memory_info().rss
        data = context.training_set
        size = process.memory_info().rss - before
        context.begin(classifier.NAME)
        for _ in range(2):  # as the chain does: once to check, once to begin
            began = time.monotonic()
            work = refine.STAGE.work(context)
            listings = time.monotonic() - began
        refine.STAGE.execute(context)
        metrics = context.run.metrics()
        assert metrics["refine"]["images"] == work.total == limit
        new = data.ids[work.done : limit][: 4 * WORKERS * CHUNK]
        maps = context.own_folder(refine.NAME)
        first = min(map_path(maps, id).stat().st_mtime for id in new)
        return {
            "peak": highest_resident(),
            "data": size,
            "listings": listings,
            "start": first - process.create_time(),
            "images_per_second": metrics["timing"]["refine"]["images_per_second"],
        }


if __name__ == "__main__":
    serve(globals())
