"""What names the classes of a folder of photographs: classes.txt, or the folders ROOT/cat/ or ROOT/train/cat/."""

import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ribray.data.dataset import nearest
from ribray.data.label_table import Labels
from ribray.data.lists import lines, read_text
from ribray.data.names import composed, is_background, plain
from ribray.errors import UsageError

_NUMBERED = re.compile(r"([0-9]+) ?[:.,;) ] ?(\S.*)")
# Names of folders that hold a split, or a kind of file, in lower case
_SPLITS = frozenset({"train", "training", "trainval", "val", "valid", "validation", "dev", "eval", "test", "testing"})
_NO_CLASSES = frozenset(
    {"image", "images", "img", "imgs", "jpegimages", "photo", "photos", "picture", "pictures", "data", "raw", "input"}
    | {"label", "labels", "annotation", "annotations", "mask", "masks", "gt", "groundtruth", "ground_truth", "truth"}
    | {"segmentation", "segmentations", "segmentationclass", "segmentationclassaug", "segmentationobject", "seg"}
)
_SHOWN = 8


# --- classes.txt -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ClassList:
    """The names of classes.txt, in order."""

    file: Path
    names: tuple[str, ...]
    numbered: tuple[str, ...] = ()  # without the numbers in front of them, where each line has the next one
    start: int = 1  # the first number

    def for_use(self, used: Iterable[str]) -> tuple[tuple[str, ...], list[str]]:
        """Return the names that are meant, given those in use, and what to note."""
        if not self.numbered or {*used} <= {composed(name) for name in self.names}:
            return self.names, []
        if self.start != 1:
            raise UsageError(
                f"{self.file} counts from {self.start} ('{self.names[0]}'), where 0 is background and the first class "
                "has mask value 1: write the names of the classes alone, one a line."
            )
        note = f"{self.file} numbers its lines, which are read as mask values: 1 is {self.numbered[0]}."
        return self.numbered, [note]


def read_class_list(file: Path) -> ClassList:
    """Read classes.txt: a name a line; one twice, or one that is reserved, is refused."""
    written = [(number, plain(line)) for number, line in enumerate(lines(read_text(file)), start=1) if line.strip()]
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


# --- folders that name classes -----------------------------------------------------------------------------------


def read_class_folders(root: Path, files: dict[str, str], classes: Collection[str] | None) -> Labels | None:
    """Read labels from the names of folders; None where the photographs do not lie in folders.

    ``files`` are the paths below the root, by id. Where ``classes`` are known, a folder may have one of these names
    only.
    """
    inside = {id: parts for id, name in files.items() if len(parts := name.split("/")) > 1}
    if 2 * len(inside) <= len(files):
        return None
    firsts = sorted({parts[0] for parts in inside.values()})
    has_splits = all(first.lower() in _SPLITS for first in firsts)
    if has_splits and not any(len(parts) > 2 for parts in inside.values()):
        return None
    place = 1 if has_splits else 0
    labelled = {id: plain(parts[place]) for id, parts in inside.items() if len(parts) > place + 1}
    names = sorted({composed(name) for name in labelled.values()})
    _require_classes(root, names, classes)
    is_deeper = any(len(parts) > place + 2 for parts in inside.values())
    which = "second folder names, in the split of the first" if has_splits else "first folder names"
    note = f"{root} has no labels.csv: each image is taken to show the class ({some(names)}) that its {which}"
    note += "; folders below that are not looked at." if is_deeper else "."
    splits = {first: tuple(id for id, parts in inside.items() if parts[0] == first) for first in firsts}
    return Labels(
        rows={id: (composed(name),) for id, name in labelled.items()},
        decomposed={composed(name): name for name in labelled.values() if composed(name) != name},
        splits=splits if has_splits else {},
        notes=[note],
    )


def _require_classes(root: Path, names: Sequence[str], classes: Collection[str] | None) -> None:
    """Refuse names of folders that are not, or may not be, those of classes."""
    if reserved := next(filter(is_background, names), None):
        raise UsageError(
            f"{root} has a folder '{reserved}' and no labels.csv, but no class can have that name: write a labels.csv, "
            "with an empty cell for each image that shows none of the classes."
        )
    if classes is not None:
        if strange := [name for name in names if name not in classes]:
            hint = nearest(strange[0], classes)
            raise UsageError(f"{root} has no labels.csv, and its folder '{strange[0]}' is not in classes.txt{hint}.")
        return
    if len(names) < 2 or any(name.lower() in _SPLITS | _NO_CLASSES for name in names):
        which = f"folder {names[0]} does" if len(names) == 1 else f"folders {some(names)} do"
        raise no_labels(root, f"its {which} not seem to name classes; list them in classes.txt if so")


def no_labels(root: Path, hint: str = "") -> UsageError:
    """Say that there is no labels.csv, and what to write."""
    what = "write a line 'id,classes' and then one for each image, such as 'beach/0001,dog;person'"
    return UsageError(f"{root / 'labels.csv'} does not exist: {what}{f' ({hint})' if hint else ''}.")


def some(names: Sequence[str]) -> str:
    """Return names with commas between them, of many the first."""
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
