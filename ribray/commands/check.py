"""``ribray check``: is the data of a recipe complete and sound? Reads every image and every mask once.

It belongs to no run: it trains nothing, has no key, and writes one file, ``check.json``. What would make an image
fail, or be counted wrongly, is a *finding*; how often a class occurs, or that it never does, is only told.
"""

import contextlib
import hashlib
import itertools
import threading
import time
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from ribray import storage
from ribray.cluster.pool import Pool, PoolPlan
from ribray.cluster.session import connect
from ribray.config import Experiment
from ribray.data import open_dataset, truth
from ribray.data.dataset import Dataset, Problem, colour_map, shared_ids
from ribray.data.depth import Scale
from ribray.data.images import BLANK, Picture, image_size, moved_colour, tell_readings
from ribray.data.lists import MASKS
from ribray.data.names import first_of
from ribray.data.voc import VocDataset
from ribray.demo.world import is_drawn
from ribray.errors import ImageError, UsageError, ValuesError
from ribray.masks.saliency import LEAST_AGREEMENT, agreement, read_saliency, saliency_folder
from ribray.progress import show_progress

NAME = "check"
REPORT_FILE = "check.json"
CHUNK = 16  # images of one call: to decode one takes some milliseconds
TAB = "\t"  # between the split and the id of an item; neither can hold it (`ribray.data.lists.check_id`)

MISSING, UNREADABLE, TRUNCATED, VALUES = "missing", "unreadable", "truncated", "values"
SETTING, SALIENCY, TURNED, NO_BACKGROUND = "setting", "saliency map", "EXIF turn", "no background"
RENUMBERED, SAME = "mask palette", "same picture"


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
    def __init__(self, datasets: Mapping[str, Dataset], unlabelled: Collection[str] = (), maps: "Maps | None" = None):
        self._datasets, self._unlabelled, self._maps = datasets, unlabelled, maps

    def process(self, item: str) -> dict[str, Any]:
        """Return width and height (or None), how it was read, what its truth is beside its labels, what is wrong."""
        split, _, id = item.partition(TAB)
        dataset, compared = self._datasets[split], None
        mask = agreeing = None
        size, problems, picture = _look_at_image(dataset, id)
        seen = None if size is None else dataset.look_at_mask(id)
        if seen is not None:
            mask, faults = seen
            problems += [*faults, *_renumbered(dataset, id)]
            if mask is not None and (split not in self._unlabelled or dataset.labels[dataset.index(id)].any()):
                found = truth.compare(dataset, id, mask)
                problems += found.problems
                compared = found.record
        if size is not None and self._maps is not None and self._maps.are_for(split, id):
            try:
                salient, _ = read_saliency(self._maps.folder, id, size[::-1], self._maps.threshold)
                agreeing = None if mask is None else agreement(mask, salient)
            except ImageError as error:
                problems.append(Problem(id, str(error), SALIENCY))
        return {
            "size": size,
            "digest": _digest(picture),
            "readings": () if picture is None else picture.readings,
            "turned": picture is not None and picture.is_turned,
            "two_ways": picture is not None and picture.hides_turn and mask is not None,
            "agreeing": agreeing,
            "has_mask": seen is not None,
            "truth": compared,
            "problems": [(problem.kind, problem.sentence) for problem in problems],
        }


@dataclass(frozen=True)
class Maps:
    """Saliency maps, and which images need one."""

    folder: Path
    threshold: float
    split: str
    ids: frozenset[str] | None  # None: all of the split

    def are_for(self, split: str, id: str) -> bool:
        return split == self.split and (self.ids is None or id in self.ids)


def _digest(picture: Picture | None) -> str | None:
    """Return what tells a picture from others; None of one that shows nothing."""
    return None if picture is None or picture.blank else hashlib.sha256(picture.pixels.tobytes()).hexdigest()[:16]


def _renumbered(dataset: Dataset, id: str) -> list[Problem]:
    """Find a mask in VOC layout whose palette has VOC's colours at other values."""
    if not isinstance(dataset, VocDataset):
        return []
    file = dataset.root / MASKS / f"{id}.png"
    with contextlib.suppress(ImageError):
        if (moved := moved_colour(file, colour_map())) is not None:
            what = f"{file} has VOC's colour of {moved[1]} at the value {moved[0]}, as programs that shrink PNGs may do"
            remedy = "values count, not colours: write the class numbers again, with VOC's palette"
            return [Problem(id, f"{what}. In a mask, {remedy}.", RENUMBERED)]
    return []


def _look_at_image(dataset: Dataset, id: str) -> tuple[tuple[int, int] | None, list[Problem], Picture | None]:
    try:
        picture = dataset.picture(id)
        (height, width), blank = picture.pixels.shape[:2], picture.blank
        problems = [] if blank is None else [Problem(id, f"{dataset.image_path(id)} holds {BLANK[blank]}.", blank)]
        return (width, height), problems, picture
    except ImageError as error:
        sentence, kind = str(error), VALUES if isinstance(error, ValuesError) else TRUNCATED
    try:
        height, width = image_size(dataset.image_path(id))
        return (width, height), [Problem(id, sentence, kind)], None  # the header is sound, the pixels are not
    except ImageError:
        exists = False
        with contextlib.suppress(ImageError, OSError):
            exists = dataset.image_path(id).exists()
        return None, [Problem(id, sentence, UNREADABLE if exists else MISSING)], None


