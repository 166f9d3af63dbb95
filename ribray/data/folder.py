"""A user's own folder of photographs.

    ROOT/**/ID.jpg           any folders below; .jpg, .png, .webp, .tif, .bmp, .gif
    ROOT/labels.csv          columns id,classes; several classes in a cell are separated by ;
                             (other forms: `ribray.data.folder_labels`)
    ROOT/classes.txt         optional: class names in order, one a line; otherwise those of labels.csv, sorted
    ROOT/masks/ID.png        optional truth: 0 background, 1 the first class, …, 255 ignore
    ROOT/splits/NAME.txt     optional lists of ids, one a line; split `all` is every row of labels.csv

An id is the image's path below ROOT without its ending. An empty cell says that the image shows none of the
classes. Without labels.csv, folders name the classes: ROOT/cat/0001.jpg, or ROOT/train/cat/0001.jpg with a folder per
split.
"""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ribray.config import DataConfig
from ribray.data.dataset import Dataset, Problem, nearest
from ribray.data.files import list_files
from ribray.data.folder_labels import SEPARATOR, ClassList, Labels, parse_labels, read_class_folders, read_class_list
from ribray.data.ids import Absences, MaskFiles, Photographs, masks_beside
from ribray.data.images import IMAGE_SUFFIXES, is_photograph, read_mask
from ribray.data.lists import CLASSES, check_id, each_once, read_text
from ribray.data.names import DELIMITERS, composed, in_other_case, is_of_masks, recombined, several, some, whole_number
from ribray.data.near import Near, difference
from ribray.errors import ImageError, UsageError

LABELS = "labels.csv"
MASKS = "masks"
SPLITS = "splits"
WHOLE = "all"  # the split that needs no list
UNNAMED = "object"  # the one class of images that are only predicted and whose classes nothing names
_TABLES = (".csv", ".tsv", ".xlsx", ".xls", ".ods")


class FolderDataset(Dataset):
    """One split of a folder of photographs: a list in splits/, a folder of class folders, or `WHOLE`."""

    separator = SEPARATOR

    def __init__(self, root: Path, split: str, labelled: bool = True) -> None:
        self.root = root
        content = _Content(root, labelled)
        rows = content.labels.rows
        listed, problems = content.split(split)
        if labelled:
            wanted = set(listed)
            problems += [problem for id, problem in content.labels.problems.items() if id in wanted]
            unknown = (id for id in listed if id not in rows and id not in content.labels.problems)
            problems += [content.not_listed(id, split) for id in unknown]
            listed = tuple(id for id in listed if id in rows)
        columns = {composed(name): column for column, name in enumerate(content.classes)}
        labels = np.zeros((len(listed), len(columns)), dtype=bool)
        for row, id in enumerate(listed):
            labels[row, [columns[name] for name in rows.get(id, ())]] = True
        self._files, self._masks = content.photographs.files, content.masks.files
        self._absent = {id: content.absences.of(id) for id in listed if id not in self._files}
        name, findings = f"split '{split}' of {root}", content.findings()
        super().__init__(name, content.classes, listed, labels, problems, findings=findings, notes=content.labels.notes)

    @property
    def has_masks(self) -> bool:
        return any(id in self._masks for id in self.ids)

    def image_path(self, id: str) -> Path:
        if id not in self._files:
            place = f"below {self.root} (with ending {', '.join(IMAGE_SUFFIXES)})"
            raise ImageError(f"There is no image {id} {place}{self._absent.get(id, '')}.")
        return self.root / self._files[id]

    def coco_image(self, id: str) -> tuple[int, str]:
        self.image_path(id)
        return self.index(id) + 1, self._files[id]

    def _read_mask(self, id: str) -> np.ndarray | None:
        return read_mask(self.root / MASKS / self._masks[id]) if id in self._masks else None


def open_folder(data: DataConfig, split: str, root: Path, labelled: bool = True) -> FolderDataset:
    return FolderDataset(root, split, labelled)


