"""The pictures of a run and of a photograph: which images are shown, and what is put together of each."""

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ribray.config import CAM, ENDED, label
from ribray.data.dataset import BACKGROUND, IGNORE, Dataset, colour_map, foreign_values
from ribray.data.mask_files import list_masks, mask_path, read_mask_file
from ribray.errors import RibrayError
from ribray.masks.seed import seed
from ribray.methods.maps import MapRecord, Which, localization_maps
from ribray.report.comparison import ordered
from ribray.report.figures import ImageRow, image_figure
from ribray.report.overlays import heat_overlay, mask_colour, mask_overlay

STEPS_SHOWN = (1, 3, 10)
IMAGES_SHOWN = 6
MOST_TRIED = 5 * IMAGES_SHOWN  # images that are looked at where some of them cannot be read
TILE_PIXELS, GROWTH_PIXELS = 288, 176  # longer side of a picture of the gallery, and of a map in its row of steps
GROWTH, FIRST_STEP = "The map over the steps", "step 1"
MOST_STEPS = 10  # of more steps so many are shown in the gallery, evenly spaced
MapFiles = Mapping[str, Sequence[Path]]  # map files by image id: of every method one
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
    if (first := next(chosen, None)) is None:
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

    id: str
    dataset: Dataset
    image: NDArray[np.uint8]
    truth: NDArray[np.uint8] | None
    maps: Mapping[str, MapRecord]  # by the name of the maps, what holds them
    masks: Mapping[str, NDArray[np.uint8]]

    def names(self, from_maps: bool = True) -> list[str]:
        """Return its classes: those that were refined, or those of its truth, or of its masks."""
        if from_maps and self.maps:
            return [self.dataset.classes[int(index)] for index in next(iter(self.maps.values())).classes]
        known = self.masks.values() if self.truth is None else [self.truth]
        return [self.dataset.classes[value - 1] for value in _objects_in(known)]


def _read(dataset: Dataset, id: str, folders: Mapping[str, Path], map_files: Sequence[Path]) -> _Seen | None:
    """Return what there is of an image; None where one of its files cannot be read or does not fit."""
    try:
        image, truth = dataset.image(id), dataset.mask(id)
        records = [MapRecord.read(file, id) for file in map_files]
        masks = {caption: read_mask_file(mask_path(folder, id), id)[0] for caption, folder in folders.items()}
    except RibrayError:
        return None
    size, classes = image.shape[:2], len(dataset.classes)
    if any(record.size != size or record.classes.max(initial=0) >= classes for record in records):
        return None
    every = [*masks.values(), *([] if truth is None else [truth])]
    if any(mask.shape != size or foreign_values(mask, classes).size for mask in every):
        return None
    made = {name: record for record in reversed(records) for name in record.maps}
    return _Seen(id, dataset, image, truth, {name: made[name] for name in ordered(made)}, masks)


def _look(
    dataset: Dataset, ids: Sequence[str], folders: Mapping[str, Path], map_files: MapFiles, needs_all: bool
) -> list[_Seen]:
    """Return a few of the images that have the most masks and maps; with ``needs_all`` those that lack none.

    ``folders`` are of masks ID.png by caption; one without masks of these images is left out.
    """
    wanted = set(ids)
    masks = {caption: wanted.intersection(list_masks(folder)) for caption, folder in folders.items()}
    sources = [found for found in (*masks.values(), wanted.intersection(map_files)) if found]
    counts = {id: sum(id in source for source in sources) for id in ids if sources}
    most = len(sources) if needs_all else max(counts.values(), default=0)

    def read(id: str) -> _Seen | None:
        held = {caption: folders[caption] for caption, found in masks.items() if id in found}
        return _read(dataset, id, held, map_files.get(id, ()))

    return read_some(choose_any(dataset, [id for id, count in counts.items() if count == most]), read)


def _objects_in(masks: Iterable[NDArray[np.uint8]]) -> list[int]:
    return sorted(set().union(*(np.unique(mask).tolist() for mask in masks)) - {BACKGROUND, IGNORE})