# --- in the driver -----------------------------------------------------------------------------------------------


def check_data(experiment: Experiment, console: Console, stop: threading.Event) -> CheckReport:
    data = experiment.data
    if data.root is None:
        raise UsageError(f"data.kind={data.kind} without data.root: a run draws its own data, so nothing can be wrong.")
    if data.kind == "synthetic" and not is_drawn(storage.absolute(data.root), data.synthetic, data.seed):
        raise UsageError(f"Nothing is drawn in {data.root} yet: a run draws its own data, so nothing can be wrong.")
    used = dict.fromkeys((data.train_split, data.eval_split, experiment.seed_eval.split or data.train_split))
    datasets = {split: open_dataset(data, split) for split in used}
    judged = dict.fromkeys((*experiment.predicted_splits, data.eval_split))
    unlabelled = [split for split in judged if split not in used]
    datasets |= {split: open_dataset(data, split, labelled=False) for split in unlabelled}
    splits = {name: Split(name, dataset, name not in unlabelled) for name, dataset in datasets.items()}
    maps, refused = _settings(experiment, datasets[data.train_split])
    same: dict[str, list[tuple[str, str]]] = {}  # images by what they show

    def on_done(item: str, record: Mapping[str, Any]) -> None:
        split, _, id = item.partition(TAB)
        splits[split].take(id, record)
        if record["digest"] is not None:
            same.setdefault(record["digest"], []).append((split, id))

    def on_failed(item: str, error: str, tries: int, traceback: str | None) -> None:
        split, _, id = item.partition(TAB)
        splits[split].findings.add(Finding(UNREADABLE, split, id, f"{id} cannot be looked at: {error}"))

    items = [f"{split}{TAB}{id}" for split, dataset in datasets.items() for id in dataset.ids]
    with connect(experiment.cluster, stop=stop) as session:
        plan = PoolPlan.of(NAME, experiment.cluster, session, chunk_size=CHUNK, gpu=False)
        with show_progress(console, NAME, len(items)) as bar:
            pool = Pool(plan, CheckWorker, {"datasets": datasets, "unlabelled": unlabelled, "maps": maps})
            result = pool.run(items, on_done, on_failed, bar, stop.is_set)
    notes = list(dict.fromkeys(note for dataset in datasets.values() for note in dataset.notes))
    notes += [note for split in splits.values() if (note := split.judge()) is not None]
    notes += [note for name, split in splits.items() for note in tell_readings(split.readings, f" of '{name}'")]
    notes += [note for split in splits.values() if (note := split.note_on_turned()) is not None]
    repeated = [copies for copies in same.values() if len(copies) > 1]
    for copies in repeated:
        for name, split in splits.items():
            split.compare_labels([id for each, id in copies if each == name])
    notes += filter(None, (_note_on_copies(repeated, datasets, split, data.train_split) for split in judged))
    notes += filter(None, (_note_on_shared(datasets[split], datasets[data.train_split]) for split in judged))
    findings = [*refused, *(finding for split in splits.values() for finding in sorted(split.findings))]
    return CheckReport(splits, findings, result.stopped, notes)


def _settings(experiment: Experiment, dataset: Dataset) -> tuple[Maps | None, list[Finding]]:
    """Return the saliency maps to look at, and the settings that a run with this training split would refuse."""
    split, masks, ids, findings = experiment.data.train_split, experiment.masks, None, list[Finding]()
    maps = None

    @contextlib.contextmanager
    def told(setting: str) -> Iterator[None]:
        try:
            yield
        except UsageError as error:
            findings.append(Finding(SETTING, split, setting, str(error)))

    # What is imported here takes seconds, for PyTorch
    if experiment.data.image_list is not None or experiment.refine.limit is not None:
        from ribray.pipeline.maps import chosen_ids

        with told("data.image_list"):
            ids = frozenset(chosen_ids(dataset, experiment, lambda note: None))
    if dataset.labels.all(0).any():
        from ribray.stages.refine import require_others

        with told("refine"):
            for config in experiment.methods.values():
                require_others(dataset, config)
    with told("masks.saliency"):
        if (folder := saliency_folder(masks.saliency)) is not None:
            maps = Maps(folder, masks.saliency_threshold, split, ids)
    return maps, findings


def _note_on_shared(dataset: Dataset, training_set: Dataset) -> str | None:
    shared = len(shared_ids(dataset, training_set))
    which = f"{shared:,} of the {len(dataset):,} images of {dataset.name}, which results are judged on,"
    return f"{which} are trained on too: such results say nothing of new images." if shared else None


