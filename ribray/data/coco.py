"""COCO 2014 (or 2017), and any data with instance annotations in its JSON format.

    ROOT/annotations/instances_train2014.json
    ROOT/train2014/*.jpg

Split ``train`` is ``train2014``; a full name such as ``train2017`` works too. An image's id is its path below the
split's folder, without ending. `ribray.data.coco_files` says which other layouts are read.

A crowd (``iscrowd``) makes its class present in the image, and its pixels are 255 in the truth.
"""

import contextlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ribray.config import DataConfig
from ribray.data.coco_files import Pictures, find_layout, other_annotations, shown
from ribray.data.coco_index import Categories, Instances, index_pictures, parse_categories, parse_instances
from ribray.data.coco_masks import draw_mask, is_blank, reach
from ribray.data.dataset import IGNORE, Dataset
from ribray.data.files import list_files
from ribray.data.images import Picture, by, image_size, swaps_sides
from ribray.data.lists import id_fault, read_bytes
from ribray.errors import ImageError, UsageError

_LOOKED_FOR = 10  # images that are looked for where the folder of a split is in doubt
_MARGIN = 1.0  # pixels that an outline may reach beyond its image


class CocoDataset(Dataset):
    """One split of a data root in COCO layout; images without objects keep a row without classes."""

    def __init__(self, index: Instances, source: Path, folder: Path, name: str, notes: Sequence[str], labelled: bool):
        """Keep the index of a split, whose annotations are in ``source``; where there are none, that is the folder."""
        self.source, self.folder, self._instances, self._pictures = source, folder, index, Pictures(folder)
        findings, notes = () if labelled else index.problems, (*notes, *_notes(index, source, folder))
        super().__init__(name, index.classes, index.ids, index.labels, index.problems, findings=findings, notes=notes)
        self.category_ids = index.category_ids

    @property
    def has_masks(self) -> bool:
        return self._instances.has_truth

    def picture(self, id: str) -> Picture:
        try:
            return super().picture(id)
        except ImageError:
            path, near = self.image_path(id), ""
            with contextlib.suppress(OSError):
                if not path.exists():
                    with contextlib.suppress(OSError):
                        near = self._pictures.nearest(self._instances.paths[self.index(id)])
                    owner = "" if self.source == self.folder else f": {self.source} names it"
                    raise ImageError(f"{path} does not exist{near}{owner}.") from None
            raise

    def image_path(self, id: str) -> Path:
        return self.folder / self._instances.paths[self.index(id)]

    def coco_image(self, id: str) -> tuple[int, str]:
        row = self.index(id)
        return self._instances.image_ids[row], self._instances.paths[row]

    def hidden_classes(self, id: str) -> np.ndarray:
        hidden, size = self.labels[self.index(id)].copy(), self._size(id)
        for value, segmentation in self._read_instances(id):
            if value != IGNORE and is_blank(segmentation, *size):
                hidden[value - 1] = False
        return hidden

    def _read_mask(self, id: str) -> np.ndarray | None:
        if not self.has_masks:
            return None
        if id in self._instances.unsure:
            raise ImageError(self._instances.unsure[id])
        instances, size = self._read_instances(id), self._size(id)
        self._require_unturned(id, size, reach(segmentation for _, segmentation in instances))
        try:
            return draw_mask(instances, *size, f"an object of image {id} in {self.source}")
        except ImageError:
            self._require_size(id, np.empty(size))  # a reason for what is wrong with the outline
            raise

    def _size(self, id: str) -> tuple[int, int]:
        """Return the height and width that the file gives an image, or else those of the image."""
        height, width = self._instances.sizes[self.index(id)].tolist()
        return (height, width) if height and width else image_size(self.image_path(id))

    def _read_instances(self, id: str) -> list[tuple[int, Any]]:
        index, row, found = self._instances, self.index(id), []
        try:
            with self.source.open("rb") as stream:
                for place in range(index.first[row], index.first[row + 1]):
                    start, end = index.spans[place].tolist()
                    stream.seek(start)
                    value = IGNORE if index.crowds[place] else int(index.columns[place]) + 1
                    found.append((value, json.loads(stream.read(end - start)).get("segmentation")))
        except (OSError, ValueError, AttributeError) as error:
            raise ImageError(f"{self.source} was changed or cannot be read any more: {error}.") from None
        return found

    def _require_size(self, id: str, mask: np.ndarray) -> None:
        path, stated = self.image_path(id), mask.shape
        real = image_size(path)
        if stated == real:
            return
        if stated != real[::-1] or not swaps_sides(path):
            raise ImageError(
                f"The mask of {id} is {by(stated)} pixels, but its image is {by(real)}: height and width in "
                f"{self.source} are of another picture, and so may be its outlines."
            )
        extent = reach(segmentation for _, segmentation in self._read_instances(id))
        fit_shown, fit_file = _holds(real, extent), _holds(stated, extent)
        write = f"write height {real[0]} and width {real[1]}"
        save = "save the picture without the turn in its EXIF data"
        remedy = f"{write} if its outlines were drawn on the picture as shown, and otherwise {save}"
        if fit_shown and not fit_file:
            remedy = f"its outlines were drawn on the picture as shown, so {write}"
        elif fit_file and not fit_shown:
            remedy = f"its outlines were drawn on the pixels of the file, so {save}"
        raise ImageError(
            f"{self.source} gives image {id} {by(stated)} pixels, the size of its file before its EXIF orientation "
            f"turns it, but as shown it is {by(real)}: {remedy}."
        )

    def _require_unturned(self, id: str, size: tuple[int, int], extent: tuple[float, float]) -> None:
        """Refuse an image that EXIF turns and whose outlines fit it only before that."""
        path, fits_file_alone = self.image_path(id), _holds(size[::-1], extent) and not _holds(size, extent)
        if fits_file_alone and image_size(path) == size and swaps_sides(path):
            raise ImageError(
                f"The outlines of image {id} in {self.source} fit the {by(size[::-1])} pixels of its file, but its "
                f"EXIF orientation turns it to {by(size)}: save the picture without the turn in its EXIF data."
            )