def _legend_of(dataset: Dataset, masks: Sequence[NDArray[np.uint8]]) -> dict[str, NDArray[np.uint8]]:
    """Return the colour of every class in the masks, and of unknown pixels where there are such."""
    legend = {dataset.classes[value - 1]: mask_colour(value, dataset.palette) for value in _objects_in(masks)}
    if any((mask == IGNORE).any() for mask in masks):
        legend["unknown"] = mask_colour(IGNORE, dataset.palette)
    return legend


# --- figures -----------------------------------------------------------------------------------------------------


def draw_growth(dataset: Dataset, map_files: MapFiles, destination: Path) -> Path | None:
    """Draw a few images with their truth, plain CAM and the maps of every method.

    Of a single method that has kept its steps, those after steps 1, 3, 10 and the last one. The images are those with
    the most various classes that have a map file of every method; None where no image has an object.
    """
    whole = [id for id, files in map_files.items() if len(files) == max(map(len, map_files.values()))]
    found = read_some(choose(dataset, whole), lambda id: _read(dataset, id, {}, map_files[id]))
    if not found:
        return None
    shown: dict[str, Which] = {label(name): name for name in found[0].maps}
    own = [name for name in found[0].maps if name != CAM]
    kept = max(len(seen.maps[own[0]].by_step.get(own[0], ())) for seen in found)
    if len(own) == 1 and kept:
        last = {label(own[0]): own[0]} if kept > STEPS_SHOWN[-1] else {}
        shown = {label(CAM): CAM, **{f"step {step}": (own[0], step - 1) for step in STEPS_SHOWN}, **last}
    rows = []
    for seen in found:
        maps = {heading: _localized(seen, which) for heading, which in shown.items()}
        rows.append(ImageRow(seen.image, seen.names(), maps, dataset.palette, seen.truth))
    image_figure({"": rows}, destination)
    return destination


def _localized(seen: _Seen, which: Which) -> NDArray[np.float32]:
    return localization_maps(seen.maps[which if isinstance(which, str) else which[0]], which)


@dataclass(frozen=True)
class MaskBlock:
    """Images of one split, and the masks and maps that a run has of them.

    Of `ids` those with every mask and map and the most various classes are shown.
    """

    title: str
    dataset: Dataset
    ids: Sequence[str]
    folders: Mapping[str, Path]  # column heading -> folder of masks ID.png; a folder without any is left out
    map_files: MapFiles = field(default_factory=dict)  # none: the maps are not shown
    maps: str = CAM  # which maps are shown

    def rows(self) -> list[ImageRow]:
        rows = []
        for seen in _look(self.dataset, self.ids, self.folders, self.map_files, needs_all=True):
            maps = {f"{label(self.maps)} map": _localized(seen, self.maps)} if self.maps in seen.maps else {}
            names = seen.names(from_maps=False)
            rows.append(ImageRow(seen.image, names, maps, self.dataset.palette, seen.truth, seen.masks))
        return [row for row in rows if row.masks]  # all or none of them have


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
    methods: Mapping[str, tuple[np.ndarray, np.ndarray, float]],
    destination: Path,
) -> None:
    """Draw a row per class: the photograph, its CAM, its map by each method and its part of each one's mask.

    ``image`` is (H, W, 3) uint8 and ``cams`` (classes, H, W) float32; of a method, by its label, there are maps like
    these, a mask (H, W) uint8, in which a class's pixels are those at which its map is the largest one, and the mask's
    threshold. Of names of synonyms, set apart by commas, the first is shown. The file is a PNG.
    """
    rows = []
    for place, name in enumerate(names):
        shown = {"CAM": cams[[place]]} | {label: maps[[place]] for label, (maps, _, _) in methods.items()}
        own = {
            f"{label} ≥ {threshold:.2f} (Otsu)": np.where(maps.argmax(0) == place, mask, 0).astype(np.uint8)
            for label, (maps, mask, threshold) in methods.items()
        }
        rows.append(ImageRow(image, [name.partition(",")[0]], shown, colour_map(), masks=own))
    image_figure({"": rows}, destination, most_across=1)


# --- the gallery of a page ---------------------------------------------------------------------------------------


Tiles = Mapping[str, NDArray[np.uint8]]  # pictures, (height, width, 3) RGB, by what stands below them


