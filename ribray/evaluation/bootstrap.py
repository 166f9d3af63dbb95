"""How far a mean IoU would be another, had other images of the same kind been judged: a bootstrap over images.

A Poisson bootstrap needs one pass: in every replicate an image counts w times, w drawn from a Poisson distribution of
mean 1. The weights come from a generator keyed by the image's id, so the order of the images, the number of workers
and a resume change nothing, and two methods judged on the same images see the same replicates. Weights and pixels are
integers, so that sums are exact.

Memory grows with replicates, classes and readings (thresholds), never with images: 31 MB for the two methods of a seed
with 81 classes and 30 thresholds.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from ribray.data.transforms import keyed_rng
from ribray.evaluation.confusion import Overlaps, mean_iou
from ribray.evaluation.mask_counts import MaskCounts
from ribray.evaluation.threshold_curve import ThresholdCurve

REPLICATES = 400
COVERAGE = 95.0
"""Percent of the replicates that lie in an interval."""
INTERVAL, MEANS = "miou_interval", "miou_replicates"
"""Names in a run's metrics: of the interval, [low, high] in percent, and of every replicate's mean IoU."""


class Bootstrap:
    """Pixel sums of every replicate, per class (background included) and reading, such as a seed's thresholds."""

    def __init__(self, classes: int, readings: int = 1, replicates: int = REPLICATES) -> None:
        self.images = 0
        # By class first: an image touches a few of them only. The third axis: intersection, union.
        self._sums = np.zeros((classes, replicates, 2, readings), np.int64)
        self._scratch = np.empty((replicates, 2, readings), np.int64)

    def add(self, id: str, overlaps: Overlaps) -> None:
        """Count one image, each image once."""
        weights = image_weights(id, len(self._scratch))[:, None, None]
        for index, *pixels in zip(*overlaps, strict=True):
            np.multiply(weights, np.stack(pixels), out=self._scratch)
            self._sums[index] += self._scratch
        self.images += 1

    def miou(self, reading: int = 0) -> NDArray[np.float64]:
        """Return each replicate's mean IoU in percent (replicates,), averaged as `ribray.evaluation.confusion.miou`."""
        intersection, union = np.moveaxis(self._sums[..., reading], (2, 0), (0, 2))
        return mean_iou(intersection, union)

    def interval(self, reading: int = 0) -> tuple[float, float] | None:
        """Return the percentile interval of the mean IoU in percent; None of one image, or without a pixel."""
        return _interval(self.miou(reading)) if self.images > 1 else None


def _interval(values: NDArray[np.float64]) -> tuple[float, float] | None:
    if np.isnan(values).all():
        return None
    low, high = np.nanpercentile(values, [50 - COVERAGE / 2, 50 + COVERAGE / 2])
    return float(low), float(high)


def gain_interval(before: Sequence[float | None], after: Sequence[float | None]) -> tuple[float, float] | None:
    """Return the percentile interval of a difference of mean IoUs, in points; both are `MEANS` of a run's metrics.

    A replicate weighs each image alike on both sides, so what makes images hard for both does not widen the interval.
    """
    return _interval(np.array(after, float) - np.array(before, float))


def image_weights(id: str, replicates: int = REPLICATES) -> NDArray[np.int64]:
    """Return how often each replicate counts an image: (replicates,)."""
    return keyed_rng("bootstrap", id).poisson(1.0, replicates)


C = TypeVar("C", MaskCounts, ThresholdCurve)


class Bootstrapped(Generic[C]):
    """Counts of all images together with the bootstrap of these."""

    def __init__(self, counts: C) -> None:
        self.counts: C = counts
        self._bootstrap = Bootstrap(counts.classes, counts.readings)

    @property
    def images(self) -> int:
        """The number of images counted."""
        return self.counts.images

    def merge(self, id: str, record: Mapping[str, Any]) -> None:
        """Add the counts of one image, as their `to_sparse` recorded them."""
        self.counts.merge_sparse(record)
        self._bootstrap.add(id, self.counts.overlaps(record))

    def summary(self, names: Sequence[str]) -> dict[str, Any]:
        """Return the summary of the counts by class names (background first), with the interval beside its mean IoU."""
        summary = self.counts.summary(names)
        interval = self._bootstrap.interval(self.counts.quoted()) if self.counts.has_foreground else None
        if interval is None:
            return {"miou": summary["miou"], INTERVAL: None, **summary}
        found = self._bootstrap.miou(self.counts.quoted()).tolist()
        means = [None if np.isnan(mean) else round(mean, 4) for mean in found]
        return {"miou": summary["miou"], INTERVAL: list(interval), MEANS: means, **summary}
