"""COCO 2014 (or 2017), and any data with instance annotations in its JSON format.

    ROOT/annotations/instances_train2014.json
    ROOT/train2014/*.jpg

Split ``train`` is ``train2014``; a full name such as ``train2017`` works too. Of the annotations file only an
index is kept: where in the file each instance stands. Its outline is read again when the mask of its image is
asked for, so that 82,783 images take some tens of megabytes, and a copy of the data set goes to a worker in
little time.
"""

import json
import math
import re
from array import array
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from pycocotools import mask as rasteriser

from ribray.data.dataset import BACKGROUND, IGNORE, Dataset, Problem
from ribray.data.images import image_size
from ribray.data.lists import check_id
from ribray.errors import ImageError, UsageError

_DEFAULT_YEAR = "2014"
_ANNOTATIONS = "annotations"
_ARRAYS = frozenset({"images", "annotations", "categories"})
_POLYGON_COORDINATES = 6  # three corners; pycocotools takes four numbers for a box
_MAX_RUN_DIGITS = 7  # of five bits each, more than any image needs
_NO_ROW = -1


class CocoDataset(Dataset):
    """One split of a data root in COCO layout; images without objects keep a row without classes."""

    def __init__(self, annotations: Path, folder: Path, name: str) -> None:
        """Index an annotations file.

        Args:
            annotations: the instances JSON.
            folder: where the images lie.
            name: what to call the split in messages.

        Raises:
            UsageError: the file is no COCO instances JSON, or names files outside ``folder``.
        """
        self.annotations = annotations
        self.folder = folder
        try:
            content = annotations.read_bytes()
        except OSError as error:
            raise UsageError(f"{annotations} cannot be read: {error.strerror or error}.") from None
        instances = parse_instances(content, str(annotations))
        self._instances = instances
        super().__init__(name, instances.classes, instances.ids, instances.labels, instances.problems)

    @property
    def has_masks(self) -> bool:  # noqa: D102 - see Dataset
        return bool(self._instances.outlined.any())

    def image_path(self, id: str) -> Path:  # noqa: D102 - see Dataset
        return self.folder / self._instances.file_names[self.index(id)]

    @property
    def category_ids(self) -> tuple[int, ...]:  # noqa: D102 - see Dataset
        return self._instances.category_ids

    def coco_image(self, id: str) -> tuple[int, str]:  # noqa: D102 - see Dataset
        row = self.index(id)
        return self._instances.image_ids[row], self._instances.file_names[row]

    def hidden_classes(self, id: str) -> np.ndarray:  # noqa: D102 - see Dataset
        row, index = self.index(id), self._instances
        of_image = slice(index.first[row], index.first[row + 1])
        hidden = np.zeros(len(self.classes), dtype=bool)
        hidden[index.columns[of_image][index.crowds[of_image]]] = True
        # Of several objects any one may lie behind another.
        return hidden | (self.labels[row] if of_image.stop - of_image.start > 1 else False)

    def _read_mask(self, id: str) -> np.ndarray | None:
        if not self.has_masks:
            return None
        row = self.index(id)
        height, width = (int(side) for side in self._instances.sizes[row])
        if not height or not width:
            height, width = image_size(self.image_path(id))
        return draw_mask(self._read_instances(row), height, width, f"an object of image {id} in {self.annotations}")

    def _read_instances(self, row: int) -> list[tuple[int, Any]]:
        """Read the instances of an image again: mask value and segmentation of each."""
        index = self._instances
        chosen = range(index.first[row], index.first[row + 1])
        found = []
        try:
            with self.annotations.open("rb") as stream:
                for place in chosen:
                    stream.seek(int(index.starts[place]))
                    text = stream.read(int(index.ends[place] - index.starts[place]))
                    value = IGNORE if index.crowds[place] else int(index.columns[place]) + 1
                    found.append((value, json.loads(text).get("segmentation")))
        except (OSError, ValueError, AttributeError) as error:
            raise ImageError(f"{self.annotations} was changed or cannot be read any more: {error}.") from None
        return found


