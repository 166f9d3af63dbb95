"""The seed's mIoU at every threshold from one pass over the images.

A pixel has one strongest class and one score (`ribray.masks.seed.winner`); at threshold t it belongs to that
class if score > t and to the background otherwise. So it is enough to count pixels by true class, strongest
class and *level*, the number of thresholds below its score: sums over levels are the confusion matrices of
all thresholds, exactly, in integers.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ribray.errors import ImageError
from ribray.evaluation.confusion import (
    BACKGROUND,
    IGNORED,
    Overlaps,
    check_sizes,
    check_values,
    iou,
    miou,
    number,
    overlap,
)

BUCKETS, NEGATIVE_BUCKETS = 1 << 16, 1 << 15
MASK_VALUES = 256
CHUNK = 1 << 15  # pixels worked on at once, so that what lies between stays in the cache


class BestThreshold(NamedTuple):
    """The threshold with the highest mIoU; IoUs in percent."""

    threshold: float
    miou: float
    per_class: NDArray[np.float64]
    """(classes,) IoU, background first, `nan` for a class that neither truth nor prediction holds."""
    place: int
    """Index of the threshold."""


class ThresholdCurve:
    """Pixel counts that hold the confusion matrix of every threshold; counts of parts merge in any order."""

    def __init__(self, classes: int, thresholds: Sequence[float] | NDArray[np.floating]) -> None:
        """Start with no pixel counted, of so many classes with background; thresholds (T,) must rise, from 0 up."""
        self.classes = int(classes)
        self.thresholds = np.asarray(thresholds, dtype=np.float64)
        edges = self.thresholds.astype(np.float32)
        if edges.ndim != 1 or not edges.size or not np.isfinite(edges).all() or edges[0] < 0:
            raise ValueError("Thresholds must be a list of finite numbers from 0 up, at least one.")
        if (np.diff(edges) <= 0).any():
            raise ValueError("Thresholds must rise from one to the next (in float32).")
        if not 1 <= self.classes <= IGNORED:
            raise ValueError(f"A mask holds 1 to {IGNORED} classes, background included, not {classes}.")
        self.readings, self.images = self.thresholds.size, 0
        self.counts = np.zeros((self.classes, self.classes, edges.size + 1), np.int64)
        """Pixels by true class, strongest class and level."""
        self._levels = _Levels(edges)
        self._first_code = _first_codes(self.classes, edges.size + 1)
        self._scratch = np.empty(0, np.intp)  # kept, as memory fresh from the system costs more than counting

    def add(self, winner: NDArray[np.uint8], score: NDArray[np.float32], truth: NDArray[np.uint8]) -> None:
        """Count one image: all of it or, where it cannot be used, nothing.

        All are (height, width): mask values uint8 of the strongest classes, their float32 scores, and uint8 mask values
        of the truth, `IGNORED` where unknown.

        Raises:
            ImageError: sizes or types differ from these, a value is no class, or a score is not finite.
        """
        check_sizes(truth, winner)
        check_values("predicted", winner, self.classes)
        ends = score.min(initial=0), score.max(initial=0)
        if score.shape != winner.shape or score.dtype != np.float32 or not np.isfinite(ends).all():
            raise ImageError(f"The scores of the localization maps must be finite float32 of shape {winner.shape}.")
        if not truth.dtype == winner.dtype == np.uint8:
            raise ImageError(f"Masks must be uint8, not {truth.dtype} (truth) and {winner.dtype} (prediction).")
        found = np.bincount(self._codes(winner.ravel(), score.ravel(), truth.ravel()))
        found = found[self.counts[0].size :]  # the first block is the ignored pixels
        if found.size > self.counts.size:
            check_values("true", truth[truth != IGNORED], self.classes)
        self.counts.reshape(-1)[: found.size] += found
        self.images += 1

    def clear(self) -> None:
        """Go back to no pixel counted: cheaper than a new curve."""
        self.counts[...] = 0
        self.images = 0

    def to_sparse(self) -> dict[str, NDArray[Any]]:
        """Return the counts as a few small arrays, to travel between processes or into an npz file."""
        cells = np.flatnonzero(self.counts)
        start = {"classes": np.array(self.classes), "thresholds": self.thresholds, "images": np.array(self.images)}
        return {**start, "cells": cells, "pixels": self.counts.reshape(-1)[cells]}

    def merge_sparse(self, record: Mapping[str, NDArray[Any]]) -> None:
        """Add the counts that another curve's `to_sparse` recorded."""
        if int(record["classes"]) != self.classes or not np.array_equal(record["thresholds"], self.thresholds):
            raise ValueError("The record is of a curve with other classes or thresholds.")
        self.counts.reshape(-1)[record["cells"]] += record["pixels"]
        self.images += int(record["images"])

    def overlaps(self, record: Mapping[str, ArrayLike]) -> Overlaps:
        """Return the overlaps, at every threshold, of the image that a curve's `to_sparse` recorded."""
        levels = self.readings + 1
        pairs, level = np.divmod(np.asarray(record["cells"], np.intp), levels)
        true, strongest = np.divmod(pairs, self.classes)
        classes = np.unique(np.concatenate([[BACKGROUND], true, strongest]))
        counts = np.zeros((classes.size, classes.size, levels), np.int64)
        cells = np.searchsorted(classes, true), np.searchsorted(classes, strongest), level
        counts[cells] = np.asarray(record["pixels"], np.int64)
        intersection, union = overlap(_confusions(counts))
        return Overlaps(classes, intersection.T, union.T)

    def confusion(self, index: int) -> NDArray[np.int64]:
        """Return the confusion matrix at `thresholds[index]`: (classes, classes), truth by row."""
        return _confusions(self.counts)[index]

    def miou(self) -> NDArray[np.float64]:
        """Return the mIoU in percent at every threshold: (T,), `nan` where no pixel was counted."""
        return miou(_confusions(self.counts))

    @property
    def has_foreground(self) -> bool:
        """Whether a true pixel of a class was counted; without any a mean IoU says nothing."""
        return bool(self.counts[BACKGROUND + 1 :].any())

    @property
    def has_background(self) -> bool:
        """Whether a true pixel of background was counted; without any, covering too much costs nothing."""
        return bool(self.counts[BACKGROUND].any())

    def best(self) -> BestThreshold:
        """Return the threshold with the highest mIoU, of several equally good ones the lowest."""
        means = self.miou()
        if np.isnan(means).all():
            raise ValueError("No pixel with a known class was counted, so there is no best threshold.")
        index = int(np.nanargmax(means))
        per_class = iou(self.confusion(index))
        return BestThreshold(float(self.thresholds[index]), float(means[index]), per_class, index)

    def quoted(self) -> int:
        """Return the index of the threshold whose mIoU is quoted, the best one."""
        return self.best().place

    def summary(self, class_names: Sequence[str]) -> dict[str, Any]:
        """Return what a run's metrics keep of the curve, as JSON values, by class names (background first).

        IoUs are in percent. Where the truth has no foreground there is no mean IoU, no best threshold and no curve.
        """
        if len(class_names) != self.classes:
            raise ValueError(f"There are {len(class_names)} class names for {self.classes} classes with background.")
        if not self.has_foreground:
            return {"miou": None, "threshold": None, "per_class": dict.fromkeys(class_names), "images": self.images}
        best = self.best()
        return {
            "miou": best.miou,
            "threshold": best.threshold,
            "per_class": {name: number(value) for name, value in zip(class_names, best.per_class, strict=True)},
            "curve": {"thresholds": self.thresholds.tolist(), "miou": self.miou().tolist()},
            "images": self.images,
        }

    def _codes(
        self, winner: NDArray[np.uint8], score: NDArray[np.float32], truth: NDArray[np.uint8]
    ) -> NDArray[np.intp]:
        """Return the code of each pixel's cell in `counts`: (pixels,) intp."""
        if self._scratch.size < winner.size:
            self._scratch = np.empty(winner.size, np.intp)
        codes = self._scratch[: winner.size]
        for start in range(0, winner.size, CHUNK):
            part = slice(start, start + CHUNK)
            pairs = truth[part].astype(np.uint16) * MASK_VALUES + winner[part]
            np.add(self._first_code.take(pairs), self._levels(score[part]), out=codes[part])
        return codes