def _note_on_copies(
    same: Iterable[Sequence[tuple[str, str]]], datasets: Mapping[str, Dataset], split: str, train: str
) -> str | None:
    """Say which images of a split are pictures of the training set by other names."""
    known = set(datasets[train].ids)
    pairs = {
        id: other
        for copies in same
        for each, id in copies
        if each == split and id not in known
        for where, other in copies
        if where == train
    }
    if not pairs:
        return None
    id = min(pairs)
    count, dataset = f"{len(pairs):,} of the {len(datasets[split]):,} images", datasets[split].name
    of_training = f"the same picture as an image that is trained on, by another name, such as {id} and {pairs[id]}"
    return f"{count} of {dataset}, which results are judged on, show {of_training}: such results say too much."


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
    def __init__(self, name: str, dataset: Dataset, labelled: bool = True):
        self._name, self._dataset, self._is_labelled = name, dataset, labelled
        self.images = len(dataset)  # that have labels, be it none of the classes
        self.empty = int((~dataset.labels.any(1)).sum()) if labelled else 0  # of these, known to show no class
        self.classes = dict(zip(dataset.classes, dataset.labels.sum(0).tolist(), strict=True))  # images by class
        self.unused = [each for each, images in self.classes.items() if labelled and not images]
        self.with_mask = 0
        self.sizes: dict[str, tuple[int, int]] = {}  # (w, h) of the smallest, median, largest readable image, by area
        self.readings: Counter[Scale | str] = Counter()
        known = (*dataset.problems, *dataset.findings)
        self.findings = {Finding(problem.kind, name, problem.id, problem.sentence) for problem in known}
        self._sizes = list[tuple[int, int]]()
        self._tally, self._without = truth.Tally(dataset), list[str]()
        self._turned, self._two_ways = 0, list[str]()
        self._agreeing = np.zeros(2, np.int64)  # pixels in which masks and saliency maps say the same, and all

    def take(self, id: str, record: Mapping[str, Any]) -> None:
        if record["size"] is not None:
            self._sizes.append(tuple(record["size"]))
            if not record["has_mask"]:
                self._without.append(id)
        self.readings.update(record["readings"])
        self._turned += record["turned"]
        self._two_ways += [id] if record["two_ways"] else []
        self._agreeing += record["agreeing"] or 0
        self.with_mask += record["has_mask"]
        if record["truth"] is not None:
            self._tally.add(id, record["truth"], self._dataset.labels[self._dataset.index(id)])
        self.findings |= {Finding(kind, self._name, id, sentence) for kind, sentence in record["problems"]}

    def _add(self, kind: str, sentence: str) -> None:
        """Add a finding on the split as a whole."""
        self.findings.add(Finding(kind, self._name, self._name, sentence))

    def compare_labels(self, copies: Sequence[str]) -> None:
        """Find images that are the same picture, with other labels."""
        data, labels = self._dataset, dict[str, str]()
        for id in copies if self._is_labelled else ():
            labels[id] = ", ".join(itertools.compress(data.classes, data.labels[data.index(id)])) or "none"
        if len(set(labels.values())) > 1:
            shown = "; ".join(f"{id}: {names}" for id, names in sorted(labels.items()))
            sentence = f"These images are one picture with different labels ({shown}): keep one, with all its labels."
            self.findings.add(Finding(SAME, self._name, min(labels), sentence))

    def note_on_turned(self) -> str | None:
        what = f"{self._turned:,} image(s) of {self._dataset.name}"
        return f"EXIF turns or mirrors {what}: they are read as viewers show them." if self._turned else None

    def judge(self) -> str | None:
        """Sum up what is known of all images at once; return a note on those without a mask."""
        if self._sizes:
            sizes = sorted(self._sizes, key=lambda size: (size[0] * size[1], size))
            self.sizes = {"smallest": sizes[0], "median": sizes[(len(sizes) - 1) // 2], "largest": sizes[-1]}
        if (numbering := self._tally.numbering(f"the masks of {self._dataset.name}")) is not None:
            self._add(truth.NUMBERS, numbering)
        is_whole = self._is_labelled or self._tally.images == self.with_mask
        if is_whole and (sentence := self._tally.no_background()) is not None:
            self._add(NO_BACKGROUND, sentence)
        if self._two_ways:
            whose = f"{self._dataset.name} whose masks fit either way ({first_of(sorted(self._two_ways), 3)})"
            self._add(
                TURNED,
                f"EXIF turns or mirrors {len(self._two_ways):,} image(s) of {whose}. They are read as viewers show "
                "them, and their masks must be of that. Save these pictures without the turn in their EXIF data: as "
                "shown, or as in the file if masks were drawn on it.",
            )
        agreeing, counted = self._agreeing.tolist()
        if agreeing < LEAST_AGREEMENT * counted:
            share = agreeing / counted
            self._add(
                SALIENCY,
                f"The saliency maps and the masks of {self._dataset.name} say the same in {share:.0%} of the pixels; "
                f"inverted, the maps would in {1 - share:.0%}: 255 is salient, so write 255 - value.",
            )
        return truth.note_on_missing(self._dataset.name, self._without, self.with_mask)
