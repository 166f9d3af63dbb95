"""A user's own folder of photographs.

    ROOT/**/ID.jpg           any folders below; .jpg, .png, .webp, .tif, .bmp, .gif
    ROOT/labels.csv          columns id,classes; several classes in a cell are separated by ;
    ROOT/classes.txt         optional: class names in order, one a line; otherwise those of labels.csv, sorted
    ROOT/masks/ID.png        optional truth: 0 background, 1 the first class, …, 255 ignore
    ROOT/splits/NAME.txt     optional lists of ids, one a line; split `all` is every row of labels.csv

An id is the image's path below ROOT without its ending. An empty cell says that the image shows none of the
classes.
"""

import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath

import numpy as np

from ribray.data.dataset import Dataset, Problem, nearest
from ribray.data.images import IMAGE_SUFFIXES, read_mask
from ribray.data.lists import check_id, lines, parse_id_list, read_text
from ribray.errors import ImageError, UsageError

LABELS = "labels.csv"
CLASSES = "classes.txt"
MASKS = "masks"
SPLITS = "splits"
WHOLE = "all"
"""The split that needs no list."""
COLUMNS = ("id", "classes")
SEPARATOR = ";"
"""Between the classes of one cell."""


class FolderDataset(Dataset):
    """One split of a folder of photographs."""

    def __init__(self, root: Path, split: str) -> None:
        """Read labels and the split's list, and look which images there are.

        Raises:
            UsageError: labels.csv or the list is missing or broken, an unknown class name where there is a
                classes.txt, or two images with the same id.
        """
        self.root = root
        problems: list[Problem] = []
        self._has_masks = (root / MASKS).is_dir()
        _require_labels(root)
        rows, repeated = parse_labels(read_text(root / LABELS), str(root / LABELS))
        classes = _class_names(root, rows)
        self._files = _find_images(root)
        if split == WHOLE and not (root / SPLITS / f"{WHOLE}.txt").is_file():
            listed = tuple(dict.fromkeys((*rows, *repeated, *self._files)))
        else:
            listed, problems = _read_split(root, split)
        wanted = set(listed)
        problems += [problem for id, problem in repeated.items() if id in wanted]
        problems += [self._not_listed(id) for id in listed if id not in rows and id not in repeated]
        ids = [id for id in listed if id in rows]
        columns = {name: column for column, name in enumerate(classes)}
        labels = np.zeros((len(ids), len(classes)), dtype=bool)
        for row, id in enumerate(ids):
            labels[row, [columns[name] for name in rows[id]]] = True
        super().__init__(f"split '{split}' of {root}", classes, ids, labels, problems)

    @property
    def has_masks(self) -> bool:  # noqa: D102 - see Dataset
        return self._has_masks

    def image_path(self, id: str) -> Path:  # noqa: D102 - see Dataset
        if id not in self._files:
            raise ImageError(f"There is no image {id} below {self.root} (with ending {', '.join(IMAGE_SUFFIXES)}).")
        return self.root / self._files[id]

    def _read_mask(self, id: str) -> np.ndarray | None:
        file = self.root / MASKS / f"{id}.png"
        return read_mask(file) if self._has_masks and file.is_file() else None

    def _not_listed(self, id: str) -> Problem:
        sentence = f"{id} has no row in {self.root / LABELS}: add one (without classes if it shows none)."
        return Problem(id, sentence, "not listed")


def open_folder(root: Path, split: str) -> FolderDataset:
    """Open a split of a folder of photographs.

    Raises:
        UsageError: see `FolderDataset`.
    """
    return FolderDataset(root, split)


def _require_labels(root: Path) -> None:
    if not (root / LABELS).is_file():
        raise UsageError(
            f"{root / LABELS} does not exist: write a line '{','.join(COLUMNS)}' and then one for each "
            f"image, such as 'beach/0001,dog{SEPARATOR}person'."
        )


