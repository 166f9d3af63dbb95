"""Data sets: which images there are, what is in them, and the truth where it is known."""

from collections.abc import Callable
from pathlib import Path

from ribray import storage
from ribray.config import DataConfig
from ribray.data.dataset import Dataset, Problem, fingerprint_of
from ribray.errors import UsageError

__all__ = ["Dataset", "Problem", "fingerprint_of", "open_dataset"]

Opener = Callable[[DataConfig, str, Path, bool], Dataset]


def _open_voc(data: DataConfig, split: str, root: Path, labelled: bool) -> Dataset:
    from ribray.data.voc import open_voc

    return open_voc(root, split, labelled, data.classes)


def _open_coco(data: DataConfig, split: str, root: Path, labelled: bool) -> Dataset:
    from ribray.data.coco import open_coco

    return open_coco(root, split, labelled, data.train_split)


def _open_folder(data: DataConfig, split: str, root: Path, labelled: bool) -> Dataset:
    from ribray.data.folder import open_folder

    return open_folder(root, split, labelled)


def _open_synthetic(data: DataConfig, split: str, root: Path, labelled: bool) -> Dataset:
    from ribray.demo.world import open_synthetic

    return open_synthetic(data, split, root)


KINDS: dict[str, Opener] = {
    "voc": _open_voc,
    "coco": _open_coco,
    "folder": _open_folder,
    "synthetic": _open_synthetic,
}
"""How each `data.kind` is opened; a new kind is one line here and one in `DataConfig.kind`."""

_MADE_HERE = ("synthetic",)  # its root need not be there


def open_dataset(data: DataConfig, split: str, root: str | Path | None = None, *, labelled: bool = True) -> Dataset:
    """Open one split of the configured data.

    Args:
        data: kind, root and what belongs to the kind.
        split: ``data.train_split``, ``data.eval_split`` or another one that the data has.
        root: folder or URL to use instead of ``data.root``.
        labelled: whether images whose labels cannot be known are left out; to predict them they need none.

    Raises:
        UsageError: the root, the list or the annotations are missing or broken, or no image has a label.
    """
    chosen = root if root is not None else data.root
    if chosen is None:
        raise UsageError(f"data.root is missing: set it to the folder that holds the {data.kind} data.")
    location = storage.absolute(chosen)
    storage.require_reachable(location)
    if data.kind not in _MADE_HERE and not location.is_dir():
        state = "is a file" if location.exists() else "does not exist"
        raise UsageError(f"data.root {location} {state}: set it to the folder that holds the {data.kind} data.")
    try:
        dataset = KINDS[data.kind](data, split, location, labelled)
    except OSError as error:
        raise UsageError(f"The data in {location} cannot be read: {error}.") from None
    _require_content(dataset, labelled)
    return dataset


def _require_content(dataset: Dataset, labelled: bool) -> None:
    """Refuse a split that nothing can be learnt from or refined in, with the first reason that was found."""
    reason = f", for example: {dataset.problems[0].sentence}" if dataset.problems else "."
    if not dataset.ids:
        raise UsageError(f"{dataset.name} has no image that can be used{reason}")
    if labelled and not dataset.labels.any():
        raise UsageError(f"No image of {dataset.name} has a label{reason}")
