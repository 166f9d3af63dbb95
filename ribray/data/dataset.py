"""What every data set offers: ids, classes, a label matrix, images, and masks where there is truth."""

import contextlib
import difflib
import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import ClassVar

import numpy as np
from PIL import Image

from ribray.data.images import Picture, by, image_size, read_picture, swaps_sides
from ribray.data.names import composed, doubtful_names, require_distinct
from ribray.errors import ImageError, UsageError

BACKGROUND = 0
"""Mask value of background; class ``c`` of the label matrix has mask value ``c + 1``."""
IGNORE = 255
"""Mask value of pixels that do not count."""


@dataclass(frozen=True)
class Problem:
    """Something wrong with one listed image, found when the data set was opened."""

    id: str
    sentence: str  # for the person at the keyboard: which file or line, what is wrong, what would be right
    kind: str  # a word or two for a table: ``listed twice``, ``labels``, ``not listed``, ``annotation``, …


class Dataset(ABC):
    """One split of a data set. Small, picklable, and opened once: workers get a copy.

    Attributes:
        name: what the split is called in messages, such as ``split 'train' of /data/VOC2012``.
        classes: foreground class names, in Unicode's composed form.
        ids: image ids, in the order of the split.
        labels: (ids, classes) bool.
        category_ids: COCO category ids of the classes, in their order: the data's own, or 1, 2, …
        palette: (256, 3) uint8, a colour per mask value.
        problems: what was wrong with listed images; one whose labels cannot be known is left out of ``ids``.
        findings: what is wrong with anything else, such as a class name or a file that belongs to no image; the id
            names it.
        notes: sentences on how the data was read, where it could be read in another way; told once.
    """

    separator: ClassVar[str] = ""  # between several names of classes, where the layout has them in one cell

    def __init__(
        self,
        name: str,
        classes: Sequence[str],
        ids: Sequence[str],
        labels: np.ndarray,
        problems: Iterable[Problem] = (),
        palette: np.ndarray | None = None,
        findings: Iterable[Problem] = (),
        notes: Iterable[str] = (),
    ) -> None:
        if not 0 < len(classes) < IGNORE:
            raise UsageError(f"{name} has {len(classes)} classes, where 1 to {IGNORE - 1} can stand in a mask.")
        require_distinct(classes, name)
        self.name = name
        self.classes = tuple(map(composed, classes))
        self.ids = tuple(ids)
        self.labels = np.asarray(labels, dtype=bool).reshape(len(self.ids), len(self.classes))
        self.category_ids = tuple(range(1, len(self.classes) + 1))
        self.palette = colour_map() if palette is None else palette
        self.problems = tuple(problems)
        doubts = doubtful_names(classes, name, self.separator)
        self.findings = (*(Problem(of_class, doubt, "class name") for of_class, doubt in doubts), *findings)
        self.notes = tuple(notes)

    def __len__(self) -> int:
        return len(self.ids)

    def __contains__(self, id: object) -> bool:
        return id in self._places

    @cached_property
    def _places(self) -> dict[str, int]:
        return {id: place for place, id in enumerate(self.ids)}

    def index(self, id: str) -> int:
        if id not in self._places:
            raise UsageError(f"'{id}' is not among the {len(self)} images of {self.name}{nearest(id, self.ids)}.")
        return self._places[id]

    def image(self, id: str) -> np.ndarray:
        return self.picture(id).pixels

    def picture(self, id: str) -> Picture:
        return read_picture(self.image_path(id))

    def size(self, id: str) -> tuple[int, int]:
        """Return an image's height and width in pixels, without reading the pixels."""
        return image_size(self.image_path(id))

    def mask(self, id: str) -> np.ndarray | None:
        """Read the truth, (H, W) uint8: 0 background, class + 1, 255 ignore; None where there is none."""
        mask = self._read_mask(id)
        if mask is not None:
            self._require_size(id, mask)
            self._require_range(id, mask)
        return mask

    def look_at_mask(self, id: str) -> tuple[np.ndarray | None, list[Problem]] | None:
        """Return a mask (None where it is not on the image) and all that is wrong with it; None without a mask."""
        try:
            mask = self._read_mask(id)
        except ImageError as error:
            return None, [Problem(id, str(error), "mask unreadable")]
        if mask is None:
            return None
        problems = []
        for kind, require in (("mask size", self._require_size), ("mask values", self._require_range)):
            try:
                require(id, mask)
            except ImageError as error:
                problems.append(Problem(id, str(error), kind))
        fits = all(problem.kind != "mask size" for problem in problems)
        return mask if fits else None, problems

    def hidden_classes(self, id: str) -> np.ndarray:
        """Return which classes may be without a pixel in a sound mask, (classes,) bool: of crowds, or behind others."""
        return np.zeros(len(self.classes), dtype=bool)

    def fingerprint(self) -> str:
        return fingerprint_of(self.ids, self.labels, self.classes)

    def coco_image(self, id: str) -> tuple[int, str]:
        """Return an image's COCO image id and file name: the data's own, or its place from 1 and its path."""
        return self.index(id) + 1, f"{id}{self.image_path(id).suffix}"

    @property
    @abstractmethod
    def has_masks(self) -> bool: ...

    @abstractmethod
    def image_path(self, id: str) -> Path:
        """Return the file of an image; it need not exist. Raises `ImageError` where no file can be named."""

    @abstractmethod
    def _read_mask(self, id: str) -> np.ndarray | None: ...

    def _require_size(self, id: str, mask: np.ndarray) -> None:
        size, turn = self.size(id), ""
        if mask.shape != size:
            if mask.shape == size[::-1] and swaps_sides(self.image_path(id)):
                turn = (
                    ": the size of its file before its EXIF orientation turns it. Draw the mask on the picture as "
                    "shown, or save the picture without the turn in its EXIF data"
                )
            raise ImageError(f"The mask of {id} is {by(mask.shape)} pixels, but its image is {by(size)}{turn}.")

    def _require_range(self, id: str, mask: np.ndarray) -> None:
        if (strays := foreign_values(mask, len(self.classes))).size:
            known = f"0 to {len(self.classes)} and {IGNORE}"
            raise ImageError(f"The mask of {id} holds the value {strays[0]}, where {known} are known.")


