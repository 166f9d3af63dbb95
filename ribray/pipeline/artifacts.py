"""Reading what an earlier stage has made: of one image, or a network's weights.

A file that is there was written whole, yet something else may have cut it short since, or put another image's in its
place. The stage that reads it finds out: the file is set aside under another name, the image is told as failed, and
the next run of the stage that makes such files makes it again. Nothing is removed.

Weights cost hours. Their SHA-256 stands in the record of their stage, and those that do not have it are refused.
"""

import contextlib
import hashlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ribray import storage
from ribray.data.dataset import Dataset, foreign_values
from ribray.data.mask_files import read_mask_file
from ribray.errors import DamagedError, ImageError, RibrayError, UsageError
from ribray.methods.maps import MapRecord
from ribray.pipeline.stage import Context
from ribray.runs.records import read_record

WEIGHTS_FILE = "weights.safetensors"
FIRST_FOLDER = "first"  # of a network that is trained again on what it filled: the first one's folder
FIRST_WEIGHTS = f"{FIRST_FOLDER}/{WEIGHTS_FILE}"
WEIGHTS_KEY = "weights"  # in a stage's record: SHA-256 by file name
_AGAIN = "the stage that makes it makes it again on its next run"


def read_map(location: Path, id: str, dataset: Dataset, size: tuple[int, int]) -> MapRecord:
    with _setting_aside(location):
        record, last = MapRecord.read(location, id), len(dataset.classes) - 1
        _require_size(location, record.size, size)
        if (largest := record.classes.max(initial=-1)) > last:
            raise DamagedError(
                f"{location} holds a map of class {largest}, where 0 to {last} are known; {storage.MADE_AGAIN}."
            )
    return record


def read_own_mask(location: Path, id: str, dataset: Dataset, size: tuple[int, int]) -> np.ndarray:
    """Read a mask that a stage has written, (H, W) uint8."""
    with _setting_aside(location):
        mask, _ = read_mask_file(location, id)
        _require_size(location, mask.shape, size)
        if (strays := foreign_values(mask, len(dataset.classes))).size:
            raise DamagedError(
                f"{location} holds the value {strays[0]}, which is no class of the data; {storage.MADE_AGAIN}."
            )
    return mask


def _require_size(location: Path, found: tuple[int, ...], size: tuple[int, int]) -> None:
    if found != size:
        sizes = f"of {found[1]} × {found[0]} pixels, but its image is {size[1]} × {size[0]}"
        raise DamagedError(f"{location} is {sizes}; {storage.MADE_AGAIN}.")


@contextlib.contextmanager
def _setting_aside(location: Path) -> Iterator[None]:
    """Set a file aside that turns out to be damaged in a ``with`` block."""
    try:
        yield
    except DamagedError as error:
        try:
            aside = storage.set_aside(location)
        except OSError:  # it lies in another run, which cannot be written here; or somebody else was quicker
            raise ImageError(str(error)) from None
        fault = str(error).removesuffix(f"; {storage.MADE_AGAIN}.")
        raise ImageError(f"{fault}; it is set aside as {aside.name}, and {_AGAIN}.") from None
    except RibrayError as error:
        aside = storage.aside(location)
        if not location.exists() and aside.exists():
            raise ImageError(f"{location} was damaged and is set aside as {aside.name}; {_AGAIN}.") from None
        raise ImageError(str(error)) from None


# --- weights -----------------------------------------------------------------------------------------------------


def record_weights(context: Context, stage: str, name: str) -> None:
    """Note in a stage's record that it has written a file of weights; refuse one that is there as another."""
    folder = context.own_folder(stage)
    location = require_recorded(folder, stage, name)
    known = read_record(folder).get(WEIGHTS_KEY) or {}
    digests = {**known, name: hash_file(location, f"The weights {location}")}
    context.run.update_record(context.stages[stage].folder, **{WEIGHTS_KEY: digests})


def trained_weights(context: Context, stage: str, needed_by: str, name: str = WEIGHTS_FILE) -> Path:
    """Return the file of weights that an earlier stage has written."""
    return require_recorded(context.require(stage, needed_by), stage, name)


def require_recorded(folder: Path, stage: str, name: str = WEIGHTS_FILE) -> Path:
    """Return a file of weights, which is the one that its stage wrote as far as that is on record."""
    location, recorded = folder / name, read_record(folder).get(WEIGHTS_KEY) or {}
    if name in recorded and hash_file(location, f"The weights {location}") != recorded[name]:
        raise UsageError(
            f"{location} is damaged, or not the file that stage '{stage}' wrote there: put that one back, or use "
            f"--redo {stage} to train again."
        )
    return location


def hash_file(location: Path, name: str) -> str:
    """Return the SHA-256 of a file, which is called ``name`` where it cannot be read."""
    try:
        with location.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise UsageError(f"{name} cannot be read: {storage.reason(error)}.") from None
