"""Image-level labels of data in VOC layout: from annotations, or else masks, or else the lists of the classes."""

import contextlib
import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from xml.etree import ElementTree

import defusedxml
import defusedxml.ElementTree
import numpy as np
import yaml

from ribray import storage
from ribray.data.dataset import Problem, foreign_values, labels_of_mask, nearest
from ribray.data.files import FilesById
from ribray.data.images import MASK_SUFFIX, READERS, read_mask
from ribray.data.lists import CLASSES, MAIN, MASKS, IdList, Known, read_list
from ribray.data.names import composed, in_other_case, is_background, plain
from ribray.errors import ImageError, UsageError

VOC_CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person",
    "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip

ANNOTATIONS = "Annotations"
_COMMON_LIST = "trainval"  # a list of a class that may tell of images which its list of the split does not have


class UnknownClassError(ImageError):
    def __init__(self, sentence: str, names: Sequence[str]) -> None:
        super().__init__(sentence)
        self.names = names


def parse_annotation(content: bytes, classes: Sequence[str], source: str) -> np.ndarray:
    """Return which classes a VOC annotation lists, (classes,) bool: none where it is known to be empty."""
    known = [*map(composed, classes)]
    names = dict.fromkeys(name for name, _ in _objects(content, source))
    if "" in names:
        raise ImageError(f"{source} has an object without a name.")
    if unknown := [name for name in names if name not in known]:
        fault = f"is no class{nearest(unknown[0], classes)}"
        if (other := in_other_case(unknown[0], classes)) is not None:
            fault = f"differs from class '{other}' in case only: write it so"
        raise UnknownClassError(f"{source} has an object '{unknown[0]}', which {fault}.", unknown)
    return np.array([name in names for name in known], dtype=bool)


def difficult_names(content: bytes) -> set[str]:
    """Return the names in a VOC annotation of which every object is marked difficult; none of one that is broken."""
    objects: list[tuple[str, str]] = []
    with contextlib.suppress(ImageError):
        objects = _objects(content, "")
    return {name for name, mark in objects if mark == "1"} - {name for name, mark in objects if mark != "1"}


def _objects(content: bytes, source: str) -> list[tuple[str, str]]:
    """Return the name and the mark of difficulty of each object of an annotation, but not of objects' parts."""
    try:
        tree = defusedxml.ElementTree.fromstring(content, forbid_dtd=True)
    except defusedxml.DefusedXmlException:
        raise ImageError(f"{source} declares a document type or entities: remove the declaration.") from None
    except (ElementTree.ParseError, ValueError, LookupError) as error:
        raise ImageError(f"{source} is not valid XML: {error}.") from None
    if tree.tag != "annotation":
        raise ImageError(f"{source} is no VOC annotation: its root is <{tree.tag}>, not <annotation>.")
    return [
        (composed(plain(item.findtext("name") or "")), (item.findtext("difficult") or "").strip())
        for item in tree.findall("object")
    ]


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
    found = (file for file in (root / MAIN).glob("*.txt") if file.stem.endswith(f"_{base}"))
    return sorted(found, key=lambda file: file.name)


