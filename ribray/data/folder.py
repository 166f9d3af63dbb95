"""A user's own folder of photographs.

    ROOT/**/ID.jpg           any folders below; .jpg, .png, .webp, .tif, .bmp, .gif
    ROOT/labels.csv          columns id,classes; several classes in a cell are separated by ;
                             (other forms: `ribray.data.label_table`)
    ROOT/classes.txt         optional: class names in order, one a line; otherwise those of labels.csv, sorted
    ROOT/masks/ID.png        optional truth: 0 background, 1 the first class, …, 255 ignore
    ROOT/splits/NAME.txt     optional lists of ids, one a line; split `all` is every row of labels.csv

An id is the image's path below ROOT without its ending. An empty cell says that the image shows none of the
classes. Without labels.csv, folders name the classes: ROOT/cat/0001.jpg, or ROOT/train/cat/0001.jpg with a folder per
split.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np

from ribray.config import DataConfig
from ribray.data.class_folders import no_labels, read_class_folders, some
from ribray.data.dataset import Dataset, Problem, nearest
from ribray.data.files import is_photograph, list_files
from ribray.data.ids import Absences, Nearest, Photographs, difference, without_ending
from ribray.data.images import IMAGE_SUFFIXES, read_mask
from ribray.data.label_table import SEPARATOR, parse_labels
from ribray.data.lists import check_id, lines, read_text
from ribray.data.mask_owners import MaskFiles
from ribray.data.names import DELIMITERS, composed, is_background, recombined, several
from ribray.errors import ImageError, UsageError

LABELS = "labels.csv"
CLASSES = "classes.txt"
MASKS = "masks"
SPLITS = "splits"
WHOLE = "all"
"""The split that needs no list."""
UNNAMED = "object"
"""The one class of images that are only predicted and whose classes nothing names."""

_TABLES = (".csv", ".tsv", ".xlsx", ".xls", ".ods")
_LIKE_MASKS = frozenset(
    {"mask", "masks", "annotation", "annotations", "label", "labels", "gt", "groundtruth", "ground_truth"}
    | {"segmentation", "segmentations", "segmentationclass"}
)
"""Names of folders that may hold masks, in lower case."""


class FolderDataset(Dataset):
    """One split of a folder of photographs."""

    separator = SEPARATOR

    def __init__(self, root: Path, split: str, labelled: bool = True) -> None:
        """Read labels and the split's list, and look which images there are.

        Args:
            root: the folder.
            split: name of a list in splits/, of a folder of class folders, or `WHOLE`.
            labelled: whether to leave out images without labels; false for images that are only predicted.

        Raises:
            UsageError: there are no labels, they or the list are broken, an unknown class name where there is a
                classes.txt, or two images with the same id.
        """
        self.root = root
        content = _Content(root, labelled)
        listed, problems = content.split(split)
        if labelled:
            wanted = set(listed)
            problems += [problem for id, problem in content.labels.problems.items() if id in wanted]
            problems += [
                content.not_listed(id, split)
                for id in listed
                if id not in content.labels.rows and id not in content.labels.problems
            ]
            listed = tuple(id for id in listed if id in content.labels.rows)
        columns = {composed(name): column for column, name in enumerate(content.classes)}
        labels = np.zeros((len(listed), len(columns)), dtype=bool)
        for row, id in enumerate(listed):
            labels[row, [columns[name] for name in content.labels.rows.get(id, ())]] = True
        self._files = content.photographs.files
        self._masks = content.masks.files
        self._absent = content.absent(listed)
        self._has_masks = any(id in self._masks for id in listed)
        super().__init__(
            f"split '{split}' of {root}",
            content.classes,
            listed,
            labels,
            problems,
            findings=content.findings(),
            notes=content.notes,
        )

    @property
    def has_masks(self) -> bool:
        return self._has_masks

    def image_path(self, id: str) -> Path:
        if id not in self._files:
            endings = ", ".join(IMAGE_SUFFIXES)
            raise ImageError(
                f"There is no image {id} below {self.root} (with ending {endings}){self._absent.get(id, '')}."
            )
        return self.root / self._files[id]

    def coco_image(self, id: str) -> tuple[int, str]:
        self.image_path(id)
        return self.index(id) + 1, self._files[id]

    def _read_mask(self, id: str) -> np.ndarray | None:
        return read_mask(self.root / MASKS / self._masks[id]) if id in self._masks else None


def open_folder(data: DataConfig, split: str, root: Path, labelled: bool = True) -> FolderDataset:
    """Open a split of a folder of photographs."""
    return FolderDataset(root, split, labelled)


# --- what lies in the folder -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Labels:
    """The labels of a root: those of its table, or of its folders."""

    rows: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Names of classes by id, in Unicode's composed form."""
    problems: Mapping[str, Problem] = field(default_factory=dict)
    columns: Sequence[str] = ()
    """The classes in their order, where the table has it."""
    decomposed: Mapping[str, str] = field(default_factory=dict)
    """Names as they are written in decomposed Unicode, by their composed form."""
    splits: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Ids by split, where folders are splits."""


class _Content:
    """All that a root holds, whichever split of it is opened."""

    def __init__(self, root: Path, labelled: bool) -> None:
        self.root = root
        self.notes: list[str] = []
        self.listing = list_files(root)
        if reason := self.listing.closed.get(""):
            raise UsageError(f"{root} cannot be listed: {reason}.")
        names = [name for name in self.listing.photographs if name.split("/")[0] not in (MASKS, SPLITS)]
        self.photographs = Photographs(root, names, self.listing)
        self.has_table = self._holds(LABELS)
        self.has_class_list = self._holds(CLASSES)
        known = read_class_list(root / CLASSES) if self.has_class_list else None
        self.labels = self._read_table() if self.has_table else self._read_folders(known, labelled)
        self.classes = self._name_classes(known, labelled)
        ids = dict.fromkeys((*self.photographs.files, *self.labels.rows, *self.labels.problems))
        below = f"{MASKS}/"
        masks = [name.removeprefix(below) for name in self.listing.names if name.startswith(below)]
        self.masks = MaskFiles(root / MASKS, masks, self.photographs, ids)
        self._aside = self._folders_like_masks()

    # --- splits

    def split(self, split: str) -> tuple[tuple[str, ...], list[Problem]]:
        """Return the ids of a split, and a problem for each that is listed again.

        Raises:
            UsageError: there is no such split, or its list is broken.
        """
        check_id(split, "The name of a split")
        name = f"{SPLITS}/{split}.txt"
        if self._holds(name):
            return self._read_list(self.root / self._names[composed(name)])
        if split in self.labels.splits:
            return self.labels.splits[split], []
        if split == WHOLE:
            photographs = [id for id in self.photographs.files if id.split("/")[0] not in self._aside]
            return tuple(dict.fromkeys((*self.labels.rows, *self.labels.problems, *photographs))), []
        raise UsageError(self._no_split(split))

    def _read_list(self, file: Path) -> tuple[tuple[str, ...], list[Problem]]:
        first_lines: dict[str, int] = {}
        problems: dict[str, Problem] = {}
        for number, line in enumerate(lines(read_text(file)), start=1):
            if not line.strip():
                continue
            id = self.photographs.id_of(line.strip(), f"line {number} of {file}")
            if (first := first_lines.setdefault(id, number)) != number:
                sentence = f"{file} lists {id} on line {first} and again on line {number}: keep one of the two."
                problems.setdefault(id, Problem(id, sentence, "listed twice"))
        return tuple(first_lines), list(problems.values())

    def _no_split(self, split: str) -> str:
        below, ending = f"{SPLITS}/", ".txt"
        lists = [name for name in self.listing.names if name.startswith(below) and name.endswith(ending)]
        stems = [name.removeprefix(below).removesuffix(ending) for name in lists]
        existing = sorted({*stems, *self.labels.splits, WHOLE})
        file = self.root / SPLITS / f"{split}{ending}"
        whole = f"every row of {LABELS}" if self.has_table else "every photograph"
        sentence = f"{file} does not exist; splits there are: {', '.join(existing)} ({whole})"
        alike = [
            name
            for name in self.listing.names
            if name.count("/") < 2 and name.rpartition("/")[2].rpartition(".")[0].casefold() == split.casefold()
        ]
        if name := next((name for name in alike if name not in self.photographs.files.values()), None):
            return (
                f"{sentence}; there is {self.root / name}: a list of ids belongs into {SPLITS}/ and ends with {ending}."
            )
        return f"{sentence}{nearest(split, existing)}."

    # --- labels

    def _holds(self, name: str) -> bool:
        """Whether there is a file.

        Raises:
            UsageError: it is a link that leads nowhere.
        """
        if (target := self.listing.broken.get(name)) is not None:
            raise UsageError(f"{self.root / name} is a link that leads nowhere (to {target}).")
        return composed(name) in self._names

    @cached_property
    def _names(self) -> dict[str, str]:
        """Names of files as the file system has them, by their composed form."""
        return {composed(name): name for name in self.listing.names}

    def _read_table(self) -> _Labels:
        file, files = self.root / LABELS, self.photographs.files
        table = parse_labels(read_text(file), str(file), self.photographs.id_of, files.__contains__)
        self.notes += table.notes
        return _Labels(table.rows, table.problems, table.columns, table.decomposed)

    def _read_folders(self, known: "ClassList | None", labelled: bool) -> _Labels:
        """Read labels from the names of folders; none where that is not possible, if none are needed."""
        names = None if known is None else {*known.names, *known.numbered}
        try:
            if other := self._like_table():
                raise UsageError(f"{self.root / LABELS} does not exist; there is {other}.")
            found = read_class_folders(self.root, self.photographs.files, names)
            if found is None:
                raise UsageError(no_labels(self.root))
        except UsageError:
            if labelled:
                raise
            return _Labels()
        self.notes.append(found.note)
        return _Labels(found.rows, decomposed=found.decomposed, splits=found.splits)

    def _like_table(self) -> str | None:
        """Name a file that may be meant by labels.csv, and say what to do about it."""
        inner = [name for name in self.listing.names if name.casefold().endswith(f"/{LABELS}")]
        if inner and inner[0].count("/") == 1:
            return f"{self.root / inner[0]}: set data.root to its folder, or move the file and write ids from here"
        outer = [name for name in self.listing.names if "/" not in name and not is_photograph(name)]
        alike = [name for name in outer if name.casefold().startswith("label")]
        tables = [name for name in outer if name.casefold().endswith(_TABLES)]
        name = next(iter([*alike, *tables]), None)
        return None if name is None else f"{self.root / name}: if it holds the labels, save it as {LABELS}"

    def _name_classes(self, known: "ClassList | None", labelled: bool) -> Sequence[str]:
        """Return the names of classes.txt, or every name in use.

        Raises:
            UsageError: a name in use is not in classes.txt, or there is no name at all.
        """
        used = sorted({name for names in self.labels.rows.values() for name in names})
        if known is not None:
            columns = [composed(name) for name in self.labels.columns]
            names, notes = known.for_use([*used, *columns])
            self.notes += notes
            self._require_known(names)
            return names
        if self.labels.columns:
            return self.labels.columns
        if not used and labelled:
            raise UsageError(f"No row of {self.root / LABELS} names a class.")
        if not used:
            self.notes.append(
                f"Nothing in {self.root} names a class: '{UNNAMED}' stands for them ({CLASSES} can name them)."
            )
        if used and all(name.isdecimal() for name in used):
            self.notes.append(
                f"{self.root} has numbers for classes ({some(used)}), which are taken for names, 0 included: an image "
                "that shows none of the classes has an empty cell."
            )
        return [self.labels.decomposed.get(name, name) for name in used] or [UNNAMED]

    def _require_known(self, classes: Sequence[str]) -> None:
        """Refuse a class that is not in classes.txt.

        Raises:
            UsageError: with the name that was probably meant.
        """
        known, table = [composed(name) for name in classes], self.root / LABELS
        for name in map(composed, self.labels.columns):
            if name not in known:
                raise UsageError(f"{table} has a column '{name}', which is not in {CLASSES}{_meant(name, known)}.")
        for id, names in self.labels.rows.items():
            for name in names:
                if name not in known:
                    gives = f"{table} gives {id} the class '{name}'"
                    raise UsageError(f"{gives}, which is not in {CLASSES}{_meant(name, known)}.")

    # --- what is wrong

    def not_listed(self, id: str, split: str) -> Problem:
        """Say that an image has no labels."""
        labels = self.root / LABELS
        if id not in self.photographs.files:
            file = self.root / SPLITS / f"{split}.txt"
            hint = self._absences.of(id)
            sentence = f"{file} lists {id}, which has neither an image nor a row in {LABELS}{hint}."
        elif not self.has_table:
            sentence = f"{self.root / self.photographs.files[id]} lies in no folder that names a class."
        else:
            row = self._rows_of_no_image.find(id)
            hint = f"; there is a row '{row}'{difference(id, row)}" if row else ""
            sentence = f"{id} has no row in {labels}: add one (without classes if it shows none){hint}."
        return Problem(id, sentence, "not listed")

    @cached_property
    def _rows_of_no_image(self) -> Nearest:
        return Nearest(id for id in self.labels.rows if id not in self.photographs.files)

    @cached_property
    def _absences(self) -> Absences:
        rows, files = self.labels.rows, self.photographs.files
        return Absences(self.root, self.photographs, [id for id in files if id not in rows], self.listing)

    def absent(self, ids: Iterable[str]) -> dict[str, str]:
        """Return what to say of images that are not there, by id."""
        return {id: self._absences.of(id) for id in ids if id not in self.photographs.files}

    def _folders_like_masks(self) -> dict[str, str]:
        """Return folders of PNG files without labels beside images of their names: their masks, under another name.

        Returns:
            the id of an image whose mask seems to lie there, by name of the folder.
        """
        inside: dict[str, list[str]] = {}
        for id, name in self.photographs.files.items():
            if (folder := id.partition("/")[0]).casefold() in _LIKE_MASKS and folder != id:
                inside.setdefault(folder, []).append(name)
        found = {}
        for folder, names in inside.items():
            ids = [composed(without_ending(name)) for name in names]
            inner = [id.partition("/")[2] for id in ids]
            owners = (other for other in self.photographs.files if other.split("/")[0] not in inside)
            last = {other.rpartition("/")[2]: other for other in owners}
            of = next((last[id.rpartition("/")[2]] for id in inner if id.rpartition("/")[2] in last), None)
            are_masks = all(name.lower().endswith(".png") for name in names)
            if of is not None and are_masks and not any(id in self.labels.rows for id in ids):
                found[folder] = of
        return found

    def findings(self) -> list[Problem]:
        """Return what is wrong with anything but a listed image."""
        found = [*self.masks.findings]
        for folder, id in self._aside.items():
            sentence = f"{self.root / folder} is not read: if it holds masks, that of {id} belongs at {MASKS}/{id}.png."
            found.append(Problem(folder, sentence, "folder name"))
        found += [Problem(name, sentence, "unreachable") for name, sentence in self.listing.gaps(self.root).items()]
        return found + self._findings_of_classes()

    def _findings_of_classes(self) -> list[Problem]:
        if self.has_class_list:
            return []
        found = [
            Problem(name, sentence[:-1] + f"; if it is one class, list it in {CLASSES}.", "class name")
            for name, sentence in recombined(self.classes, str(self.root), SEPARATOR)
        ]
        for value, name in enumerate(self.classes, start=1):
            if self.masks.files and name.isdecimal() and int(name) != value:
                sentence = (
                    f"{self.root} has a class '{name}', which by its place is value {value} in a mask: list the "
                    f"classes in the order of the masks in {CLASSES}."
                )
                found.append(Problem(name, sentence, "class name"))
        for name in self.listing.names:
            if "/" not in name and name.casefold().startswith("class") and name.casefold().endswith((".txt", ".names")):
                sentence = f"{self.root / name} is not read: if it lists the classes, rename it to {CLASSES}."
                found.append(Problem(name, sentence, "file name"))
        return found


# --- classes.txt -------------------------------------------------------------------------------------------------

_NUMBERED = re.compile(r"([0-9]+) ?[:.,;) ] ?(\S.*)")


@dataclass(frozen=True)
class ClassList:
    """The names of classes.txt, in order."""

    file: Path
    names: tuple[str, ...]
    numbered: tuple[str, ...] = ()
    """The names without the numbers in front of them, where each line has the next one."""
    start: int = 1
    """The first number."""

    def for_use(self, used: Iterable[str]) -> tuple[tuple[str, ...], list[str]]:
        """Return the names that are meant, given those in use, and what to note.

        Raises:
            UsageError: the numbers are not those of mask values.
        """
        if not self.numbered or {*used} <= {composed(name) for name in self.names}:
            return self.names, []
        if self.start != 1:
            raise UsageError(
                f"{self.file} counts from {self.start} ('{self.names[0]}'), where 0 is background and the first class "
                "has mask value 1: write the names of the classes alone, one a line."
            )
        return self.numbered, [
            f"{self.file} numbers its lines, which are read as mask values: 1 is {self.numbered[0]}."
        ]


def read_class_list(file: Path) -> ClassList:
    """Read classes.txt: a name a line.

    Raises:
        UsageError: not UTF-8 text, a name twice, or one that is reserved.
    """
    written = [(number, " ".join(line.split())) for number, line in enumerate(lines(read_text(file)), start=1)]
    written = [(number, name) for number, name in written if name]
    names = [name for _, name in written]
    for number, name in written:
        if is_background(name):
            others = [other for other in names if other != name]
            values = ", ".join(f"{value} {other}" for value, other in enumerate(others[:3], start=1))
            meaning = f", and mask values mean {values}{', …' if len(others) > 3 else ''}" if others else ""
            raise UsageError(
                f"{file} has '{name}' on line {number}, and that name is reserved: background is mask value 0 and no "
                f"class; take the line out{meaning}."
            )
    forms = [composed(name) for name in names]
    if repeated := [name for name in forms if forms.count(name) > 1]:
        raise UsageError(f"{file} has '{repeated[0]}' twice.")
    matches = [match for match in map(_NUMBERED.fullmatch, names) if match]
    numbers = [int(match[1]) for match in matches]
    bare = tuple(match[2] for match in matches)
    is_numbered = len(names) == len({*bare}) and numbers in ([*range(len(names))], [*range(1, len(names) + 1)])
    return ClassList(file, tuple(names), bare, numbers[0]) if names and is_numbered else ClassList(file, tuple(names))


def _meant(name: str, known: Sequence[str]) -> str:
    """Say which name of classes.txt is probably meant by another."""
    if same := [other for other in known if other.casefold() == name.casefold()]:
        return f"; '{same[0]}' is, which differs in case only"
    together = [other for other in known if name in several(other) and not DELIMITERS.keys().isdisjoint(other)]
    if together:
        return f", whose line '{together[0]}' holds several: write one a line"
    parts = several(name)
    if parts and {*known}.issuperset(parts):
        return f"; if several are meant, write '{SEPARATOR.join(parts)}'"
    return nearest(name, known)
