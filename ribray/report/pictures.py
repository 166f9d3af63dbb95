"""The pictures of a run: maps growing over the steps and masks for a few images, and the seed's curve."""

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from ribray import storage
from ribray.data.dataset import BACKGROUND, IGNORE, Dataset, foreign_values
from ribray.data.mask_files import read_mask_file
from ribray.errors import RibrayError
from ribray.methods.maps import MapRecord, Which, localization_maps
from ribray.report.charts import curve_figure, curves_of
from ribray.report.figures import ImageRow, growth_figure, mask_colour, masks_figure

STEPS_SHOWN = (1, 3, 10)
IMAGES_SHOWN = 6
MOST_TRIED = 5 * IMAGES_SHOWN
"""Images that are looked at where some of them cannot be read."""
MASK_SUFFIX = ".png"

Row = TypeVar("Row")


def draw_growth(dataset: Dataset, map_files: Mapping[str, Path], destination: Path) -> Path | None:
    """Draw a few images with their truth, plain CAM and the map after steps 1, 3, 10 (those that were kept).

    Args:
        dataset: where the images are.
        map_files: map file by image id; the images with the most various classes are shown.
        destination: the PNG to write.

    Returns:
        `destination`, or None where no image has an object.
    """
    rows = read_some(choose(dataset, list(map_files)), lambda id: _row(dataset, id, map_files[id]))
    if not rows:
        return None
    growth_figure(rows, destination)
    return destination


@dataclass(frozen=True)
class MaskBlock:
    """Images of one split, and the masks and maps that a run has of them.

    Attributes:
        title: stands above the images, such as "training images".
        dataset: where the images and their truth are.
        ids: images that may be shown; those with every mask and the most various classes are chosen.
        folders: column heading -> folder of masks ID.png; a folder without any is left out.
        maps: column heading -> (map file by image id, which of its maps).
    """

    title: str
    dataset: Dataset
    ids: Sequence[str]
    folders: Mapping[str, Path]
    maps: Mapping[str, tuple[Mapping[str, Path], Which]] = field(default_factory=dict)


def draw_masks(blocks: Sequence[MaskBlock], destination: Path) -> Path | None:
    """Draw a few images of every split: image, truth, maps and masks side by side, with a legend of the classes.

    Args:
        blocks: what is shown of splits with the same classes, block below block; one without any mask is left out.
        destination: the PNG to write.

    Returns:
        `destination`, or None where no image has a mask.
    """
    drawn = {block.title: rows for block in blocks if (rows := _mask_rows(block))}
    if not drawn:
        return None
    masks = [mask for rows in drawn.values() for row in rows for mask in [row.truth, *row.masks.values()]]
    masks_figure(drawn, destination, legend_of(blocks[0].dataset, masks))
    return destination


def draw_curve(seed_metrics: Mapping[str, Any], destination: Path) -> Path:
    """Draw the seed's mIoU over the threshold for every method of a run's ``seed`` metrics."""
    curve_figure(curves_of(seed_metrics), destination, title="Seed mIoU over the background threshold")
    return destination


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


def read_some(ids: Iterable[str], read: Callable[[str], Row | None]) -> list[Row]:
    """Return what ``read`` makes of the first few images of which it makes anything."""
    rows = (row for id in itertools.islice(ids, MOST_TRIED) if (row := read(id)) is not None)
    return list(itertools.islice(rows, IMAGES_SHOWN))


def _mask_rows(block: MaskBlock) -> list[ImageRow]:
    present = {heading: masks_in(folder) for heading, folder in block.folders.items()}
    folders = {heading: block.folders[heading] for heading, ids in present.items() if ids.intersection(block.ids)}
    if not folders:
        return []
    whole = set.intersection(
        *(present[heading] for heading in folders), *(set(files) for files, _ in block.maps.values())
    )
    ids = [id for id in block.ids if id in whole]
    return read_some(choose_any(block.dataset, ids), lambda id: _mask_row(block, id, folders))


def masks_in(folder: Path) -> set[str]:
    """Return the ids of all images with a mask in a folder."""
    return storage.list_ids(folder, MASK_SUFFIX)


def _mask_row(block: MaskBlock, id: str, folders: Mapping[str, Path]) -> ImageRow | None:
    """Return what is shown of an image, None where one of its files cannot be read or does not fit."""
    try:
        image, truth = block.dataset.image(id), block.dataset.mask(id)
        masks = {heading: read_mask_file(folder / f"{id}{MASK_SUFFIX}", id)[0] for heading, folder in folders.items()}
        maps = {
            heading: localization_maps(MapRecord.read(files[id], id), which)
            for heading, (files, which) in block.maps.items()
        }
    except RibrayError:
        return None
    if any(array.shape[-2:] != image.shape[:2] for array in [*masks.values(), *maps.values()]):
        return None
    if any(foreign_values(mask, len(block.dataset.classes)).size for mask in masks.values()):
        return None
    names = [block.dataset.classes[value - 1] for value in objects_in([truth] if truth is not None else masks.values())]
    return ImageRow(image, names, maps, block.dataset.palette, truth, masks)


def objects_in(masks: Iterable[np.ndarray]) -> list[int]:
    """Return the values of classes in masks."""
    values = set().union(*(np.unique(mask).tolist() for mask in masks))
    return sorted(values - {BACKGROUND, IGNORE})


def legend_of(dataset: Dataset, masks: Iterable[np.ndarray | None]) -> dict[str, np.ndarray]:
    """Return the colour of every class in the masks, and of unknown pixels where there are such."""
    known = [mask for mask in masks if mask is not None]
    legend = {dataset.classes[value - 1]: mask_colour(value, dataset.palette) for value in objects_in(known)}
    if any((mask == IGNORE).any() for mask in known):
        legend["unknown"] = mask_colour(IGNORE, dataset.palette)
    return legend


def _row(dataset: Dataset, id: str, map_file: Path) -> ImageRow | None:
    """Return what is shown of an image, None where one of its files cannot be read or does not fit."""
    try:
        record, image, truth = MapRecord.read(map_file, id), dataset.image(id), dataset.mask(id)
    except RibrayError:
        return None
    if record.size != image.shape[:2] or record.classes.max(initial=0) >= len(dataset.classes):
        return None
    maps = {"plain CAM": localization_maps(record, "initial")}
    for step in STEPS_SHOWN:
        if record.by_step:  # a refinement that stopped early keeps its last sum
            maps[f"step {step}"] = localization_maps(record, min(step, len(record.by_step)) - 1)
    if not record.by_step:
        maps["RIB"] = localization_maps(record, "refined")
    names = [dataset.classes[int(index)] for index in record.classes]
    return ImageRow(image, names, maps, dataset.palette, truth)
