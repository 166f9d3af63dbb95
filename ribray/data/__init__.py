"""Data sets: which images there are, what is in them, and the truth where it is known."""

import pkgutil
from pathlib import Path

from ribray import storage
from ribray.config import DataConfig
from ribray.data.dataset import Dataset, Problem, fingerprint_of
from ribray.errors import UsageError

__all__ = ["Dataset", "Problem", "fingerprint_of", "open_dataset"]

KINDS = {
    "voc": "ribray.data.voc:open_voc",
    "coco": "ribray.data.coco:open_coco",
    "folder": "ribray.data.folder:open_folder",
    "synthetic": "ribray.demo.world:open_synthetic",
}
"""What opens each `data.kind`, given the configuration, a split, the root, and whether labels are needed; a new kind is
one line here and one in `DataConfig.kind`."""


def open_dataset(data: DataConfig, split: str, root: str | Path | None = None, *, labelled: bool = True) -> Dataset:
    """Open a split of the configured data, in ``root`` (a folder or URL) in place of ``data.root`` where it is given.

    Images whose labels cannot be known are left out if ``labelled``; to predict them they need none.

    Raises:
        UsageError: the root, the list or the annotations are missing or broken, or no image has a label.
    """
    chosen = root if root is not None else data.root
    if chosen is None:
        raise UsageError(f"data.root is missing: set it to the folder that holds the {data.kind} data.")
    location = storage.absolute(chosen)
    storage.require_reachable(location)
    if data.kind != "synthetic" and not location.is_dir():  # which is made where it is not there
        state = "is a file" if location.exists() else "does not exist"
        raise UsageError(f"data.root {location} {state}: set it to the folder that holds the {data.kind} data.")
    try:
        dataset: Dataset = pkgutil.resolve_name(KINDS[data.kind])(data, split, location, labelled)
    except OSError as error:
        raise UsageError(f"The data in {location} cannot be read: {error}.") from None
    reason = f", for example: {dataset.problems[0].sentence}" if dataset.problems else "."
    if not dataset.ids:
        raise UsageError(f"{dataset.name} has no image that can be used{reason}")
    if labelled and not dataset.labels.any():
        raise UsageError(f"No image of {dataset.name} has a label{reason}")
    return dataset
