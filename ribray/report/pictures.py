"""The pictures of a run and of a photograph: which images are shown, and what is put together of each."""

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ribray import storage
from ribray.config import ENDED
from ribray.data.dataset import BACKGROUND, IGNORE, Dataset, colour_map, foreign_values
from ribray.data.mask_files import read_mask_file
from ribray.errors import RibrayError
from ribray.masks.seed import seed
from ribray.methods.maps import MapRecord, Which, localization_maps
from ribray.report.figures import ImageRow, image_figure
from ribray.report.overlays import heat_overlay, mask_colour, mask_overlay
from ribray.report.stations import CAM, METHOD_NAMES, RIB

STEPS_SHOWN = (1, 3, 10)
IMAGES_SHOWN = 6
MOST_TRIED = 5 * IMAGES_SHOWN
"""Images that are looked at where some of them cannot be read."""
MASK_SUFFIX = ".png"
TILE_PIXELS, GROWTH_PIXELS = 288, 176
"""Longer side of a picture of the gallery, and of a map in its row of steps."""
MOST_STEPS = 10
"""Of more steps so many are shown in the gallery, evenly spaced."""
MAPS: dict[str, Which] = {CAM: CAM, RIB: RIB}
Shown = TypeVar("Shown")


# --- which images ------------------------------------------------------------------------------------------------


def choose(dataset: Dataset, ids: Sequence[str]) -> Iterator[str]:
    """Yield images with an object, each time one whose classes came least so far."""
    labels = np.stack([dataset.labels[dataset.index(id)] for id in ids]) if ids else np.zeros((0, 1), bool)
    objects = labels.sum(axis=1)
    left = objects > 0
    shown = np.zeros(labels.shape[1])
    while left.any():
        means = np.where(left, labels @ shown / np.maximum(objects, 1), np.inf)
        place = int(means.argmin())
        left[place] = False
        shown += labels[place]
        yield ids[place]


