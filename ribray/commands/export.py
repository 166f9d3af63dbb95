"""``ribray export``: a run's masks in the formats of other programs.

An export is whole or absent: one damaged mask, and nothing is written.
"""

import contextlib
import gzip
import io
import itertools
import json
import tarfile
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from pycocotools import mask as rasteriser
from rich.console import Console

from ribray import storage
from ribray.data.dataset import BACKGROUND, IGNORE, Dataset, foreign_values
from ribray.data.mask_files import SUFFIX, mask_path, read_mask_file
from ribray.errors import ImageError, RibrayError, UsageError
from ribray.pipeline.finished_run import FinishedRun
from ribray.pipeline.masks import finished_masks
from ribray.progress import Bar, show_progress
from ribray.runs.directory import require_outside
from ribray.stages import evaluate, pseudo, stages_of

NAME, FOLDER = "export", "exports"
PSEUDO, PREDICTIONS = "pseudo", "predictions"
STAGE_OF = {PSEUDO: pseudo.NAME, PREDICTIONS: evaluate.NAME}  # which stage makes the masks that ``--what`` names
COCO, VOC_SERVER, PNG = "coco", "voc-server", "png"
ENDINGS = {COCO: ".json", VOC_SERVER: ".tar.gz", PNG: ""}

SERVER_FOLDER = "results/VOC2012/Segmentation/comp6_test_cls"
"""Where the evaluation server looks: task 6, segmentation trained on any data but the test images."""
SERVER_SPLIT = "test"
NAMED = 3  # missing images that a message names
READERS = 8  # threads that decode masks
WINDOW = 256  # masks that are decoded, or wait to be written, at one time


@dataclass(frozen=True)
class Exported:
    file: Path
    images: int
    annotations: int | None  # of COCO
    missing: int  # images of the split that have no mask and were left out


class _Stopped(Exception): ...


@dataclass(frozen=True)
class _Masks:
    dataset: Dataset
    folder: Path
    ids: Sequence[str]

    def read(self, id: str, may_ignore: bool) -> np.ndarray:
        """Read a mask (H, W) uint8 whose values are background and the classes, and 255 if that may be."""
        location, most = mask_path(self.folder, id), len(self.dataset.classes)
        mask, _ = read_mask_file(location, id)
        strays = foreign_values(mask, most).tolist()
        if not may_ignore and (mask == IGNORE).any():
            strays.append(IGNORE)
        if strays:
            raise ImageError(f"{location} holds the value {strays[0]}, where 0 to {most} are known.")
        return mask

    def content(self, id: str, may_ignore: bool) -> bytes:
        self.read(id, may_ignore)
        return mask_path(self.folder, id).read_bytes()


def export_masks(
    directory: Path,
    format: str,
    console: Console,
    stop: threading.Event,
    *,
    out: Path | None = None,
    split: str | None = None,
    what: str | None = None,
) -> Exported | None:
    """Write the masks of one split (default: the one they were made of) of a run; None where the user stopped it."""
    if format not in ENDINGS:
        raise UsageError(f"There is no format '{format}'; the formats are {', '.join(ENDINGS)}.")
    what = what or (PREDICTIONS if format == VOC_SERVER else PSEUDO)
    if what not in STAGE_OF:
        raise UsageError(f"There are no masks '{what}'; --what is one of {', '.join(STAGE_OF)}.")
    finished = FinishedRun.read(directory, stages_of)
    data = finished.experiment.data
    if format == VOC_SERVER:
        if data.kind != "voc":
            raise UsageError(f"The server judges PASCAL VOC, and data.kind of {finished.run.directory} is {data.kind}.")
        if what != PREDICTIONS:
            raise UsageError(f"The server judges predictions of the test images; there are none of {what} masks.")
        split = split or SERVER_SPLIT
    split = split or (data.train_split if what == PSEUDO else data.eval_split)
    file = storage.absolute(out or finished.run.directory / FOLDER / f"{what}-{split}{ENDINGS[format]}")
    if format == PNG and file.exists() and (not file.is_dir() or any(file.iterdir())):
        raise UsageError(f"{file} is a file, or a folder with files; --out must name an empty or a new folder.")
    if format != PNG and file.is_dir():
        raise UsageError(f"{file} is a folder; --out must name the file to write.")
    require_outside(file, allowed=FOLDER)
    masks = _find_masks(finished, what, split, require_all=format == VOC_SERVER)
    storage.require_writable(file.parent)
    try:
        target = contextlib.nullcontext(file) if format == PNG else storage.replacing(file)
        with show_progress(console, NAME, len(masks.ids)) as bar, target as stream:
            annotations = _WRITERS[format](stream, masks, bar, stop)
    except _Stopped:
        return None
    except OSError as error:
        raise RibrayError(f"{file} cannot be written: {error.strerror or error}.") from None
    return Exported(file, len(masks.ids), annotations, len(masks.dataset) - len(masks.ids))