class _Content:
    def __init__(self, root: Path, labelled: bool) -> None:
        self.root = root
        self.listing = list_files(root)
        self._names = {composed(name): name for name in self.listing.names}
        if reason := self.listing.closed.get(""):
            raise UsageError(f"{root} cannot be listed: {reason}.")
        names = [name for name in self.listing.photographs if name.split("/")[0] not in (MASKS, SPLITS)]
        self.photographs = Photographs(root, names, self.listing)
        self._beside = masks_beside(self.photographs.files)  # with the photograph beside which each lies
        self.has_table, self.has_class_list = self._holds(LABELS), self._holds(CLASSES)
        known = read_class_list(root / CLASSES) if self.has_class_list else None
        self.labels = self._read_labels(known, labelled)
        self.classes = self._name_classes(known, labelled)
        files, rows = self.photographs.files, self.labels.rows
        for id in (*rows, *self.labels.problems):
            self._beside.pop(id, None)
        ids = dict.fromkeys(id for id in (*files, *rows, *self.labels.problems) if id not in self._beside)
        self._unread = self.listing.unread(root, ids, (MASKS, SPLITS))
        masks = [name.removeprefix(f"{MASKS}/") for name in self.listing.names if name.startswith(f"{MASKS}/")]
        self.masks = MaskFiles(root / MASKS, masks, self.photographs, ids)
        unlisted = [id for id in ids if id in files and id not in rows]
        self.absences = Absences(root, self.photographs, unlisted, self.listing)
        without_image = [id for id in rows if id not in files]
        self._rows_of_no_image = Near(without_image, without_image)
        self._aside = self._folders_like_masks()

    def _holds(self, name: str) -> bool:
        """Whether there is a file; a link to nowhere is refused."""
        if (target := self.listing.broken.get(name)) is not None:
            raise UsageError(f"{self.root / name} is a link that leads nowhere (to {target}).")
        return composed(name) in self._names

    def split(self, split: str) -> tuple[tuple[str, ...], list[Problem]]:
        check_id(split, "The name of a split")
        name = f"{SPLITS}/{split}.txt"
        if self._holds(name):
            file = self.root / self._names[composed(name)]
            return each_once(read_text(file), str(file), self.photographs.id_of)
        if split in self.labels.splits:
            return self.labels.splits[split], []
        if split == WHOLE:
            files = [id for id in self.photographs.files if id not in self._beside]
            photographs = [id for id in files if id.split("/")[0] not in self._aside]
            return tuple(dict.fromkeys((*self.labels.rows, *self.labels.problems, *photographs))), []
        lists = [name for name in self.listing.names if name.startswith(f"{SPLITS}/") and name.endswith(".txt")]
        stems = [name.removeprefix(f"{SPLITS}/").removesuffix(".txt") for name in lists]
        existing = sorted({*stems, *self.labels.splits, WHOLE})
        whole = f"every row of {LABELS}" if self.has_table else "every photograph"
        sentence = f"{self.root / name} does not exist; splits there are: {', '.join(existing)} ({whole})"
        images = {*self.photographs.files.values()}
        for other in self.listing.names:
            stem = other.rpartition("/")[2].rpartition(".")[0]
            if other.count("/") < 2 and stem.casefold() == split.casefold() and other not in images:
                where = f"a list of ids belongs into {SPLITS}/ and ends with .txt"
                raise UsageError(f"{sentence}; there is {self.root / other}: {where}.")
        raise UsageError(f"{sentence}{nearest(split, existing)}.")

    def _read_labels(self, known: ClassList | None, labelled: bool) -> Labels:
        """Read the table, or else the names of folders; without either there are no labels, if none are needed."""
        files = self.photographs.files
        if self.has_table:
            file = self.root / LABELS
            return parse_labels(read_text(file), str(file), self.photographs.id_of, files.__contains__)
        try:
            if other := self._like_table():
                raise UsageError(f"{self.root / LABELS} does not exist; there is {other}.")
            photographs = {id: name for id, name in files.items() if id not in self._beside}
            classes = None if known is None else {*known.names, *known.numbered}
            return read_class_folders(self.root, photographs, classes)
        except UsageError:
            if labelled:
                raise
            return Labels()

    def _like_table(self) -> str | None:
        inner = [name for name in self.listing.names if name.casefold().endswith(f"/{LABELS}")]
        if inner and inner[0].count("/") == 1:
            return f"{self.root / inner[0]}: set data.root to its folder, or move the file and write ids from here"
        outer = [name for name in self.listing.names if "/" not in name and not is_photograph(name)]
        alike = [name for name in outer if name.casefold().startswith("label")]
        for name in (*alike, *(name for name in outer if name.casefold().endswith(_TABLES))):
            return f"{self.root / name}: if it holds the labels, save it as {LABELS}"
        return None

    def _name_classes(self, known: ClassList | None, labelled: bool) -> Sequence[str]:
        labels, notes = self.labels, self.labels.notes
        used = sorted({name for names in labels.rows.values() for name in names})
        if known is not None:
            names, more = known.for_use([*used, *map(composed, labels.columns)])
            notes += more
            columns = ((f"has a column '{name}'", name) for name in map(composed, labels.columns))
            cells = ((f"gives {id} the class '{name}'", name) for id, row in labels.rows.items() for name in row)
            listed = [composed(name) for name in names]
            for what, name in (*columns, *cells):
                if name not in listed:
                    meant = _meant(name, listed)
                    raise UsageError(f"{self.root / LABELS} {what}, which is not in {CLASSES}{meant}.")
            return names
        if labels.columns:
            return labels.columns
        if not used and labelled:
            raise UsageError(f"No row of {self.root / LABELS} names a class.")
        if not used:
            stands = f"'{UNNAMED}' stands for them ({CLASSES} can name them)"
            notes.append(f"Nothing in {self.root} names a class: {stands}.")
            return [UNNAMED]
        if all(whole_number(name) is not None for name in used):
            taken = "which are taken for names, 0 included: an image that shows none of the classes has an empty cell"
            notes.append(f"{self.root} has numbers for classes ({some(used)}), {taken}.")
        return [labels.decomposed.get(name, name) for name in used]

    def not_listed(self, id: str, split: str) -> Problem:
        if id not in self.photographs.files:
            file = self.root / SPLITS / f"{split}.txt"
            sentence = f"{file} lists {id}, which has neither an image nor a row in {LABELS}{self.absences.of(id)}."
        elif id in self._beside:
            sentence = self._tell_beside([id])
        elif not self.has_table:
            sentence = f"{self.root / self.photographs.files[id]} lies in no folder that names a class."
        else:
            row = self._rows_of_no_image.find(id)
            hint = f"; there is a row '{row}'{difference(id, row)}" if row else ""
            advice = "add one (without classes if it shows none)"
            sentence = f"{id} has no row in {self.root / LABELS}: {advice}{hint}."
        return Problem(id, sentence, "not listed")

    def _folders_like_masks(self) -> dict[str, str]:
        """Return folders of what seem to be masks under another name, each with an image that has one there."""
        files, inside = self.photographs.files, defaultdict(list)
        for id in files:
            if is_of_masks(folder := id.partition("/")[0]) and folder != id:
                inside[folder].append(id)
        last = {id.rpartition("/")[2]: id for id in files if id.split("/")[0] not in inside}
        found = {}
        for folder, ids in inside.items():
            owners = [last[stem] for id in ids if (stem := id.rpartition("/")[2]) in last]
            are_masks = all(files[id].lower().endswith(".png") for id in ids)
            if owners and are_masks and self.labels.rows.keys().isdisjoint(ids):
                found[folder] = owners[0]
        return found

    def _tell_beside(self, ids: Sequence[str]) -> str:
        """Say that pictures seem to be the masks of those beside them, ``id_mask`` beside ``id``."""
        first, owner = self.root / self.photographs.files[ids[0]], self._beside[ids[0]]
        files = f"{first} and {len(ids) - 1} more like it are" if len(ids) > 1 else f"{first} is"
        masks = f"masks belong into {MASKS}/, that of {owner} at {MASKS}/{owner}.png"
        how = f"give it a row in {LABELS}" if self.has_table else "rename it"
        return f"{files} not read: {masks}; if it is a photograph, {how}."

    def findings(self) -> list[Problem]:
        found = [*self.masks.findings]
        if beside := [*self._beside]:
            found.append(Problem(beside[0], self._tell_beside(beside), "file name"))
        found += [Problem(name, sentence, "image format") for name, sentence in self._unread.items()]
        for folder, id in self._aside.items():
            sentence = f"{self.root / folder} is not read: if it holds masks, that of {id} belongs at {MASKS}/{id}.png."
            found.append(Problem(folder, sentence, "folder name"))
        found += [Problem(name, sentence, "unreachable") for name, sentence in self.listing.gaps(self.root).items()]
        if self.has_class_list:
            return found
        for name, sentence in recombined(self.classes, str(self.root), SEPARATOR):
            found.append(Problem(name, f"{sentence}; if it is one class, list it in {CLASSES}.", "class name"))
        for value, name in enumerate(self.classes, start=1):
            if self.masks.files and whole_number(name) not in (None, value):
                advice = f"list the classes in the order of the masks in {CLASSES}"
                sentence = f"{self.root} has a class '{name}', which by its place is value {value} in a mask: {advice}."
                found.append(Problem(name, sentence, "class name"))
        for name in self.listing.names:
            if "/" not in name and name.casefold().startswith("class") and name.casefold().endswith((".txt", ".names")):
                sentence = f"{self.root / name} is not read: if it lists the classes, rename it to {CLASSES}."
                found.append(Problem(name, sentence, "file name"))
        return found


def _meant(name: str, known: Sequence[str]) -> str:
    if (same := in_other_case(name, known)) is not None:
        return f"; '{same}' is, which differs in case only"
    for other in known:
        if name in several(other) and not DELIMITERS.keys().isdisjoint(other):
            return f", whose line '{other}' holds several: write one a line"
    parts = several(name)
    if parts and {*known}.issuperset(parts):
        return f"; if several are meant, write '{SEPARATOR.join(parts)}'"
    return nearest(name, known)
