"""``ribray check``: is the data of a recipe complete and sound? Reads every image and every mask once.

It belongs to no run: it trains nothing, has no key, and writes one file, ``check.json``. What would make an image
fail, or be counted wrongly, is a *finding*; how often a class occurs, or that it never does, is only told.
"""

import contextlib
import itertools
import threading
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from ribray import storage
from ribray.cluster.pool import Pool, PoolPlan
from ribray.cluster.session import connect
from ribray.config import Experiment
from ribray.data import open_dataset, truth
from ribray.data.dataset import Dataset, Problem
from ribray.data.depth import Scale
from ribray.data.images import BLANK, image_size, tell_readings
from ribray.errors import ImageError, UsageError, ValuesError
from ribray.progress import show_progress

NAME = "check"
REPORT_FILE = "check.json"
CHUNK = 16  # images of one call: to decode one takes some milliseconds
TAB = "\t"  # between the split and the id of an item; neither can hold it (`ribray.data.lists.check_id`)

MISSING, UNREADABLE, TRUNCATED, VALUES = "missing", "unreadable", "truncated", "values"


@dataclass(frozen=True, order=True)
class Finding:
    kind: str  # a word or two: missing, unreadable, truncated, mask size, mask values, listed twice, …
    split: str
    id: str
    sentence: str


@dataclass(frozen=True)
class CheckReport:
    splits: dict[str, "Split"]
    findings: list[Finding]  # by split, kind and id
    stopped: bool  # whether the user stopped it before every image was looked at
    notes: list[str]  # how the data was read where it could be read in another way


# --- in a worker -------------------------------------------------------------------------------------------------


class CheckWorker:
    def __init__(self, datasets: Mapping[str, Dataset]):
        self._datasets = datasets

    def process(self, item: str) -> dict[str, Any]:
        """Return width and height (or None), how it was read, what its truth is beside its labels, what is wrong."""
        split, _, id = item.partition(TAB)
        dataset, compared = self._datasets[split], None
        size, problems, readings = _look_at_image(dataset, id)
        seen = None if size is None else dataset.look_at_mask(id)
        if seen is not None:
            mask, faults = seen
            problems += faults
            if mask is not None:
                found = truth.compare(dataset, id, mask)
                problems += found.problems
                compared = found.record
        return {
            "size": size,
            "readings": readings,
            "has_mask": seen is not None,
            "truth": compared,
            "problems": [(problem.kind, problem.sentence) for problem in problems],
        }


def _look_at_image(dataset: Dataset, id: str) -> tuple[tuple[int, int] | None, list[Problem], tuple[Scale | str, ...]]:
    try:
        picture = dataset.picture(id)
        (height, width), blank = picture.pixels.shape[:2], picture.blank
        problems = [] if blank is None else [Problem(id, f"{dataset.image_path(id)} holds {BLANK[blank]}.", blank)]
        return (width, height), problems, picture.readings
    except ImageError as error:
        sentence, kind = str(error), VALUES if isinstance(error, ValuesError) else TRUNCATED
    try:
        height, width = image_size(dataset.image_path(id))
        return (width, height), [Problem(id, sentence, kind)], ()  # the header is sound, the pixels are not
    except ImageError:
        exists = False
        with contextlib.suppress(ImageError, OSError):
            exists = dataset.image_path(id).exists()
        return None, [Problem(id, sentence, UNREADABLE if exists else MISSING)], ()


# --- in the driver -----------------------------------------------------------------------------------------------


