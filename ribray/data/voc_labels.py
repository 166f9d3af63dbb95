"""Image-level labels of data in VOC layout: from annotations, or else masks, or else the lists of the classes."""

import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import yaml

from ribray.data.annotations import UnknownClassError, in_other_case, parse_annotation
from ribray.data.dataset import Problem, foreign_values, labels_of_mask
from ribray.data.images import read_mask
from ribray.data.listing import Listing
from ribray.data.lists import IdList, Known, read_list
from ribray.data.names import composed, is_background
from ribray.errors import ImageError, UsageError

VOC_CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person",
    "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip


CLASSES = "classes.txt"
ANNOTATIONS = "Annotations"
MASKS = "SegmentationClass"
MAIN = "ImageSets/Main"
MASK_SUFFIXES = (".png",)
_COMMON_LIST = "trainval"
"""A list of a class that may tell of images which its list of the split does not have."""

_READERS = 16  # threads; most of the time goes into waiting for the disk and into PNG decoding


class VocLabels:
    """Finds the labels of a split's images: in their annotations, or else masks, or else the lists of the classes."""

    def __init__(
        self,
        root: Path,
        split: str,
        classes: Sequence[str],
        mask_folders: Iterable[str],
        pictures: Listing,
        listed: IdList,
    ) -> None:
        """Look which annotations and masks there are.

        Args:
            root: the folder with JPEGImages.
            split: name of the list.
            classes: names of the mask values 1, 2, …
            mask_folders: where a mask is looked for, the first one first.
            pictures: those in JPEGImages.
            listed: the list.
        """
        self._root = root
        self._classes = classes
        self._listed = listed
        self._column = class_of_list(split, classes) if listed.signs else None
        self._base = split if self._column is None else split[len(classes[self._column]) + 1 :]
        self._known: Known = picture_finder(pictures)
        self._annotations = Listing(root / ANNOTATIONS, (".xml",))
        is_annotated = all(id in self._annotations for id in listed.ids)
        self._masks = [] if is_annotated else [Listing(root / folder, MASK_SUFFIXES) for folder in mask_folders]
        self._unknown: list[tuple[str, ...]] = []  # names that are no class, of each image that has any
        self._by_lists = 0

    def find(self, missing: Mapping[str, str]) -> list[np.ndarray | Problem]:
        """Return the classes of every listed image, (classes,) bool, or why they cannot be known.

        Args:
            missing: a sentence for each image without a picture.
        """
        ids = self._listed.ids
        with ThreadPoolExecutor(_READERS) as readers:
            found = list(readers.map(self._read_or_problem, ids))
        if all(row is not None for row in found):
            return [row for row in found if row is not None]
        signs, told = self._signs(), ", ".join(self._classes_of_lists())
        rows = []
        for id, row in zip(ids, found, strict=True):
            if row is None:
                row = _row_of_signs([of_class.get(composed(id)) for of_class in signs])
                self._by_lists += row is not None
            if row is None:
                row = Problem(id, missing[id], "missing") if id in missing else self._without_labels(id, told)
            rows.append(row)
        return rows

    def _read_or_problem(self, id: str) -> np.ndarray | Problem | None:
        try:
            return self._read(id)
        except UnknownClassError as error:
            self._unknown.append(error.names)
            return Problem(id, str(error), "labels")
        except ImageError as error:
            return Problem(id, str(error), "labels")

    def _read(self, id: str) -> np.ndarray | None:
        """Return the classes of one image from its XML or else from its mask; None where it has neither."""
        for name in self._annotations.names(id):
            annotation = self._annotations.folder / name
            try:
                return parse_annotation(annotation.read_bytes(), self._classes, str(annotation))
            except FileNotFoundError:
                pass  # a link to nowhere
            except OSError as error:
                raise ImageError(f"{annotation} cannot be read: {error.strerror or error}.") from None
        for file in (listing.folder / name for listing in self._masks for name in listing.names(id)):
            mask = read_mask(file)
            strays = foreign_values(mask, len(self._classes))
            if strays.size:
                raise ImageError(
                    f"The mask of {id} holds the value {strays[0]}, but the classes end at {len(self._classes)}."
                )
            return labels_of_mask(mask, len(self._classes))
        return None

    def _signs(self) -> list[dict[str, int]]:
        """Return what the lists of each class say, by the composed form of an id."""
        signs: list[dict[str, int]] = [{} for _ in self._classes]
        if self._column is not None:
            signs[self._column] |= {composed(id): sign for id, sign in self._listed.signs.items()}
        for base in dict.fromkeys((self._base, _COMMON_LIST)):
            for column, file in class_lists(self._root, base, self._classes).items():
                for id, sign in read_list(file, self._known).signs.items():
                    signs[column].setdefault(composed(id), sign)
        return signs

    def _classes_of_lists(self) -> list[str]:
        """Return the names of classes that have a list."""
        return [file.stem.removesuffix(f"_{self._base}") for file in _lists_of(self._root, self._base)]

    def _without_labels(self, id: str, told: str) -> Problem:
        """Say that an image has no labels; ``told`` are the classes that have a list."""
        sentence = f"{id} has no labels: neither {self._annotations.folder}/{id}.xml nor a mask {MASKS}/{id}.png exists"
        if told:
            sentence += (
                f", and the lists {MAIN}/CLASS_{self._base}.txt do not tell of every class, but of {told} (where these "
                "are all, give them as data.classes)"
            )
        if (near := self._annotations.near.find(id)) is not None:
            sentence += f"; there is {self._annotations.names(near)[0]}"
        return Problem(id, f"{sentence}.", "labels")

    def findings(self, rows: Sequence[np.ndarray | Problem]) -> Iterator[Problem]:
        """Yield the signs of a list that other labels contradict."""
        if self._column is None:
            return
        name = self._classes[self._column]
        for id, row in zip(self._listed.ids, rows, strict=True):
            sign = self._listed.signs.get(id)
            if sign is not None and not isinstance(row, Problem) and row[self._column] != (sign >= 0):
                said, other = ("is", "is not") if sign >= 0 else ("is not", "is")
                sentence = (
                    f"{self._listed.source} says by {sign} that '{name}' {said} in {id}, and the image's annotation or "
                    f"mask that it {other}: the latter counts."
                )
                yield Problem(id, sentence, "sign")

    def notes(self, rows: Sequence[np.ndarray | Problem]) -> Iterator[str]:
        """Yield how labels were read, where they could be read in another way.

        Raises:
            UsageError: no image has labels, since the annotations name other classes.
        """
        if self._by_lists:
            yield (
                f"{self._by_lists} images have neither annotation nor mask: their labels are those of the lists "
                f"{self._root / MAIN}/CLASS_{self._base}.txt."
            )
        counts = Counter(itertools.chain.from_iterable(self._unknown))
        known = [row for row in rows if not isinstance(row, Problem)]
        if not known and 2 * len(self._unknown) > len(rows):  # else something else is wrong, too
            raise UsageError(self._on_unknown_names(counts, np.zeros(len(self._classes), bool)))
        if max(counts.values(), default=0) > 1:  # else a slip, of which the image's own sentence says enough
            yield f"{self._on_unknown_names(counts, np.any(known, axis=0))} Until then these images are left out."

    def _on_unknown_names(self, counts: Mapping[str, int], used: np.ndarray) -> str:
        """Say which names are no classes, in a form to be pasted into a recipe.

        Args:
            counts: images by name.
            used: (classes,) bool, whether a class is in an image.
        """
        folder = self._root / ANNOTATIONS
        cased = {name: other for name in sorted(counts) if (other := in_other_case(name, self._classes)) is not None}
        if len(cased) == len(counts):
            pairs = ", ".join(f"'{name}' (images: {counts[name]}) for '{other}'" for name, other in cased.items())
            return (
                f"{folder} has names that differ from a class in case only: {pairs}. Write them as the classes are "
                "written, or give the classes as these are written by data.classes, in the order of the mask values."
            )
        names = ", ".join(f"'{name}' (images: {counts[name]})" for name in sorted(counts))
        own = self._classes if tuple(self._classes) != VOC_CLASSES else np.array(self._classes)[used].tolist()
        pasted = [*own, *(name for name in sorted(counts) if name not in cased and not is_background(name))]
        return (
            f"{folder} has names that are no class: {names}. Mend them; or if they are classes of your own, write "
            f"`classes: {_as_yaml(pasted)}` below `data:` in the recipe, in the order of the mask values 1, 2, …, or "
            f"one a line in {self._root / CLASSES}."
        )