def _find_masks(finished: FinishedRun, what: str, split: str, require_all: bool) -> _Masks:
    dataset, artifact = finished.context().dataset(split, labelled=False), finished.current(STAGE_OF[what])
    done = finished_masks(artifact.folder) if artifact else set()
    missing = [id for id in dataset.ids if id not in done]
    has_no, setting = f"{finished.run.directory} has no", []
    if what == PREDICTIONS:
        splits = dict.fromkeys([*finished.experiment.predicted_splits, split])
        setting.append(f'--set "evaluate.splits=[{",".join(splits)}]"')
    command = finished.command_for(STAGE_OF[what], *setting)
    if require_all and missing:
        named = ", ".join(missing[:NAMED]) + (", …" if len(missing) > NAMED else "")
        raise UsageError(
            f"{has_no} prediction of {len(missing)} of the {len(dataset)} images of split '{split}' ({named}): make "
            f"them by `{command}`."
        )
    if artifact is None or len(missing) == len(dataset):
        raise UsageError(f"{has_no} {what} masks of split '{split}': make them by `{command}`.")
    return _Masks(dataset, artifact.folder, [id for id in dataset.ids if id in done])


def _in_order(
    work: Callable[[str], Any], ids: Iterable[str], bar: Bar, stop: threading.Event
) -> Iterator[tuple[str, Any]]:
    """Yield ids with what threads make of them, in their order, a few ahead of the reader."""
    left = iter(ids)
    with ThreadPoolExecutor(READERS) as readers:
        while window := list(itertools.islice(left, WINDOW)):
            for id, made in zip(window, readers.map(work, window), strict=True):
                if stop.is_set():
                    raise _Stopped
                yield id, made
                bar.advance(1, 0)


def _write_coco(stream: BinaryIO, masks: _Masks, bar: Bar, stop: threading.Event) -> int:
    """Write COCO instances JSON, of which only the images are held in memory; return the number of annotations.

    An annotation is one class of one image, whose connected components are not split. Classes, and images of data in
    COCO layout, have the data's own numbers; an image's ``name`` is its id in the run.
    """
    dataset, number = masks.dataset, 0
    images: list[str] = []
    stream.write(b'{"info": {"description": "masks of ribray, one annotation per image and class"},\n"annotations": [')
    for id, (size, segments) in _in_order(lambda id: _segments(masks, id), masks.ids, bar, stop):
        image_id, file_name = dataset.coco_image(id)
        entry = {"id": image_id, "file_name": file_name, "name": id, "height": size[0], "width": size[1]}
        images.append(json.dumps(entry))
        for segment in segments:
            number += 1
            annotation = json.dumps({"id": number, "image_id": image_id, **segment, "iscrowd": 0})
            stream.write(f"{',' if number > 1 else ''}\n{annotation}".encode())
    named = zip(dataset.category_ids, dataset.classes, strict=True)
    categories = [json.dumps({"id": category, "name": name}) for category, name in named]
    for key, entries in (("images", images), ("categories", categories)):
        stream.write(f'\n],\n"{key}": [\n'.encode() + ",\n".join(entries).encode())
    stream.write(b"\n]}\n")
    return number


def _segments(masks: _Masks, id: str) -> tuple[tuple[int, int], list[dict[str, Any]]]:
    mask, segments = masks.read(id, may_ignore=True), []
    for value in sorted({*np.unique(mask).tolist()} - {BACKGROUND, IGNORE}):
        outline = rasteriser.encode(np.asfortranarray(mask == value, dtype=np.uint8))
        segment = {
            "category_id": masks.dataset.category_ids[value - 1],
            "segmentation": {"size": outline["size"], "counts": outline["counts"].decode("ascii")},
            "area": int(rasteriser.area(outline)),
            "bbox": rasteriser.toBbox(outline).tolist(),
        }
        segments.append(segment)
    return (mask.shape[0], mask.shape[1]), segments


def _write_folder(folder: Path, masks: _Masks, bar: Bar, stop: threading.Event) -> None:
    """Write the mask files into a folder as other programs read them, ID.png; remove it where one is damaged."""
    try:
        for id, content in _in_order(lambda id: masks.content(id, may_ignore=True), masks.ids, bar, stop):
            storage.write_bytes(folder / f"{id}{SUFFIX}", content)
    except BaseException:
        storage.remove_folder(folder)
        raise


def _write_archive(stream: BinaryIO, masks: _Masks, bar: Bar, stop: threading.Event) -> None:
    """Write a .tar.gz of the mask files as they are; its bytes depend on these alone."""
    with (
        gzip.GzipFile(filename="", mode="wb", fileobj=stream, mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.GNU_FORMAT) as archive,
    ):
        for id, content in _in_order(lambda id: masks.content(id, may_ignore=False), masks.ids, bar, stop):
            entry = tarfile.TarInfo(f"{SERVER_FOLDER}/{id}{SUFFIX}")  # of nobody, at time 0
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))


_WRITERS: dict[str, Callable[[Any, _Masks, Bar, threading.Event], int | None]] = {
    COCO: _write_coco,
    VOC_SERVER: _write_archive,
    PNG: _write_folder,
}
