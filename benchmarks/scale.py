"""A cluster at size, without one: a thousand workers and ten million images over the driver's own code.

ribray bench scale [--full]

Stage ``refine`` runs as it is on a simulated cluster (`simulated_cluster.py`): the pool, its failures and events, the
progress bar, the metrics. What Ray takes of the driver is measured on a cluster of this machine, with one worker.
"""

import cProfile
import pstats
import tempfile
import time
import zlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any
from unittest import mock

import ray
from driver import CLASSES, simulated
from harness import figure, in_processes, serve
from memory import begin_anew, give_back, highest_resident
from simulated_cluster import RayCosts, SimulatedCluster

from ribray import storage
from ribray.cluster.pool import Outcome
from ribray.cluster.session import Session, connect
from ribray.config import ClusterConfig
from ribray.errors import ImageError
from ribray.pipeline.maps import are_finished, map_path
from ribray.runs.records import RECORD_FILE
from ribray.stages import classifier, refine

WORKERS = (10, 100, 1000)
LARGEST = max(WORKERS)
IMAGES, FULL_IMAGES = (10_000, 100_000), (10_000, 100_000, 1_000_000, 10_000_000)
MOST = 1_000_000
"""Of more images, only the largest pool does them."""
SECONDS = (0.35, 1.0, 20.0)
"""That an image takes, on average."""
AT_ONCE = 0.001
"""The same, so short that the workers wait for the driver."""
FAILING, LOST = 1000, 0.01
"""Images that fail, and the share of the workers that is lost."""
FILES, FULL_FILES = 20_000, 1_000_000
CALLS, LOOKS = 1000, 100
"""Of Ray, that are timed."""
SHOWN = 8
"""Functions of the profile."""
RECORD = {"steps": 10, "stop_reason": "finished", "extras": 19, "unreadable": [], "waited": 0.0, "process": 1}


def run(*, full: bool = False) -> dict[str, Any]:
    """Return the figures.

    Args:
        full: up to a thousand workers and ten million images.
    """
    sizes = FULL_IMAGES if full else IMAGES
    count = (100 if full else 20) * LARGEST
    return {
        "settings": {"images": list(sizes), "workers": list(WORKERS), "classes": CLASSES, "where one size": count},
        "figures": {
            **by_size(sizes),
            **with_ray(count),
            **in_trouble(count),
            **resumed(FULL_FILES if full else FILES, max(sizes)),
        },
        "notes": [
            "Baseline of a figure: the same with fewer images or workers. The driver's time is its processor time from "
            "the pool's first call to its last, without what the simulated cluster takes, which stands for Ray. Images "
            f"take {SECONDS[0]} s where nothing else is said, each half to one and a half times that, so that hardly "
            "two end at once.",
            "Memory: the highest resident set above that before the data set; the images' ids and labels are in it.",
            "With Ray's and the driver's time: what the driver's thread takes, and what Ray takes of it by the figures "
            "above, moves the simulated clock. Images a second are those of the middle four fifths.",
            "The profile leaves out what the simulation takes; it slows small functions more than large ones.",
        ],
    }


def by_size(sizes: Sequence[int]) -> dict[str, Any]:
    """Return the driver's time and memory for numbers of images and workers."""
    found = {}
    for images in sizes:
        for workers in WORKERS if images <= MOST else [LARGEST]:
            seen = in_processes(simulate, images=images, workers=workers)[0]
            found[f"driver's time an image, {images:,} images, {workers:,} workers"] = figure(seen["driver"], "µs")
        found[f"driver's memory over its start, {images:,} images, {workers:,} workers"] = figure(seen["peak"], "MB")
    return found


def with_ray(images: int) -> dict[str, Any]:
    """Return what Ray takes of the driver, and how many images a second the largest pool does then."""
    costs = in_processes(costs_of_ray)[0]
    found = {f"Ray's time of the driver's thread: {name}": figure(1e6 * cost, "µs") for name, cost in costs.items()}
    for seconds in (AT_ONCE, *SECONDS):
        seen = in_processes(simulate, images=images, workers=LARGEST, seconds=seconds, costs=costs)[0]
        name = f"{LARGEST:,} workers, {seconds:g} s an image, with Ray's and the driver's time"
        found[f"{name}: images a second"] = figure(seen["pace"], "1/s")
        found[f"{name}: of what the workers could do"] = figure(100 * seen["pace"] * seconds / LARGEST, "%")
    return found