def _row_of_signs(signs: Sequence[int | None]) -> np.ndarray | None:
    """Return the classes that lists say to be in an image, (classes,) bool; None where one of them says nothing."""
    known = [sign for sign in signs if sign is not None]
    return np.array(known) >= 0 if len(known) == len(signs) else None


def _as_yaml(names: Sequence[str]) -> str:
    return yaml.safe_dump(list(names), default_flow_style=True, allow_unicode=True, width=2**31).strip()


def picture_finder(pictures: Listing) -> Known:
    """Return a function that finds an id among the pictures there are, and leaves it in the form that is asked for."""
    return lambda id: id if id in pictures else None


def class_of_list(name: str, classes: Sequence[str]) -> int | None:
    """Return the class that begins the name of a list such as ``dog_train``; None where none does."""
    of = [column for column, of_class in enumerate(classes) if composed(name).startswith(f"{composed(of_class)}_")]
    return max(of, key=lambda column: len(classes[column]), default=None)


def class_lists(root: Path, base: str, classes: Sequence[str]) -> dict[int, Path]:
    """Return the files ``ImageSets/Main/CLASS_BASE.txt`` that there are, by class."""
    files = {composed(file.name): file for file in _lists_of(root, base)}
    names = (composed(f"{name}_{base}.txt") for name in classes)
    return {column: files[name] for column, name in enumerate(names) if name in files}


def _lists_of(root: Path, base: str) -> list[Path]:
    """Return the files that are named as lists of a class are, sorted."""
    found = (file for file in (root / MAIN).glob("*.txt") if file.stem.endswith(f"_{base}"))
    return sorted(found, key=lambda file: file.name)