def check_data(experiment: Experiment, console: Console, stop: threading.Event) -> CheckReport:
    data = experiment.data
    if data.root is None:
        raise UsageError(f"data.kind={data.kind} without data.root: a run draws its own data, so nothing can be wrong.")
    used = dict.fromkeys((data.train_split, data.eval_split, experiment.seed_eval.split or data.train_split))
    datasets = {split: open_dataset(data, split, data.root) for split in used}
    splits = {name: Split(name, dataset) for name, dataset in datasets.items()}

    def on_done(item: str, record: Mapping[str, Any]) -> None:
        split, _, id = item.partition(TAB)
        splits[split].take(id, record)

    def on_failed(item: str, error: str, tries: int, traceback: str | None) -> None:
        split, _, id = item.partition(TAB)
        splits[split].findings.add(Finding(UNREADABLE, split, id, f"{id} cannot be looked at: {error}"))

    items = [f"{split}{TAB}{id}" for split, dataset in datasets.items() for id in dataset.ids]
    with connect(experiment.cluster, stop=stop) as session:
        plan = PoolPlan.of(NAME, experiment.cluster, session, chunk_size=CHUNK, gpu=False)
        with show_progress(console, NAME, len(items)) as bar:
            pool = Pool(plan, CheckWorker, {"datasets": datasets})
            result = pool.run(items, on_done, on_failed, bar, stop.is_set)
    notes = list(dict.fromkeys(note for dataset in datasets.values() for note in dataset.notes))
    notes += [note for split in splits.values() if (note := split.judge()) is not None]
    notes += [note for name, split in splits.items() for note in tell_readings(split.readings, f" of '{name}'")]
    findings = [finding for split in splits.values() for finding in sorted(split.findings)]
    return CheckReport(splits, findings, result.stopped, notes)


def write_report(report: CheckReport, experiment: Experiment, folder: Path) -> Path:
    if storage.is_local(folder):
        storage.require_writable(folder)
    told = ("images", "empty", "classes", "with_mask", "sizes", "unused")
    splits = {name: {each: getattr(split, each) for each in told} for name, split in report.splits.items()}
    values = {
        "data": {"kind": experiment.data.kind, "root": experiment.data.root},
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "complete": not report.stopped,
        "splits": splits,
        "notes": report.notes,
        "findings": [asdict(finding) for finding in report.findings],
    }
    storage.write_json(folder / REPORT_FILE, values)
    return folder / REPORT_FILE


class Split:
    def __init__(self, name: str, dataset: Dataset):
        self._name, self._dataset = name, dataset
        self.images = len(dataset)  # that have labels, be it none of the classes
        self.empty = int((~dataset.labels.any(1)).sum())  # of these, known to show none of the classes
        self.classes = dict(zip(dataset.classes, dataset.labels.sum(0).tolist(), strict=True))  # images by class
        self.unused = [each for each, images in self.classes.items() if not images]
        self.with_mask = 0
        self.sizes: dict[str, tuple[int, int]] = {}  # (w, h) of the smallest, median, largest readable image, by area
        self.readings: Counter[Scale | str] = Counter()
        known = (*dataset.problems, *dataset.findings)
        self.findings = {Finding(problem.kind, name, problem.id, problem.sentence) for problem in known}
        self._sizes: Counter[tuple[int, int]] = Counter()
        self._tally, self._without = truth.Tally(dataset), list[str]()

    def take(self, id: str, record: Mapping[str, Any]) -> None:
        if record["size"] is not None:
            self._sizes[tuple(record["size"])] += 1
            if not record["has_mask"]:
                self._without.append(id)
        self.readings.update(record["readings"])
        self.with_mask += record["has_mask"]
        if record["truth"] is not None:
            self._tally.add(id, record["truth"], self._dataset.labels[self._dataset.index(id)])
        self.findings |= {Finding(kind, self._name, id, sentence) for kind, sentence in record["problems"]}

    def judge(self) -> str | None:
        """Sum up what is known of all images at once; return a note on those without a mask."""
        if self._sizes:
            sizes = sorted(self._sizes, key=lambda size: (size[0] * size[1], size))
            up_to = itertools.accumulate(self._sizes[size] for size in sizes)
            half = (self._sizes.total() + 1) // 2
            median = next(size for size, images in zip(sizes, up_to, strict=True) if images >= half)
            self.sizes = {"smallest": sizes[0], "median": median, "largest": sizes[-1]}
        if (numbering := self._tally.numbering(f"the masks of {self._dataset.name}")) is not None:
            self.findings.add(Finding(truth.NUMBERS, self._name, self._name, numbering))
        return truth.note_on_missing(self._dataset.name, self._without, self.with_mask)
