"""Localization maps made elsewhere, brought into the form of a maps file.

    DIR/ID.npz               one array per class, named as the class
    DIR/ID/CLASS.npy         or one file per class

Each array is (h, w), numbers from 0 up, at full size or at any stride. None of these formats is allowed to hold
pickled objects.

Shapes: P present classes, H W the image's pixels, h w the cells of a map.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch.nn.functional import interpolate

from ribray import storage
from ribray.data.dataset import nearest
from ribray.data.images import by
from ribray.errors import ImageError, RibrayError
from ribray.formats import parse_npy
from ribray.methods.maps import to_arrays
from ribray.methods.method import Refined

ARCHIVE, SINGLE = ".npz", ".npy"
SCALES = (1.0,)
"""An imported map counts as the only scale."""
_CELL = 16
"""A maps file covers its image up to the next multiple of so many pixels (`ribray.methods.maps.localization_maps`)."""
_STRIDES = (1, 2, 4, 8, 16)
_STRETCH = 1.25
"""How many times a map may be wider or narrower than its image, give or take a cell, without a word."""


def read_class_maps(folder: Path, id: str) -> dict[str, np.ndarray]:
    """Return the maps of an image by class name, as the files have them.

    Raises:
        ImageError: there are none, or a file is damaged or holds objects.
    """
    archive, singles = folder / f"{id}{ARCHIVE}", folder / id
    if archive.is_file():
        try:
            return storage.read_npz(archive)
        except RibrayError as error:
            raise ImageError(str(error)) from None
    if singles.is_dir():
        files = sorted(file for file in singles.iterdir() if file.suffix == SINGLE)
        return {file.stem: _read_single(file) for file in files}
    raise ImageError(f"There are no maps of {id}: neither {archive} nor a folder {singles}.")


def _read_single(file: Path) -> np.ndarray:
    try:
        return parse_npy(storage.read_bytes(file))
    except (ValueError, FileNotFoundError) as error:
        raise ImageError(f"{file} is not a readable npy file ({error}).") from None


def imported_arrays(
    given: Mapping[str, np.ndarray],
    classes: Sequence[str],
    present: Sequence[int],
    size: tuple[int, int],
    id: str,
    names: Sequence[str],
) -> dict[str, np.ndarray]:
    """Return the arrays of a maps file; those of all names are the same.

    Args:
        given: a map per class name; those of absent classes are left out.
        classes: class names of the data.
        present: indices of the image's classes, increasing, at least one.
        size: height and width of the image.
        id: for messages.
        names: what the run calls a method's maps, ``cam`` first.

    Raises:
        ImageError: an unknown class name, no map of a present class, no (h, w) of finite numbers from 0 up, or (w, h).
    """
    for name in given:
        if name not in classes:
            raise ImageError(f"The maps of {id} have one of '{name}', which is no class{nearest(name, classes)}.")
    maps = []
    for index in present:
        name = classes[index]
        if name not in given:
            raise ImageError(f"The maps of {id} have none of '{name}', which the image is labelled with.")
        cells = _checked(given[name], name, id)
        if cells.shape in _strided(size[::-1]) and cells.shape not in _strided(size):
            raise ImageError(
                f"The map of '{name}' of {id} is {by(cells.shape)} cells, the image {by(size)} pixels: the map's sides "
                "are swapped. Write it as (height, width), of the picture as its EXIF orientation turns it."
            )
        maps.append(fit_to_cells(cells, size))
    largest = max(stack.shape for stack in maps)
    if any(stack.shape != largest for stack in maps):
        raise ImageError(f"The maps of {id} are of different sizes: all classes must have the same.")
    stack = [np.stack(maps)]
    return to_arrays(Refined(np.array(present, np.int64), dict.fromkeys(names, stack), steps=0), size, SCALES)


def _checked(cells: np.ndarray, name: str, id: str) -> np.ndarray:
    """Return a map as float32 (h, w)."""
    if cells.ndim != 2 or cells.dtype.kind not in "fiu" or 0 in cells.shape:
        raise ImageError(
            f"The map of '{name}' of {id} is {cells.dtype} of shape {cells.shape}, where (height, width) numbers "
            "are needed."
        )
    cells = cells.astype(np.float32)
    if not np.isfinite(cells).all() or cells.min() < 0:
        raise ImageError(f"The map of '{name}' of {id} holds values that are negative or not finite.")
    return cells


def is_stretched(shape: tuple[int, ...], size: tuple[int, int]) -> bool:
    """Whether a map of another ratio of sides than its image's is stretched to it, by more than cells can round."""
    (rows, columns), (height, width) = shape, size
    return max((rows - 1) * width / ((columns + 1) * height), (columns - 1) * height / ((rows + 1) * width)) > _STRETCH


def fit_to_cells(cells: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Return a map (h, w) such that reading it from a maps file gives each cell the pixels it was made of.

    A map of every n-th pixel (full size is n = 1) is continued to the right and below, up to the pixels that a
    maps file covers. A map of any other size is taken to cover exactly the image, and is enlarged to its pixels.
    """
    for stride, shape in zip(_STRIDES, _strided(size), strict=True):
        if cells.shape == shape:
            rows, columns = (_cells(side, _CELL) * _CELL // stride for side in size)
            return np.pad(cells, ((0, rows - cells.shape[0]), (0, columns - cells.shape[1])), mode="edge")
    enlarged = interpolate(torch.from_numpy(cells)[None, None], size, mode="bilinear", align_corners=False)
    return fit_to_cells(enlarged[0, 0].numpy(), size)


def _strided(size: Sequence[int]) -> list[tuple[int, ...]]:
    return [tuple(_cells(side, stride) for side in size) for stride in _STRIDES]


def _cells(side: int, stride: int) -> int:
    return (side - 1) // stride + 1