def in_trouble(images: int) -> dict[str, Any]:
    """Return what lost workers and failing images do to the largest pool, and where its driver's time goes."""
    troubles = {
        "nothing goes wrong": None,
        f"{LOST:.0%} of the workers lost": "lost",
        f"{FAILING:,} images fail": "failing",
    }
    found = {}
    for name, trouble in troubles.items():
        seen = in_processes(simulate, images=images, workers=LARGEST, trouble=trouble)[0]
        found[f"{name}: simulated time of the stage"] = figure(seen["clock"], "s")
        found[f"{name}: driver's time an image"] = figure(seen["driver"], "µs")
        found[f"{name}: images done"] = figure(seen["done"], "")
    profile = in_processes(simulate, images=images, workers=LARGEST, profiled=True)[0]["profile"]
    return found | {f"of the driver's time: {name}": figure(share, "%") for name, share in profile.items()}


def resumed(files: int, ids: int) -> dict[str, Any]:
    """Return how long the driver takes to see what is done."""
    seen = in_processes(list_finished, files=files, ids=ids)[0]
    return {
        f"one look at which of {files:,} images are done, nine tenths are": figure(seen["files"], "s"),
        f"the same of {ids:,} images, of which none is done": figure(seen["ids"], "s"),
    }


# --- in a process of its own -------------------------------------------------------------------------------------


class SimulatedWorker:
    """Refines nothing; an image in so many fails."""

    def __init__(self, **_: Any):
        """Be ready."""

    def process(self, item: str) -> Mapping[str, Any]:
        """Return a record such as a refinement's."""
        return RECORD


class FailingWorker(SimulatedWorker):
    """Fails at the first images."""

    def process(self, item: str) -> Mapping[str, Any]:
        if int(item.removeprefix("image_")) < FAILING:
            raise ImageError(f"{item} is unreadable.")
        return RECORD


