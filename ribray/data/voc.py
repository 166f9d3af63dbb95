"""PASCAL VOC 2012, and any data in its layout.

ROOT/JPEGImages/ID.jpg
ROOT/ImageSets/Segmentation/SPLIT.txt     or ImageSets/Main/SPLIT.txt
ROOT/Annotations/ID.xml                   image-level labels; where there is none, they come from the mask
ROOT/SegmentationClass/ID.png             truth
ROOT/SegmentationClassAug/ID.png          truth of the augmented set, for split train_aug
"""

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from xml.etree import ElementTree

import defusedxml
import defusedxml.ElementTree
import numpy as np

from ribray.data.dataset import Dataset, Problem, foreign_values, labels_of_mask, nearest
from ribray.data.images import read_mask
from ribray.data.lists import check_id, parse_id_list, read_text
from ribray.data.names import composed
from ribray.errors import ImageError, UsageError

VOC_CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person",
    "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip

AUGMENTED_SPLIT = "train_aug"
_AUGMENTED_HINT = (
    "put the 10,582 ids of the augmented training set there, one a line, and their masks in SegmentationClassAug/"
)
_IMAGES = "JPEGImages"
_ANNOTATIONS = "Annotations"
_MASKS = "SegmentationClass"
_AUGMENTED_MASKS = "SegmentationClassAug"
_LISTS = ("ImageSets/Segmentation", "ImageSets/Main")

_READERS = 16  # threads; most of the time goes into waiting for the disk and into PNG decoding


class VocDataset(Dataset):
    """One split of a data root in VOC layout; images are read from disk when asked for."""

    def __init__(
        self,
        root: Path,
        split: str,
        classes: Sequence[str] = VOC_CLASSES,
        palette: np.ndarray | None = None,
        labelled: bool = True,
    ) -> None:
        """Read the split's list and the image-level labels of every image.

        Args:
            root: the folder with JPEGImages.
            split: name of a list in ImageSets.
            classes: names of the mask values 1, 2, …
            palette: (256, 3) uint8, a colour per mask value; default: VOC's own.
            labelled: whether to read labels, and leave out images without; false for images that are only predicted,
                such as those of the test split.

        Raises:
            UsageError: the folder or the list is missing, or the list is broken.
        """
        self.root = root
        self.split = split
        _require_layout(root)
        listed, problems = _read_split(root, split)
        self._has_annotations = (root / _ANNOTATIONS).is_dir()
        folders = (_AUGMENTED_MASKS, _MASKS) if split == AUGMENTED_SPLIT else (_MASKS,)
        self._mask_folders = tuple(folder for folder in folders if (root / folder).is_dir())

        found: list[np.ndarray | Problem]
        if labelled:
            with ThreadPoolExecutor(_READERS) as readers:
                found = list(readers.map(lambda id: self._labels_or_problem(id, classes), listed))
        else:
            found = [np.zeros(len(classes), bool)] * len(listed)
        known = [(id, row) for id, row in zip(listed, found, strict=True) if not isinstance(row, Problem)]
        problems += [row for row in found if isinstance(row, Problem)]
        labels = np.array([row for _, row in known], dtype=bool).reshape(len(known), len(classes))
        super().__init__(f"split '{split}' of {root}", classes, [id for id, _ in known], labels, problems, palette)

    @property
    def has_masks(self) -> bool:  # noqa: D102 - see Dataset
        return bool(self._mask_folders)

    def image_path(self, id: str) -> Path:  # noqa: D102 - see Dataset
        return self.root / _IMAGES / f"{id}.jpg"

    def hidden_classes(self, id: str) -> np.ndarray:
        """Return which classes have but objects marked difficult, (classes,) bool: VOC need not outline these."""
        try:
            names = difficult_names((self.root / _ANNOTATIONS / f"{id}.xml").read_bytes())
        except OSError:
            names = set()
        return np.array([name in names for name in self.classes], dtype=bool)

    def _read_mask(self, id: str) -> np.ndarray | None:
        return _first_mask(self.root, self._mask_folders, id)

    def _labels_or_problem(self, id: str, classes: Sequence[str]) -> np.ndarray | Problem:
        try:
            return self._labels(id, classes)
        except ImageError as error:
            return Problem(id, str(error), "labels")

    def _labels(self, id: str, classes: Sequence[str]) -> np.ndarray:
        """Return the classes of one image, (classes,) bool, from its XML or else from its mask."""
        annotation = self.root / _ANNOTATIONS / f"{id}.xml"
        if self._has_annotations:
            try:
                return parse_annotation(annotation.read_bytes(), classes, str(annotation))
            except FileNotFoundError:
                pass  # the usual case for images of the augmented set that come with a mask only
            except OSError as error:
                raise ImageError(f"{annotation} cannot be read: {error.strerror or error}.") from None
        mask = _first_mask(self.root, dict.fromkeys((*self._mask_folders, _AUGMENTED_MASKS, _MASKS)), id)
        if mask is None:
            raise ImageError(f"{id} has no labels: neither {annotation} nor a mask {_MASKS}/{id}.png exists.")
        strays = foreign_values(mask, len(classes))
        if strays.size:
            raise ImageError(f"The mask of {id} holds the value {strays[0]}, but the classes end at {len(classes)}.")
        return labels_of_mask(mask, len(classes))


