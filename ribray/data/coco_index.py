"""The index of a COCO annotations file: labels of the images, and where in the file each outline stands.

Outlines are read again when the mask of their image is asked for, so that 82,783 images take some tens of
megabytes, and a copy of the data set goes to a worker in little time.
"""

import json
import re
from array import array
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ribray.data.coco_files import Located, locate, shown
from ribray.data.dataset import Problem
from ribray.data.images import without_ending
from ribray.data.lists import id_fault
from ribray.data.names import RESERVED, composed, is_background, plain, printable, whole_number
from ribray.errors import UsageError

_ARRAYS = ("images", "annotations", "categories")
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_CROWD, _OUTLINED = 1, 2  # flags of an annotation
_CROWDS = {"": False, "0": False, "false": False, "1": True, "true": True}
_NO_ROW = -1
_SPACE = re.compile(r"[ \t\n\r]*")


class Categories(NamedTuple):
    entries: Sequence[tuple[int, str]]  # ids and names
    source: str  # what to call the file in messages


@dataclass(frozen=True)
class Instances:
    """Index of an annotations file. I images, A annotations of these, sorted by image."""

    classes: tuple[str, ...]  # category names in the order of the category ids
    category_ids: tuple[int, ...]
    ids: tuple[str, ...]
    paths: tuple[str, ...]  # of the pictures, below the folder of the split
    image_ids: tuple[int, ...]  # as the file has them; where these are not all numbers, 1, 2, …
    labels: np.ndarray  # (I, classes) bool; crowds count like objects
    sizes: np.ndarray  # (I, 2) int32: height and width, 0 where the file does not say
    first: np.ndarray  # (I + 1,) int64: the annotations of image i are those from first[i] to before first[i + 1]
    columns: np.ndarray  # (A,) int32: class
    crowds: np.ndarray  # (A,) bool
    outlined: np.ndarray  # (A,) bool: has a segmentation
    spans: np.ndarray  # (A, 2) int64: offsets in the file of the first byte, and of the first one after, bytes
    problems: tuple[Problem, ...]
    unsure: dict[str, str]  # sentences by id: only predicted images whose annotations cannot be relied on
    searched: int  # images whose name was no path below the folder
    example: tuple[str, str] | None  # the name of the first of these in the file, and its path

    @property
    def has_truth(self) -> bool:
        """Whether outlines are there: of some objects, or of crowds where there is nothing else."""
        objects = self.outlined[~self.crowds]
        return bool(objects.any() if objects.size else self.outlined.any())


class _Image(NamedTuple):
    id: Hashable
    name: str
    height: int = 0
    width: int = 0


@dataclass
class _Found:
    images: list[_Image] = field(default_factory=list)
    categories: list[tuple[int, str]] = field(default_factory=list)
    image_ids: list[Hashable] = field(default_factory=list)  # of the annotations, like the rest
    category_ids: list[int] = field(default_factory=list)
    flags: array = field(default_factory=lambda: array("b"))
    spans: array = field(default_factory=lambda: array("q"))  # start, end, start, end, …


def parse_instances(
    content: bytes, source: str, folder: Path, labelled: bool = True, borrow: Callable[[], Categories] | None = None
) -> Instances:
    """Index COCO instances JSON; images of unknown labels are left out if ``labelled``, ``borrow`` has categories."""
    found = _parse(content, source, _ARRAYS)
    if not found.images or not (found.categories or borrow):
        raise UsageError(f"{source} has no images or no categories: COCO instances have both, and annotations.")
    if labelled and not found.image_ids:
        give = (
            "give the file of instances that has them; without labels, images can only be predicted (evaluate.splits)"
        )
        raise UsageError(f"{source} has no annotations, so that no image has a label: {give}.")
    categories = Categories(found.categories, source) if found.categories or borrow is None else borrow()
    return _build_index(found, categories, source, locate([image.name for image in found.images], folder), labelled)


def parse_categories(content: bytes, source: str) -> Categories:
    return Categories(_parse(content, source, ("categories",)).categories, source)