def choose_any(dataset: Dataset, ids: Sequence[str]) -> Iterator[str]:
    """Yield images as `choose` does, or evenly spaced ones where no labels are known: they are only predicted."""
    chosen = choose(dataset, ids)
    first = next(chosen, None)
    if first is None:
        return iter(ids[:: max(1, len(ids) // IMAGES_SHOWN)])
    return itertools.chain([first], chosen)


def read_some(ids: Iterable[str], read: Callable[[str], Shown | None]) -> list[Shown]:
    """Return what ``read`` makes of the first few images of which it makes anything."""
    read_ones = (one for id in itertools.islice(ids, MOST_TRIED) if (one := read(id)) is not None)
    return list(itertools.islice(read_ones, IMAGES_SHOWN))


# --- what there is of an image -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Seen:
    """An image and what there is of it, all of one size and of the data's classes."""

    dataset: Dataset
    image: NDArray[np.uint8]
    truth: NDArray[np.uint8] | None
    record: MapRecord | None
    masks: Mapping[str, NDArray[np.uint8]]

    def names(self, from_record: bool = True) -> list[str]:
        """Return its classes: those that were refined, or those of its truth, or of its masks."""
        if from_record and self.record is not None:
            return [self.dataset.classes[int(index)] for index in self.record.classes]
        known = self.masks.values() if self.truth is None else [self.truth]
        return [self.dataset.classes[value - 1] for value in _objects_in(known)]


def _read(dataset: Dataset, id: str, folders: Mapping[str, Path], map_file: Path | None) -> _Seen | None:
    """Return what there is of an image; None where one of its files cannot be read or does not fit."""
    try:
        image, truth = dataset.image(id), dataset.mask(id)
        record = None if map_file is None else MapRecord.read(map_file, id)
        masks = {caption: read_mask_file(folder / f"{id}{MASK_SUFFIX}", id)[0] for caption, folder in folders.items()}
    except RibrayError:
        return None
    size, classes = image.shape[:2], len(dataset.classes)
    if record is not None and (record.size != size or record.classes.max(initial=0) >= classes):
        return None
    every = [*masks.values(), *([] if truth is None else [truth])]
    if any(mask.shape != size or foreign_values(mask, classes).size for mask in every):
        return None
    return _Seen(dataset, image, truth, record, masks)


def _masks_in(folders: Mapping[str, Path], ids: Iterable[str]) -> dict[str, set[str]]:
    """Return caption -> those of the images that have a mask in its folder; a folder without any is left out."""
    wanted = set(ids)
    found = {caption: wanted.intersection(storage.list_ids(folder, MASK_SUFFIX)) for caption, folder in folders.items()}
    return {caption: ids for caption, ids in found.items() if ids}


def _objects_in(masks: Iterable[NDArray[np.uint8]]) -> list[int]:
    """Return the values of classes in masks."""
    return sorted(set().union(*(np.unique(mask).tolist() for mask in masks)) - {BACKGROUND, IGNORE})


def _legend_of(dataset: Dataset, masks: Sequence[NDArray[np.uint8]]) -> dict[str, NDArray[np.uint8]]:
    """Return the colour of every class in the masks, and of unknown pixels where there are such."""
    legend = {dataset.classes[value - 1]: mask_colour(value, dataset.palette) for value in _objects_in(masks)}
    if any((mask == IGNORE).any() for mask in masks):
        legend["unknown"] = mask_colour(IGNORE, dataset.palette)
    return legend


# --- figures -----------------------------------------------------------------------------------------------------


def draw_growth(dataset: Dataset, map_files: Mapping[str, Path], destination: Path) -> Path | None:
    """Draw a few images with their truth, plain CAM and the map after steps 1, 3, 10 (those that were kept).

    They are those with the most various classes that have a map file; None where no image has an object.
    """

    def row(id: str) -> ImageRow | None:
        seen = _read(dataset, id, {}, map_files[id])
        if seen is None or seen.record is None:
            return None
        kept = len(seen.record.by_step.get(RIB, ()))  # a refinement that stopped early keeps its last sum
        shown: dict[str, Which] = {f"step {step}": (RIB, min(step, kept) - 1) for step in STEPS_SHOWN}
        shown = {METHOD_NAMES[CAM]: MAPS[CAM], **(shown if kept else {METHOD_NAMES[RIB]: MAPS[RIB]})}
        maps = {heading: localization_maps(seen.record, which) for heading, which in shown.items()}
        return ImageRow(seen.image, seen.names(), maps, dataset.palette, seen.truth)

    rows = read_some(choose(dataset, list(map_files)), row)
    if not rows:
        return None
    image_figure({"": rows}, destination)
    return destination


@dataclass(frozen=True)
class MaskBlock:
    """Images of one split, and the masks and maps that a run has of them.

    Of `ids` those with every mask and the most various classes are shown.
    """

    title: str
    dataset: Dataset
    ids: Sequence[str]
    folders: Mapping[str, Path]
    """Column heading -> folder of masks ID.png; a folder without any is left out."""
    map_files: Mapping[str, Path] = field(default_factory=dict)
    """By image id; none: the maps are not shown."""
    method: str = RIB
    """Whose maps are shown, "cam" or "rib"."""

    def rows(self) -> list[ImageRow]:
        """Return what is shown of its images."""
        present = _masks_in(self.folders, self.ids)
        if not present:
            return []
        whole = set.intersection(*present.values(), *([set(self.map_files)] if self.map_files else []))
        ids = [id for id in self.ids if id in whole]
        return read_some(choose_any(self.dataset, ids), lambda id: self._row(id, present))

    def _row(self, id: str, headings: Iterable[str]) -> ImageRow | None:
        folders = {heading: self.folders[heading] for heading in headings}
        seen = _read(self.dataset, id, folders, self.map_files.get(id))
        if seen is None:
            return None
        heading, which = f"{METHOD_NAMES[self.method]} map", MAPS[self.method]
        maps = {} if seen.record is None else {heading: localization_maps(seen.record, which)}
        names = seen.names(from_record=False)
        return ImageRow(seen.image, names, maps, self.dataset.palette, seen.truth, seen.masks)


def draw_masks(blocks: Sequence[MaskBlock], destination: Path) -> Path | None:
    """Draw a few images of every split: image, truth, maps and masks side by side, with a legend of the classes.

    The splits have the same classes; one without any mask is left out, and None is returned where no image has one.
    """
    drawn = {block.title: rows for block in blocks if (rows := block.rows())}
    if not drawn:
        return None
    masks = [mask for rows in drawn.values() for row in rows for mask in [row.truth, *row.masks.values()]]
    legend = _legend_of(blocks[0].dataset, [mask for mask in masks if mask is not None])
    image_figure(drawn, destination, legend)
    return destination


def draw_photograph(
    image: np.ndarray,
    names: Sequence[str],
    cams: np.ndarray,
    maps: np.ndarray,
    mask: np.ndarray,
    threshold: float,
    destination: Path,
) -> None:
    """Draw a row per class: the photograph, its CAM, its map and its part of the mask; write a PNG.

    ``image`` is (H, W, 3) uint8, ``cams`` and ``maps`` are (classes, H, W) float32, ``mask`` is (H, W) uint8: a class's
    pixels are those at which its map is the largest one. Of names of synonyms, set apart by commas, the first is shown.
    """
    heading, owner = f"RIB ≥ {threshold:.2f} (Otsu)", maps.argmax(0)
    rows = []
    for place, name in enumerate(names):
        own = {heading: np.where(owner == place, mask, 0).astype(np.uint8)}
        shown = {"CAM": cams[[place]], "RIB": maps[[place]]}
        rows.append(ImageRow(image, [name.partition(",")[0]], shown, colour_map(), masks=own))
    image_figure({"": rows}, destination, most_across=1)


# --- the gallery of a page ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Tile:
    """One picture, (height, width, 3) RGB, with what stands below it."""

    caption: str
    picture: NDArray[np.uint8]


@dataclass(frozen=True)
class GalleryImage:
    """All that is shown of one image."""

    id: str
    class_names: Sequence[str]
    tiles: Sequence[Tile]
    """The image, its truth and its masks."""
    growth: Sequence[Tile] = ()
    """Its map after each step, the plain CAM first."""
    remark: str = ""
    """How its refinement ended, if not after all steps."""


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

    An image of which a file cannot be read, or does not fit, gives way to another one. ``folders`` are of masks ID.png
    by caption; one without masks of these images is left out. ``map_files`` are by image id, ``thresholds`` those that
    the seeds of "cam" and "rib" are cut at: a method left out has no seed.
    """
    masks = _masks_in(folders, dataset.ids)
    files = {id: file for id, file in (map_files or {}).items() if id in dataset}
    sources = [*masks.values(), *([set(files)] if files else [])]
    if not sources:
        return None
    counts = [sum(id in source for source in sources) for id in dataset.ids]
    ids = [id for id, count in zip(dataset.ids, counts, strict=True) if count == max(counts)]
    drawn: list[NDArray[np.uint8]] = []

    def read(id: str) -> GalleryImage | None:
        chosen = {caption: folders[caption] for caption, found in masks.items() if id in found}
        seen = _read(dataset, id, chosen, files.get(id))
        return None if seen is None else _gallery_image(seen, id, thresholds or {}, drawn)

    images = read_some(choose_any(dataset, ids), read)
    return GalleryBlock(title, images, _legend_of(dataset, drawn)) if images else None


def _gallery_image(
    seen: _Seen, id: str, thresholds: Mapping[str, float], drawn: list[NDArray[np.uint8]]
) -> GalleryImage:
    """Return what is shown of an image, and note its masks."""
    record, masks = seen.record, {} if seen.truth is None else {"truth": seen.truth}
    growth, remark = [], ""
    if record is not None:
        for method in (name for name in MAPS if name in thresholds):
            maps = localization_maps(record, MAPS[method])
            masks[f"seed, {METHOD_NAMES[method]}"] = seed(maps, record.classes, thresholds[method])
        growth = _growth(seen.image, record)
        remark = f"after step {record.steps} {ENDED[record.stop_reason]}" if record.stop_reason in ENDED else ""
    masks |= seen.masks
    drawn += masks.values()
    painted = {caption: mask_overlay(seen.image, mask, seen.dataset.palette) for caption, mask in masks.items()}
    tiles = [_tile(caption, picture, TILE_PIXELS) for caption, picture in {"image": seen.image, **painted}.items()]
    return GalleryImage(id, seen.names(), tiles, growth, remark)


def _growth(image: NDArray[np.uint8], record: MapRecord) -> list[Tile]:
    """Return the maps over the steps; plain CAM and RIB where steps were not kept."""
    if not len(record.classes):
        return []
    shown: dict[str, Which] = {METHOD_NAMES[method]: which for method, which in MAPS.items()}
    if count := len(record.by_step.get(RIB, ())):
        steps = np.unique(np.linspace(0, count - 1, min(count, MOST_STEPS)).round().astype(int)).tolist()
        shown = {f"step {step + 1}" if step else METHOD_NAMES[CAM]: (RIB, step) for step in steps}
    return [
        _tile(caption, heat_overlay(image, localization_maps(record, which)), GROWTH_PIXELS)
        for caption, which in shown.items()
    ]


def _tile(caption: str, picture: NDArray[np.uint8], side: int) -> Tile:
    """Return a picture whose longer side has so many pixels at most."""
    reduced = Image.fromarray(picture)
    reduced.thumbnail((side, side), Image.Resampling.LANCZOS)
    return Tile(caption, np.array(reduced))
