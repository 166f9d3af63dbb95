"""What the stages that write one mask per image share: workers, resuming, counting against the truth.

A mask and its pixel counts are one file, so a stage that goes on where another process stopped knows the counts of
what is there already.
"""

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ribray import storage
from ribray.data.dataset import Dataset
from ribray.data.mask_files import ID_KEY, list_masks, mask_path, read_mask_file, write_mask
from ribray.data.truth import Tally, compare
from ribray.errors import ImageError
from ribray.evaluation.bootstrap import Bootstrapped
from ribray.evaluation.mask_counts import MaskCounts
from ribray.pipeline import judging
from ribray.pipeline.maps import refined_ids, source_stage, wanted_ids
from ribray.pipeline.per_image import StagePool
from ribray.pipeline.stage import Context, Work, coverage
from ribray.runs.metrics import Timing
from ribray.runs.records import RECORD_FILE, Failure, read_record

MASK = "mask"  # name of the counts of the mask itself
ORIGIN = "origin"  # beside the counts: what they are of


def finished_masks(folder: Path) -> set[str]:
    """Return the ids of all images with a mask, by one listing; none without the stage's record."""
    return list_masks(folder) if (folder / RECORD_FILE).exists() else set()


def masked_ids(context: Context, stage: str) -> list[str]:
    """Return the wanted images that a stage has made a mask of, in the order of the split."""
    done = finished_masks(context.artifact(stage))
    return [id for id in wanted_ids(context) if id in done]


def mask_work(context: Context, name: str, ids: Sequence[str]) -> Work:
    folder = context.artifact(name)
    finished = finished_masks(folder)
    done = [id for id in ids if id in finished]
    return Work(len(ids), len(done), is_stale=read_record(folder).get("covers") != coverage(done))


@dataclass(frozen=True)
class NewMask:
    mask: np.ndarray  # (height, width) uint8
    count: Callable[[np.ndarray], Mapping[str, Mapping[str, Any]]] = field(default=lambda truth: {})
    """Given the truth, returns counts that need more than the mask, by name."""
    note: str | None = None  # what a person should know of how it was made, in words that go for many images


class MaskWorker(ABC):
    """Makes masks in a pool; a mask that is there already is only read for its counts.

    Masks are judged by the truth of ``judge``, of its images only (default: ``dataset``), and the truth is compared
    with the labels of ``labels`` (default: ``judge``).
    """

    def __init__(self, dataset: Dataset, folder: Path, judge: Dataset | None = None, labels: Dataset | None = None):
        self.dataset, self.folder = dataset, folder
        self._judge = judge or dataset
        self._labels = labels or self._judge

    @abstractmethod
    def make(self, id: str) -> NewMask: ...

    def process(self, item: str) -> dict[str, Any]:
        """Return an image's counts by name, whether its mask was made now, and why it cannot be judged."""
        location, counts = mask_path(self.folder, item), None
        if location.exists():
            with suppress(ImageError):  # damaged since, or another image's: it is made again
                counts = read_mask_file(location, item)[1]
        if counts is not None and counts.get(ORIGIN) == self._origin(item):
            return {"made": False, "counts": counts, "unjudged": None}
        return self.finish(item, self.make(item))

    def finish(self, id: str, made: NewMask) -> dict[str, Any]:
        """Judge and write a new mask; a truth that cannot be read is no reason not to have the mask."""
        counts: dict[str, Any] = {ID_KEY: id}
        unjudged = seen = None
        try:
            truth = self._judge.mask(id) if id in self._judge else None
            counts[ORIGIN] = self._origin(id)
            if truth is not None:
                own = MaskCounts(len(self.dataset.classes) + 1)
                own.add(made.mask, truth)
                counts[MASK] = own.to_sparse()
                for name, part in made.count(truth).items():
                    counts[name] = {key: np.asarray(value).tolist() for key, value in part.items()}
                seen = self._compare(id, truth)
        except ImageError as error:
            counts, unjudged = {ID_KEY: id}, str(error)
        write_mask(mask_path(self.folder, id), made.mask, self.dataset.palette, counts)
        return {"made": True, "counts": counts, "unjudged": unjudged, "note": made.note, "truth": seen}

    def _compare(self, id: str, truth: np.ndarray) -> dict[str, Any] | None:
        """Look for disagreement of truth and labels; None where labels are not known, or there is none."""
        dataset = self._labels
        is_labelled = id in dataset and dataset.labels[dataset.index(id)].any()
        return compare(dataset, id, truth).record if is_labelled else None

    def _origin(self, id: str) -> dict[str, str]:
        """Say which image a mask is of and whose truth it was judged by: ids alone may repeat between splits."""
        return {"image": "/".join(self.dataset.image_path(id).parts[-2:]), "judge": self._judge.name.split(" of ")[0]}