def index_pictures(paths: Sequence[str], categories: Categories, source: str) -> Instances:
    """Return an index of pictures without annotations, whose paths are below the folder that ``source`` names."""
    images = [_Image(number, path) for number, path in enumerate(paths, start=1)]
    faulty = ((place, path, id_fault(path)) for place, path in enumerate(paths))
    faults = {place: f"has the name {shown(path)}, which {why}: rename the file" for place, path, why in faulty if why}
    return _build_index(_Found(images), categories, source, Located(paths, faults, []), labelled=False)


def _parse(content: bytes, source: str, arrays: Sequence[str]) -> _Found:
    found = _Found()
    try:
        for name, number, element, start, end in _elements(content):
            if name in arrays:
                _collect(found, name, element, (start, end), f"{name}[{number}] of {source}")
    except RecursionError:
        raise UsageError(f"{source} is nested too deeply to be COCO annotations.") from None
    except ValueError as error:  # JSONDecodeError, UnicodeDecodeError, a number of thousands of digits
        if content.lstrip(_BYTE_ORDER_MARK + b" \t\r\n").startswith(b"["):
            what = "is a list, such as COCO has for results: instances are an object with the lists"
            raise UsageError(f"{source} {what} images, annotations and categories.") from None
        if not content.strip():
            raise UsageError(f"{source} is empty ({len(content)} bytes): write the annotations there again.") from None
        if not (encoding := json.detect_encoding(content)).startswith("utf-8"):
            raise UsageError(f"{source} is {encoding.upper()} text: save it as UTF-8.") from None
        raise UsageError(f"{source} is not valid JSON: {plain(str(error))}.") from None
    return found


def _elements(content: bytes) -> Iterator[tuple[str, int, Any, int, int]]:
    """Walk a JSON object and yield each element of its arrays in `_ARRAYS`.

    An element comes as (array, number, value, start, end), the last two being offsets in bytes. One
    is alive at a time; the outlines of a whole COCO split would take gigabytes as Python lists.
    """
    text = content.decode("latin-1")  # a character per byte: a place in the text is an offset in the file
    decode = json.JSONDecoder().raw_decode
    place = _skip(text, len(_BYTE_ORDER_MARK) if content.startswith(_BYTE_ORDER_MARK) else 0)
    place = _expect(text, place, "{")
    key = None
    while text[place : place + 1] != "}":
        place = place if key is None else _expect(text, place, ",")
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
    if (place := _skip(text, place + 1)) != len(text):
        raise json.JSONDecodeError("Extra data", text, place)


def _skip(text: str, place: int) -> int:
    return _SPACE.match(text, place).end()  # type: ignore[union-attr]  # no space at all matches, too


def _expect(text: str, place: int, character: str) -> int:
    """Return the place after ``character`` and the white space that follows it."""
    if text[place : place + 1] != character:
        raise json.JSONDecodeError(f"Expecting '{character}'", text, place)
    return _skip(text, place + 1)


def _collect(found: _Found, name: str, element: Any, span: tuple[int, int], where: str) -> None:
    if not isinstance(element, dict):
        raise UsageError(f"{where} must have 'id' and other keys: it is no object.")
    if name == "images":
        picture = element.get("file_name") or element.get("coco_url")  # LVIS has the latter alone
        if not isinstance(picture, str):
            raise UsageError(f"{where} must have 'file_name' with a name.")
        height, width = (_side(element, key, where) for key in ("height", "width"))
        found.images.append(_Image(_image_id(element, "id", where), picture, height, width))
    elif name == "categories":
        label = element.get("name")
        if not isinstance(label, str) or not (label := plain(label)):
            raise UsageError(f"{where} must have 'name' with a name.")
        found.categories.append((_category_id(element, "id", where), label))
    else:
        if "segments_info" in element:
            raise UsageError(f"{where} has segments_info: this is COCO's panoptic format, give the file of instances.")
        if "caption" in element and "category_id" not in element:
            raise UsageError(f"{where} has a caption: these are COCO's captions, give the file of instances.")
        crowd = element.get("iscrowd")
        is_crowd = _CROWDS.get("" if crowd is None else str(crowd).strip().lower().removesuffix(".0"))
        found.image_ids.append(_image_id(element, "image_id", where))
        found.category_ids.append(_category_id(element, "category_id", where))
        if is_crowd is None:
            raise UsageError(f"{where} must have 'iscrowd' with 0 or 1.")
        found.flags.append(_CROWD * is_crowd + _OUTLINED * bool(element.get("segmentation")))
        found.spans.extend(span)