def _confusions(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the confusion matrices (T, classes, classes) of counts (classes, classes, T + 1), background first."""
    above = counts[..., ::-1].cumsum(axis=-1)[..., -2::-1]  # pixels of a level above each threshold's index
    matrices = np.ascontiguousarray(np.moveaxis(above, -1, 0))
    matrices[..., BACKGROUND] += counts.sum(axis=(1, 2)) - matrices.sum(axis=-1)
    return matrices


def _first_codes(classes: int, levels: int) -> NDArray[np.intp]:
    """Return the code of level 0 for every pair of mask values: (true value · 256 + strongest class,) intp.

    Codes number the cells of the counts, behind one block for ignored pixels and before one for values of the
    truth that are no class.
    """
    blocks = np.arange(MASK_VALUES).clip(max=classes) + 1
    blocks[IGNORED] = 0
    return ((blocks[:, None] * classes + np.arange(MASK_VALUES)) * levels).reshape(-1)


class _Levels:
    """Counts the thresholds below each score, faster than a binary search.

    Floats that share their upper 16 bits form a bucket, and buckets of floats from 0 up are in order. A table
    gives the number of thresholds below a bucket; those inside it, mostly one or none, are compared in turn.
    """

    def __init__(self, edges: NDArray[np.float32]) -> None:
        """Prepare the table of thresholds (T,) float32, rising, from 0 up."""
        crowd = np.unique(_bucket(edges), return_counts=True)[1]
        self._below = np.searchsorted(_bucket(edges), np.arange(BUCKETS)).astype(np.intp)
        self._below[NEGATIVE_BUCKETS:] = 0
        self._next = np.append(edges, np.float32(np.inf))
        self._comparisons = int(crowd.max())

    def __call__(self, scores: NDArray[np.float32]) -> NDArray[np.intp]:
        """Return for every finite score the number of thresholds that it is above."""
        levels = self._below.take(_bucket(scores))
        for _ in range(self._comparisons):
            levels += scores > self._next.take(levels)
        return levels


def _bucket(values: NDArray[np.float32]) -> NDArray[np.uint32]:
    return np.right_shift(np.ascontiguousarray(values).view(np.uint32), np.uint32(16))