@dataclass(frozen=True)
class GalleryImage:
    id: str
    class_names: Sequence[str]
    tiles: Tiles  # the image, its truth and its masks
    strips: Sequence["Strip"] = ()


@dataclass(frozen=True)
class Strip:
    """Maps of an image after each step, or those of several methods, the plain CAM first."""

    title: str
    tiles: Tiles
    remark: str = ""  # how the refinement ended, if not after all steps


@dataclass(frozen=True)
class GalleryBlock:
    title: str
    images: Sequence[GalleryImage]
    legend: Mapping[str, NDArray[np.uint8]]  # of their masks, by class name


def gallery_block(
    title: str,
    dataset: Dataset,
    folders: Mapping[str, Path],
    map_files: MapFiles | None = None,
    thresholds: Mapping[str, float] | None = None,
) -> GalleryBlock | None:
    """Return a few images of a split: their maps, seeds and masks; None where there is nothing to show of any.

    An image of which a file cannot be read, or does not fit, gives way to another one. ``folders`` are of masks ID.png
    by caption, ``thresholds`` those that seeds are cut at, by the name of their maps: maps left out have no seed.
    """
    cuts, images, drawn = thresholds or {}, list[GalleryImage](), list[NDArray[np.uint8]]()
    for seen in _look(dataset, dataset.ids, folders, map_files or {}, needs_all=False):
        masks = {} if seen.truth is None else {"truth": seen.truth}
        for name in [name for name in seen.maps if name in cuts]:
            classes = seen.maps[name].classes
            masks[f"seed, {label(name)}"] = seed(_localized(seen, name), classes, cuts[name])
        masks |= seen.masks
        drawn += masks.values()
        painted = {caption: mask_overlay(seen.image, mask, dataset.palette) for caption, mask in masks.items()}
        tiles = _reduced({"image": seen.image, **painted}, TILE_PIXELS)
        images.append(GalleryImage(seen.id, seen.names(), tiles, _strips(seen)))
    return GalleryBlock(title, images, _legend_of(dataset, drawn)) if images else None


def _strips(seen: _Seen) -> list[Strip]:
    """Return the maps over the steps of each method that kept them, and the maps of all others beside each other."""
    own = [name for name, record in seen.maps.items() if name != CAM and len(record.classes)]
    grown = {name: kept for name in own if (kept := seen.maps[name].by_step.get(name))}
    strips = []
    for name, kept in grown.items():
        steps = np.unique(np.linspace(0, len(kept) - 1, min(len(kept), MOST_STEPS)).round().astype(int)).tolist()
        shown: dict[str, Which] = {f"step {step + 1}": (name, step) for step in steps}
        if all(map(np.array_equal, kept[0], seen.maps[name].maps[CAM])):
            shown = {label(CAM): CAM, **{caption: which for caption, which in shown.items() if caption != FIRST_STEP}}
        strips.append(_strip(seen, GROWTH if len(own) == 1 else f"{label(name)}: {GROWTH.lower()}", shown, [name]))
    if others := [name for name in own if name not in grown]:
        shown = {label(name): name for name in [CAM, *others]}
        strips.append(_strip(seen, GROWTH if len(own) == 1 else "The maps", shown, others))
    return strips


def _strip(seen: _Seen, title: str, shown: Mapping[str, Which], names: Sequence[str]) -> Strip:
    remarks = []
    for name, record in ((name, seen.maps[name]) for name in names):
        if record.stop_reason in ENDED:
            whose = f"{label(name)}: " if len(names) > 1 else ""
            remarks.append(f"{whose}after step {record.steps} {ENDED[record.stop_reason]}")
    pictures = {caption: heat_overlay(seen.image, _localized(seen, which)) for caption, which in shown.items()}
    return Strip(title, _reduced(pictures, GROWTH_PIXELS), "; ".join(remarks))


def _reduced(pictures: Tiles, side: int) -> Tiles:
    reduced = {caption: Image.fromarray(picture) for caption, picture in pictures.items()}
    for picture in reduced.values():
        picture.thumbnail((side, side), Image.Resampling.LANCZOS)
    return {caption: np.array(picture) for caption, picture in reduced.items()}