def open_voc(root: Path, split: str, labelled: bool = True) -> VocDataset:
    """Open a split of PASCAL VOC 2012.

    Raises:
        UsageError: see `VocDataset`.
    """
    return VocDataset(root, split, labelled=labelled)


def parse_annotation(content: bytes, classes: Sequence[str], source: str) -> np.ndarray:
    """Return which classes a VOC annotation lists, (classes,) bool; objects marked difficult count.

    An annotation without objects is an image known to be empty.

    Args:
        content: the XML file.
        classes: names, in the order of the result.
        source: what to call the file in messages.

    Raises:
        ImageError: not XML, XML with entities or a DTD, no annotation, or an unknown class name.
    """
    labels = np.zeros(len(classes), dtype=bool)
    for name in _object_names(content, source):
        if name not in classes:
            raise ImageError(f"{source} has an object '{name}', which is no class{nearest(name, classes)}.")
        labels[classes.index(name)] = True
    return labels


def difficult_names(content: bytes) -> set[str]:
    """Return the names in a VOC annotation of which every object is marked difficult; none of one that is no XML."""
    try:
        objects = defusedxml.ElementTree.fromstring(content, forbid_dtd=True).findall("object")
    except (defusedxml.DefusedXmlException, ElementTree.ParseError, ValueError, LookupError):
        return set()
    marks = [((one.findtext("name") or "").strip(), (one.findtext("difficult") or "").strip()) for one in objects]
    return {composed(name) for name, mark in marks if mark == "1"} - {
        composed(name) for name, mark in marks if mark != "1"
    }


def _object_names(content: bytes, source: str) -> list[str]:
    try:
        tree = defusedxml.ElementTree.fromstring(content, forbid_dtd=True)
    except defusedxml.DefusedXmlException:
        raise ImageError(f"{source} declares a document type or entities: remove the declaration.") from None
    except (ElementTree.ParseError, ValueError, LookupError) as error:
        raise ImageError(f"{source} is not valid XML: {error}.") from None
    if tree.tag != "annotation":
        raise ImageError(f"{source} is no VOC annotation: its root is <{tree.tag}>, not <annotation>.")
    names = [(item.findtext("name") or "").strip() for item in tree.findall("object")]  # not the names of parts
    if "" in names:
        raise ImageError(f"{source} has an object without a name.")
    return names


def _require_layout(root: Path) -> None:
    if (root / _IMAGES).is_dir():
        return
    inner = [root / place for place in ("VOC2012", "VOCdevkit/VOC2012") if (root / place / _IMAGES).is_dir()]
    hint = f"did you mean data.root={inner[0]}?" if inner else "data.root must be the folder that holds it."
    raise UsageError(f"{root} has no folder {_IMAGES}: {hint}")


def _read_split(root: Path, split: str) -> tuple[tuple[str, ...], list[Problem]]:
    check_id(split, "The name of a split")
    for folder in _LISTS:
        file = root / folder / f"{split}.txt"
        if file.is_file():
            return parse_id_list(read_text(file), str(file))
    missing = root / _LISTS[0] / f"{split}.txt"
    if split == AUGMENTED_SPLIT:
        raise UsageError(f"{missing} does not exist: {_AUGMENTED_HINT}.")
    existing = sorted({file.stem for folder in _LISTS for file in (root / folder).glob("*.txt")})
    raise UsageError(f"{missing} does not exist; lists there are: {', '.join(existing) or 'none'}.")


def _first_mask(root: Path, folders: Iterable[str], id: str) -> np.ndarray | None:
    for folder in folders:
        file = root / folder / f"{id}.png"
        if file.is_file():
            return read_mask(file)
    return None
