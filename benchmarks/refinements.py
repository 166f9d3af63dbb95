"""A worker's refinements in Ray-free processes, and what the time stamps of refinements say.

As a script it is a Ray-free worker: it prints a line once it is ready, and then, for each line of ids (a JSON list) on
its standard input, a line with the records of their refinements:

    python benchmarks/refinements.py FOLDER SETTING...
"""

import itertools
import json
import os
import subprocess
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pictures import data_settings

from ribray import storage
from ribray.config import Experiment, change, validate_experiment
from ribray.data import Dataset, open_dataset
from ribray.methods.worker import RefineWorker
from ribray.networks import build_classifier
from ribray.networks.weights import load_backbone_weights, save_network

Record = Mapping[str, Any]

ITEM = [
    "classifier.backbone=resnet18",
    "refine.scales=[1.0,0.5]",
    "refine.loss_scales=[1.0]",
    "refine.iterations=2",
    "refine.batch_size=4",
    "refine.crop_size=256",
]
"""On a CPU: a refinement of one to two seconds on one thread, where the recipe's own takes minutes."""
GPU_ITEM = ["classifier.backbone=resnet50"]
"""On a GPU: the recipe's own, B = 20 and K = 10."""

RAY_NICENESS = int(os.environ.get("RAY_worker_niceness", "15"))  # noqa: SIM112
"""What Ray gives its workers; with another, other work on the machine would slow one side more."""


@dataclass(frozen=True)
class Workload:
    """Images to refine and how; the same in every process."""

    folder: Path
    """Weights, and the maps that are written."""
    settings: list[str]
    """On top of the defaults, which are recipe ``voc12``'s of classifier and refinement; values are JSON, or a text."""
    images: str
    """What the images are."""

    def but(self, *settings: str) -> "Workload":
        """Return the same images with other settings on top."""
        return Workload(self.folder, [*self.settings, *settings], self.images)

    @property
    def experiment(self) -> Experiment:
        """The resolved configuration; no YAML is read."""
        pairs = (setting.partition("=") for setting in self.settings)
        return validate_experiment(change({}, [{key: _value(text) for key, _, text in pairs}]), "benchmark")

    @property
    def precision(self) -> str:
        """What ``auto`` means on a GPU, and float32 on a CPU."""
        return "bfloat16" if torch.cuda.is_available() else "float32"

    @property
    def dataset(self) -> Dataset:
        """The images, opened anew."""
        data = self.experiment.data
        return open_dataset(data, data.train_split)

    def ids(self) -> list[str]:
        """Return the images of the commonest size, so that each takes as long."""
        return max(self.by_size(), key=len)

    def by_size(self) -> list[list[str]]:
        """Return all images, those of one size together."""
        dataset = self.dataset
        by_size: dict[tuple[int, ...], list[str]] = defaultdict(list)
        for id in dataset.ids:
            by_size[dataset.image(id).shape].append(id)
        return list(by_size.values())

    def arguments(self) -> dict[str, Any]:
        """Return what a `RefineWorker` is built with."""
        experiment = self.experiment
        return {
            "dataset": self.dataset,
            "classifier": {
                "backbone": experiment.classifier.backbone,
                "output_stride": experiment.classifier.output_stride,
            },
            "weights": self.folder / "weights.safetensors",
            "config": experiment.refine,
            "precision": self.precision,
            "folder": self.folder / "maps",
            "loader_threads": experiment.cluster.loader_threads,
        }


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def prepare(
    folder: Path, item: Sequence[str] | None = None, size: tuple[int, int] | None = None, in_turn: bool = False
) -> Workload:
    """Return a workload with random weights.

    Args:
        folder: for its files.
        item: settings of the refinement; default: `ITEM`, or `GPU_ITEM` where there is one.
        size: (height, width) of drawn pictures; default: photographs where there are any.
        in_turn: label the pictures with one class each, in turn, so that each has extra samples enough.
    """
    settings, images = data_settings(folder / "pictures", size, in_turn=in_turn)
    chosen = (GPU_ITEM if torch.cuda.is_available() else ITEM) if item is None else item
    # No early stop, or images would differ in the number of their steps.
    fixed = ["classifier.weights=none", "refine.stop_threshold=1e30", "refine.explode_ratio=1"]
    workload = Workload(folder, [*settings, *chosen, *fixed], images)
    config = workload.experiment.classifier
    torch.manual_seed(0)
    model = build_classifier(config.backbone, len(workload.dataset.classes), config.output_stride)
    load_backbone_weights(model.backbone, config.weights)
    save_network(model, folder / "weights.safetensors")
    return workload