def parse_labels(text: str, source: str) -> tuple[dict[str, tuple[str, ...]], dict[str, Problem]]:
    """Parse labels.csv.

    Args:
        text: comma-separated, with a first line ``id,classes``; other columns are passed over.
        source: what to call the file in messages.

    Returns:
        class names by id, and a problem for each id on several lines. One whose lines disagree is left out.

    Raises:
        UsageError: not CSV, no such columns, a row of another length, or an unsafe id.
    """
    reader = csv.reader(io.StringIO("\n".join(lines(text))), strict=True)
    rows: dict[str, tuple[str, ...]] = {}
    first_lines: dict[str, int] = {}
    problems: dict[str, Problem] = {}
    try:
        header = [name.strip().lower() for name in next(reader, [])]
        if any(header.count(column) != 1 for column in COLUMNS):
            raise UsageError(f"{source} must begin with the line '{','.join(COLUMNS)}', columns separated by commas.")
        id_column, classes_column = (header.index(column) for column in COLUMNS)
        for cells in reader:
            if not any(cell.strip() for cell in cells):
                continue
            where = f"line {reader.line_num} of {source}"
            if len(cells) != len(header):
                raise UsageError(
                    f"{where} has {len(cells)} columns, not {len(header)}: separate several classes by '{SEPARATOR}'."
                )
            id, names = cells[id_column].strip(), _split_names(cells[classes_column])
            check_id(id, f"the id on {where}")
            if first_lines.setdefault(id, reader.line_num) == reader.line_num:
                rows[id] = names
                continue
            agrees = rows.get(id) == names
            ending = "keep one of the two" if agrees else "the two disagree, so the image is left out"
            if not agrees:
                rows.pop(id, None)
            sentence = f"{source} has {id} on line {first_lines[id]} and on line {reader.line_num}: {ending}."
            problems[id] = Problem(id, sentence, "listed twice")
    except csv.Error as error:
        raise UsageError(f"line {reader.line_num} of {source} is not valid CSV: {error}.") from None
    return rows, problems


def _split_names(cell: str) -> tuple[str, ...]:
    return tuple(sorted({" ".join(name.split()) for name in cell.split(SEPARATOR)} - {""}))


def _class_names(root: Path, rows: dict[str, tuple[str, ...]]) -> Sequence[str]:
    """Return the names of classes.txt, or every name in use.

    Raises:
        UsageError: a name in use is not in classes.txt, or it has a name twice, or there is no name at all.
    """
    used = sorted({name for names in rows.values() for name in names})
    file = root / CLASSES
    if not file.is_file():
        if not used:
            raise UsageError(f"No row of {root / LABELS} names a class.")
        return used
    known = [" ".join(line.split()) for line in lines(read_text(file)) if line.strip()]
    if repeated := [name for name in known if known.count(name) > 1]:
        raise UsageError(f"{file} has '{repeated[0]}' twice.")
    for id, names in rows.items():
        for name in names:
            if name not in known:
                raise UsageError(
                    f"{root / LABELS} gives {id} the class '{name}', which is not in {file.name}{nearest(name, known)}."
                )
    return known


def _find_images(root: Path) -> dict[str, str]:
    """Return the path below ``root`` of every image there, by id, sorted.

    Raises:
        UsageError: two images share an id.
    """
    found: dict[str, str] = {}
    for name in sorted(_image_names(root)):
        id = str(PurePosixPath(name).with_suffix(""))
        check_id(id, f"the name of an image below {root}")
        if id in found:
            raise UsageError(f"{root / found[id]} and {root / name} have the same id {id}: rename one of the two.")
        found[id] = name
    return found


def _image_names(root: Path) -> Iterable[str]:
    for file in root.rglob("*"):
        if file.suffix.lower() in IMAGE_SUFFIXES and file.is_file():
            name = file.relative_to(root).as_posix()
            if name.split("/")[0] not in (MASKS, SPLITS) and not file.name.startswith("."):
                yield name


def _read_split(root: Path, split: str) -> tuple[tuple[str, ...], list[Problem]]:
    check_id(split, "The name of a split")
    file = root / SPLITS / f"{split}.txt"
    if not file.is_file():
        existing = sorted({file.stem for file in (root / SPLITS).glob("*.txt")} | {WHOLE})
        raise UsageError(f"{file} does not exist; splits there are: {', '.join(existing)} (every row of {LABELS}).")
    return parse_id_list(read_text(file), str(file))