def _holds(size: Sequence[int], extent: Sequence[float]) -> bool:
    return all(reached <= side + _MARGIN for reached, side in zip(extent, size, strict=True))


def open_coco(data: DataConfig, split: str, root: Path, labelled: bool = True) -> CocoDataset:
    """Open a split such as ``train`` or ``train2017``; of one to be predicted, a list of images or a folder will do."""
    if fault := id_fault(split):
        raise UsageError(f"The name of a split is {shown(split)}, which {fault}: it is part of a file's name.")
    layout = find_layout(root, split, labelled)
    name, folder, source = f"split '{split}' of {root}", layout.folder, layout.annotations
    notes = [layout.note] if layout.note else []
    if source is None:
        paths = list_files(folder).photographs
        categories = _categories_of(root, data.train_split, None)
        note = (
            f"S{name[1:]} has no annotations: its images are the {len(paths)} pictures below {folder}, its classes "
            f"those of {categories.source}."
        )
        return CocoDataset(index_pictures(paths, categories, str(folder)), folder, folder, name, [note], False)

    def borrow() -> Categories:
        categories = _categories_of(root, data.train_split, source)
        notes.append(f"{source} has no categories: the classes are those of {categories.source}.")
        return categories

    instances = parse_instances(read_bytes(source), str(source), folder, labelled, None if labelled else borrow)
    if layout.doubt and not any((folder / path).is_file() for path in instances.paths[:_LOOKED_FOR]):
        raise UsageError(layout.doubt)
    return CocoDataset(instances, source, folder, name, notes, labelled)


def _categories_of(root: Path, split: str, besides: Path | None) -> Categories:
    """Return the categories of a split, or else of any other file of annotations."""
    own = None
    with contextlib.suppress(UsageError):
        own = find_layout(root, split).annotations
    for file in dict.fromkeys([own, *other_annotations(root)]):
        with contextlib.nullcontext() if file == own else contextlib.suppress(UsageError):
            categories = None if file in (None, besides) else parse_categories(read_bytes(file), str(file))
            if categories and categories.entries:
                return categories
    raise UsageError(f"No file of annotations in {root} has categories, so that the classes are not known.")


def _notes(index: Instances, source: Path, folder: Path) -> Iterator[str]:
    if index.example is not None:
        name, path = index.example
        yield (
            f"The file_name of {index.searched} of {len(index.ids)} images in {source} is no path below {folder}: the "
            f"picture of the same name there is read, such as {path} for {shown(name)}."
        )
    if count := int(index.crowds.sum()):
        rows = np.repeat(np.arange(len(index.ids)), np.diff(index.first))
        alone = int(index.labels.any(1).sum()) - len(np.unique(rows[~index.crowds]))
        holding = f"; {alone} image{' holds' if alone == 1 else 's hold'} nothing else"
        advice = f"{holding}. Where single objects are meant, iscrowd must be 0." if alone else "."
        yield (
            f"{count} of {len(index.crowds)} annotations in {source} {'is a crowd' if count == 1 else 'are crowds'} "
            f"(iscrowd): a crowd's class counts as present, its pixels do not count in the truth{advice}"
        )
    if not index.has_truth and index.outlined.any():
        yield f"Only the crowds in {source} have an outline (segmentation), its objects have none: there is no truth."