def _image_id(element: dict[str, Any], key: str, where: str) -> int | str:
    value = element.get(key)
    if type(value) is float:
        value = as_number(value)
    if type(value) not in (int, str) or value == "":
        raise UsageError(f"{where} must have '{key}' with a number or a name.")
    return value  # type: ignore[return-value]


def _category_id(element: dict[str, Any], key: str, where: str) -> int:
    number = as_number(element.get(key))
    if number is None:
        raise UsageError(f"{where} must have '{key}' with a number.")
    return number


def _side(element: dict[str, Any], key: str, where: str) -> int:
    value = element.get(key)
    side = 0 if value is None else as_number(value)
    if side is None or not 0 <= side <= np.iinfo(np.int32).max:
        raise UsageError(f"{where} must have '{key}' in pixels.")
    return side


def as_number(value: Any) -> int | None:
    """Return the whole number that JSON has as ``7``, ``7.0`` or ``"7"``, or None for anything else."""
    if type(value) is int or (type(value) is float and value.is_integer()):
        return int(value)
    text = value.strip() if isinstance(value, str) else ""
    return whole_number(text) if text.isascii() else None


def _build_index(found: _Found, categories: Categories, source: str, located: Located, labelled: bool) -> Instances:
    column_of, classes = _order_categories(categories, found.category_ids)
    image_keys, annotation_keys = _same_ids(found)
    row_of, used, unsure_by_id, problems = _order_images(image_keys, located, source)
    rows = np.array([row_of.get(key, _NO_ROW) for key in annotation_keys], dtype=np.int64)
    columns = np.array([column_of.get(id, _NO_ROW) for id in found.category_ids], dtype=np.int32)
    strays: dict[Hashable, Problem] = {}
    for place, key in enumerate(annotation_keys):
        if key not in row_of and key not in strays:
            label = printable(str(key))
            sentence = f"annotations[{place}] of {source} names image {label}, which is not among the images."
            strays[key] = Problem(label, sentence, "annotation")
    problems += strays.values()
    unsure: dict[int, str] = {}  # of an unknown category, before an id of two images
    for place in np.flatnonzero((rows != _NO_ROW) & (columns == _NO_ROW)).tolist():
        fault = f"names category {found.category_ids[place]}, which is not among the categories"
        unsure.setdefault(int(rows[place]), f"annotations[{place}] of {source} {fault}")
    unsure |= unsure_by_id

    is_used = np.zeros(len(image_keys), dtype=bool)
    is_used[used] = True
    unsure_ids = {without_ending(located.paths[row]): sentence for row, sentence in unsure.items()}
    if labelled:
        is_used[list(unsure)] = False
        problems += [Problem(id, f"{why}: {id} is left out.", "annotation") for id, why in unsure_ids.items()]
    used = np.flatnonzero(is_used).tolist()
    chosen = np.flatnonzero((rows != _NO_ROW) & (columns != _NO_ROW) & is_used[rows])
    chosen = chosen[np.argsort(rows[chosen], kind="stable")]
    rows, columns = np.cumsum(is_used)[rows[chosen]] - 1, columns[chosen]
    searched = [row for row in located.searched if is_used[row]]
    flags = np.frombuffer(found.flags, dtype=np.int8)[chosen]
    labels = np.zeros((len(used), len(classes)), dtype=bool)
    labels[rows, columns] = True
    paths = tuple(located.paths[row] for row in used)
    sizes = [(found.images[row].height, found.images[row].width) for row in used]
    numbers = tuple(key for row in used if isinstance(key := image_keys[row], int))
    return Instances(
        classes=classes,
        category_ids=tuple(column_of),
        ids=tuple(map(without_ending, paths)),
        paths=paths,
        image_ids=numbers if len(numbers) == len(used) else tuple(range(1, len(used) + 1)),
        labels=labels,
        sizes=np.array(sizes, dtype=np.int32).reshape(-1, 2),
        first=np.searchsorted(rows, np.arange(len(used) + 1)),
        columns=columns,
        crowds=(flags & _CROWD).astype(bool),
        outlined=(flags & _OUTLINED).astype(bool),
        spans=np.frombuffer(found.spans, dtype=np.int64).reshape(-1, 2)[chosen],
        problems=tuple(problems),
        unsure={} if labelled else {id: f"{why}." for id, why in unsure_ids.items()},
        searched=len(searched),
        example=(found.images[searched[0]].name, located.paths[searched[0]]) if searched else None,
    )


