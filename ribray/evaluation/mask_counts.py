"""Pixels of masks by true class and mask value, where a mask may leave pixels unknown."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ribray.evaluation.confusion import IGNORED, confusion, iou, miou


class MaskCounts:
    """Counts of any number of masks.

    Attributes:
        matrix: (classes, classes + 1) int64, background included: truth by row, mask value by column, and in the
            last column the pixels that the mask leaves unknown.
        images: masks counted.
    """

    def __init__(self, classes: int) -> None:
        self.matrix: NDArray[np.int64] = np.zeros((classes, classes + 1), np.int64)
        self.images = 0

    def add(self, mask: NDArray[np.uint8], truth: NDArray[np.uint8]) -> None:
        """Count one mask (height, width).

        Raises:
            ImageError: the sizes differ, or there are values that are no class.
        """
        classes = len(self.matrix)
        values = np.where(mask == IGNORED, np.uint8(classes), mask)
        self.matrix += confusion(truth, values, classes + 1)[:classes]
        self.images += 1

    def to_sparse(self) -> dict[str, list[int]]:
        """Return the cells that are not zero, as JSON values: flat indices and counts."""
        cells = np.flatnonzero(self.matrix)
        return {"cells": cells.tolist(), "counts": self.matrix.ravel()[cells].tolist(), "images": [self.images]}

    def merge_sparse(self, record: Mapping[str, Sequence[int]]) -> None:
        """Add what `to_sparse` of other counts with as many classes returned."""
        np.add.at(self.matrix.reshape(-1), np.asarray(record["cells"], np.intp), np.asarray(record["counts"], np.int64))
        self.images += int(record["images"][0])

    def summary(self, names: Sequence[str]) -> dict[str, Any]:
        """Return the numbers of `metrics.json`.

        Args:
            names: class names, background first.

        Returns:
            ``miou`` and ``per_class`` IoU in percent, unknown pixels read as background; ``unknown``, their share in
            percent; ``miou_known``, the mean IoU where the mask is known; ``images``.
        """
        classes = len(self.matrix)
        known, unknown = self.matrix[:, :classes], self.matrix[:, classes]
        read = known.copy()
        read[:, 0] += unknown
        total = int(self.matrix.sum())
        return {
            "miou": _number(miou(read)),
            "per_class": {name: _number(value) for name, value in zip(names, iou(read), strict=True)},
            "unknown": round(100 * int(unknown.sum()) / total, 6) if total else None,
            "miou_known": _number(miou(known)),
            "images": self.images,
        }


def _number(value: Any) -> float | None:
    return None if np.isnan(value) else float(value)
