"""Pixels of masks by true class and mask value, where a mask may leave pixels unknown."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ribray.evaluation.confusion import BACKGROUND, IGNORED, Overlaps, confusion, iou, miou, number, overlap


class MaskCounts:
    """Counts of any number of masks of so many classes, background included."""

    readings = 1
    """A mask has no threshold."""

    def __init__(self, classes: int) -> None:
        self.classes, self.images = classes, 0
        self.matrix: NDArray[np.int64] = np.zeros((classes, classes + 1), np.int64)
        """Truth by row, mask value by column, and in the last column the pixels that the mask leaves unknown."""

    def add(self, mask: NDArray[np.uint8], truth: NDArray[np.uint8]) -> None:
        """Count one mask (height, width)."""
        values = np.where(mask == IGNORED, np.uint8(self.classes), mask)
        self.matrix += confusion(truth, values, self.classes + 1)[: self.classes]
        self.images += 1

    def to_sparse(self) -> dict[str, list[int]]:
        """Return the cells that are not zero, as JSON values: flat indices and counts."""
        cells = np.flatnonzero(self.matrix)
        return {"cells": cells.tolist(), "counts": self.matrix.ravel()[cells].tolist(), "images": [self.images]}

    def merge_sparse(self, record: Mapping[str, Sequence[int]]) -> None:
        """Add what `to_sparse` of other counts with as many classes returned."""
        np.add.at(self.matrix.reshape(-1), np.asarray(record["cells"], np.intp), np.asarray(record["counts"], np.int64))
        self.images += int(record["images"][0])

    def overlaps(self, record: Mapping[str, Sequence[int]]) -> Overlaps:
        """Return the overlaps of the mask that `to_sparse` recorded, unknown pixels read as background."""
        true, value = np.divmod(np.asarray(record["cells"], np.intp), self.classes + 1)
        value[value == self.classes] = BACKGROUND
        classes = np.unique(np.concatenate([true, value]))
        matrix = np.zeros((classes.size, classes.size), np.int64)
        cells = np.searchsorted(classes, true), np.searchsorted(classes, value)
        np.add.at(matrix, cells, np.asarray(record["counts"], np.int64))
        intersection, union = overlap(matrix)
        return Overlaps(classes, intersection[:, None], union[:, None])

    @property
    def has_foreground(self) -> bool:
        """Whether a true pixel of a class was counted; without any a mean IoU says nothing."""
        return bool(self.matrix[BACKGROUND + 1 :].any())

    @property
    def has_background(self) -> bool:
        """Whether a true pixel of background was counted; without any, covering too much costs nothing."""
        return bool(self.matrix[BACKGROUND].any())

    def quoted(self) -> int:
        """Return the index of the one reading there is."""
        return 0

    def summary(self, names: Sequence[str]) -> dict[str, Any]:
        """Return the numbers of `metrics.json`, in percent, by class names (background first).

        Unknown pixels are read as background, but for ``miou_known``; a truth without foreground gives no IoU.
        """
        known, unknown = self.matrix[:, : self.classes], self.matrix[:, self.classes]
        read = known.copy()
        read[:, BACKGROUND] += unknown
        total = int(self.matrix.sum())
        if not self.has_foreground:
            read, known = np.zeros_like(read), np.zeros_like(known)
        return {
            "miou": number(miou(read)),
            "per_class": {name: number(value) for name, value in zip(names, iou(read), strict=True)},
            "unknown": round(100 * int(unknown.sum()) / total, 6) if total else None,
            "miou_known": number(miou(known)),
            "images": self.images,
        }
