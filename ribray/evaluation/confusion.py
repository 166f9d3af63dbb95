"""Confusion matrices and the intersection over union (IoU) that follows from them, always in percent."""

import numpy as np
from numpy.typing import NDArray

from ribray.errors import ImageError

BACKGROUND = 0
IGNORED = 255
"""Truth pixels of this value count nowhere."""


def confusion(truth: NDArray[np.uint8], prediction: NDArray[np.uint8], classes: int) -> NDArray[np.int64]:
    """Count the pixels of one image by true and predicted class.

    Args:
        truth: (height, width) mask values, `IGNORED` where the truth is unknown.
        prediction: (height, width) mask values.
        classes: number of classes, background included.

    Returns:
        (classes, classes) int64, truth by row and prediction by column.

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
    """Refuse masks that cannot be compared pixel by pixel.

    Raises:
        ImageError: they differ in size, or are not (height, width) integers.
    """
    if truth.ndim != 2 or truth.shape != prediction.shape:
        raise ImageError(
            f"The true mask has shape {truth.shape} and the predicted one {prediction.shape}; "
            "both must be (height, width) of the same image."
        )
    for name, mask in (("true", truth), ("predicted", prediction)):
        if not np.issubdtype(mask.dtype, np.integer):
            raise ImageError(f"The {name} mask holds {mask.dtype} values; class indices are integers.")


def check_values(name: str, values: NDArray[np.uint8], classes: int) -> None:
    """Refuse a mask of which `values`, the pixels that count, leave 0 … classes - 1.

    Raises:
        ImageError: naming the first value that is no class.
    """
    if values.size and not 0 <= values.min() <= values.max() < classes:
        stray = values[(values < 0) | (values >= classes)][0]
        raise ImageError(f"The {name} mask holds the value {stray}, but the classes are 0 to {classes - 1}.")


def iou(matrix: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return every class's IoU in percent, `nan` for a class that neither truth nor prediction holds.

    Args:
        matrix: (…, classes, classes) one or several confusion matrices.

    Returns:
        (…, classes) float64.

    Raises:
        ValueError: the last two axes are not square.
    """
    if matrix.ndim < 2 or matrix.shape[-1] != matrix.shape[-2]:
        raise ValueError(f"A confusion matrix is (classes, classes), not {matrix.shape}.")
    intersection = np.diagonal(matrix, axis1=-2, axis2=-1).astype(np.float64)
    union = matrix.sum(axis=-1) + matrix.sum(axis=-2) - intersection
    return 100.0 * np.divide(intersection, union, out=np.full(union.shape, np.nan), where=union > 0)


def miou(matrix: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the mean IoU in percent over the classes that truth or prediction holds.

    Args:
        matrix: (…, classes, classes) one or several confusion matrices.

    Returns:
        (…) float64; `nan` for a matrix without any pixel.
    """
    per_class = iou(matrix)
    held = ~np.isnan(per_class)
    total, number = np.where(held, per_class, 0.0).sum(axis=-1), held.sum(axis=-1)
    return np.divide(total, number, out=np.full(total.shape, np.nan), where=number > 0)