class VocLabels:
    """Finds the labels of a split's images: in their annotations, or else masks, or else the lists of the classes."""

    def __init__(
        self,
        root: Path,
        split: str,
        classes: Sequence[str],
        annotations: FilesById,
        folders: Iterable[str],
        known: Known,
        listed: IdList,
    ) -> None:
        """Look which masks there are in ``folders``, the first one first."""
        self._root, self._classes, self._known, self._listed = root, classes, known, listed
        self._column = class_of_list(split, classes) if listed.signs else None
        self._base = split if self._column is None else split[len(classes[self._column]) + 1 :]
        self._annotations = annotations
        is_annotated = all(id in self._annotations for id in listed.ids)
        self._masks = [] if is_annotated else [FilesById(root / folder, (MASK_SUFFIX,)) for folder in folders]
        self._unknown: list[Sequence[str]] = []  # names that are no class, of each image that has any
        self._by_lists = 0
        self._by_masks: list[str] = []  # ids of the images

    def find(self, missing: Mapping[str, str]) -> list[np.ndarray | Problem]:
        """Return each image's classes, (classes,) bool, or why they are unknown; ``missing``: why it has no picture."""
        ids = self._listed.ids
        with ThreadPoolExecutor(READERS) as readers:
            found = list(readers.map(self._read, ids))
        signs = self._signs() if any(row is None for row in found) else []
        rows = []
        for id, row in zip(ids, found, strict=True):
            if row is None:
                of_classes = [of_class.get(composed(id)) for of_class in signs]
                if None not in of_classes:
                    row = np.array(of_classes) >= 0
                    self._by_lists += 1
                else:
                    row = Problem(id, missing[id], "missing") if id in missing else self._without_labels(id)
            rows.append(row)
        return rows

    def _read(self, id: str) -> np.ndarray | Problem | None:
        """Return an image's classes from its XML or else its mask, or what is wrong; None where it has neither."""
        try:
            for annotation in (self._annotations.folder / name for name in self._annotations.names(id)):
                with contextlib.suppress(FileNotFoundError):  # a link to nowhere
                    return parse_annotation(annotation.read_bytes(), self._classes, str(annotation))
            for file in (files.folder / name for files in self._masks for name in files.names(id)):
                mask, count = read_mask(file), len(self._classes)
                if (strays := foreign_values(mask, count)).size:
                    raise ImageError(f"The mask of {id} holds the value {strays[0]}, but the classes end at {count}.")
                self._by_masks.append(id)
                return labels_of_mask(mask, count)
        except OSError as error:
            return Problem(id, f"{annotation} cannot be read: {storage.reason(error)}.", "labels")
        except ImageError as error:
            if isinstance(error, UnknownClassError):
                self._unknown.append(error.names)
            return Problem(id, str(error), "labels")
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

    @cached_property
    def _partial_lists(self) -> str:
        names = ", ".join(file.stem.removesuffix(f"_{self._base}") for file in _lists_of(self._root, self._base))
        tell = f"the lists {MAIN}/CLASS_{self._base}.txt do not tell of every class, but of {names}"
        return f", and {tell} (where these are all, give them as data.classes)" if names else ""

    def _without_labels(self, id: str) -> Problem:
        neither = f"neither {self._annotations.folder}/{id}.xml nor a mask {MASKS}/{id}.png exists"
        near = self._annotations.near.find(id)
        there = "" if near is None else f"; there is {self._annotations.names(near)[0]}"
        return Problem(id, f"{id} has no labels: {neither}{self._partial_lists}{there}.", "labels")

    def findings(self, rows: Sequence[np.ndarray | Problem]) -> Iterator[Problem]:
        if self._column is None:
            return
        for id, row in zip(self._listed.ids, rows, strict=True):
            sign = self._listed.signs.get(id)
            if sign is not None and not isinstance(row, Problem) and row[self._column] != (sign >= 0):
                said, other = ("is", "is not") if sign >= 0 else ("is not", "is")
                by_sign = f"{self._listed.source} says by {sign} that '{self._classes[self._column]}' {said} in {id}"
                by_image = f"and the image's annotation or mask that it {other}: the latter counts"
                yield Problem(id, f"{by_sign}, {by_image}.", "sign")

    def notes(self, rows: Sequence[np.ndarray | Problem]) -> Iterator[str]:
        """Yield how labels were read, if in another way; a `UsageError` if annotations name only other classes."""
        if self._by_lists:
            lists = f"the lists {self._root / MAIN}/CLASS_{self._base}.txt"
            yield f"{self._by_lists} images have neither annotation nor mask: their labels are those of {lists}."
        if self._by_masks and self._classes is VOC_CLASSES:
            values = "and their values 1 to 20 are taken for VOC's 20 classes, aeroplane to tvmonitor"
            own = f"Of classes of your own, give the names as data.classes or in {self._root / CLASSES}."
            count = len(self._by_masks)
            yield f"Labels come from masks where there is no annotation (images: {count}), {values}. {own}"
        counts = Counter(itertools.chain.from_iterable(self._unknown))
        known = [row for row in rows if not isinstance(row, Problem)]
        if not known and 2 * len(self._unknown) > len(rows):  # else something else is wrong, too
            raise UsageError(self._on_unknown_names(counts, np.zeros(len(self._classes), bool)))
        if max(counts.values(), default=0) > 1:  # else a slip, of which the image's own sentence says enough
            yield f"{self._on_unknown_names(counts, np.any(known, axis=0))} Until then these images are left out."

    def _on_unknown_names(self, counts: Mapping[str, int], used: np.ndarray) -> str:
        """Say which names are no classes, for a recipe; ``used`` (classes,) bool: is a class in an image?"""
        folder, ordered = self._root / ANNOTATIONS, sorted(counts)
        cased = {name: other for name in ordered if (other := in_other_case(name, self._classes)) is not None}
        if len(cased) == len(counts):
            pairs = ", ".join(f"'{name}' (images: {counts[name]}) for '{other}'" for name, other in cased.items())
            return (
                f"{folder} has names that differ from a class in case only: {pairs}. Write them as the classes are "
                "written, or give the classes as these are written by data.classes, in the order of the mask values."
            )
        names = ", ".join(f"'{name}' (images: {counts[name]})" for name in ordered)
        own = self._classes if tuple(self._classes) != VOC_CLASSES else np.array(self._classes)[used].tolist()
        pasted = [*own, *(name for name in ordered if name not in cased and not is_background(name))]
        in_yaml = yaml.safe_dump(pasted, default_flow_style=True, allow_unicode=True, width=2**31).strip()
        return (
            f"{folder} has names that are no class: {names}. Mend them; or if they are classes of your own, write "
            f"`classes: {in_yaml}` below `data:` in the recipe, in the order of the mask values 1, 2, …, or one a line "
            f"in {self._root / CLASSES}."
        )