def fingerprint_of(ids: Sequence[str], labels: np.ndarray, classes: Sequence[str]) -> str:
    """Return the sha256, in hex, of image ids, their labels (ids, classes) and the class names."""
    names = json.dumps([list(classes), list(ids)], ensure_ascii=True, separators=(",", ":"))
    digest = hashlib.sha256(names.encode("ascii"))
    digest.update(np.packbits(np.asarray(labels, dtype=bool), axis=None).tobytes())
    return digest.hexdigest()


def shared_ids(dataset: Dataset, other: Dataset) -> list[str]:
    """Return the ids of the images that are in both splits; an id may also stand for another file in each."""
    found = []
    for id in filter(other.__contains__, dataset.ids):
        with contextlib.suppress(ImageError):  # of no file at all
            if dataset.image_path(id) == other.image_path(id):
                found.append(id)
    return found


def foreign_values(mask: np.ndarray, classes: int) -> np.ndarray:
    """Return the values of a uint8 mask that are neither background, nor a class, nor ignore."""
    used = values_of(mask)
    return used[(used > classes) & (used != IGNORE)]


def values_of(mask: np.ndarray) -> np.ndarray:
    """Return the values that occur in a uint8 mask, rising: Pillow counts faster than NumPy and without the GIL."""
    return np.flatnonzero(Image.fromarray(mask).histogram())


def labels_of_mask(mask: np.ndarray, classes: int) -> np.ndarray:
    return np.isin(np.arange(1, classes + 1), values_of(mask))


def colour_map() -> np.ndarray:
    """Return the colours of PASCAL VOC's palette PNGs, (256, 3) uint8.

    The bits of a value are dealt out to red, green and blue in turn, the lowest one to the highest of red.
    """
    values, channels, colours = np.arange(IGNORE + 1)[:, None], np.arange(3), np.zeros((IGNORE + 1, 3), np.uint8)
    for bit in range(8):
        colours |= ((values >> (3 * bit + channels) & 1) << (7 - bit)).astype(np.uint8)
    return colours


def nearest(name: str, known: Iterable[str]) -> str:
    """Return `` (did you mean 'x'?)`` for a mistyped name, or nothing where no known one is like it."""
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return f" (did you mean '{close[0]}'?)" if close else ""
