"""Confusion matrices and the intersection over union (IoU) that follows from them, always in percent."""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ribray.data.dataset import BACKGROUND as BACKGROUND
from ribray.data.dataset import IGNORE as IGNORED
from ribray.errors import ImageError


class Overlaps(NamedTuple):
    """The pixels of one image that its IoUs are made of, for the classes it holds, under T readings.

    A mask has one reading, localization maps have one per threshold.
    """

    classes: NDArray[np.intp]
    """(k,) every class that truth or prediction holds under some reading, and maybe others; rising."""
    intersection: NDArray[np.int64]
    """(k, T) pixels of a class in truth and prediction."""
    union: NDArray[np.int64]
    """(k, T) pixels of a class in truth or prediction."""


def confusion(truth: NDArray[np.uint8], prediction: NDArray[np.uint8], classes: int) -> NDArray[np.int64]:
    """Count the pixels of one image by true class (row) and predicted class (column): (classes, classes) int64.

    Masks are (height, width), the truth `IGNORED` where it is unknown; background is one of the classes.

    Raises:
        ImageError: the masks differ in size or hold a value that is no class.
    """
    check_sizes(truth, prediction)
    counted = truth != IGNORED
    true_classes, predicted_classes = truth[counted], prediction[counted]
    check_values("true", true_classes, classes)
    check_values("predicted", predicted_classes, classes)
    pairs = true_classes.astype(np.intp) * classes + predicted_classes
    return np.bincount(pairs, minlength=classes * classes).reshape(classes, classes)


def check_sizes(truth: NDArray[np.uint8], prediction: NDArray[np.uint8]) -> None:
    """Refuse masks that cannot be compared pixel by pixel: of different sizes, or not (height, width) integers."""
    if truth.ndim != 2 or truth.shape != prediction.shape:
        raise ImageError(
            f"The true mask has shape {truth.shape} and the predicted one {prediction.shape}; "
            "both must be (height, width) of the same image."
        )
    for name, mask in (("true", truth), ("predicted", prediction)):
        if not np.issubdtype(mask.dtype, np.integer):
            raise ImageError(f"The {name} mask holds {mask.dtype} values; class indices are integers.")


def check_values(name: str, values: NDArray[np.uint8], classes: int) -> None:
    """Refuse a mask of which `values`, the pixels that count, leave 0 … classes - 1."""
    if values.size and not 0 <= values.min() <= values.max() < classes:
        stray = values[(values < 0) | (values >= classes)][0]
        raise ImageError(f"The {name} mask holds the value {stray}, but the classes are 0 to {classes - 1}.")


def iou(matrix: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return IoUs (…, classes) in percent of matrices (…, classes, classes); `nan` for classes that nothing holds."""
    return _iou(*overlap(matrix))


def miou(matrix: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the mean IoU (…) in percent over the classes that truth or prediction of matrices (…, classes, classes)
    holds; `nan` without any pixel.
    """
    return mean_iou(*overlap(matrix))


def overlap(matrix: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the pixels (…, classes) of every class in truth and prediction, and in truth or prediction."""
    if matrix.ndim < 2 or matrix.shape[-1] != matrix.shape[-2]:
        raise ValueError(f"A confusion matrix is (classes, classes), not {matrix.shape}.")
    intersection = np.diagonal(matrix, axis1=-2, axis2=-1)
    return intersection, matrix.sum(axis=-1) + matrix.sum(axis=-2) - intersection


def mean_iou(intersection: NDArray[np.int64], union: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the mean IoU (…) in percent over the classes whose union (…, classes) holds a pixel; else `nan`."""
    per_class = _iou(intersection, union)
    held = ~np.isnan(per_class)
    total, number = np.where(held, per_class, 0.0).sum(axis=-1), held.sum(axis=-1)
    return np.divide(total, number, out=np.full(total.shape, np.nan), where=number > 0)


def number(value: Any) -> float | None:
    """Return an IoU as metrics have it: None in place of `nan`."""
    return None if np.isnan(value) else float(value)


def _iou(intersection: NDArray[np.int64], union: NDArray[np.int64]) -> NDArray[np.float64]:
    return 100.0 * np.divide(intersection, union, out=np.full(union.shape, np.nan), where=union > 0)
