"""Labels by folders: ``ROOT/cat/0001.jpg`` shows a cat, or ``ROOT/train/cat/0001.jpg`` with a folder per split."""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ribray.data.dataset import nearest
from ribray.data.names import composed, is_background
from ribray.errors import UsageError

_SPLITS = frozenset({"train", "training", "trainval", "val", "valid", "validation", "dev", "eval", "test", "testing"})
"""Names of folders that hold a split, in lower case."""
_NO_CLASSES = frozenset(
    {"image", "images", "img", "imgs", "jpegimages", "photo", "photos", "picture", "pictures", "data", "raw", "input"}
    | {"label", "labels", "annotation", "annotations", "mask", "masks", "gt", "groundtruth", "ground_truth", "truth"}
    | {"segmentation", "segmentations", "segmentationclass", "segmentationclassaug", "segmentationobject", "seg"}
)
"""Names of folders that hold a kind of file, in lower case."""
_SHOWN = 8


@dataclass(frozen=True)
class ClassFolders:
    """What the folders say."""

    rows: dict[str, tuple[str, ...]]
    """The class of each image by id, in Unicode's composed form."""
    decomposed: dict[str, str]
    """Names of folders in decomposed Unicode, by their composed form."""
    note: str
    splits: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Ids by split, where the first folder is one."""


def read_class_folders(root: Path, files: dict[str, str], classes: Collection[str] | None) -> ClassFolders | None:
    """Read labels from the names of folders.

    Args:
        root: of the data.
        files: path below the root, by id.
        classes: names that a folder may have, where they are known.

    Returns:
        the labels; None where the photographs do not lie in folders.

    Raises:
        UsageError: it is not plain which folders are classes.
    """
    paths = {id: name.split("/") for id, name in files.items()}
    inside = {id: parts for id, parts in paths.items() if len(parts) > 1}
    if 2 * len(inside) <= len(paths):
        return None
    firsts = sorted({parts[0] for parts in inside.values()})
    has_splits = all(first.lower() in _SPLITS for first in firsts)
    if has_splits and not any(len(parts) > 2 for parts in inside.values()):
        return None
    place = 1 if has_splits else 0
    labelled = {id: _name(parts[place]) for id, parts in inside.items() if len(parts) > place + 1}
    names = sorted({composed(name) for name in labelled.values()})
    _require_classes(root, names, classes)
    is_deeper = any(len(parts) > place + 2 for parts in inside.values())
    which = "second folder names, in the split of the first" if has_splits else "first folder names"
    note = f"{root} has no labels.csv: each image is taken to show the class ({some(names)}) that its {which}"
    note += "; folders below that are not looked at." if is_deeper else "."
    splits = {first: tuple(id for id, parts in inside.items() if parts[0] == first) for first in firsts}
    return ClassFolders(
        {id: (composed(name),) for id, name in labelled.items()},
        {composed(name): name for name in labelled.values() if composed(name) != name},
        note,
        splits if has_splits else {},
    )


def _name(folder: str) -> str:
    return " ".join(folder.split())


def _require_classes(root: Path, names: Sequence[str], classes: Collection[str] | None) -> None:
    """Refuse names of folders that are not, or may not be, those of classes.

    Raises:
        UsageError: with the first reason.
    """
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
    doubtful = [name for name in names if name.lower() in _SPLITS | _NO_CLASSES]
    if doubtful or len(names) < 2:
        which = f"folder {names[0]} does" if len(names) == 1 else f"folders {some(names)} do"
        raise UsageError(no_labels(root, f"its {which} not seem to name classes; list them in classes.txt if so"))


def no_labels(root: Path, hint: str = "") -> str:
    """Say that there is no labels.csv, and what to write."""
    what = "write a line 'id,classes' and then one for each image, such as 'beach/0001,dog;person'"
    return f"{root / 'labels.csv'} does not exist: {what}{f' ({hint})' if hint else ''}."


def some(names: Iterable[str]) -> str:
    """Return names with commas between them, of many the first."""
    names = list(names)
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