def open_coco(root: Path, split: str) -> CocoDataset:
    """Open a split of COCO.

    Raises:
        UsageError: annotations or images are missing, see also `CocoDataset`.
    """
    check_id(split, "The name of a split")
    names = (split, f"{split}{_DEFAULT_YEAR}")
    files = {name: root / _ANNOTATIONS / f"instances_{name}.json" for name in names}
    full_name = next((name for name in names if files[name].is_file()), None)
    if full_name is None:
        existing = sorted(file.stem for file in (root / _ANNOTATIONS).glob("instances_*.json"))
        splits = ", ".join(name.removeprefix("instances_") for name in existing) or "none"
        raise UsageError(f"{files[names[-1]]} does not exist; splits there are: {splits}.")
    if not (root / full_name).is_dir():
        raise UsageError(f"{root / full_name} does not exist: put the images of {files[full_name].name} there.")
    return CocoDataset(files[full_name], root / full_name, f"split '{split}' of {root}")


# --- the annotations file ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Instances:
    """Index of an annotations file. I images, A annotations of these, sorted by image."""

    classes: tuple[str, ...]
    """Category names in the order of the category ids."""
    category_ids: tuple[int, ...]
    ids: tuple[str, ...]
    file_names: tuple[str, ...]
    image_ids: tuple[int, ...]
    """As the file has them; where these are not all numbers, 1, 2, …"""
    labels: np.ndarray
    """(I, classes) bool; crowds do not count."""
    sizes: np.ndarray
    """(I, 2) int32: height and width, 0 where the file does not say."""
    first: np.ndarray
    """(I + 1,) int64: the annotations of image i are those from first[i] to before first[i + 1]."""
    columns: np.ndarray
    """(A,) int32: class."""
    crowds: np.ndarray
    """(A,) bool."""
    outlined: np.ndarray
    """(A,) bool: has a segmentation."""
    starts: np.ndarray
    """(A,) int64: offset in the file, bytes."""
    ends: np.ndarray
    """(A,) int64: offset of the first byte after."""
    problems: tuple[Problem, ...]


@dataclass
class _Found:
    """What one pass over the file collects, in the file's order."""

    images: list[tuple[Hashable, str, int, int]] = field(default_factory=list)  # id, file name, height, width
    categories: list[tuple[int, str]] = field(default_factory=list)
    image_ids: list[Hashable] = field(default_factory=list)  # of the annotations, like the rest
    category_ids: list[Hashable] = field(default_factory=list)
    flags: array = field(default_factory=lambda: array("b"))  # 1: crowd, 2: has a segmentation
    starts: array = field(default_factory=lambda: array("q"))
    ends: array = field(default_factory=lambda: array("q"))


def parse_instances(content: bytes, source: str) -> Instances:
    """Index COCO instances JSON.

    Args:
        content: the file.
        source: what to call it in messages.

    Raises:
        UsageError: not JSON, or entries without the keys they need, or unsafe file names.
    """
    found = _Found()
    try:
        for name, number, element, start, end in _elements(content):
            _collect(found, name, element, start, end, f"{name}[{number}] of {source}")
    except RecursionError:
        raise UsageError(f"{source} is nested too deeply to be COCO annotations.") from None
    except ValueError as error:  # JSONDecodeError, UnicodeDecodeError, a number of thousands of digits
        raise UsageError(f"{source} is not valid JSON: {' '.join(str(error).split())}.") from None
    if not found.images or not found.categories:
        raise UsageError(f"{source} has no images or no categories: COCO instances have both, and annotations.")
    return _build_index(found, source)