def _order_categories(categories: Categories, used: Sequence[int]) -> tuple[dict[int, int], tuple[str, ...]]:
    ordered, source = sorted(categories.entries), categories.source
    for id, name in ordered:
        if is_background(name):
            its = f", and its {count} annotations too" if (count := sum(other == id for other in used)) else ""
            has = f"{source} has a category '{name}' (id {id})"
            raise UsageError(f"{has}, {RESERVED}. Take it out of the categories{its}.")
    ids: list[Any] = [id for id, _ in ordered]
    names: list[Any] = [composed(name) for _, name in ordered]
    keep = "Keep one, and write its id in the annotations of the other"
    for keys, remedy in ((ids, "Give one another id, in its annotations too"), (names, keep)):
        if twice := [key for key, count in Counter(keys).items() if count > 1]:
            both = " and ".join(f"'{name}' (id {id})" for id, name in ordered if twice[0] in (id, composed(name)))
            raise UsageError(f"{source} has two categories of the same id or name ({twice[0]}): {both}. {remedy}.")
    return {id: column for column, (id, _) in enumerate(ordered)}, tuple(name for _, name in ordered)


def _same_ids(found: _Found) -> tuple[list[Hashable], list[Hashable]]:
    """Return the ids of images and of annotations as numbers, where all images have such, or else as text."""
    ids = [image.id for image in found.images]
    if {type(id) for id in (*ids, *found.image_ids)} <= {int}:
        return ids, found.image_ids
    texts = {id for id in ids if isinstance(id, str)}
    numbers: list[Hashable] = [as_number(id) for id in ids]
    if None in numbers or len({as_number(text) for text in texts}) < len(texts):  # 01 beside 1 are two images
        return [str(id) for id in ids], [str(id) for id in found.image_ids]
    return numbers, [id if (number := as_number(id)) is None else number for id in found.image_ids]


def _order_images(
    keys: Sequence[Hashable], located: Located, source: str
) -> tuple[dict[Hashable, int], list[int], dict[int, str], list[Problem]]:
    """Say which entries of the images are used. Rows are places among the entries.

    Returns rows by image id, `_NO_ROW` where it cannot be used; rows that are used; why nobody knows the annotations
    of some of them, as beginnings of sentences; problems.
    """
    rows: dict[Hashable, int] = {}
    used: list[int] = []
    unsure: dict[int, str] = {}
    problems: list[Problem] = []
    owners: dict[str, int] = {}  # row by id
    firsts: dict[Hashable, int] = {}
    for row, (key, path) in enumerate(zip(keys, located.paths, strict=True)):
        taken = _NO_ROW
        if row in located.faults:
            sentence = f"images[{row}] of {source} {located.faults[row]}."
            problems.append(Problem(printable(str(key)), sentence, "file name"))
        elif (twin := owners.setdefault(composed(without_ending(path)), row)) == row:
            taken = row
            used.append(row)
        else:
            id, other = without_ending(path), located.paths[twin]
            sentence = f"has {path} beside {other}, both with id {id}: the first one is used"
            if other == path:
                taken = twin
                which = "the first entry is used" if keys[twin] == key else "the annotations of both are used"
                sentence = f"lists {path} twice, as images[{twin}] and images[{row}]: {which}"
            problems.append(Problem(id, f"{source} {sentence}.", "listed twice"))
        owner = rows.setdefault(key, taken)
        if located.paths[firsts.setdefault(key, row)] != path:
            fault = f"gives the id {printable(str(key))} to two images, so that nobody knows whose annotations it is"
            unsure |= {place: f"{source} {fault}" for place in (owner, taken) if place != _NO_ROW}
    return rows, used, unsure, problems
