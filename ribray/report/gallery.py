"""The gallery of a report: of a few images everything that a run made of them, from the plain map to the prediction."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ribray.data.dataset import Dataset, foreign_values
from ribray.data.mask_files import read_mask_file
from ribray.errors import RibrayError
from ribray.masks.seed import seed
from ribray.methods.maps import MapRecord, Which, localization_maps
from ribray.methods.stop_reasons import ENDED
from ribray.report.figures import heat_overlay, mask_overlay
from ribray.report.pictures import (
    MASK_SUFFIX,
    choose_any,
    legend_of,
    masks_in,
    objects_in,
    read_some,
)
from ribray.report.stations import CAM, METHOD_NAMES, RIB

TILE_PIXELS = 288
"""Longer side of a picture."""
GROWTH_PIXELS = 176
"""Of a map in the row of steps."""
MOST_STEPS = 10
"""Of more steps so many are shown, evenly spaced."""
MAPS: dict[str, Which] = {CAM: "initial", RIB: "refined"}


@dataclass(frozen=True)
class Tile:
    """One picture with what stands below it."""

    caption: str
    picture: NDArray[np.uint8]
    """(height, width, 3) RGB."""


@dataclass(frozen=True)
class GalleryImage:
    """All that is shown of one image.

    Attributes:
        id: of the image.
        class_names: its present classes.
        tiles: the image, its truth and its masks.
        growth: its map after each step, the plain CAM first.
        remark: how its refinement ended, if not after all steps.
    """

    id: str
    class_names: Sequence[str]
    tiles: Sequence[Tile]
    growth: Sequence[Tile] = ()
    remark: str = ""


@dataclass(frozen=True)
class GalleryBlock:
    """Images of one split, with the colours of their masks by class name."""

    title: str
    images: Sequence[GalleryImage]
    legend: Mapping[str, NDArray[np.uint8]]


def gallery_block(
    title: str,
    dataset: Dataset,
    folders: Mapping[str, Path],
    map_files: Mapping[str, Path] | None = None,
    thresholds: Mapping[str, float] | None = None,
) -> GalleryBlock | None:
    """Return a few images of a split: their maps, seeds and masks; None where there is nothing to show of any.

    An image of which a file cannot be read, or does not fit, gives way to another one.

    Args:
        title: what the images are, such as "training images".
        dataset: where the images and their truth are.
        folders: caption -> folder of masks ID.png; one without masks of these images is left out.
        map_files: map file by image id; None where the split was not refined.
        thresholds: "cam" and "rib" -> the threshold that its seed is cut at; a method left out has no seed.
    """
    masks = {caption: masks_in(folder).intersection(dataset.ids) for caption, folder in folders.items()}
    masks = {caption: ids for caption, ids in masks.items() if ids}
    files = {id: file for id, file in (map_files or {}).items() if id in dataset}
    sources = [*masks.values(), *([set(files)] if files else [])]
    if not sources:
        return None
    most = max(sum(id in source for source in sources) for id in set().union(*sources))
    ids = [id for id in dataset.ids if sum(id in source for source in sources) == most]
    drawn: list[NDArray[np.uint8]] = []

    def read(id: str) -> GalleryImage | None:
        chosen = {caption: folders[caption] for caption, found in masks.items() if id in found}
        try:
            return _image(dataset, id, chosen, files.get(id), thresholds or {}, drawn)
        except RibrayError:
            return None

    images = read_some(choose_any(dataset, ids), read)
    return GalleryBlock(title, images, legend_of(dataset, drawn)) if images else None


def _image(
    dataset: Dataset,
    id: str,
    folders: Mapping[str, Path],
    map_file: Path | None,
    thresholds: Mapping[str, float],
    drawn: list[NDArray[np.uint8]],
) -> GalleryImage | None:
    """Return what is shown of an image, and note its masks; None where something does not fit.

    Raises:
        RibrayError: a file cannot be read.
    """
    image, truth = dataset.image(id), dataset.mask(id)
    record = None if map_file is None else MapRecord.read(map_file, id)
    masks = {} if truth is None else {"truth": truth}
    if record is not None:
        if record.size != image.shape[:2] or record.classes.max(initial=0) >= len(dataset.classes):
            return None
        for method, which in MAPS.items():
            if method in thresholds:
                masks[f"seed, {METHOD_NAMES[method]}"] = seed(
                    localization_maps(record, which), record.classes, thresholds[method]
                )
    masks |= {caption: read_mask_file(folder / f"{id}{MASK_SUFFIX}", id)[0] for caption, folder in folders.items()}
    for mask in masks.values():
        if mask.shape != image.shape[:2] or foreign_values(mask, len(dataset.classes)).size:
            return None
    drawn += masks.values()
    tiles = [Tile("image", _reduced(image, TILE_PIXELS))]
    tiles += [
        Tile(caption, _reduced(mask_overlay(image, mask, dataset.palette), TILE_PIXELS))
        for caption, mask in masks.items()
    ]
    growth = [] if record is None else _growth(image, record)
    remark = ""
    if record is not None and record.stop_reason in ENDED:
        remark = f"after step {record.steps} {ENDED[record.stop_reason]}"
    return GalleryImage(id, _names(dataset, record, masks), tiles, growth, remark)


def _names(dataset: Dataset, record: MapRecord | None, masks: Mapping[str, NDArray[np.uint8]]) -> list[str]:
    if record is not None:
        return [dataset.classes[int(index)] for index in record.classes]
    known = [masks["truth"]] if "truth" in masks else list(masks.values())
    return [dataset.classes[value - 1] for value in objects_in(known)]


def _growth(image: NDArray[np.uint8], record: MapRecord) -> list[Tile]:
    """Return the maps over the steps; plain CAM and RIB where steps were not kept."""
    if not len(record.classes):
        return []
    which: Iterable[tuple[str, Which]] = [(METHOD_NAMES[method], which) for method, which in MAPS.items()]
    if count := len(record.by_step):
        shown = np.unique(np.linspace(0, count - 1, min(count, MOST_STEPS)).round().astype(int)).tolist()
        which = [(f"step {step + 1}" if step else METHOD_NAMES[CAM], step) for step in shown]
    return [
        Tile(caption, _reduced(heat_overlay(image, localization_maps(record, step)), GROWTH_PIXELS))
        for caption, step in which
    ]


def _reduced(picture: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    """Return a picture whose longer side has so many pixels at most."""
    reduced = Image.fromarray(picture)
    reduced.thumbnail((side, side), Image.Resampling.LANCZOS)
    return np.array(reduced)