def _elements(content: bytes) -> Iterator[tuple[str, int, Any, int, int]]:
    """Walk a JSON object and yield each element of its arrays in `_ARRAYS`.

    An element comes as (array, number, value, start, end), the last two being offsets in bytes. One
    is alive at a time; the outlines of a whole COCO split would take gigabytes as Python lists.

    Raises:
        ValueError: not a JSON object.
    """
    text = content.decode("latin-1")  # a character per byte: a place in the text is an offset in the file
    decode = json.JSONDecoder().raw_decode
    place = _skip(text, len(b"\xef\xbb\xbf") if content.startswith(b"\xef\xbb\xbf") else 0)
    place = _expect(text, place, "{")
    is_last = text[place : place + 1] == "}"
    place += is_last
    while not is_last:
        key, place = decode(text, place)
        place = _expect(text, _skip(text, place), ":")
        if key in _ARRAYS and text[place : place + 1] == "[":
            place = _skip(text, place + 1)
            number = 0
            while text[place : place + 1] != "]":
                place = _expect(text, place, ",") if number else place
                value, end = decode(text, place)
                if not text[place:end].isascii():
                    value = json.loads(content[place:end].decode("utf-8"))
                yield key, number, value, place, end
                number, place = number + 1, _skip(text, end)
            place += 1
        elif key in _ARRAYS:
            raise json.JSONDecodeError(f"'{key}' is not a list", text, place)
        else:
            _, place = decode(text, place)
        place = _skip(text, place)
        is_last = text[place : place + 1] == "}"
        place = _expect(text, place, "}" if is_last else ",")
    if place != len(text):
        raise json.JSONDecodeError("Extra data", text, place)


_SPACE = re.compile(r"[ \t\n\r]*")


def _skip(text: str, place: int) -> int:
    match = _SPACE.match(text, place)
    return match.end() if match else place


def _expect(text: str, place: int, character: str) -> int:
    """Return the place after ``character`` and the white space that follows it."""
    if text[place : place + 1] != character:
        raise json.JSONDecodeError(f"Expecting '{character}'", text, place)
    return _skip(text, place + 1)


def _collect(found: _Found, name: str, element: Any, start: int, end: int, where: str) -> None:
    if name == "images":
        id, file_name = _value(element, "id", (int, str), where), _value(element, "file_name", (str,), where)
        check_id(file_name, f"file_name in {where}")
        found.images.append((id, file_name, _side(element, "height", where), _side(element, "width", where)))
    elif name == "categories":
        found.categories.append((_value(element, "id", (int,), where), _value(element, "name", (str,), where)))
    else:
        found.image_ids.append(_value(element, "image_id", (int, str), where))
        found.category_ids.append(_value(element, "category_id", (int,), where))
        segmentation = element.get("segmentation")
        found.flags.append(bool(element.get("iscrowd")) + 2 * bool(segmentation))
        found.starts.append(start)
        found.ends.append(end)


def _value(element: Any, key: str, types: tuple[type, ...], where: str) -> Any:
    value = element.get(key) if isinstance(element, dict) else None
    if type(value) not in types or value == "":
        wanted = "a number" if types == (int,) else "a name" if types == (str,) else "a number or a name"
        raise UsageError(f"{where} must have '{key}' with {wanted}.")
    return value


def _side(element: dict[str, Any], key: str, where: str) -> int:
    side = element.get(key, 0)
    if type(side) is not int or not 0 <= side <= np.iinfo(np.int32).max:
        raise UsageError(f"{where} must have '{key}' in pixels.")
    return side


# --- the index ---------------------------------------------------------------------------------------------