def one_after_the_other(worker: RefineWorker, ids: Sequence[str]) -> list[Record]:
    """Refine images in this process, while the next one is being loaded, and return the records."""
    records = []
    for place, id in enumerate(ids):
        for upcoming in ids[place : place + 2]:
            worker.prefetch(upcoming)
        records.append(worker.process(id))
    return records


class Processes:
    """Ray-free worker processes, alive for the length of a ``with`` block; their priority is that of Ray's workers."""

    def __init__(self, workload: Workload, number: int):
        command = [sys.executable, __file__, str(workload.folder), *workload.settings]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
        self._processes = [
            subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
            for _ in range(number)
        ]

    def __enter__(self) -> "Processes":
        for process in self._processes:
            self._line(process)
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes:
            process.communicate()  # the end of its input ends it

    def refine(self, ids: Sequence[str]) -> list[Record]:
        """Refine images, each process its share of them, and return the records."""
        number = len(self._processes)
        for place, process in enumerate(self._processes):
            assert process.stdin is not None
            process.stdin.write(json.dumps(list(ids[place::number])) + "\n")
            process.stdin.flush()
        return [record for process in self._processes for record in json.loads(self._line(process))]

    @staticmethod
    def _line(process: "subprocess.Popen[str]") -> str:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            raise RuntimeError(f"A worker process ended with status {process.wait()}.")
        return line


# --- time stamps -------------------------------------------------------------------------------------------------


def by_process(records: Sequence[Record]) -> list[list[Record]]:
    """Return the records of each process, in the order of its work."""
    found: dict[int, list[Record]] = defaultdict(list)
    for record in sorted(records, key=lambda record: record["began"]):
        found[record["process"]].append(record)
    return list(found.values())


def seconds_per_image(records: Sequence[Record]) -> list[float]:
    """Return the seconds from the end of one image to the end of the next, of one process; the first one warms up."""
    (own,) = by_process(records)
    return [record["ended"] - before["ended"] for before, record in itertools.pairwise(own)]


def waiting_share(records: Sequence[Record]) -> float:
    """Return the percentage of time, after its first image, in which a worker had no work or waited for pixels."""
    waited = total = 0.0
    for own in by_process(records):
        total += own[-1]["ended"] - own[0]["ended"]
        for before, record in itertools.pairwise(own):
            waited += record["began"] - before["ended"] + record["waited"]
    return 100 * waited / total


def images_per_second(records: Sequence[Record]) -> float:
    """Return the images per second while every process was at work: after its first image and before its last's end.

    An image counts by the part of its time that lies within, so that a gap between two images is time lost.
    """
    workers = by_process(records)
    begin = max(own[0]["ended"] for own in workers)
    end = min(own[-1]["ended"] for own in workers)
    if end <= begin:
        raise ValueError("The workers were never all at work: there are too few images.")
    done = sum(_part_within(record, begin, end) for record in records)
    return done / (end - begin)


def _part_within(record: Record, begin: float, end: float) -> float:
    within = min(record["ended"], end) - max(record["began"], begin)
    return max(0.0, within) / (record["ended"] - record["began"])


def _serve(folder: Path, settings: list[str]) -> None:
    torch.set_num_threads(1)
    os.nice(max(0, RAY_NICENESS - os.nice(0)))
    worker = RefineWorker(**Workload(folder, settings, "").arguments())
    print("ready", flush=True)
    for line in sys.stdin:
        print(json.dumps(one_after_the_other(worker, json.loads(line))), flush=True)


if __name__ == "__main__":
    _serve(storage.path(sys.argv[1]), sys.argv[2:])