def simulate(
    images: int,
    workers: int,
    seconds: float = SECONDS[0],
    costs: Mapping[str, float] | None = None,
    trouble: str | None = None,
    profiled: bool = False,
) -> dict[str, Any]:
    """Refine so many images by so many workers; return what was seen of the driver and on the cluster's clock."""

    def seconds_of(item: str) -> float:
        return seconds * (0.5 + zlib.crc32(item.encode()) / 2**32)

    count = round(LOST * workers) if trouble == "lost" else 0
    losses = [(11.0 + place / 2, place * workers // count) for place in range(count)]
    cluster = SimulatedCluster(seconds_of, losses=losses, costs=RayCosts(**costs) if costs else None)
    tenth = (images - (FAILING if trouble == "failing" else 0)) // 10
    done: list[float] = []  # when each tenth of the images was

    class Noting(refine._Notes):
        taken = 0

        def take(self, id: str, record: Mapping[str, Any]) -> None:
            super().take(id, record)
            self.taken += 1
            if self.taken % tenth == 0:
                done.append(cluster.now)

    worker = FailingWorker if trouble == "failing" else SimulatedWorker
    give_back()
    begin_anew()
    before = highest_resident()
    profile = cProfile.Profile()
    settings = [f"refine.limit={images}", f"cluster.workers={workers}", "refine.precision=float32"]
    with (
        tempfile.TemporaryDirectory(prefix="ribray-scale-") as folder,
        simulated(Path(folder), images, settings) as context,
        mock.patch.multiple(refine, RefineWorker=worker, _Notes=Noting),
        cluster.replacing(),
    ):
        context.session = Session(cpus=workers, gpus=0, memory_gb=workers, is_local=False)
        context.begin(classifier.NAME)
        if profiled:
            profile.runcall(refine.STAGE.execute, context)
        else:
            refine.STAGE.execute(context)
        metrics = context.run.metrics()
    return {
        "driver": 1e6 * cluster.driver_seconds / images,
        "peak": (highest_resident() - before) / 2**20,
        "clock": metrics["timing"]["refine"]["seconds"],
        "pace": 8 * tenth / (done[8] - done[0]),
        "done": metrics["refine"]["images"],
        "failed": metrics["refine"]["failed"],
        "profile": shares(profile) if profiled else {},
    }


def shares(profile: cProfile.Profile) -> dict[str, float]:
    """Return the functions of the driver that take most of its time, by their share of it in percent.

    What is written in C counts for the function that calls it.
    """
    own: Counter[tuple[str, int, str]] = Counter()
    for function, (_, _, seconds, _, callers) in pstats.Stats(profile).stats.items():
        if function[0] != "~":
            own[function] += seconds
        for caller, (_, _, seconds_for_it, _) in callers.items() if function[0] == "~" else ():
            own[caller] += seconds_for_it
    rooms = (
        "cluster/actors.py",
        "cluster/pool.py",
        "ribray/progress.py",
        "stages/refine.py",
        "methods/stop_reasons.py",
    )
    of_workers = ("process", "_prefetch", "_process_batch", "_process_item")
    named = {
        f"{Path(file).stem}.{name}": seconds
        for (file, _, name), seconds in own.items()
        if file.endswith(rooms) and name not in of_workers and not name.startswith("<")
    }
    most = Counter(named).most_common(SHOWN)
    return {name: 100 * seconds / sum(named.values()) for name, seconds in most}


class Echo:
    """Answers as a refinement's actor does."""

    def process(self, chunk: list[str], upcoming: list[str]) -> list[Outcome]:
        return [Outcome(item, record=RECORD) for item in chunk]

    def wait(self) -> None:
        """Keep those that come later waiting."""
        time.sleep(3600)


def costs_of_ray() -> dict[str, float]:
    """Return what Ray takes of the driver's thread, in seconds, on a cluster of this machine with one worker."""
    with connect(ClusterConfig(workers=1)):
        waiting, answering = (ray.remote(Echo).remote() for _ in range(2))
        ray.get([actor.process.remote([""], []) for actor in (waiting, answering)])
        waiting.wait.remote()
        call, references = timed(
            lambda: [waiting.process.remote([f"image_{number:09d}"], ["image_000000000"]) for number in range(CALLS)]
        )
        look_at_one, _ = timed(lambda: [_look(references[:1]) for _ in range(LOOKS)])
        look_at_all, _ = timed(lambda: [_look(references) for _ in range(LOOKS)])
        ray.kill(waiting)
        results = [answering.process.remote([f"image_{number:09d}"], []) for number in range(CALLS)]
        ray.wait(results, num_returns=CALLS)
        get, _ = timed(lambda: [ray.get(result) for result in results])
    each = (look_at_all - look_at_one) / LOOKS / (CALLS - 1)
    return asdict(RayCosts(call / CALLS, get / CALLS, look_at_one / LOOKS, each))


def _look(references: list[Any]) -> None:
    ray.wait(references, num_returns=len(references), timeout=0)


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """Return the processor time of this thread that some work takes, and what comes of it."""
    began = time.thread_time()
    result = work()
    return time.thread_time() - began, result


def list_finished(files: int, ids: int) -> dict[str, float]:
    """Return how long it takes to see which of so many images, and of so many others, are done."""
    names = [f"image_{number:09d}" for number in range(files)]
    with tempfile.TemporaryDirectory(prefix="ribray-scale-") as name:
        folder = Path(name)
        (folder / RECORD_FILE).write_text("{}")
        for number in range(storage.SUBFOLDERS):
            (folder / f"{number:02x}").mkdir()
        for number, id in enumerate(names):
            if number % 10:
                map_path(folder, id).touch()
        began = time.monotonic()
        assert are_finished(folder, names).sum() == files - len(range(0, files, 10))
        listed = time.monotonic() - began
    others = [f"other_{number:09d}" for number in range(ids)]
    with tempfile.TemporaryDirectory(prefix="ribray-scale-") as name:
        (Path(name) / RECORD_FILE).write_text("{}")
        began = time.monotonic()
        assert not are_finished(Path(name), others).any()
        return {"files": listed, "ids": time.monotonic() - began}


if __name__ == "__main__":
    serve(globals())