def _build_index(found: _Found, source: str) -> Instances:
    columns_by_id, classes = _order_categories(found.categories, source)
    rows_by_id, problems = _order_images(found.images, source)
    rows = np.array([rows_by_id.get(id, _NO_ROW) for id in found.image_ids], dtype=np.int64)
    columns = np.array([columns_by_id.get(id, _NO_ROW) for id in found.category_ids], dtype=np.int32)
    problems += _dangling(found, rows_by_id, rows, columns, source)

    kept_rows = np.zeros(len(found.images), dtype=bool)
    kept_rows[[row for row in rows_by_id.values() if row != _NO_ROW]] = True
    kept_rows[rows[(rows != _NO_ROW) & (columns == _NO_ROW)]] = False  # some of their labels are unknown
    new_rows = np.cumsum(kept_rows) - 1
    images = [image for image, is_kept in zip(found.images, kept_rows, strict=True) if is_kept]

    is_kept = (rows != _NO_ROW) & kept_rows[rows]
    order = np.flatnonzero(is_kept)
    order = order[np.argsort(rows[order], kind="stable")]
    rows, columns = new_rows[rows[order]], columns[order]
    flags = np.frombuffer(found.flags, dtype=np.int8)[order]
    crowds = (flags & 1).astype(bool)
    labels = np.zeros((len(images), len(classes)), dtype=bool)
    labels[rows[~crowds], columns[~crowds]] = True
    return Instances(
        classes=classes,
        category_ids=tuple(id for id, _ in sorted(found.categories)),
        ids=tuple(_id_of(file_name) for _, file_name, _, _ in images),
        file_names=tuple(file_name for _, file_name, _, _ in images),
        image_ids=_numbers([id for id, _, _, _ in images]),
        labels=labels,
        sizes=np.array([image[2:] for image in images], dtype=np.int32).reshape(-1, 2),
        first=np.searchsorted(rows, np.arange(len(images) + 1)),
        columns=columns,
        crowds=crowds,
        outlined=(flags & 2).astype(bool),
        starts=np.frombuffer(found.starts, dtype=np.int64)[order],
        ends=np.frombuffer(found.ends, dtype=np.int64)[order],
        problems=tuple(problems),
    )


def _id_of(file_name: str) -> str:
    return PurePosixPath(file_name).stem


def _numbers(ids: list[Hashable]) -> tuple[int, ...]:
    numbers = tuple(id for id in ids if isinstance(id, int))
    return numbers if len(numbers) == len(ids) else tuple(range(1, len(ids) + 1))


def _order_categories(categories: list[tuple[int, str]], source: str) -> tuple[dict[Hashable, int], tuple[str, ...]]:
    """Return the class of each category id, and the names of the classes."""
    if len({id for id, _ in categories}) < len(categories) or len({name for _, name in categories}) < len(categories):
        raise UsageError(f"{source} has two categories of the same id or name.")
    ordered = sorted(categories)
    return {id: column for column, (id, _) in enumerate(ordered)}, tuple(name for _, name in ordered)


def _order_images(
    images: list[tuple[Hashable, str, int, int]], source: str
) -> tuple[dict[Hashable, int], list[Problem]]:
    """Return the row of each image id, _NO_ROW for one that cannot be used, and what was wrong."""
    rows: dict[Hashable, int] = {}
    owners: dict[str, str] = {}  # file name by id
    problems = []
    for row, (image_id, file_name, _, _) in enumerate(images):
        id = _id_of(file_name)
        check_id(id, f"the name of image {image_id} in {source}")
        if image_id in rows:
            sentence = f"{source} lists image {image_id} ({file_name}) twice: the first entry is used."
            problems.append(Problem(id, sentence, "listed twice"))
        elif id in owners:
            sentence = f"{source} has {file_name} beside {owners[id]}, both with id {id}: the first one is used."
            problems.append(Problem(id, sentence, "listed twice"))
            rows[image_id] = _NO_ROW
        else:
            rows[image_id] = row
            owners[id] = file_name
    return rows, problems


def _dangling(
    found: _Found, rows_by_id: dict[Hashable, int], rows: np.ndarray, columns: np.ndarray, source: str
) -> list[Problem]:
    """Return one problem per image that annotations name wrongly or that wrong annotations name."""
    problems: dict[Hashable, Problem] = {}
    for place in np.flatnonzero((rows == _NO_ROW) | (columns == _NO_ROW)):
        image_id, row = found.image_ids[place], rows[place]
        if image_id not in rows_by_id:
            id, reason = str(image_id), f"names image {image_id}, which is not among the images"
        elif row != _NO_ROW:
            id = _id_of(found.images[row][1])
            category = found.category_ids[place]
            reason = f"names category {category}, which is not among the categories: {id} is left out"
        else:
            continue
        problems.setdefault(image_id, Problem(id, f"annotations[{place}] of {source} {reason}.", "annotation"))
    return list(problems.values())