@dataclass
class MasksResult:
    ids: Sequence[str]  # the images that it was to do
    without: dict[str, Failure]  # images without a mask
    failures: dict[str, Failure]  # these, and images whose mask cannot be judged
    stopped: bool
    timing: Timing

    @property
    def images(self) -> int:
        return len(self.ids) - len(self.without)


def run_masks(
    context: Context,
    name: str,
    worker_class: type[MaskWorker],
    arguments: Mapping[str, Any],
    ids: Sequence[str],
    counts: Mapping[str, Bootstrapped[Any]],
    *,
    gpu: bool,
    title: str | None = None,
    chunk_size: int = 1,
) -> MasksResult:
    """Make the masks of ``ids``, add up the counts, each under its name, and tell where the truth seems wrong."""
    without: dict[str, Failure] = {}
    unjudged: dict[str, Failure] = {}
    made = 0
    notes: Counter[str] = Counter()
    labelled: Dataset = arguments.get("labels") or arguments.get("judge") or arguments["dataset"]
    tally = Tally(labelled)

    def on_done(id: str, record: Mapping[str, Any]) -> None:
        nonlocal made
        made += record["made"]
        if record.get("note"):
            notes[record["note"]] += 1
            context.run.event(name, record["note"], id=id)
        if record["unjudged"] is not None:
            unjudged[id] = Failure(id, name, f"not judged: {record['unjudged']}")
        if record.get("truth") is not None:
            tally.add(id, record["truth"], labelled.labels[labelled.index(id)])
        for kind, values in record["counts"].items():
            if kind in counts:
                counts[kind].merge(id, values)

    storage.remove_leftovers(arguments["folder"])
    pool = StagePool(context, name, without, title, chunk_size=chunk_size, gpu=gpu)
    result = pool.run(worker_class, arguments, ids, on_done, len(ids))
    for note, count in sorted(notes.items()):
        text = f"  {count} of {len(ids)} images: {note}; see events/."
        context.console.print(text, highlight=False, markup=False)
    if MASK in counts and not result.stopped:
        judging.tell_agreement(context, tally)
    return MasksResult(ids, without, unjudged | without, result.stopped, pool.timing(result, made))


def judge_training_masks(
    context: Context,
    name: str,
    worker_class: type[MaskWorker],
    arguments: Mapping[str, Any],
    counts: Mapping[str, Bootstrapped[Any]],
    *,
    gpu: bool,
    chunk_size: int = 1,
) -> MasksResult | None:
    """Make and judge the masks of all images that have maps, as a stage's work; None where the user stopped it."""
    maps, ids = context.require(source_stage(context.experiment), name), refined_ids(context)
    context.begin(name)
    judge = judging.evaluated_split(context)
    shared = {"dataset": context.training_set, "folder": context.own_folder(name), "judge": judge, "maps": maps}
    result = run_masks(
        context, name, worker_class, {**shared, **arguments}, ids, counts, gpu=gpu, chunk_size=chunk_size
    )
    if result.stopped:
        return None
    context.replace_failures(name, result.failures)
    require_any_mask(context, name, len(ids), result.without)
    return result


def require_any_mask(context: Context, name: str, wanted: int, without: Mapping[str, Failure]) -> None:
    if len(without) == wanted:
        context.require_any_done(name, wanted, 0, without, is_empty=not finished_masks(context.own_folder(name)))