# --- masks -------------------------------------------------------------------------------------------------


def draw_mask(instances: Sequence[tuple[int, Any]], height: int, width: int, where: str) -> np.ndarray:
    """Draw instances into one mask, larger ones first, so that small ones stay visible.

    Args:
        instances: mask value and COCO segmentation (polygons, or run lengths plain or compressed) of each.
        height: of the image, pixels.
        width: of the image, pixels.
        where: what to call an instance in messages.

    Returns:
        (height, width) uint8.

    Raises:
        ImageError: a segmentation is empty or broken: its object would count as background.
    """
    outlines = [_to_rle(segmentation, height, width, where) for _, segmentation in instances]
    areas = np.array([int(rasteriser.area(outline)) for outline in outlines], dtype=np.int64)
    mask = np.full((height, width), BACKGROUND, dtype=np.uint8)
    for place in np.argsort(-areas, kind="stable"):
        mask[rasteriser.decode(outlines[place]).astype(bool)] = instances[place][0]
    return mask


def _to_rle(segmentation: Any, height: int, width: int, where: str) -> dict[str, Any]:
    """Check a segmentation and return it as pycocotools' run lengths; its C code trusts what it is given."""
    if isinstance(segmentation, dict):
        counts = segmentation.get("counts")
        lengths = run_lengths(counts)
        if segmentation.get("size") != [height, width] or lengths is None or sum(lengths) != height * width:
            raise ImageError(f"The run lengths of {where} do not fill its {width} × {height} pixels.")
        plain = {"size": [height, width], "counts": lengths}
        return rasteriser.frPyObjects(plain, height, width)
    polygons = _polygons(segmentation, 2 * max(height, width))
    if polygons is None:
        raise ImageError(f"{where[0].upper()}{where[1:]} has a segmentation that is neither polygons nor run lengths.")
    if not polygons:
        raise ImageError(f"{where[0].upper()}{where[1:]} has an empty segmentation.")
    return rasteriser.merge(rasteriser.frPyObjects(polygons, height, width))


def _polygons(segmentation: Any, limit: float) -> list[list[float]] | None:
    """Return the polygons with an area, or None where something else is found or corners lie far outside."""
    if segmentation is None:
        return []
    if not isinstance(segmentation, list):
        return None
    for polygon in segmentation:
        if not isinstance(polygon, list) or len(polygon) % 2:
            return None
        for number in polygon:
            if type(number) not in (int, float) or not math.isfinite(number) or abs(number) > limit:
                return None
    return [polygon for polygon in segmentation if len(polygon) >= _POLYGON_COORDINATES]


def run_lengths(counts: Any) -> list[int] | None:
    """Return COCO run lengths as numbers, or None where they are broken.

    They count zeros, ones, zeros, … down the columns.

    Args:
        counts: a list of numbers, or the compressed text: five bits a character from the lowest on, the sixth
            says that more follow, and from the fourth number on the difference to the last but one is kept.
    """
    if isinstance(counts, list):
        return counts if all(type(count) is int and count >= 0 for count in counts) else None
    if not isinstance(counts, str):
        return None
    lengths: list[int] = []
    number = digits = 0
    for character in counts:
        bits = ord(character) - ord("0")
        if not 0 <= bits < 64 or digits >= _MAX_RUN_DIGITS:
            return None
        number |= (bits & 31) << (5 * digits)
        digits += 1
        if bits & 32:
            continue
        if bits & 16:
            number -= 1 << (5 * digits)
        number += lengths[-2] if len(lengths) > 2 else 0
        if number < 0:
            return None
        lengths.append(number)
        number = digits = 0
    return lengths if not digits else None
